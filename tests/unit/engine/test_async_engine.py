"""AsyncEngine: clients come and go, errors reach those whom they concern, and the thread's end reaches all."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from serving import GREEDY, ask, engine_of, expected, joined

from pixtral.engine.async_engine import AsyncEngine
from pixtral.engine.request import EngineRequest
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import EngineError, GenerationError, PromptError

WORDS = tuple(range(33, 63))
LONG = SamplingParams(temperature=0, max_tokens=60)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


async def collect(engine, request):
    return joined([output async for output in engine.generate(request)])


class Slow:
    """An engine whose steps take a while and can be counted, or fail.

    Where a request has to be there still when something happens to it, its 60 steps take several seconds.
    """

    def __init__(self, seconds=0.005, fail_at=None, **settings):
        self.engine = engine_of(**settings)
        self.steps, step, abort = 0, self.engine.step, self.engine.abort
        self.aborted_at = []

        def slowly():
            self.steps += 1
            if self.steps == fail_at:
                raise RuntimeError("the roof is on fire")
            time.sleep(seconds)
            return step()

        def noted(request_id):
            self.aborted_at.append(self.steps)
            return abort(request_id)

        self.engine.step, self.engine.abort = slowly, noted

    async def begun(self, steps=2):
        """Wait for some more steps."""
        enough = self.steps + steps
        while self.steps < enough:
            await asyncio.sleep(0.001)


def test_many_clients_at_once():
    async def main():
        async with AsyncEngine(engine_of(max_num_seqs=3)) as engine:
            asked = {str(i): WORDS[i : i + 5] for i in range(8)}
            results = await asyncio.gather(*(collect(engine, ask(name, parts)) for name, parts in asked.items()))
            for (name, parts), result in zip(asked.items(), results, strict=True):
                assert result[name, 0].ids == expected(parts, 8)
            assert engine.stats().finished == {"length": 8}
            two = await collect(engine, ask("x", WORDS[:3], SamplingParams(n=2, seed=1, max_tokens=4)))
            assert [len(two["x", i].ids) for i in range(2)] == [4, 4]
        assert not engine.is_alive

    run(main())


def test_tokens_of_short_steps_come_together():
    """Not the first, and not the end: they come at once, and bring others along."""
    how = {"temperature": 0, "max_tokens": 8, "logprobs": 0}

    async def main():
        async with AsyncEngine(engine_of(), interval=1000) as engine:
            first = await anext(aiter(engine.generate(ask("first", WORDS[:5], SamplingParams(temperature=0)))))
            assert len(first.token_ids) == 1
            outputs = [output async for output in engine.generate(ask("a", WORDS[:5], SamplingParams(**how)))]
            assert len(outputs[0].token_ids) == 1
            assert len(outputs) < 8
            result = joined(outputs)["a", 0]
            assert result.ids == expected(WORDS[:5], 8)
            assert [one.token for one in result.logprobs] == result.ids
            assert result.text == "".join(chr(token) for token in result.ids if token >= 32)
            two = await collect(engine, ask("b", WORDS[:5], SamplingParams(n=2, seed=1, max_tokens=6)))
            assert [len(two["b", i].ids) for i in range(2)] == [6, 6]

    run(main())


def test_a_client_that_goes_away_ends_its_request_within_a_step():
    slow = Slow(0.03)

    async def main():
        async with AsyncEngine(slow.engine) as engine:
            other = asyncio.create_task(collect(engine, ask("other", WORDS[:5], LONG)))
            outputs = engine.generate(ask("gone", WORDS[:4], SamplingParams(temperature=0, max_tokens=80)))
            async for _ in outputs:
                break
            await outputs.aclose()  # the end of a loop that is left, of a task that is cancelled
            steps = slow.steps
            while "abort" not in engine.stats().finished:
                await asyncio.sleep(0.001)
            assert slow.aborted_at[0] <= steps + 2  # the one that was at work, and one that may have begun meanwhile
            task = asyncio.create_task(collect(engine, ask("cancelled", WORDS[:4], LONG)))
            await slow.begun()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await other)["other", 0].ids == expected(WORDS[:5], 60)
            assert engine.stats().finished == {"abort": 2, "length": 1}
            stats = engine.stats()
            assert stats.num_free_blocks == stats.num_blocks and stats.num_running == stats.num_waiting == 0

    run(main())


def test_abort_by_name():
    slow = Slow(0.1)

    async def main():
        async with AsyncEngine(slow.engine) as engine:
            task = asyncio.create_task(collect(engine, ask("a", WORDS[:5], LONG)))
            await slow.begun()
            await engine.abort("a")
            await engine.abort("nobody")
            result = (await task)["a", 0]
            assert result.last.finish_reason == "abort"
            assert 0 < len(result.ids) < 60 and result.ids == expected(WORDS[:5], 60)[: len(result.ids)]

    run(main())


def test_a_name_that_is_used_again_is_another_request():
    """The late abort of the first one must not hit the second one."""

    async def main():
        async with AsyncEngine(Slow(0.02).engine) as engine:
            for _ in range(3):
                outputs = engine.generate(ask("a", WORDS[:5], LONG))
                await anext(outputs)
                with pytest.raises(GenerationError, match="in use"):
                    await collect(engine, ask("a", WORDS[:6]))
                await outputs.aclose()
                while engine.stats().num_running:
                    await asyncio.sleep(0.001)
            assert (await collect(engine, ask("a", WORDS[:5])))["a", 0].ids == expected(WORDS[:5], 8)

    run(main())


def test_an_error_reaches_its_client_alone():
    class Broken:
        def mask(self, scores):
            raise ValueError("broken grammar")

        def advance(self, token):
            pass

    async def main():
        async with AsyncEngine(engine_of()) as engine:
            good = asyncio.create_task(collect(engine, ask("good", WORDS[:5], LONG)))
            with pytest.raises(PromptError, match="empty"):
                await collect(engine, EngineRequest("a", (), GREEDY))
            with pytest.raises(ValueError, match="broken grammar"):
                await collect(engine, ask("a", WORDS[:3], guide=Broken))
            with pytest.raises(ValueError, match="broken grammar"):
                await collect(engine, ask("a", WORDS[:3], SamplingParams(n=3, seed=1), guide=Broken))
            assert (await good)["good", 0].ids == expected(WORDS[:5], 60)

    run(main())


def test_the_end_of_the_thread_reaches_all():
    async def main():
        engine = AsyncEngine(Slow(fail_at=4, max_num_seqs=1).engine)
        engine.start()
        tasks = [asyncio.create_task(collect(engine, ask(str(i), WORDS[:5], LONG))) for i in range(3)]
        for task in tasks:
            with pytest.raises(EngineError, match="RuntimeError: the roof is on fire") as caught:
                await task
            assert isinstance(caught.value.__cause__, RuntimeError)
        assert not engine.is_alive
        with pytest.raises(EngineError, match="on fire"):
            await collect(engine, ask("late", WORDS[:5]))
        with pytest.raises(EngineError, match="on fire"):
            await engine.abort("0")
        assert await engine.drain()
        await engine.close()

    run(main())


def test_drain_lets_those_who_are_there_finish():
    async def main():
        async with AsyncEngine(Slow().engine) as engine:
            task = asyncio.create_task(collect(engine, ask("a", WORDS[:5], LONG)))
            await asyncio.sleep(0.02)
            draining = asyncio.create_task(engine.drain(60))
            await asyncio.sleep(0.02)
            assert not engine.is_alive
            with pytest.raises(EngineError, match="takes no more requests"):
                await collect(engine, ask("late", WORDS[:5]))
            assert await draining
            assert (await task)["a", 0].ids == expected(WORDS[:5], 60)

    run(main())


def test_drain_ends_them_after_the_grace():
    async def main():
        async with AsyncEngine(Slow(0.1).engine) as engine:
            task = asyncio.create_task(collect(engine, ask("a", WORDS[:5], LONG)))
            await asyncio.sleep(0.05)
            assert not await engine.drain(0.05)
            assert (await task)["a", 0].last.finish_reason == "abort"

    run(main())


def test_close_aborts_what_is_there():
    async def main():
        engine = AsyncEngine(Slow(0.1).engine)
        with pytest.raises(EngineError, match="has not been started"):
            await collect(engine, ask("a", WORDS[:5]))
        engine.start()
        task = asyncio.create_task(collect(engine, ask("a", WORDS[:5], LONG)))
        await asyncio.sleep(0.03)
        await engine.close()
        assert (await task)["a", 0].last.finish_reason == "abort"
        assert "pixtral-engine" not in {thread.name for thread in threading.enumerate()}
        with pytest.raises(EngineError, match="closed"):
            await collect(engine, ask("a", WORDS[:5]))

    run(main())


def test_a_loop_that_is_gone_takes_nobody_with_it():
    slow = Slow(0.03)
    engine = AsyncEngine(slow.engine)
    engine.start()

    async def forgotten():
        outputs = engine.generate(ask("forgotten", WORDS[:5], LONG))
        asyncio.get_running_loop().outputs = outputs  # type: ignore[attr-defined]  # nobody closes it
        await anext(outputs)
        asyncio.get_running_loop().shutdown_asyncgens = lambda: asyncio.sleep(0)

    asyncio.run(forgotten())

    async def main():
        result = await collect(engine, ask("a", WORDS[:5], LONG))
        assert result["a", 0].ids == expected(WORDS[:5], 60)
        assert engine.stats().finished == {"abort": 1, "length": 1}
        await engine.close()

    run(main())
