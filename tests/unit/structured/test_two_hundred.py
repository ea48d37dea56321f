"""Two hundred schemas, and the embedded model: every answer ends by itself and is valid."""

from __future__ import annotations

import json

import jsonschema
import pytest
from schemas import all_schemas
from serving import joined

import pixtral
from pixtral.assistant.prompt import prepare
from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import Engine
from pixtral.engine.request import EngineRequest
from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.structured.formats import json_schema
from pixtral.structured.grammars import Grammars

SCHEMAS = all_schemas()


@pytest.fixture(scope="module")
def tiny():
    return pixtral.load(threads=1)


def answers(tiny, schemas, *, temperature, tokens=1500, **settings):
    tokenizer = tiny.processor.tokenizer
    ids = tuple(prepare(tiny.processor, "What is in the picture?", None, None, None, None).encoded.ids)
    grammars = Grammars(tokenizer, tiny.eos_token_ids)
    config = EngineConfig(max_num_seqs=64, max_num_batched_tokens=2048, **settings)
    engine = Engine(tiny.model, config, tokenizer=tokenizer, eos_token_ids=tiny.eos_token_ids)
    outputs = []
    for number, schema in enumerate(schemas):
        params = SamplingParams(temperature=temperature, seed=number, max_tokens=tokens)
        guide = grammars.compile(json_schema(schema))
        engine.add_request(EngineRequest(str(number), ids, params, guide=guide))
    while engine.has_unfinished:
        outputs += engine.step()
    engine.check()
    return joined(outputs), engine.stats()


def check(schema, result):
    assert result.last.error is None, (schema, result.last.error)
    assert result.last.finish_reason == "stop", (schema, result.text[-200:])
    value = json.loads(result.text)
    validator = jsonschema.Draft202012Validator
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)
    result.text.encode()  # no half characters


def test_there_are_two_hundred():
    assert len({json.dumps(schema, sort_keys=True) for schema in SCHEMAS}) == 200
    for schema in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_answer_is_valid(tiny, temperature):
    results, _ = answers(tiny, SCHEMAS, temperature=temperature)
    assert len(results) == 200
    for number, schema in enumerate(SCHEMAS):
        check(schema, results[str(number), 0])


def test_drafts_and_preemptions_change_nothing():
    tiny = pixtral.load(threads=1, dtype="float32")  # so that ties do not depend on the order of sums
    some = SCHEMAS[::8]
    plain, _ = answers(tiny, some, temperature=0.0)
    ids = {key: result.ids for key, result in plain.items()}
    drafted, _ = answers(tiny, some, temperature=0.0, prompt_lookup=PromptLookup(4))
    assert {key: result.ids for key, result in drafted.items()} == ids
    narrow = {"max_model_len": 256, "kv_cache_bytes": 256 * 2048}  # 256 tokens for all of them
    preempted, stats = answers(tiny, some, temperature=0.0, **narrow)
    assert {key: result.ids for key, result in preempted.items()} == ids
    assert stats.preemptions > 0


def test_cut_short_is_length(tiny):
    results, _ = answers(tiny, [{"type": "array", "minItems": 50}], temperature=0.0, tokens=9)
    assert results["0", 0].last.finish_reason == "length" and len(results["0", 0].ids) == 9
