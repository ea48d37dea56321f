"""Let many clients use a server for minutes, each answer checked; exit status 1 when anything was not as it should be.

    python benchmarks/soak.py --minutes 10

Starts `pixtral serve` (arguments behind -- go to it) and sends, from 32 clients at once: questions whose answers were
recorded on an idle server, greedy and seeded, with and without images; new questions with a number in each,
whose prompt and answer must cost exactly as many tokens as that number says; schemas that allow that number alone;
nonsense; and streams that the client ends in the middle. What must hold:

- no answer is lost, mixed up or changed by its neighbours, and its usage is the one of its question;
- no status of 500 or more; nonsense gets 4xx;
- in the end all blocks are free, caches are under their limits, and memory and open files are what they were after the
  warm-up (5 % more memory is allowed).

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from http_client import Connection, HttpError
from load_client import image

SHARES = {"recorded": 35, "new": 20, "image": 10, "schema": 15, "left": 15, "nonsense": 5}
# Small caches: they are full after the warm-up, so that blocks are taken back, images forgotten, answers preempted.
SETTINGS = ("--kv-cache-mb", "64", "--image-cache-mb", "4", "--log-level", "warning")
PATH = "/v1/chat/completions"
TIMEOUT = 180.0


@dataclasses.dataclass(frozen=True)
class Question:
    """A request with its expected answer."""

    fields: dict[str, Any]
    usage: tuple[int, int] | None = None  # tokens of prompt and answer
    text: str | None = None


def asked(text: str, url: str | None = None, **fields: Any) -> dict[str, Any]:
    """A streamed request."""
    content: Any = text
    if url is not None:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


async def answer_of(connection: Connection, fields: dict[str, Any], leave_after: int | None = None) -> tuple[str, Any]:
    """Text and usage of an answer; no usage where the client disconnected before its end."""
    text, usage, pieces = "", None, 0
    events = connection.events(PATH, json.dumps(fields).encode())
    try:
        async for event in events:
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
            usage = event.get("usage") or usage
            pieces += 1
            if pieces == leave_after:
                return text, None
    finally:
        await events.aclose()  # type: ignore[attr-defined]
    return text, usage


class Soak:
    """The requests of a run, their counts, and the failures."""

    def __init__(self, url: str, process: int, seed: int) -> None:
        self.url, self.process, self.rng = url, process, random.Random(seed)
        self.recorded: list[Question] = []
        self.plain: dict[int, int] = {}  # words of a new question: tokens of its prompt
        self.imaged: dict[int, int] = {}  # side of a new image: tokens of its prompt
        self.in_schema = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.number = 0

    async def record(self) -> None:
        """Record answers and token counts on the idle server."""
        connection, words = Connection(self.url), ("red", "green", "blue", "circle", "square", "left", "above")
        for place in range(24):
            text = " ".join(self.rng.choice(words) for _ in range(20))
            url = image(32 * (1 + place % 6), place % 6) if place % 2 else None
            chosen = {"temperature": 0.8, "top_p": 0.9, "seed": place} if place % 3 == 2 else {}
            fields = asked(f"{place} {text}", url, max_tokens=8 + 3 * place, **chosen)
            answer, usage = await answer_of(connection, fields)
            self.recorded.append(Question(fields, (usage["prompt_tokens"], usage["completion_tokens"]), answer))
        for count in range(1, 120, 7):
            self.plain[count] = await self._prompt_tokens(connection, self._new(count, 1))
        for side in (48, 64, 100, 160, 224):
            self.imaged[side] = await self._prompt_tokens(connection, self._new(5, 1, side))
        self.in_schema = await self._prompt_tokens(connection, self._schema())
        connection.close()

    async def _prompt_tokens(self, connection: Connection, fields: dict[str, Any]) -> int:
        _, usage = await answer_of(connection, fields)
        return int(usage["prompt_tokens"])

    def _next(self) -> str:
        """A number that no other request has, with the same number of digits."""
        self.number += 1
        return str(100_000_000 + self.number)

    def _new(self, words: int, tokens: int, side: int | None = None) -> dict[str, Any]:
        number = self._next()
        url = None if side is None else image(side, int(number))
        return asked(f"{number}{' circle' * words}", url, max_tokens=tokens)

    def _schema(self) -> dict[str, Any]:
        number = self._next()
        schema = {
            "type": "object",
            "properties": {"number": {"const": number}, "ok": {"type": "boolean"}},
            "required": ["number", "ok"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "one", "strict": True, "schema": schema}}
        return asked(number, response_format=form, max_tokens=200, ignore_eos=False)

    async def client(self, end: float) -> None:
        """A client that sends requests until the time is over."""
        connection = Connection(self.url)
        kinds, weights = list(SHARES), list(SHARES.values())
        while time.monotonic() < end:
            kind = self.rng.choices(kinds, weights)[0]
            try:
                await asyncio.wait_for(getattr(self, f"_ask_{kind}")(connection), TIMEOUT)
                self.counts[kind] += 1
            except (HttpError, asyncio.TimeoutError, ValueError, KeyError, TypeError) as error:
                self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                connection.close()
        connection.close()

    async def _ask_recorded(self, connection: Connection) -> None:
        question = self.rng.choice(self.recorded)
        text, usage = await answer_of(connection, question.fields)
        self._compare("recorded", usage, question.usage)
        if text != question.text:
            self.wrong.append(f"recorded: {text!r} instead of {question.text!r}")

    async def _ask_new(self, connection: Connection) -> None:
        words, tokens = self.rng.choice(list(self.plain)), self.rng.randint(1, 60)
        _, usage = await answer_of(connection, self._new(words, tokens))
        self._compare("new", usage, (self.plain[words], tokens))

    async def _ask_image(self, connection: Connection) -> None:
        side, tokens = self.rng.choice(list(self.imaged)), self.rng.randint(1, 60)
        _, usage = await answer_of(connection, self._new(5, tokens, side))
        self._compare("image", usage, (self.imaged[side], tokens))

    async def _ask_schema(self, connection: Connection) -> None:
        fields = self._schema()
        text, usage = await answer_of(connection, fields)
        number = fields["messages"][0]["content"]
        if usage["completion_tokens"] < 200 and json.loads(text).get("number") != number:
            self.wrong.append(f"schema: {text!r} instead of the number {number}")
        if usage["prompt_tokens"] != self.in_schema:
            self.wrong.append(f"schema: a prompt of {usage['prompt_tokens']} tokens instead of {self.in_schema}")

    async def _ask_left(self, connection: Connection) -> None:
        await answer_of(connection, self._new(100, 1000), leave_after=self.rng.randint(1, 12))
        connection.close()

    async def _ask_nonsense(self, connection: Connection) -> None:
        fields = self.rng.choice(
            [
                asked("x", temperature=99),
                asked("x", "data:image/png;base64,AAAA"),
                asked("x", "file:///etc/passwd"),
                {"messages": "none"},
                asked("x", max_tokens=-1),
                asked("x", response_format={"type": "jsonschema"}),
            ]
        )
        try:
            await answer_of(connection, fields)
            self.wrong.append(f"nonsense: answered {json.dumps(fields)[:200]}")
        except HttpError as error:
            if not 400 <= error.status < 500:
                raise

    def _compare(self, kind: str, usage: Any, expected: tuple[int, int] | None) -> None:
        found = (usage["prompt_tokens"], usage["completion_tokens"])
        if found != expected:
            self.wrong.append(f"{kind}: tokens of prompt and answer are {found} instead of {expected}")

    async def state(self) -> dict[str, float]:
        """Metrics, memory and open files of the idle server."""
        connection = Connection(self.url)
        figures: dict[str, float] = {}
        for _ in range(200):
            text = (await connection.get("/metrics")).decode()
            figures = {name: float(value) for name, value in re.findall(r"^pixtral_(\w+) (\S+)$", text, re.MULTILINE)}
            if not figures["requests_active"] and not figures["running"] and not figures["waiting"]:
                break
            await asyncio.sleep(0.1)
        connection.close()
        await asyncio.sleep(1)
        figures["memory_mb"] = status_of(self.process, "VmRSS") / 1024
        figures["threads"] = status_of(self.process, "Threads")
        figures["files"] = len(list(Path(f"/proc/{self.process}/fd").iterdir()))
        return figures

    def judge(self, before: dict[str, float], after: dict[str, float]) -> None:
        """Compare the states before and after."""
        for name in ("requests_active", "running", "waiting"):
            if after[name]:
                self.wrong.append(f"{after[name]:g} {name} after the last request")
        if after["kv_blocks_free"] != after["kv_blocks"]:
            self.wrong.append(f"{after['kv_blocks_free']:g} of {after['kv_blocks']:g} blocks are free")
        if after["image_cache_bytes"] > after["image_cache_limit_bytes"]:
            self.wrong.append(f"{after['image_cache_bytes']:,.0f} bytes in the cache of images")
        if after["memory_mb"] > 1.05 * before["memory_mb"]:
            self.wrong.append(f"memory grew from {before['memory_mb']:.0f} to {after['memory_mb']:.0f} MB")
        if after["files"] > before["files"] + 4 or after["threads"] > before["threads"] + 4:
            self.wrong.append(
                f"files and threads grew from {before['files']:g} and {before['threads']:g} "
                f"to {after['files']:g} and {after['threads']:g}"
            )


def status_of(process: int, name: str) -> int:
    """A number in /proc/PID/status; sizes are in KiB."""
    return int(re.findall(rf"{name}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0])


async def ready(url: str) -> None:
    """Wait for the server."""
    connection = Connection(url)
    for last in [False] * 300 + [True]:
        try:
            await connection.get("/ready")
            break
        except HttpError:
            if last:
                raise
            await asyncio.sleep(0.1)
    connection.close()


async def run(options: argparse.Namespace, url: str, process: int) -> dict[str, Any]:
    """Warm up, record the state, run the clients, and compare the state."""
    soak = Soak(url, process, options.seed)
    await ready(url)
    await soak.record()
    print(
        f"recorded {len(soak.recorded)} answers; {options.clients} clients for {options.warmup:g} s to warm up",
        flush=True,
    )
    await asyncio.gather(*(soak.client(time.monotonic() + options.warmup) for _ in range(options.clients)))
    before = await soak.state()
    soak.counts.clear()
    start = time.monotonic()
    asking = asyncio.gather(*(soak.client(start + 60 * options.minutes) for _ in range(options.clients)))
    while not asking.done():
        await asyncio.wait([asking], timeout=30)
        memory = status_of(process, "VmRSS") / 1024
        print(
            f"{time.monotonic() - start:6.0f} s  {sum(soak.counts.values()):7} requests  {memory:7.0f} MB  "
            f"{len(soak.wrong)} wrong",
            flush=True,
        )
    await asking
    seconds = time.monotonic() - start
    after = await soak.state()
    soak.judge(before, after)
    return {
        "seconds": round(seconds, 1),
        "clients": options.clients,
        "requests": dict(soak.counts),
        "requests_per_s": round(sum(soak.counts.values()) / seconds, 1),
        "wrong": soak.wrong[:50],
        "num_wrong": len(soak.wrong),
        "before": before,
        "after": after,
    }


def main() -> int:
    """Exit status 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--warmup", type=float, default=60.0, help="seconds before memory is first looked at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("server", nargs="*", help="arguments of pixtral serve, behind --")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pixtral.cli", "serve", "--port", "0", *SETTINGS, *options.server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            if address is None:
                print("the server did not start")
                return 1
            result = asyncio.run(run(options, address[0], server.pid))
        finally:
            server.terminate()
    if server.returncode not in (0, -15):
        result["wrong"].append(f"the server ended with status {server.returncode}")
        result["num_wrong"] += 1
    for line in result["wrong"]:
        print("WRONG", line)
    print(json.dumps(result))
    return 1 if result["num_wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
