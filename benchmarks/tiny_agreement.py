"""Do settings that should change nothing, or little, change answers? ``python benchmarks/tiny_agreement.py``

Asks the embedded model held-out questions of every kind, each alone and greedy, first as it is and then with prompt
lookup, with keys and values in 8 bits, and with both. For each it prints how many answers are the same token by token,
and how many are right. With --past-the-end answers go on for --new tokens whatever the model says: text that it was
never taught, where its next choices are often close to each other, so that the last bits of sums decide some of them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from tiny_accuracy import questions

import pixtral
from pixtral.assets import tiny_path
from pixtral.training.questions import KINDS

WAYS: dict[str, dict[str, Any]] = {
    "prompt lookup": {"prompt_lookup_num_tokens": 10},
    "bf16 cache": {"kv_cache": "bf16"},
    "both": {"prompt_lookup_num_tokens": 10, "kv_cache": "bf16"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=60, help="of each kind")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=("int4", "int8"))
    parser.add_argument("--past-the-end", action="store_true")
    parser.add_argument("--new", type=int, default=48)
    given = parser.parse_args()

    processor = pixtral.AutoProcessor.from_pretrained(tiny_path())
    model = pixtral.LlavaForConditionalGeneration.from_pretrained(
        tiny_path(), dtype=given.dtype, quantization=given.quantization
    )
    settings: dict[str, Any] = {"max_new_tokens": given.new, "do_sample": False}
    if given.past_the_end:
        settings["eos_token_id"] = None
    same, right = dict.fromkeys(WAYS, 0), dict.fromkeys(("as it is", *WAYS), 0)
    total = 0
    for _, _, question, inputs in questions(processor, KINDS, given.questions, seed=5):
        prompt = inputs["input_ids"].shape[1]
        inputs = inputs.to(model.dtype)
        answers = {}
        for name, way in {"as it is": {}, **WAYS}.items():
            with torch.inference_mode():
                answers[name] = model.generate(**inputs, **settings, **way)[0, prompt:]
        total += 1
        for name, ids in answers.items():
            right[name] += processor.decode(ids, skip_special_tokens=True) == question.answer
            if name in same:
                same[name] += ids.equal(answers["as it is"])
    print(f"{'':16}{'the same':>10}{'right':>10}   of {total} questions, {model.dtype}")
    for name, count in right.items():
        print(f"{name:16}{'' if name not in same else f'{same[name] / total:.1%}':>10}{count / total:10.1%}")
    print(json.dumps({**vars(given), "questions": total, "same": same, "right": right}))


if __name__ == "__main__":
    main()
