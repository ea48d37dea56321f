"""Tokens per second of the bare engine and of `pixtral serve` around the same engine, with the same requests.

    python benchmarks/server_overhead.py [MODEL] [--clients 8] [--threads 1] [--rounds 3]

Engine and server take turns, each with requests that no cache knows, and the medians of the rounds count. The bare
engine's requests are token ids; the server gets JSON over HTTP, makes prompts of it and streams the answers to clients
in another process. Give it precedence over whatever else runs (chrt -f 5). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import load_client

import pixtral
from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import Engine
from pixtral.engine.request import EngineRequest
from pixtral.engine.sampling_params import SamplingParams


def requests_of(options: argparse.Namespace, turn: int) -> list[bytes]:
    """The bodies of one round; those of the engine and of the server differ in their seed alone."""
    load = argparse.Namespace(
        model=None, seed=turn, words=options.words, tokens=options.tokens, extra="{}", may_end=False
    )
    return [load_client.body(load, "text", number, "") for number in range(options.requests)]


def bare(assistant: Any, engine: Engine, options: argparse.Namespace, turn: int) -> float:
    """Tokens per second where nothing but the engine runs."""
    waiting = []
    for number, body in enumerate(requests_of(options, 2 * turn)):
        batch = assistant.processor.apply_chat_template(
            json.loads(body)["messages"], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
        waiting.append(EngineRequest(f"{turn} {number}", tuple(batch["input_ids"][0].tolist()), params))
    start = time.perf_counter()
    for _ in range(options.clients):
        engine.add_request(waiting.pop())
    while engine.has_unfinished:
        for output in engine.step():
            if output.finish_reason is not None and waiting:
                engine.add_request(waiting.pop())
    return options.requests * options.tokens / (time.perf_counter() - start)


def served(url: str, options: argparse.Namespace, turn: int) -> float:
    """Tokens per second that clients in another process get."""
    command = [
        sys.executable,
        load_client.__file__,
        "--base-url",
        url,
        "--clients",
        str(options.clients),
        "--seed",
        str(2 * turn + 1),
        "--requests",
        str(options.requests),
        "--tokens",
        str(options.tokens),
        "--words",
        str(options.words),
        "--warmup",
        "0",
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return float(json.loads(lines[-1])["runs"][0]["tokens_per_s"])


def main() -> None:
    """Print both, and how much the server takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder; the embedded model if left out")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of both; 1 for the embedded model, else as many as cores")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--words", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads = options.threads or (1 if options.model is None else None)
    flags = ["--port", "0", "--max-num-seqs", str(options.clients), "--log-level", "warning"]
    flags += [] if threads is None else ["--threads", str(threads)]
    command = [sys.executable, "-m", "pixtral.cli", "serve", *([options.model] if options.model else []), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            assistant = pixtral.load(options.model, threads=threads, progress=False)
            config = EngineConfig(max_num_seqs=options.clients)
            engine = Engine(
                assistant.model, config, tokenizer=assistant.processor.tokenizer, eos_token_ids=assistant.eos_token_ids
            )
            figures: dict[str, list[float]] = {"engine": [], "server": []}
            for turn in range(options.rounds + 1):
                pair = bare(assistant, engine, options, turn), served(url, options, turn)
                if turn:  # the first warms up
                    figures["engine"].append(round_to(pair[0]))
                    figures["server"].append(round_to(pair[1]))
                    print(f"engine {pair[0]:8.1f} tokens/s   server {pair[1]:8.1f} tokens/s", flush=True)
        finally:
            server.terminate()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    loss = 100 * (1 - medians["server"] / medians["engine"])
    print(f"the server takes {loss:.1f} % at {options.clients} clients")
    print(json.dumps({"options": vars(options), "tokens_per_s": figures, "loss_percent": round_to(loss)}))


def round_to(value: float) -> float:
    """One digit behind the point."""
    return round(value, 1)


if __name__ == "__main__":
    main()
