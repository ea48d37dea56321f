"""How often the embedded model is right on images it has never seen: ``python benchmarks/tiny_accuracy.py``.

For each kind of question, images are drawn from seeds that training never uses, with sizes from 88 to 160 pixels
(mostly no multiples of the patch) and jittered colours, positions and angles; each question is asked alone, through
the processor and greedy `generate`, and counts as right only when the whole answer is. Prints a table by kind and
number of things in the image, and one line of JSON.

With several formats (``--quantization none int4 int8 --kinds colour shape position count --images 1000``) all of them
answer the same questions, and a table compares each with the first: points lost, and the answers that became wrong and
right. "none" is the model as it is stored, in bfloat16.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import pixtral
from pixtral.assets import tiny_path
from pixtral.training.evaluate import HELD_OUT_SEED
from pixtral.training.questions import KINDS, Asker, Question
from pixtral.training.scenes import Scene, draw, sample_scene, sample_size

FORMATS = ("none", "int4", "int8")


@dataclasses.dataclass
class Tally:
    """What one format answered.

    Args:
        right: kind -> number of things in the image -> was the answer right.
        mistakes: in words.
        seconds: that it took.
    """

    right: dict[str, dict[int, list[bool]]]
    mistakes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def share(self, kind: str) -> float:
        """Right answers of a kind."""
        return float(np.mean(self.of(kind)))

    def of(self, kind: str) -> list[bool]:
        """Question by question."""
        return [value for values in self.right[kind].values() for value in values]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=tiny_path())
    parser.add_argument("--images", type=int, default=300, help="for each kind of question")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--quantization", nargs="+", choices=FORMATS, default=["none"])
    parser.add_argument("--quantize-vision", action="store_true")
    parser.add_argument("--activations", choices=("int8", "bf16"), default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show-mistakes", type=int, default=0, metavar="N")
    given = parser.parse_args()

    torch.set_num_threads(1)  # the model is too small for more
    tallies = {name: measure(given, name) for name in given.quantization}
    for name, tally in tallies.items():
        print(f"\n{name}\n{'kind':10}{'right':>8}" + "".join(f"{f'{n} things':>10}" for n in range(1, 6)))
        for kind, by_number in tally.right.items():
            cells = [f"{np.mean(by_number[n]):10.1%}" if by_number[n] else f"{'-':>10}" for n in range(1, 6)]
            print(f"{kind:10}{tally.share(kind):8.1%}" + "".join(cells))
        for line in tally.mistakes[: given.show_mistakes]:
            print(line)
    if len(tallies) > 1:
        compare(tallies, given.kinds)
    facts = {
        name: {
            "right": {kind: tally.share(kind) for kind in given.kinds},
            "all": float(np.mean([value for kind in given.kinds for value in tally.of(kind)])),
            "seconds": round(tally.seconds, 1),
        }
        for name, tally in tallies.items()
    }
    print(json.dumps({"images_per_kind": given.images, **facts}))


def measure(given: argparse.Namespace, quantization: str) -> Tally:
    """Ask every question."""
    how = {}
    if quantization != "none":
        how = {"quantization": quantization, "quantize_vision": given.quantize_vision, "activations": given.activations}
    processor = pixtral.AutoProcessor.from_pretrained(given.model)
    model = pixtral.LlavaForConditionalGeneration.from_pretrained(given.model, dtype=given.dtype, **how)
    tally = Tally({kind: collections.defaultdict(list) for kind in given.kinds})
    started = time.perf_counter()
    for kind, scene, question, inputs in questions(processor, given.kinds, given.images, given.seed):
        inputs = inputs.to(model.dtype)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        tally.right[kind][len(scene.things)].append(answer == question.answer)
        if answer != question.answer:
            tally.mistakes.append(f"{kind}: {question.text} -> {answer} (right: {question.answer})")
    tally.seconds = time.perf_counter() - started
    return tally


def questions(processor: Any, kinds: Sequence[str], each: int, seed: int) -> Iterator[tuple[str, Scene, Question, Any]]:
    """`each` questions of each kind on held-out images: (kind, scene, question, model inputs)."""
    for kind in kinds:
        rng = np.random.default_rng([HELD_OUT_SEED, seed, KINDS.index(kind)])
        asked = 0
        while asked < each:
            scene = sample_scene(rng, *sample_size(rng))
            question = Asker(scene, rng).one(kind)
            if question is None:
                continue
            asked += 1
            content = [
                {"type": "image", "image": Image.fromarray(draw(scene))},
                {"type": "text", "text": question.text},
            ]
            yield (
                kind,
                scene,
                question,
                processor.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
                ),
            )


def compare(tallies: dict[str, Tally], kinds: list[str]) -> None:
    """Each format beside the first, on the same questions; the deviation is that of the difference over questions."""
    first, *others = tallies
    before = np.array([value for kind in kinds for value in tallies[first].of(kind)])
    print(f"\n{len(before)} questions{'right':>12}{'points lost':>14}{'became wrong':>15}{'became right':>15}")
    print(f"{first:14}{before.mean():10.2%}")
    for name in others:
        after = np.array([value for kind in kinds for value in tallies[name].of(kind)])
        change = before.astype(int) - after.astype(int)
        lost = f"{100 * change.mean():.2f} ± {100 * change.std() / len(change) ** 0.5:.2f}"
        print(f"{name:14}{after.mean():10.2%}{lost:>14}{(change > 0).sum():15}{(change < 0).sum():15}")


if __name__ == "__main__":
    main()
