"""Outputs: the same field by attribute, by name and by place."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pixtral.layers.outputs import (
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    LlavaCausalLMOutputWithPast,
    Trace,
)


def test_missing_fields_are_left_out() -> None:
    logits, states = torch.ones(1), (torch.zeros(2),)
    output = CausalLMOutputWithPast(logits=logits, hidden_states=states)
    assert list(output) == output.keys() == ["logits", "hidden_states"]
    assert output[0] is output["logits"] is output.logits is logits
    assert output[-1] is output[1] is states and output[:1] == (logits,)
    assert output.to_tuple() == (logits, states) and len(output) == 2
    assert "logits" in output and "loss" not in output and 3 not in output
    assert dict(output.items()) == {"logits": logits, "hidden_states": states} == {**output}
    assert output.values() == [logits, states]
    assert output.get("loss") is None and output.get("loss", 1) == 1 and output.get("logits") is logits
    assert output.loss is None


def test_what_is_not_there() -> None:
    output = CausalLMOutputWithPast(logits=torch.ones(1))
    for name in ("loss", "anything"):
        with pytest.raises(KeyError, match=name):
            output[name]
    with pytest.raises(IndexError):
        output[1]
    with pytest.raises(AttributeError):
        _ = output.anything  # type: ignore[attr-defined]


def test_fields_stand_in_transformers_order() -> None:
    def names(kind: type) -> list[str]:
        return [field.name for field in dataclasses.fields(kind)]

    text = ["loss", "logits", "past_key_values", "hidden_states", "attentions"]
    assert names(CausalLMOutputWithPast) == text
    assert names(LlavaCausalLMOutputWithPast) == [*text, "image_hidden_states"]
    assert names(BaseModelOutputWithPooling) == ["last_hidden_state", "pooler_output", "hidden_states", "attentions"]


def test_a_trace_keeps_what_is_wanted() -> None:
    trace = Trace.wanted(True, None)
    trace.add(torch.ones(1))
    assert trace.hidden_states == [torch.ones(1)] and trace.attentions is None
    trace = Trace.wanted(False, True)
    trace.add(torch.ones(1))
    assert trace.hidden_states is None and trace.attentions == []
