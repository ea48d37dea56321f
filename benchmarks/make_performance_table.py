"""The tables and the plot of docs/performance.md out of results: no figure on that page is typed by hand.

    python benchmarks/make_performance_table.py [RESULTS.json ...]

Reads what `pixtral bench --json`, `compare_llamacpp.py --out`, bench_twins.py and bench_loading.py (the last line of
each) gave, in benchmarks/results/*.json when none is named. Writes the tables between the markers of
docs/performance.md, and docs/images/shares.svg: how much of the machine's own limits every phase reaches.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
PLOT = HERE.parent / "docs" / "images" / "shares.svg"
BEGIN, END = "<!-- figures: written by benchmarks/make_performance_table.py -->", "<!-- end of figures -->"
LIMITS = {"read": "reading", "int8": "int8", "bf16": "bf16", "mixed": "int8 and bf16"}
# Read on white and on black alike.
TEXT, GRID, COLOURS = (
    "#7a808a",
    "#7a808a40",
    {"read": "#3d8fd1", "int8": "#d9822b", "bf16": "#4f9d5b", "mixed": "#a0679e"},
)


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=pathlib.Path)
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    parser.add_argument("--plot", type=pathlib.Path, default=PLOT)
    args = parser.parse_args()
    files = args.results or sorted((HERE / "results").glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    benches = [report for report in found if report["benchmark"] == "pixtral bench"]
    comparisons = [report for report in found if report["benchmark"] == "compare_llamacpp"]
    parts = [comparison_table(report) for report in comparisons] + [bench_table(report) for report in benches]
    parts += [twins_table(report) for report in found if report["benchmark"] == "bench_twins"]
    parts += [loading_table(report) for report in found if report["benchmark"] == "bench_loading"]
    page = args.page.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    args.page.write_text(f"{head}{BEGIN}\n\n{chr(10).join(parts)}\n{END}{tail}", encoding="utf-8")
    if benches:
        plot(benches, args.plot)
    print(f"{len(comparisons)} comparisons and {len(benches)} reports in {args.page} and {args.plot}")


def comparison_table(report: dict[str, Any]) -> str:
    """Ours, llama.cpp's, and the ratio beside what is asked for."""
    ours, theirs = report["pixtral"][0], report["llama.cpp"][0]
    lines = [
        f"**Beside llama.cpp {theirs['version']}** ({provenance(ours)}, medians of {len(report['pixtral'])} rounds in "
        "turns; `python benchmarks/compare_llamacpp.py`)\n",
        "| | pixtral | llama.cpp | ratio | must | aim |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        sign = "≥" if row["must"] <= row["aim"] else "≤"
        lines.append(
            f"| {row['title']} | {row['ours']:.2f} | {row['theirs']:.2f} | **{row['ratio']:.2f} x** | "
            f"{sign} {row['must']:.2f} | {sign} {row['aim']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def bench_table(report: dict[str, Any]) -> str:
    """Every phase of one report, with the share of the limit that it reaches."""
    ceilings = report["ceilings"]
    lines = [
        f"**{title(report)}** ({provenance(report)}; `{command(report)}`). "
        f"Limits: reading {ceilings['read_gb_s']} GB/s, int8 {ceilings['int8_top_s']} TOP/s, "
        f"bf16 {ceilings['bf16_top_s']} TOP/s.\n",
        "| | figure | GB/s | TOP/s | of the limit |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, figure, phase in phases(report):
        share = f"{phase['share']:.0%} of {LIMITS[phase['limit']]}"
        lines.append(f"| {name} | {figure} | {phase['gb_s']:.1f} | {phase['top_s']:.3f} | {share} |")
    figures = report["figures"]
    memory, load = figures["memory"], figures["load"]
    if memory is not None:
        peak = memory.get("all_layers_peak_gb", memory["peak_gb"])
        lines.append(f"| resident while answering, {memory['context']:,} tokens in the cache | {peak:.2f} GB | | | |")
    lines.append(f"| made in | {load['seconds']:.0f} s | | | |")
    return "\n".join(lines) + "\n"


def twins_table(report: dict[str, Any]) -> str:
    """Each fast path beside its slow twin."""
    lines = [
        f"**Single operations beside their twins** ({provenance(report)}; `python benchmarks/bench_twins.py`)\n",
        "| | kernels | PyTorch | times |",
        "|---|---:|---:|---:|",
    ]
    for one in report["operations"]:
        times = one["twin_ms"] / one["ms"]
        lines.append(f"| {one['operation']} | {one['ms']:.2f} ms | {one['twin_ms']:.2f} ms | {times:.1f} |")
    return "\n".join(lines) + "\n"


def loading_table(report: dict[str, Any]) -> str:
    """Quantizing and mapping a part of a large checkpoint."""
    loading, stored, bounds = report["loading"], report["stored"], report["all_layers_seconds_at_most"]
    part = f"{report['layers']} of {report['of_layers']} decoder layers, {report['plain_gb']} GB in bfloat16"
    return (
        f"**Loading {report['shape']}** ({part}, cached; `python benchmarks/bench_loading.py --dir FOLDER`)\n\n"
        "| | seconds | all layers, at most |\n|---|---:|---:|\n"
        f"| quantized to {report['to']} while loading; peak {loading['peak_gb']} GB, {loading['after_gb']} GB "
        f"afterwards | {loading['seconds']:.1f} | {bounds['loading']} |\n"
        f"| `pixtral quantize` | {report['quantizing_seconds']:.1f} | {bounds['quantizing']} |\n"
        f"| its result mapped and ready | {stored['seconds']:.2f} | |\n"
    )


def phases(report: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, figure, phase) of everything that was timed."""
    figures = report["figures"]
    tower = "8 bits" if (report["model"]["quantization"] or {}).get("quantize_vision") else "bf16"
    found = [
        (f"image {one['side']} x {one['side']}, {tower}", f"{one['seconds']:.2f} s", one) for one in figures["image"]
    ]
    prompt = figures["prompt"]
    found.append((f"prompt, {prompt['tokens']:,} tokens", f"{prompt['tokens_per_second']:.1f} tokens/s", prompt))
    found += [
        (f"image {one['side']} and question to first token", f"{one['seconds']:.1f} s", one)
        for one in figures["first_token"]
    ]
    found += [
        (f"new tokens, context {one['context']:,}", f"{one['tokens_per_second']:.2f} tokens/s", one)
        for one in figures["new"]
    ]
    return found


def title(report: dict[str, Any]) -> str:
    """The model, its weights and its cache in a few words."""
    model = report["model"]
    scheme = model["quantization"]
    bits = model["dtype"] if scheme is None else f"int{scheme['bits']}"
    tower = ", tower in 8 bits" if scheme and scheme.get("quantize_vision") else ""
    cache = f", cache in {report['settings']['kv_cache']}" if report["settings"]["kv_cache"] else ""
    part = (
        "" if model["layers"] == model["of_layers"] else f", {model['layers']} of {model['of_layers']} layers, scaled"
    )
    return f"{model['name']}, {model['weights']} weights, {bits}{tower}{cache}{part}"


def provenance(report: dict[str, Any]) -> str:
    """On what, with what, when."""
    machine = report["machine"]
    return (
        f"{machine['threads']} threads of {machine['cpu']} ({', '.join(machine['features'])}), kernels "
        f"{machine['kernels'] or 'none'}, torch {machine['torch']}, {report['date'][:10]}"
    )


def command(report: dict[str, Any]) -> str:
    """What prints such a report."""
    model, settings = report["model"], report["settings"]
    words = ["pixtral bench"]
    words.append(f"--shape {model['name']} --random" if model["weights"] == "random" else model["name"])
    scheme = model["quantization"]
    if scheme and "bits" in scheme:
        words.append(f"--quantization int{scheme['bits']}")
        words += ["--quantize-vision"] if scheme["quantize_vision"] else []
        words += [] if scheme["activations"] == "int8" else [f"--activations {scheme['activations']}"]
    words += [f"--kv-cache {settings['kv_cache']}"] if settings["kv_cache"] else []
    words += [f"--layers {model['layers']}"] if model["layers"] < model["of_layers"] else []
    words += [f"--image {side}" for side in settings["images"]]
    words += [f"--context {context}" for context in settings["contexts"]]
    words.append(f"--prompt {settings['prompt']} --new {settings['new']} --repeat {settings['repeat']}")
    return " ".join(words)


def plot(reports: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Bars: the share of its limit that each phase reaches, one group for each report."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pixtral", "font.family": "sans-serif"})
    names, shares, limits = [], [], []
    for report in reports:
        numbers = title(report).split(", ", 2)[2]  # without the model's name and whose weights they are
        for name, value, phase in phases(report):
            best = (report["machine"]["features"] or ["portable"])[-1]
            names.append(f"{name}  ({value})" if len(reports) == 1 else f"{name}  ({value}) · {numbers}, {best}")
            shares.append(100 * phase["share"])
            limits.append(phase["limit"])
    figure, axes = pyplot.subplots(figsize=(8.5, 0.7 + 0.34 * len(names)))
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    places = range(len(names))[::-1]
    axes.barh(places, shares, color=[COLOURS[limit] for limit in limits], height=0.62)
    for place, share in zip(places, shares, strict=True):
        axes.text(share + 1, place, f"{share:.0f} %", va="center", color=TEXT, fontsize=9)
    axes.set_yticks(list(places), names, color=TEXT, fontsize=9)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)], color=TEXT, fontsize=9)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[limit]) for limit in LIMITS if limit in limits]
    labels = [f"limit: {LIMITS[limit]}" for limit in LIMITS if limit in limits]
    axes.legend(
        handles,
        labels,
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
        ncols=len(labels),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
