"""pixtral beside llama.cpp at Pixtral-12B's shapes, in the same hour: taking turns, medians, ratios.

    python benchmarks/compare_llamacpp.py --llama-python ENVIRONMENT/bin/python --dir FOLDER [--rounds 3] [--out FILE]

Both have random 4-bit weights, the same threads, and nothing else on the machine (see that it is so). In every round
llama.cpp measures (llamacpp_peer.py, in an environment of its own; FOLDER gets 8 GB the first time), then
`pixtral bench`. Prints a table, and says whether the required ratios are reached. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
# What is asked for, as a bound on our figure over llama.cpp's: phase -> (must, aim). Of seconds at most, of tokens/s at
# least.
REQUIRED = {
    "prompt": (2.5, 3.2),
    "new": (1.0, 1.1),
    "image": (0.42, 0.36),
    "image_8bit": (0.28, 0.22),
    "first_token": (0.42, 0.33),
}
TITLES = {
    "prompt": "prompt tokens/s",
    "new": "new tokens/s",
    "image": "image, bf16, s",
    "image_8bit": "image, 8 bits, s",
    "first_token": "image to first token, s",
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="interpreter of an environment with llama-cpp-python")
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=1056)
    parser.add_argument("--context", type=int, default=1100)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--shape", default="pixtral-12b", help="of ours; another one only to try this program")
    parser.add_argument("--out", type=pathlib.Path, help="write the JSON to this file too")
    args = parser.parse_args()
    shared = {name: str(getattr(args, name)) for name in ("threads", "image", "prompt", "context", "new")}
    theirs: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    quantized_tower: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        theirs.append(run_llamacpp(args, shared))
        ours.append(run_pixtral(args.shape, shared))
        quantized_tower.append(run_pixtral(args.shape, {**shared, "prompt": "32", "new": "1"}, "--quantize-vision"))
        print(f"round {len(ours)}: {figures_of(ours[-1])} against {figures_of(theirs[-1])}", flush=True)
    rows = compare(ours, quantized_tower, theirs)
    for row in rows:
        print(
            f"{row['title']:28}{row['ours']:9.2f}{row['theirs']:9.2f}{row['ratio']:8.2f} x   "
            f"must {row['must']:.2f}, aim {row['aim']:.2f}: {row['verdict']}"
        )
    result = {"benchmark": "compare_llamacpp", "rows": rows, "pixtral": ours, "quantize_vision": quantized_tower}
    result["llama.cpp"] = theirs
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def run_llamacpp(args: argparse.Namespace, shared: dict[str, str]) -> dict[str, Any]:
    """One run of the peer."""
    return last_json([args.llama_python, str(HERE / "llamacpp_peer.py"), "--dir", str(args.dir), *flags(shared)])


def run_pixtral(shape: str, shared: dict[str, str], *more: str) -> dict[str, Any]:
    """One run of `pixtral bench`."""
    command = [sys.executable, "-m", "pixtral.cli", "bench", "--shape", shape, "--random", "--quantization", "int4"]
    return last_json([*command, "--repeat", "1", "--json", *more, *flags(shared)])


def flags(values: dict[str, str]) -> list[str]:
    """{"new": "8"} -> ["--new", "8"]."""
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def last_json(command: list[str]) -> dict[str, Any]:
    """What a program prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def figures_of(report: dict[str, Any]) -> dict[str, float]:
    """Phase -> seconds, or tokens/s, of one report of either program."""
    figures = report.get("figures", report)
    found = {}
    for phase in ("prompt", "new", "image", "first_token"):
        one = figures[phase][0] if isinstance(figures[phase], list) else figures[phase]
        found[phase] = one["seconds"] if phase in ("image", "first_token") else one["tokens_per_second"]
    return found


def compare(
    ours: list[dict[str, Any]], quantized_tower: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each requirement, from the medians of the rounds; the ratio is the median of the rounds' ratios."""
    mine = [figures_of(report) for report in ours]
    for figures, quantized in zip(mine, quantized_tower, strict=True):
        figures["image_8bit"] = figures_of(quantized)["image"]
    other = [figures_of(report) for report in theirs]
    for figures in other:
        figures["image_8bit"] = figures["image"]
    rows = []
    for phase, (must, aim) in REQUIRED.items():
        ratio = statistics.median(a[phase] / b[phase] for a, b in zip(mine, other, strict=True))
        at_least = must <= aim
        reached = [ratio >= bound if at_least else ratio <= bound for bound in (aim, must)]
        verdict = "aim reached" if reached[0] else "reached" if reached[1] else "MISSED"
        rows.append(
            {
                "phase": phase,
                "title": TITLES[phase],
                "ours": statistics.median(figures[phase] for figures in mine),
                "theirs": statistics.median(figures[phase] for figures in other),
                "ratio": round(ratio, 3),
                "must": must,
                "aim": aim,
                "verdict": verdict,
            }
        )
    return rows


if __name__ == "__main__":
    main()
