"""Put load on an OpenAI-compatible server, and print throughput and latencies. The last line is JSON.

Each of C clients sends its next streamed request as soon as its last one is answered, until all requests were sent.
Loads: `text`; `image`, a different image in every request; `same-image`, one image in all of them.

    python benchmarks/load_client.py --base-url http://127.0.0.1:8000 --clients 1 8 32 --loads text image same-image

Where the server runs on the same cores, give the client precedence (chrt -f 5), or its times are the scheduler's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any

from http_client import Connection, HttpError

WORDS = "time year people way day man thing woman life child world school state family group country hand part place"


@dataclasses.dataclass
class Answer:
    """One request: its times, its usage, or its error."""

    sent: float = 0.0
    pieces: list[float] = dataclasses.field(default_factory=list)
    ended: float = 0.0
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    @property
    def tokens(self) -> int:
        """New tokens by the server's count, or by pieces where it gives none."""
        return int(self.usage.get("completion_tokens", len(self.pieces)))


def image(side: int, seed: int) -> str:
    """A data: URI of a PNG of side x side pixels: blocks of random colours."""
    rng = random.Random(seed)
    lines = []
    for _ in range(0, side, 8):
        line = b"".join(rng.randbytes(3) * 8 for _ in range((side + 7) // 8))[: side * 3]
        lines += [b"\0" + line] * 8
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines[:side]), 1)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def body(options: argparse.Namespace, load: str, number: int, shared: str) -> bytes:
    """The request with this number."""
    rng = random.Random(f"{options.seed} {load} {number}")
    words = WORDS.split()
    content: Any = " ".join([f"Number {number}:", *(rng.choice(words) for _ in range(options.words))])
    if load != "text":
        url = shared if load == "same-image" else image(options.side, rng.randrange(1 << 60))
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
    fields = {
        "model": options.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": options.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **json.loads(options.extra),
    }
    if not options.may_end:
        fields["ignore_eos"] = True
    return json.dumps(fields).encode()


async def ask(connection: Connection, request: bytes, timeout: float) -> Answer:
    """Send a request and record the times of its answer."""
    answer, clock = Answer(), time.perf_counter
    answer.sent = clock()

    async def listen() -> None:
        async for event in connection.events("/v1/chat/completions", request):
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                if delta.get("content") or delta.get("tool_calls") or delta.get("reasoning_content"):
                    answer.pieces.append(clock())
            answer.usage = event.get("usage") or answer.usage

    try:
        await asyncio.wait_for(listen(), timeout)
    except (HttpError, asyncio.TimeoutError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
        connection.close()
    answer.ended = clock()
    return answer


async def measure(options: argparse.Namespace, load: str, clients: int) -> dict[str, Any]:
    """One load with so many clients."""
    count = options.requests or max(8, 4 * clients)
    shared = image(options.side, options.seed * 1_000_003 + clients)
    connections = [Connection(options.base_url, options.api_key) for _ in range(clients)]
    for number in range(options.warmup):
        await ask(connections[0], body(options, load, -1 - number, shared), options.timeout)
    requests = [body(options, load, clients * 100_000 + number, shared) for number in range(count)]
    numbers, answers = iter(range(count)), [Answer()] * count

    async def client(connection: Connection) -> None:
        for number in numbers:
            answers[number] = await ask(connection, requests[number], options.timeout)

    start = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    seconds = time.perf_counter() - start
    for connection in connections:
        connection.close()
    return {"load": load, "clients": clients, **summary(answers, seconds)}


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The figures of a run; times in milliseconds."""
    good = [answer for answer in answers if answer.error is None]
    errors = [answer.error for answer in answers if answer.error is not None]
    first = [1000 * (answer.pieces[0] - answer.sent) for answer in good if answer.pieces]
    gaps = [1000 * (b - a) for answer in good for a, b in zip(answer.pieces, answer.pieces[1:], strict=False)]
    each = [  # where a piece holds several tokens, the time between pieces is not that between tokens
        1000 * (answer.pieces[-1] - answer.pieces[0]) / (answer.tokens - 1)
        for answer in good
        if answer.pieces and answer.tokens > 1
    ]
    tokens = sum(answer.tokens for answer in good)
    usages = [answer.usage for answer in good]
    details = [usage.get("prompt_tokens_details") or {} for usage in usages]
    return {
        "requests": len(answers),
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(good) / seconds, 2),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "first_token_ms": {"p50": percentile(first, 0.5), "p95": percentile(first, 0.95), "max": percentile(first, 1)},
        "between_pieces_ms": {"p50": percentile(gaps, 0.5), "p95": percentile(gaps, 0.95), "max": percentile(gaps, 1)},
        "per_token_ms": {"p50": percentile(each, 0.5), "p95": percentile(each, 0.95), "max": percentile(each, 1)},
        "prompt_tokens": mean([usage.get("prompt_tokens", 0) for usage in usages]),
        "cached_tokens": mean([detail.get("cached_tokens") or 0 for detail in details]),
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """Between the two nearest values, in proportion.

    >>> percentile([1, 2, 3, 4], 0.5)
    2.5
    """
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return round(ordered[low] + (ordered[high] - ordered[low]) * (place - low), 2)


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of no values."""
    return round(sum(values) / len(values), 1) if values else None


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All loads with all numbers of clients."""
    if not options.model:
        connection = Connection(options.base_url, options.api_key)
        options.model = json.loads(await connection.get("/v1/models"))["data"][0]["id"]
        connection.close()
    results = []
    names = ("first token p50/p95 ms", "per token p50/p95 ms", "between pieces p50/p95 ms")
    print("load        clients  req/s  tokens/s ", *(f"{name:27}" for name in names), "errors")
    for load in options.loads:
        for clients in options.clients:
            result = await measure(options, load, clients)
            results.append(result)
            first, each, gaps = (
                f"{times['p50'] or '-':>11} / {times['p95'] or '-':<11}"
                for times in (result["first_token_ms"], result["per_token_ms"], result["between_pieces_ms"])
            )
            rates = f"{result['requests_per_s']:6} {result['tokens_per_s']:9}"
            print(f"{load:11} {clients:7} {rates}  {first}  {each}  {gaps}  {result['errors']:5}", flush=True)
    return results


def main() -> int:
    """Exit status 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="with or without /v1")
    parser.add_argument("--api-key")
    parser.add_argument("--model", help="the first that the server lists if left out")
    parser.add_argument("--loads", nargs="+", choices=("text", "image", "same-image"), default=["text"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--requests", type=int, help="of each run; four for each client, at least 8, if left out")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--words", type=int, default=85, help="of each prompt")
    parser.add_argument("--side", type=int, default=256, help="of images, in pixels")
    parser.add_argument("--warmup", type=int, default=1, help="requests before the clock starts")
    parser.add_argument("--seed", type=int, default=0, help="another one gives texts and images that no cache knows")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one request")
    parser.add_argument("--may-end", action="store_true", help="do not send ignore_eos, which is not OpenAI's")
    parser.add_argument("--extra", default="{}", help="JSON object of further fields")
    options = parser.parse_args()
    results = asyncio.run(run(options))
    chosen = {name: value for name, value in vars(options).items() if name not in ("api_key", "loads", "clients")}
    print(json.dumps({"options": chosen, "runs": results}))
    return 1 if any(result["errors"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
