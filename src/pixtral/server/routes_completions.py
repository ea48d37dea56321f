"""/v1/completions: prompts as they are, without a chat template."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pixtral.engine.outputs import RequestOutput, TokenLogprobs
from pixtral.engine.request import EngineRequest
from pixtral.processing.encoded import EncodedPrompt
from pixtral.server.active_request import ActiveRequest
from pixtral.server.prompts import check_room, raw_prompt
from pixtral.server.protocol import DEFAULT_TOKENS, CompletionRequest, read_request
from pixtral.server.state import ServerState
from pixtral.server.streaming import DONE, Chunks, EventStream, TokenNames, UsageSum, finite, json_response
from pixtral.server.structured_outputs import guide_of_text


async def completions(http: Request) -> Response:
    """Go on from one prompt, or from each of several."""
    state, body = await read_request(http, CompletionRequest)
    with contextlib.ExitStack() as stack:
        active = stack.enter_context(contextlib.closing(ActiveRequest(state, http)))
        outputs = active.outputs_of_all(await _engine_requests(state, body, active.id))
        if body.stream:
            first = await anext(outputs)  # an error until here is the response, with a status of its own
            return EventStream(_events(state, body, active, first, outputs), stack.pop_all().close)
        return json_response(await _completion(state, body, active, outputs))


async def _engine_requests(state: ServerState, body: CompletionRequest, id: str) -> list[EngineRequest]:
    limit = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    params = body.sampling(limit, body.logprobs)
    guide = await guide_of_text(state, body)
    special = body.add_special_tokens is not False
    prompts = await state.in_thread(
        lambda: [raw_prompt(state.processor, one, special, state.max_model_len) for one in body.prompts]
    )
    requests = []
    for number, ids in enumerate(prompts):
        check_room(EncodedPrompt(ids), state.max_model_len, limit, param="prompt")
        requests.append(
            EngineRequest(
                f"{id}-{number}",
                ids,
                params,
                priority=body.priority or 0,
                guide=guide,
                skip_special_tokens=body.skip_special_tokens is not False,
            )
        )
    return requests


async def _completion(
    state: ServerState,
    body: CompletionRequest,
    active: ActiveRequest,
    outputs: AsyncIterator[tuple[int, RequestOutput]],
) -> dict[str, Any]:
    n = body.n or 1
    count = len(body.prompts) * n
    texts: list[list[str]] = [[] for _ in range(count)]
    reasons = [""] * count
    logprobs: list[list[TokenLogprobs]] = [[] for _ in range(count)]
    usage = UsageSum()
    async for prompt, output in outputs:
        choice = prompt * n + output.index
        texts[choice].append(output.text)
        logprobs[choice] += output.logprobs or ()
        if output.usage is not None:
            reasons[choice] = output.finish_reason or ""
            usage.add(output.usage, output.index)
    names = TokenNames(state.processor.tokenizer)
    return {
        "id": f"cmpl-{active.id}",
        "object": "text_completion",
        "created": active.created,
        "model": state.model_name,
        "system_fingerprint": None,
        "choices": [
            {
                "index": index,
                "text": "".join(texts[index]),
                "logprobs": None if body.logprobs is None else _logprobs(names, logprobs[index], 0)[0],
                "finish_reason": reasons[index],
            }
            for index in range(count)
        ],
        "usage": usage.to_dict(),
    }


async def _events(
    state: ServerState,
    body: CompletionRequest,
    active: ActiveRequest,
    first: tuple[int, RequestOutput],
    outputs: AsyncIterator[tuple[int, RequestOutput]],
) -> AsyncIterator[bytes]:
    chunks = Chunks("text_completion", f"cmpl-{active.id}", active.created, state.model_name, body.include_usage)
    names = TokenNames(state.processor.tokenizer)
    usage = UsageSum()
    offsets: dict[int, int] = {}

    def written(prompt: int, output: RequestOutput) -> str:
        """The chunk of one output, if there is one."""
        choice = prompt * (body.n or 1) + output.index
        logprobs = "null"
        if body.logprobs is not None:
            made, offsets[choice] = _logprobs(names, output.logprobs or (), offsets.get(choice, 0))
            logprobs = json.dumps(made)
        if output.usage is not None:
            usage.add(output.usage, output.index)
        elif not output.text and body.logprobs is None:
            return ""
        return chunks.text(choice, output.text, logprobs, output.finish_reason)

    async with contextlib.aclosing(outputs):  # type: ignore[type-var]
        yield written(*first).encode()
        async for item in outputs:
            if piece := written(*item):
                yield piece.encode()
    if body.include_usage:
        yield chunks.usage(usage.to_dict()).encode()
    yield DONE


def _logprobs(names: TokenNames, logprobs: Sequence[TokenLogprobs], offset: int) -> tuple[dict[str, Any], int]:
    """The log probabilities of /v1/completions, and the offset in the text behind them.

    Args:
        offset: of the first token in the text.
    """
    made: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in logprobs:
        text, _ = names.of(one.token)
        made["tokens"].append(text)
        made["token_logprobs"].append(finite(one.logprob))
        made["top_logprobs"].append({names.of(token)[0]: finite(value) for token, value in one.top})
        made["text_offset"].append(offset)
        offset += len(text)
    return made, offset
