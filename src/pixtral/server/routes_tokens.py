"""/tokenize and /detokenize: what a text or a conversation costs, and what ids say."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from pixtral.server.errors import ApiError
from pixtral.server.openapi import Bodies
from pixtral.server.prompts import prompt_of, raw_prompt
from pixtral.server.protocol import Body, Items, parse
from pixtral.server.protocol_chat import Message, Tool
from pixtral.server.protocol_completions import Ids
from pixtral.server.state import ServerState
from pixtral.server.stream import json_response


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


def token_routes(bodies: Bodies) -> APIRouter:
    """Both routes."""
    router = APIRouter(tags=["tokens"])
    router.post("/tokenize", openapi_extra=bodies.of(TokenizeRequest))(tokenize)
    router.post("/detokenize", openapi_extra=bodies.of(DetokenizeRequest))(detokenize)
    return router


async def tokenize(http: Request) -> Response:
    """The tokens of a prompt, or of a conversation with its pictures; the model is not run."""
    state: ServerState = http.app.state.server
    body = parse(TokenizeRequest, http.headers.get("content-type", ""), await http.body())
    state.check_model(body.model)
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
    """The text of ids."""
    state: ServerState = http.app.state.server
    body = parse(DetokenizeRequest, http.headers.get("content-type", ""), await http.body())
    state.check_model(body.model)
    size = state.processor.tokenizer.vocab_size
    if max(body.tokens) >= size:
        raise ApiError(
            400, f"tokens holds {max(body.tokens)}, but the vocabulary has {size} tokens", param="tokens",
            code="invalid_value",
        )  # fmt: skip
    skip = bool(body.skip_special_tokens)
    text = await state.in_thread(lambda: state.processor.tokenizer.ids_to_text(body.tokens, skip))
    return json_response({"prompt": text})
