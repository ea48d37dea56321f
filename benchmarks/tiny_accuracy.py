"""How often the embedded model is right on pictures it has never seen: ``python benchmarks/tiny_accuracy.py``.

For each kind of question, pictures are drawn from seeds that training never uses, with sizes from 88 to 160 pixels
(mostly no multiples of the patch) and jittered colours, positions and angles; each question is asked alone, through
the processor and greedy `generate`, and counts as right only when the whole answer is. Prints a table by kind and
number of things in the picture, and one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import time

import numpy as np
import torch
from PIL import Image

import pixtral
from pixtral.assets import tiny_path
from pixtral.training.evaluate import HELD_OUT_SEED
from pixtral.training.pictures import draw, sample_scene, sample_size
from pixtral.training.questions import KINDS, Asker


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=tiny_path())
    parser.add_argument("--pictures", type=int, default=300, help="for each kind of question")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show-mistakes", type=int, default=0, metavar="N")
    given = parser.parse_args()

    processor = pixtral.AutoProcessor.from_pretrained(given.model)
    model = pixtral.LlavaForConditionalGeneration.from_pretrained(given.model)
    right: dict[str, dict[int, list[bool]]] = {kind: collections.defaultdict(list) for kind in KINDS}
    mistakes: list[str] = []
    started = time.perf_counter()
    for index, kind in enumerate(KINDS):
        rng = np.random.default_rng([HELD_OUT_SEED, given.seed, index])
        while sum(map(len, right[kind].values())) < given.pictures:
            scene = sample_scene(rng, *sample_size(rng))
            question = Asker(scene, rng).one(kind)
            if question is None:
                continue
            content = [
                {"type": "image", "image": Image.fromarray(draw(scene))},
                {"type": "text", "text": question.text},
            ]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            ).to(model.dtype)
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
            answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right[kind][len(scene.things)].append(answer == question.answer)
            if answer != question.answer:
                mistakes.append(f"{kind}: {question.text} -> {answer} (right: {question.answer})")
    print(f"{'kind':10}{'right':>8}" + "".join(f"{f'{n} things':>10}" for n in range(1, 6)))
    shares = {}
    for kind, by_number in right.items():
        every = [value for values in by_number.values() for value in values]
        shares[kind] = sum(every) / len(every)
        cells = [f"{np.mean(by_number[n]):10.1%}" if by_number[n] else f"{'-':>10}" for n in range(1, 6)]
        print(f"{kind:10}{shares[kind]:8.1%}" + "".join(cells))
    for line in mistakes[: given.show_mistakes]:
        print(line)
    seconds = time.perf_counter() - started
    print(json.dumps({"pictures_per_kind": given.pictures, "right": shares, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
