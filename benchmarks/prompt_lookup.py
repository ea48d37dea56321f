"""New tokens per second with and without prompt lookup: ``python benchmarks/prompt_lookup.py --shape mid``.

A document of random words is the prompt, and the answer reads from it. Which words come is forced, by a function that
edits the scores before they are chosen from; everything else is the work of a real answer: the same forward passes,
drafts looked up, checked and rejected, as with a model that reads aloud by itself. So it can be measured on any model,
with weights of any kind, and at every accuracy of the drafts:

    aloud     the document, word for word
    run N     N words from some place of the document, then one that stands nowhere, then N from another place
    shuffled  words of the document in an order of their own: almost every draft is wrong, which shows what that costs

Each line takes its turns with and without, alternating; medians count. The document is not read first: its keys and
values are drawn at random (`pixtral.bench.random_model`), which takes no time and changes none. Prints a table and
one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

import pixtral
from pixtral.bench.measured_model import model_of_shape
from pixtral.bench.random_model import FilledContext
from pixtral.bench.settings import Settings
from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.errors import PixtralError
from pixtral.generation.loop import Generation, Prompt
from pixtral.quantization import QuantizationArguments


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or Hub id, instead of a --shape")
    parser.add_argument("--shape", default="mid", help="random weights: pixtral-12b, pixtral-large, mid, tiny")
    parser.add_argument("--layers", type=int, help="only so many layers of the shape's decoder")
    parser.add_argument("--quantization", choices=("int4", "int8"))
    parser.add_argument("--kv-cache", choices=("bf16", "int8"))
    parser.add_argument("--lookup", type=int, default=10, metavar="N", help="prompt_lookup_num_tokens")
    parser.add_argument("--ngram", type=int, default=2, metavar="N", help="max_matching_ngram_size")
    parser.add_argument("--context", type=int, default=1100, help="words of the document")
    parser.add_argument("--new", type=int, default=96, help="tokens of the answer")
    parser.add_argument("--runs", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    try:
        model = load(given)
        measure(model, given)
    except PixtralError as error:
        parser.exit(1, f"error: {error}\n")


def load(given: argparse.Namespace) -> Any:
    """The model to be measured."""
    if given.model is not None:
        return pixtral.LlavaForConditionalGeneration.from_pretrained(given.model, quantization=given.quantization)
    settings = Settings(images=(), prompt=1, new=given.new, contexts=(given.context,), memory_context=given.context)
    return model_of_shape(given.shape, QuantizationArguments(given.quantization), settings, given.layers).model


def measure(model: Any, given: argparse.Namespace) -> None:
    """All lines of the table."""
    lookup = PromptLookup(given.lookup, given.ngram)
    rng, vocabulary = random.Random(0), model.text_config.vocab_size
    document = [rng.randrange(vocabulary // 4, vocabulary // 2) for _ in range(given.context)]
    others = itertools.cycle(range(vocabulary // 2, vocabulary))
    answers = {"aloud": aloud(document, given.new)}
    answers |= {f"run {n}": runs(document, given.new, n, rng, others) for n in given.runs}
    answers["shuffled"] = [rng.choice(document) for _ in range(given.new)]
    print(f"{'answer':10}{'tokens/s':>10}{'with':>10}{'ratio':>8}{'tokens/pass':>13}{'rows/pass':>11}")
    report = []
    for name, answer in answers.items():
        with torch.inference_mode():
            timed = [
                [answer_once(model, document, answer, given, one) for one in (None, lookup)]
                for _ in range(given.repeat)
            ]
        plain, ahead = (statistics.median(pair[i][0] for pair in timed) for i in (0, 1))
        _, passes, rows = timed[0][1]
        after = len(answer) - 1  # the first token comes with the prompt
        line = {
            "answer": name,
            "tokens_s": after / plain,
            "with_tokens_s": after / ahead,
            "ratio": plain / ahead,
            "tokens_per_pass": after / passes,
            "rows_per_pass": rows / passes,
        }
        report.append({key: value if isinstance(value, str) else round(value, 3) for key, value in line.items()})
        print(
            f"{name:10}{line['tokens_s']:10.1f}{line['with_tokens_s']:10.1f}{line['ratio']:8.2f}"
            f"{line['tokens_per_pass']:13.2f}{line['rows_per_pass']:11.2f}",
            flush=True,
        )
    facts = {key: value for key, value in vars(given).items() if key != "runs"}
    print(json.dumps({**facts, "threads": torch.get_num_threads(), "lines": report}))


def aloud(document: list[int], length: int) -> list[int]:
    """The document from its first word, again and again if it is short."""
    return (document * (1 + length // len(document)))[:length]


def runs(document: list[int], length: int, size: int, rng: random.Random, others: Iterator[int]) -> list[int]:
    """`size` words from some place, a word that stands nowhere, `size` from another place, and so on."""
    answer: list[int] = []
    while len(answer) < length:
        place = rng.randrange(len(document) - size)
        answer += [*document[place : place + size], next(others)]
    return answer[:length]


class Counted(FilledContext):
    """A model that counts the passes and rows behind the prompt."""

    passes = rows = 0

    def forward_packed(self, embeds: Any, positions: Any, packing: Any, cache: Any, wanted: Any) -> Any:
        """As the model's own."""
        if cache.lengths[0] >= self.drawn:
            self.passes, self.rows = self.passes + 1, self.rows + len(embeds)
        return super().forward_packed(embeds, positions, packing, cache, wanted)


def answer_once(
    model: Any, document: list[int], answer: list[int], given: argparse.Namespace, lookup: PromptLookup | None
) -> tuple[float, int, int]:
    """Seconds, passes and rows of all tokens behind the first."""
    counted = Counted(model, len(document))
    embeds = torch.empty(len(document), model.text_config.hidden_size, dtype=model.dtype)
    embeds[-1:] = model.embed(torch.tensor(document[-1:]))
    prompts = [Prompt(embeds, tuple(document))]
    params = [SamplingParams(temperature=0, max_tokens=len(answer))]

    def force(scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
        scores = scores.clone()
        scores[0, answer[len(generation.sequences[0].new_ids)]] = 1e4
        return scores

    generation = Generation(counted, prompts, params, edit=force, kv_cache=given.kv_cache, prompt_lookup=lookup)
    generation.step()
    passes, rows, started = counted.passes, counted.rows, time.perf_counter()
    for _ in generation:
        pass
    seconds = time.perf_counter() - started
    assert generation.sequences[0].new_ids == answer
    return seconds, counted.passes - passes, counted.rows - rows


if __name__ == "__main__":
    main()
