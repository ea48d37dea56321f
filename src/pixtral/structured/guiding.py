"""One guide for what a request asks of its answer's form and of its tools."""

from __future__ import annotations

from collections.abc import Callable

from pixtral.engine.request import Guide
from pixtral.errors import StructureError
from pixtral.structured.forms import Form
from pixtral.structured.grammars import Grammars
from pixtral.structured.guide import LaterGuide, WithoutGuide
from pixtral.structured.tools import ToolUse
from pixtral.structured.vocabulary import GrammarTokenizer


def guide_of(grammars: Grammars, form: Form | None, tools: ToolUse | None) -> Callable[[], Guide] | None:
    """What makes the guide of each answer, None where anything may come.

    Where calls are left to the model it may say words first; calls themselves are always valid. Where they are
    required the whole answer is calls, and its form does not matter.

    Raises:
        StructureError: see `Grammars.compile`; tools for a model that cannot call any; a grammar beside tools.
    """
    if tools is None:
        return None if form is None else grammars.compile(form)
    trigger = tool_calls_id(grammars.tokenizer)
    if tools.choice == "none":
        return grammars.compile(form) if form is not None else lambda: WithoutGuide(trigger)
    try:
        if tools.choice == "required":
            return grammars.compile(tools.calls(trigger))
        if form is not None:
            return grammars.compile(tools.with_content(form, trigger))
        behind = grammars.compile(tools.calls(None))
    except StructureError:
        for part in (*tools.forms(), *([] if form is None else [form])):  # one of them alone shows whose fault it is
            grammars.compile(part)
        raise
    return lambda: LaterGuide(trigger, behind)


def tool_calls_id(tokenizer: GrammarTokenizer) -> int:
    """The id of [TOOL_CALLS].

    Raises:
        StructureError: the tokenizer has none, or writes calls in the newer form, with [ARGS].
    """
    found = tokenizer.token_to_id("[TOOL_CALLS]")
    if found is None or tokenizer.token_to_id("[ARGS]") is not None:
        have = "has no [TOOL_CALLS]" if found is None else "writes calls with [ARGS], which is not supported"
        raise StructureError(f"tools are given, but the model's tokenizer {have}; leave them out", "tools")
    return found
