"""/v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from json.encoder import encode_basestring as quoted
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pixtral.engine.outputs import RequestOutput, TokenLogprobs
from pixtral.engine.request import EngineRequest
from pixtral.server.active_request import Running
from pixtral.server.prompts import check_room, prompt_of
from pixtral.server.protocol import Bodies, parse
from pixtral.server.protocol_chat import ChatCompletionRequest
from pixtral.server.state import ServerState
from pixtral.server.streaming import DONE, Chunks, EventStream, Reader, TextReader, TokenNames, UsageSum, json_response
from pixtral.server.structured_outputs import Structure, structure_of


def chat_routes(bodies: Bodies) -> APIRouter:
    """The route."""
    router = APIRouter()
    extra = bodies.of(ChatCompletionRequest)
    router.post("/v1/chat/completions", openapi_extra=extra, tags=["OpenAI"])(chat_completions)
    return router


async def chat_completions(http: Request) -> Response:
    """The next message of a conversation."""
    state: ServerState = http.app.state.server
    body = parse(ChatCompletionRequest, http.headers.get("content-type", ""), await http.body())
    state.check_model(body.model)
    running = Running(state, http)
    try:
        structure = await structure_of(state, body)
        outputs = running.outputs(await engine_request(state, body, running.id, structure))
        readers = [None if structure.make_reader is None else structure.make_reader() for _ in range(body.n or 1)]
        if body.stream:
            first = await anext(outputs)
            return EventStream(_events(state, body, running, readers, first, outputs), running.close)
        answer = await _answer(state, body, running, readers, outputs)
    except BaseException:
        running.close()
        raise
    running.close()
    return json_response(answer)


async def engine_request(
    state: ServerState, body: ChatCompletionRequest, id: str, structure: Structure
) -> EngineRequest:
    """What the engine is asked; errors as in `prompt_of`."""
    params = body.sampling(body.limit, body.num_logprobs)
    prompt = await prompt_of(state, body.messages, structure.tools)
    check_room(prompt, state.max_model_len, body.limit)
    return EngineRequest(
        id, prompt.ids, params, prompt.images,
        priority=body.priority or 0, guide=structure.guide, skip_special_tokens=body.skip_special_tokens is not False,
    )  # fmt: skip


async def _answer(
    state: ServerState,
    body: ChatCompletionRequest,
    running: Running,
    special: Sequence[Reader | None],
    outputs: AsyncIterator[RequestOutput],
) -> dict[str, Any]:
    readers = [reader or TextReader() for reader in special]
    count = len(readers)
    reasons: list[str] = [""] * count
    logprobs: list[list[TokenLogprobs]] = [[] for _ in range(count)]
    usage = UsageSum()
    async for output in outputs:
        readers[output.index].push(output)
        logprobs[output.index] += output.logprobs or ()
        if output.usage is not None:
            reasons[output.index] = readers[output.index].finish_reason(output)
            usage.add(output.usage, output.index)
    names = TokenNames(state.processor.tokenizer)
    return {
        "id": f"chatcmpl-{running.id}",
        "object": "chat.completion",
        "created": running.created,
        "model": state.model_name,
        "system_fingerprint": None,
        "service_tier": "default",
        "choices": [
            {
                "index": index,
                "message": readers[index].message(),
                "logprobs": {"content": names.content(logprobs[index]), "refusal": None} if body.logprobs else None,
                "finish_reason": reasons[index],
            }
            for index in range(count)
        ],
        "usage": usage.to_dict(),
    }


async def _events(
    state: ServerState,
    body: ChatCompletionRequest,
    running: Running,
    readers: Sequence[Reader | None],
    first: RequestOutput,
    outputs: AsyncIterator[RequestOutput],
) -> AsyncIterator[bytes]:
    chunks = Chunks("chat.completion.chunk", f"chatcmpl-{running.id}", running.created, state.model_name,
                    body.include_usage)  # fmt: skip
    names = TokenNames(state.processor.tokenizer)
    usage = UsageSum()

    def written(output: RequestOutput) -> str:
        """The chunks of one output."""
        reader, index = readers[output.index], output.index
        logprobs = "null"
        if body.logprobs:
            logprobs = json.dumps({"content": names.content(output.logprobs or ()), "refusal": None})
        if reader is None:
            deltas = [f'{{"content":{quoted(output.text)}}}'] if output.text else []
        else:
            deltas = [json.dumps(delta, ensure_ascii=False) for delta in reader.push(output)]
        if not deltas and body.logprobs and output.token_ids:
            deltas = ["{}"]  # the tokens of a character or a stop string that is not complete yet
        text = ""
        for delta in deltas:
            text += chunks.delta(index, delta, logprobs)
            logprobs = "null"
        if output.finish_reason is not None:
            assert output.usage is not None
            usage.add(output.usage, index)
            reason = output.finish_reason if reader is None else reader.finish_reason(output)
            text += chunks.delta(index, "{}", finish=reason)
        return text

    async with aclosing(outputs):  # type: ignore[type-var]
        opening = "".join(chunks.delta(index, '{"role":"assistant","content":""}') for index in range(len(readers)))
        yield (opening + written(first)).encode()
        async for output in outputs:
            if piece := written(output):
                yield piece.encode()
    if body.include_usage:
        yield chunks.usage(usage.to_dict()).encode()
    yield DONE
