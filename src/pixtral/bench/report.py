"""The report of a benchmark: as plain values for JSON, and as a table."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pixtral.bench.ceilings import Meter
from pixtral.bench.machine import Resident, describe
from pixtral.bench.measure import Bench
from pixtral.bench.measured_model import MeasuredModel
from pixtral.bench.settings import Settings
from pixtral.bench.work import linear_work
from pixtral.engine.model import cache_dtype
from pixtral.ops.kv_cache import token_bytes
from pixtral.ops.native.library import kernels

SCHEMA = 1  # version of the values; raised when a name changes its meaning
COLUMNS = ("", "figure", "", "GB/s", "TOP/s", "of the limit")
_LIMITS = {"read": "reading", "int8": "int8", "bf16": "bf16", "mixed": "int8 + bf16"}


def measure(measured: MeasuredModel, settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    """Measure the machine, then every phase of the model.

    Args:
        log: gets a line before each step.
    """
    threads = torch.get_num_threads()
    log("measuring what the machine can do")
    bench = Bench(measured.model, settings, Meter(threads), of_layers=measured.of_layers)
    figures: dict[str, Any] = {"load": measured.load, "image": [], "first_token": [], "new": []}
    for side in settings.images:
        log(f"image of {side} x {side} pixels")
        figures["image"].append({"side": side, **bench.image(side).to_dict()})
    log(f"prompt of {settings.prompt} tokens")
    figures["prompt"] = bench.prompt().to_dict()
    for side in settings.images:
        log("from an image and a question to the first token")
        figures["first_token"].append({"side": side, **bench.first_token(side).to_dict()})
    for context in settings.contexts:
        log(f"new tokens after {context}")
        figures["new"].append({"context": context, **bench.new(context).to_dict()})
    log(f"memory with {settings.memory_context} tokens in the cache")
    figures["memory"] = _memory(bench.memory(), measured, settings)
    library = kernels()
    return {
        "benchmark": "pixtral bench",
        "schema": SCHEMA,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": describe(None if library is None else library.isa, threads),
        "model": measured.facts,
        "settings": dataclasses.asdict(settings),
        "ceilings": bench.ceilings.to_dict(),
        "figures": figures,
    }


def _memory(found: Resident | None, measured: MeasuredModel, settings: Settings) -> dict[str, Any] | None:
    """In gigabytes; where layers are missing, also an estimate for all of them."""
    if found is None:
        return None
    facts: dict[str, Any] = {
        "context": settings.memory_context,
        "peak_gb": round(found.peak / 1e9, 3),
        "own_gb": round(found.own / 1e9, 3),
        "mapped_gb": round(found.mapped / 1e9, 3),
    }
    layers = measured.model.text_config.num_hidden_layers
    if layers < measured.of_layers:
        weights = linear_work(measured.model.decoder.layers.modules(), 1).bytes
        cache = (
            token_bytes(measured.model.text_config, cache_dtype(settings.kv_cache, measured.model.dtype))
            * settings.memory_context
        )
        left_out = (weights + cache) / layers * (measured.of_layers - layers)
        facts["all_layers_peak_gb"] = round((found.peak + left_out) / 1e9, 3)
    return facts


def summary(report: dict[str, Any]) -> list[str]:
    """The model and the machine, in lines above the table."""
    machine, model, ceilings = report["machine"], report["model"], report["ceilings"]
    scheme = model["quantization"]
    bits = model["dtype"] if scheme is None else _scheme_name(scheme)
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    cache = report["settings"]["kv_cache"] or model["dtype"]
    lines = [
        f"{model['name']}: {weights}, {bits}, cache {cache}, {model['weight_gb']:.2f} GB",
        f"{machine['cpu']}, {machine['threads']} threads, kernels: {machine['kernels'] or 'none, plain PyTorch'}, "
        f"torch {machine['torch']}",
        f"limits: reading {ceilings['read_gb_s']:.1f} GB/s, int8 {ceilings['int8_top_s']:.2f} TOP/s, "
        f"bf16 {ceilings['bf16_top_s']:.2f} TOP/s (measured with {ceilings['measured_with']})",
    ]
    if model["layers"] < model["of_layers"]:
        lines.append(
            f"only {model['layers']} of {model['of_layers']} layers were there: seconds and tokens/s below are scaled "
            "to all of them, GB/s and TOP/s are as measured"
        )
    return lines


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table under COLUMNS."""
    figures = report["figures"]
    table = [_row(f"image {f['side']} x {f['side']}", f"{f['seconds']:.2f} s", "", f) for f in figures["image"]]
    prompt = figures["prompt"]
    table.append(_row(f"prompt of {prompt['tokens']:,}", _rate(prompt), f"{prompt['seconds']:.2f} s", prompt))
    for found in figures["first_token"]:
        what = f"first token, image {found['side']}"
        table.append(_row(what, f"{found['seconds']:.2f} s", f"{found['tokens']:,} tokens", found))
    for found in figures["new"]:
        what = f"new tokens after {found['context']:,}"
        table.append(_row(what, _rate(found), f"{1000 * found['seconds']:.1f} ms each", found))
    memory, load = figures["memory"], figures["load"]
    if memory is not None:
        peak = memory.get("all_layers_peak_gb", memory["peak_gb"])
        split = f"{memory['own_gb']:.2f} own + {memory['mapped_gb']:.2f} mapped"
        table.append((f"memory at {memory['context']:,}", f"{peak:.2f} GB", split, "", "", ""))
    peak_gb = "" if load["peak_gb"] is None else f"peak {load['peak_gb']:.2f} GB"
    made = "made in" if report["model"]["weights"] == "random" else "loaded in"
    table.append((made, f"{load['seconds']:.1f} s", peak_gb, "", "", ""))
    return table


def _row(what: str, figure: str, also: str, phase: dict[str, Any]) -> tuple[str, ...]:
    share = f"{phase['share']:.0%} of {_LIMITS[phase['limit']]}"
    return (what, figure, also, f"{phase['gb_s']:.1f}", f"{phase['top_s']:.3f}", share)


def _rate(phase: dict[str, Any]) -> str:
    return f"{phase['tokens_per_second']:.2f} tokens/s"


def _scheme_name(scheme: dict[str, Any]) -> str:
    """A short name of a quantization_config."""
    if "bits" not in scheme:
        return str(scheme.get("quant_method"))
    extra = ", 8-bit tower" if scheme.get("quantize_vision") else ""
    activations = "" if scheme.get("activations") == "int8" else f", {scheme.get('activations')} activations"
    return f"int{scheme['bits']}{extra}{activations}"


def peer_summary(peer: dict[str, Any]) -> str:
    """What was compared, in a line."""
    weights = "the same weights" if peer["same_weights"] else "random weights of its own"
    part = "" if peer["layers"] == peer["of_layers"] else f", {peer['layers']} of {peer['of_layers']} layers, scaled"
    return f"compared with {peer['name']} {peer['version']}, {peer['dtype']}, {weights}{part}"


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of (phase, ours, theirs, speedup) for the phases that both have."""
    lines: list[tuple[str, ...]] = []
    for name, unit in (("image", "s"), ("prompt", "tokens/s"), ("first_token", "s"), ("new", "tokens/s")):
        for mine, other in zip(_listed(ours.get(name)), _listed(theirs.get(name)), strict=False):
            if unit == "s":
                a, b, times = mine["seconds"], other["seconds"], other["seconds"] / mine["seconds"]
            else:
                a, b = mine["tokens_per_second"], other["tokens_per_second"]
                times = a / b
            lines.append((name.replace("_", " "), f"{a:.2f} {unit}", f"{b:.2f} {unit}", f"{times:.2f} x"))
    return lines


def _listed(found: Sequence[dict[str, Any]] | dict[str, Any] | None) -> Sequence[dict[str, Any]]:
    return () if found is None else [found] if isinstance(found, dict) else found
