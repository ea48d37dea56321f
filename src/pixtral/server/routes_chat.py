"""/v1/chat/completions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pixtral.engine.outputs import RequestOutput, TokenLogprobs
from pixtral.engine.request import EngineRequest
from pixtral.server.active_request import ActiveRequest
from pixtral.server.prompts import check_room, prompt_of
from pixtral.server.protocol import read_request
from pixtral.server.protocol_chat import ChatCompletionRequest
from pixtral.server.state import ServerState
from pixtral.server.streaming import DONE, Chunks, EventStream, Reader, TokenNames, UsageSum, json_response
from pixtral.server.structured_outputs import Structure, structure_of

_delta_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


async def chat_completions(http: Request) -> Response:
    """The next message of a conversation."""
    state, body = await read_request(http, ChatCompletionRequest)
    with contextlib.ExitStack() as stack:
        active = stack.enter_context(contextlib.closing(ActiveRequest(state, http)))
        structure = await structure_of(state, body)
        outputs = active.outputs(await engine_request(state, body, active.id, structure))
        readers = [structure.make_reader() for _ in range(body.n or 1)]
        if body.stream:
            first = await anext(outputs)  # an error until here is the response, with a status of its own
            return EventStream(_events(state, body, active, readers, first, outputs), stack.pop_all().close)
        return json_response(await _completion(state, body, active, readers, outputs))


async def engine_request(
    state: ServerState, body: ChatCompletionRequest, id: str, structure: Structure
) -> EngineRequest:
    """The engine's request; errors as in `prompt_of`."""
    params = body.sampling(body.limit, body.num_logprobs)
    prompt = await prompt_of(state, body.messages, structure.tools)
    check_room(prompt, state.max_model_len, body.limit)
    return EngineRequest(
        id,
        prompt.ids,
        params,
        prompt.images,
        priority=body.priority or 0,
        guide=structure.guide,
        skip_special_tokens=body.skip_special_tokens is not False,
    )


async def _completion(
    state: ServerState,
    body: ChatCompletionRequest,
    active: ActiveRequest,
    readers: Sequence[Reader],
    outputs: AsyncIterator[RequestOutput],
) -> dict[str, Any]:
    reasons = [""] * len(readers)
    logprobs: list[list[TokenLogprobs]] = [[] for _ in readers]
    usage = UsageSum()
    async for output in outputs:
        readers[output.index].push(output)
        logprobs[output.index] += output.logprobs or ()
        if output.usage is not None:
            reasons[output.index] = readers[output.index].finish_reason(output)
            usage.add(output.usage, output.index)
    names = TokenNames(state.processor.tokenizer)
    return {
        "id": f"chatcmpl-{active.id}",
        "object": "chat.completion",
        "created": active.created,
        "model": state.model_name,
        "system_fingerprint": None,
        "service_tier": "default",
        "choices": [
            {
                "index": index,
                "message": reader.message(),
                "logprobs": {"content": names.content(logprobs[index]), "refusal": None} if body.logprobs else None,
                "finish_reason": reasons[index],
            }
            for index, reader in enumerate(readers)
        ],
        "usage": usage.to_dict(),
    }


async def _events(
    state: ServerState,
    body: ChatCompletionRequest,
    active: ActiveRequest,
    readers: Sequence[Reader],
    first: RequestOutput,
    outputs: AsyncIterator[RequestOutput],
) -> AsyncIterator[bytes]:
    chunks = Chunks(
        "chat.completion.chunk", f"chatcmpl-{active.id}", active.created, state.model_name, body.include_usage
    )
    names = TokenNames(state.processor.tokenizer)
    usage = UsageSum()

    def written(output: RequestOutput) -> str:
        """The chunks of one output."""
        reader, index = readers[output.index], output.index
        logprobs = "null"
        if body.logprobs:
            logprobs = json.dumps({"content": names.content(output.logprobs or ()), "refusal": None})
        deltas = [_delta_json(delta) for delta in reader.push(output)]
        if not deltas and body.logprobs and output.token_ids:
            deltas = ["{}"]  # the tokens of a character or a stop string that is not complete yet
        text = ""
        for delta in deltas:
            text += chunks.delta(index, delta, logprobs)
            logprobs = "null"
        if output.finish_reason is not None:
            assert output.usage is not None
            usage.add(output.usage, index)
            text += chunks.delta(index, "{}", finish=reader.finish_reason(output))
        return text

    async with contextlib.aclosing(outputs):  # type: ignore[type-var]
        opening = "".join(chunks.delta(index, '{"role":"assistant","content":""}') for index in range(len(readers)))
        yield (opening + written(first)).encode()
        async for output in outputs:
            if piece := written(output):
                yield piece.encode()
    if body.include_usage:
        yield chunks.usage(usage.to_dict()).encode()
    yield DONE
