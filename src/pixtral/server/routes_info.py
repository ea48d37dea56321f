"""Everything but answers: /tokenize and /detokenize, /v1/models, /health, /ready and /metrics."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from pixtral.server.errors import ApiError, unavailable
from pixtral.server.prompts import prompt_of, raw_prompt
from pixtral.server.protocol import Body, Ids, Items, read_request
from pixtral.server.protocol_chat import Message, Tool
from pixtral.server.state import ServerState
from pixtral.server.streaming import json_response


class TokenizeRequest(Body):
    """The body of /tokenize: a prompt, or messages."""

    prompt: str | None = None
    messages: Items[Message] | None = Field(None, min_length=1, max_length=4096)
    tools: Items[Tool] | None = Field(None, max_length=128)
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        if self.messages is None and self.tools is not None:
            raise ValueError("tools belong to messages; leave them out")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens belongs to prompt; messages always have them")
        return self


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    tokens: Ids
    skip_special_tokens: bool | None = None


async def tokenize(http: Request) -> Response:
    """The tokens of a prompt, or of a conversation with its images; the model is not run."""
    state, body = await read_request(http, TokenizeRequest)
    images = 0
    if body.messages is not None:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        made = await prompt_of(state, body.messages, tools)
        ids, images = made.ids, sum(image.length for image in made.images)
    else:
        text, special = body.prompt or "", body.add_special_tokens is not False
        ids = await state.in_thread(lambda: raw_prompt(state.processor, text, special, state.max_model_len))
    answer = {"count": len(ids), "image_tokens": images, "max_model_len": state.max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [state.processor.tokenizer.ids_to_text([token], False) for token in ids]
    return json_response(answer)


async def detokenize(http: Request) -> Response:
    """The text of token ids."""
    state, body = await read_request(http, DetokenizeRequest)
    size = state.processor.tokenizer.vocab_size
    if max(body.tokens) >= size:
        raise ApiError(
            400,
            f"tokens holds {max(body.tokens)}, but the vocabulary has {size} tokens",
            param="tokens",
            code="invalid_value",
        )
    skip = bool(body.skip_special_tokens)
    text = await state.in_thread(lambda: state.processor.tokenizer.ids_to_text(body.tokens, skip))
    return json_response({"prompt": text})


async def list_models(http: Request) -> Response:
    """The models: there is one."""
    return json_response({"object": "list", "data": [_model(http.app.state.server)]})


async def retrieve_model(http: Request, name: str) -> Response:
    """A model by its name."""
    state: ServerState = http.app.state.server
    state.check_model(name)
    return json_response(_model(state))


def _model(state: ServerState) -> dict[str, Any]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.created,
        "owned_by": "pixtral",
        "max_model_len": state.max_model_len,
    }


async def health(http: Request) -> Response:
    """200 while the engine works, 503 when the server must be restarted."""
    state: ServerState = http.app.state.server
    if not (state.engine.is_alive or state.draining):
        raise unavailable("the engine has stopped; the server must be started anew")
    return json_response({"status": "ok"})


async def ready(http: Request) -> Response:
    """200 while requests are accepted, 503 when the server is being stopped."""
    state: ServerState = http.app.state.server
    if state.draining or not state.engine.is_alive:
        raise unavailable("the server takes no requests")
    return json_response({"status": "ready", "model": state.model_name})


async def metrics(http: Request) -> Response:
    """Metrics in Prometheus' text format."""
    state: ServerState = http.app.state.server
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
