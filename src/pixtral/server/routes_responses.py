"""/v1/responses: chat completions in OpenAI's Responses format."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pixtral.engine.outputs import RequestOutput, Usage
from pixtral.server.active_request import ActiveRequest
from pixtral.server.errors import ApiError, validation_error
from pixtral.server.protocol import read_request
from pixtral.server.protocol_chat import ChatCompletionRequest
from pixtral.server.protocol_responses import ResponsesRequest
from pixtral.server.routes_chat import engine_request
from pixtral.server.state import ServerState
from pixtral.server.streaming import EventStream, Reader, json_response
from pixtral.server.structured_outputs import structure_of


async def responses(http: Request) -> Response:
    """The next item of a conversation."""
    state, body = await read_request(http, ResponsesRequest)
    with contextlib.ExitStack() as stack:
        active = stack.enter_context(contextlib.closing(ActiveRequest(state, http)))
        try:
            chat = _as_chat(body)
            structure = await structure_of(state, chat)
            outputs = active.outputs(await engine_request(state, chat, active.id, structure))
            response = ResponseBuilder(state, body, active, structure.make_reader())
            if body.stream:
                first = await anext(outputs)  # an error until here is the response, with a status of its own
                return EventStream(_events(response, first, outputs), stack.pop_all().close)
            async for output in outputs:
                response.push(output)
        except ApiError as error:
            if error.param is not None and error.param.startswith("messages"):
                error.param = "input"
            raise
        return json_response(response.to_dict())


def _as_chat(body: ResponsesRequest) -> ChatCompletionRequest:
    try:
        return body.as_chat()
    except ValidationError as error:  # what only a chat checks, such as images in an assistant's message
        failure = validation_error(error, b"{}", body.hints)
        raise ApiError(400, f"input: {failure.message}", param="input", code="invalid_value") from error


class ResponseBuilder:
    """One response while it is generated: its items, and the events of its stream."""

    def __init__(self, state: ServerState, body: ResponsesRequest, active: ActiveRequest, reader: Reader) -> None:
        self._reader = reader
        self._usage: dict[str, Any] | None = None
        self._status = "in_progress"
        self._items: list[dict[str, Any]] = []
        self._number = 0
        self._id = active.id
        tools = [tool.model_dump() for tool in body.tools or ()]
        choice = body.tool_choice
        self._constant: dict[str, Any] = {
            "id": f"resp_{active.id}",
            "object": "response",
            "created_at": active.created,
            "model": state.model_name,
            "error": None,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "max_output_tokens": body.max_output_tokens,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
            "tools": tools,
            "text": body.text.model_dump(by_alias=True) if body.text else {"format": {"type": "text"}},
            "truncation": "disabled",
            "previous_response_id": None,
            "store": False,
        }

    def to_dict(self) -> dict[str, Any]:
        """The response so far."""
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._constant,
            "status": self._status,
            "incomplete_details": cut,
            "output": self._items,
            "usage": self._usage,
        }

    def push(self, output: RequestOutput) -> list[dict[str, Any]]:
        """The events of one output of the engine."""
        events: list[dict[str, Any]] = []
        for delta in self._reader.push(output):
            if "content" in delta:
                events += self._text(delta["content"])
            for call in delta.get("tool_calls", ()):
                events += self._call(call["function"], call.get("id"))
        if output.usage is not None:
            self._usage = _usage(output.usage)
            self._status = "incomplete" if output.finish_reason == "length" else "completed"
            if not self._items:  # an empty answer has an item, too
                events += self._text("")
            events += self._done()
        return events

    def event(self, type: str, **fields: Any) -> dict[str, Any]:
        """An event with its sequence number."""
        self._number += 1
        return {"type": f"response.{type}", "sequence_number": self._number - 1, **fields}

    def _text(self, text: str) -> list[dict[str, Any]]:
        events = []
        if not self._items or self._items[-1]["type"] != "message":
            events += self._done()
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
            item = {"id": self._name("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
            self._items.append({**item, "content": [part]})
            events.append(self.event("output_item.added", output_index=self._place, item={**item, "content": []}))
            events.append(self.event("content_part.added", **self._where, content_index=0, part=dict(part)))
        self._items[-1]["content"][0]["text"] += text
        if text:
            events.append(self.event("output_text.delta", **self._where, content_index=0, delta=text, logprobs=[]))
        return events

    def _call(self, function: dict[str, Any], id: str | None) -> list[dict[str, Any]]:
        events = []
        if id is not None:
            events += self._done()
            item = {"id": self._name("fc"), "type": "function_call", "call_id": id, "status": "in_progress"}
            self._items.append({**item, "name": function["name"], "arguments": ""})
            events.append(self.event("output_item.added", output_index=self._place, item=dict(self._items[-1])))
        self._items[-1]["arguments"] += function["arguments"]
        if function["arguments"]:
            events.append(self.event("function_call_arguments.delta", **self._where, delta=function["arguments"]))
        return events

    def _done(self) -> list[dict[str, Any]]:
        """Complete the newest item, if it is not."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return []
        item = self._items[-1]
        item["status"] = "incomplete" if self._status == "incomplete" else "completed"
        if item["type"] == "function_call":
            events = [
                self.event(
                    "function_call_arguments.done", **self._where, name=item["name"], arguments=item["arguments"]
                )
            ]
        else:
            part = item["content"][0]
            events = [
                self.event("output_text.done", **self._where, content_index=0, text=part["text"], logprobs=[]),
                self.event("content_part.done", **self._where, content_index=0, part=part),
            ]
        return [*events, self.event("output_item.done", output_index=self._place, item=item)]

    @property
    def _place(self) -> int:
        return len(self._items) - 1

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": self._place}

    def _name(self, kind: str) -> str:
        return f"{kind}_{self._id}{len(self._items)}"


async def _events(
    response: ResponseBuilder, first: RequestOutput, outputs: AsyncIterator[RequestOutput]
) -> AsyncIterator[bytes]:
    opening = _written([response.event(name, response=response.to_dict()) for name in ("created", "in_progress")])
    try:
        async with contextlib.aclosing(outputs):  # type: ignore[type-var]
            yield opening + _written(response.push(first))
            async for output in outputs:
                if events := response.push(output):
                    yield _written(events)
    except ApiError as error:
        event = response.event("error", code=error.code, message=error.message, param=error.param)
        yield _written([{**event, "type": "error"}])
        return
    complete = response.to_dict()
    yield _written([response.event(complete["status"], response=complete)])


def _written(events: list[dict[str, Any]]) -> bytes:
    return "".join(
        f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events
    ).encode("utf-8", "surrogatepass")


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
