"""The server as langchain-openai uses it; skipped where that is not installed."""

from __future__ import annotations

import pydantic
import pytest
from server_images import asking

from pixtral.assets import demo_image_path

pytest.importorskip("langchain_openai")

from langchain_openai import ChatOpenAI


class Count(pydantic.BaseModel):
    """How many shapes there are."""

    n: int


@pytest.fixture
def model(live):
    return ChatOpenAI(  # type: ignore[call-arg]  # its own aliases
        base_url=f"{live.url}/v1", api_key="none", model="pixtral-tiny", temperature=0, max_retries=0, max_tokens=400
    )


def test_whole_and_streamed(model, tiny):
    expected = tiny.chat("Describe the picture.", demo_image_path()).text
    assert model.invoke(asking()).content == expected
    assert "".join(chunk.content for chunk in model.stream(asking())) == expected


def test_an_object(model):
    assert isinstance(model.with_structured_output(Count).invoke(asking()), Count)


def test_a_tool(model):
    def count(n: int) -> int:
        """Count the shapes."""
        return n

    (call,) = model.bind_tools([count], tool_choice="count", strict=True).invoke(asking()).tool_calls
    assert call["name"] == "count" and set(call["args"]) == {"n"}
