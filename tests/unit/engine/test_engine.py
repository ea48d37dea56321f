"""Engine: many requests at once give what each gives alone; images and prefixes are computed once."""

from __future__ import annotations

import math

import pytest
import torch
from random_models import llava_dict, random_llava
from serving import CONTEXT, GREEDY, Letters, ask, engine_of, expected, joined, run, small_model

from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import Engine
from pixtral.engine.request import EngineRequest, ImageInput
from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.errors import ConfigError, GenerationError, PromptError
from pixtral.models.mistral import MistralForCausalLM
from pixtral.ops.native.library import kernels_if_built

WORDS = tuple(range(33, 63))
CAT, DOG = ("cat", 2, 3), ("dog", 2, 3)


def draws(**kwargs):
    return SamplingParams(**{"temperature": 1.5, "max_tokens": 12, **kwargs})


# --- the same tokens


def test_text_and_images_at_once_are_the_oracle():
    asked = {"a": WORDS[:5], "b": (40, CAT, 41), "c": (40, DOG, 41), "d": WORDS, "e": (50, CAT, 51, DOG, 52)}
    results = run(engine_of(), *(ask(name, parts) for name, parts in asked.items()))
    for name, parts in asked.items():
        assert results[name, 0].ids == expected(parts, 8), name
        assert results[name, 0].last.finish_reason == "length"
    assert results["b", 0].ids != results["c", 0].ids  # the images matter


def test_requests_that_come_while_others_run():
    engine, outputs = engine_of(), []
    engine.add_request(ask("a", WORDS[:7]))
    for name, parts in (("b", (CAT, 40)), ("c", WORDS[3:20]), ("d", WORDS[:9])):
        outputs += engine.step() + engine.step()
        engine.add_request(ask(name, parts))
    while engine.has_unfinished:
        outputs += engine.step()
    results = joined(outputs)
    assert results["a", 0].ids == expected(WORDS[:7], 8)
    assert results["b", 0].ids == expected((CAT, 40), 8)
    assert results["c", 0].ids == expected(WORDS[3:20], 8)
    assert results["d", 0].ids == expected(WORDS[:9], 8)


def test_a_decoding_request_does_not_wait_for_a_long_prompt():
    engine = engine_of(max_num_batched_tokens=9)
    engine.add_request(ask("short", WORDS[:2], SamplingParams(temperature=0, max_tokens=9)))
    engine.step()
    engine.add_request(ask("long", WORDS + WORDS))  # 60 tokens, 8 in each step
    for _ in range(8):
        assert [output.request_id for output in engine.step()][:1] == ["short"]
    assert {output.request_id for output in engine.step()} == {"long"}


def test_preempted_requests_come_back():
    engine = engine_of(tokens=64 + CONTEXT - 64, max_num_seqs=4)  # six blocks
    params = SamplingParams(temperature=0, max_tokens=40)
    results = run(engine, *(ask(str(i), WORDS[i : i + 12], params) for i in range(4)))
    assert engine.stats().preemptions > 0
    for i in range(4):
        assert results[str(i), 0].ids == expected(WORDS[i : i + 12], 40)
    assert engine.stats().num_free_blocks == engine.stats().num_blocks == 6


def test_prompt_lookup_changes_nothing():
    parts = (40, 41, 42, 43, 40, 41, 42, CAT, 40, 41)
    plain, ahead = engine_of(), engine_of(prompt_lookup=PromptLookup(4))
    params = SamplingParams(temperature=0, max_tokens=40)
    seeded = draws(seed=4, max_tokens=40, temperature=0.1)
    for name, p in (("a", params), ("b", seeded)):
        results = [run(engine, ask(name, parts, p))[name, 0] for engine in (plain, ahead)]
        assert results[0].ids == results[1].ids and results[0].text == results[1].text
    assert ahead.stats().steps < plain.stats().steps


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_a_cache_of_another_number_format(kind):
    """What is stored depends on the token alone, so that batch, chunks and preemption still change nothing."""
    params = SamplingParams(temperature=0, max_tokens=30)
    asked = [ask(str(i), (*WORDS[i : i + 5], CAT, 40 + i), params) for i in range(4)]
    alone = {}
    for one in asked:
        alone |= run(engine_of(kv_cache=kind, prefix_caching=False), one)
    crowded = engine_of(tokens=CONTEXT // 2, kv_cache=kind, max_num_batched_tokens=5)
    together = run(crowded, *asked)
    assert crowded.stats().preemptions > 0
    assert [together[str(i), 0].ids for i in range(4)] == [alone[str(i), 0].ids for i in range(4)]
    plain = engine_of(tokens=CONTEXT // 2)
    assert crowded.stats().num_blocks == {"int8": 9, "bf16": 6}[kind] and plain.stats().num_blocks == 3


SAME_BITS = kernels_if_built() is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.skipif(not SAME_BITS, reason="PyTorch's own sums in bfloat16 depend on the number of rows")
def test_in_bfloat16_too_neighbours_change_nothing():
    """Scores in bfloat16 are often equal or nearly so: only the same bits give the same choices."""
    text = {"hidden_size": 1024, "intermediate_size": 2048, "head_dim": 64, "num_hidden_layers": 2}
    wide = random_llava(llava_dict(text=text)).bfloat16().requires_grad_(False)
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=3)
    asked = [ask(str(i), (*WORDS[i : i + 5], (CAT, DOG)[i % 2], *WORDS[: 9 * i]), params) for i in range(4)]

    def engine(tokens=1024, **settings):
        token = 2 * 2 * 2 * wide.text_config.num_key_value_heads * 64
        return Engine(wide, EngineConfig(kv_cache_bytes=tokens * token, **settings), tokenizer=Letters())

    alone = {}
    for one in asked:
        alone |= run(engine(prefix_caching=False), one)
    crowded, hits = engine(112, max_model_len=112, max_num_batched_tokens=7), engine()
    ways = [run(engine(), *asked), run(crowded, *asked), run(hits, *asked), run(hits, *asked)]
    ways.append(run(engine(prompt_lookup=PromptLookup(4)), *asked))
    assert crowded.stats().preemptions > 0 and hits.stats().cached_tokens > 0
    for way in ways:
        for key, result in alone.items():
            assert (way[key].ids, way[key].logprobs) == (result.ids, result.logprobs)


# --- computed once


def test_a_prefix_is_computed_once(monkeypatch):
    engine, rows = engine_of(), []
    whole = small_model().forward_packed
    monkeypatch.setattr(
        small_model(), "forward_packed", lambda embeds, *a: rows.append(len(embeds)) or whole(embeds, *a)
    )
    first = run(engine, ask("a", (*WORDS, 70)))["a", 0]
    second = run(engine, ask("b", (*WORDS, 71)))["b", 0]
    again = run(engine, ask("c", (*WORDS, 70)))["c", 0]
    assert (rows[0], rows[8], rows[16]) == (31, 15, 15)
    assert second.last.usage.cached_tokens == again.last.usage.cached_tokens == 16
    assert again.ids == first.ids == expected((*WORDS, 70), 8)
    assert second.ids == expected((*WORDS, 71), 8)
    assert (engine.stats().prompt_tokens, engine.stats().cached_tokens) == (93, 32)
    off = engine_of(prefix_caching=False)
    run(off, ask("a", WORDS), ask("b", WORDS))
    assert off.stats().cached_tokens == 0


def test_an_answer_is_a_prefix_of_the_next_question():
    engine = engine_of()
    first = run(engine, ask("a", WORDS[:15], SamplingParams(temperature=0, max_tokens=20)))["a", 0]
    second = run(engine, ask("b", (*WORDS[:15], *first.ids, 60, 61)))["b", 0]
    assert second.last.usage.cached_tokens == 32  # of 35 that had been computed, what fills blocks
    assert second.ids == expected((*WORDS[:15], *first.ids, 60, 61), 8)


def test_images_of_one_size_do_not_share_blocks():
    engine = engine_of()
    results = run(engine, ask("a", (*WORDS[:20], CAT, 40)))
    results |= run(engine, ask("b", (*WORDS[:20], DOG, 40)))
    assert results["a", 0].ids == expected((*WORDS[:20], CAT, 40), 8)
    assert results["b", 0].ids == expected((*WORDS[:20], DOG, 40), 8)
    assert results["b", 0].last.usage.cached_tokens == 16  # the words before the image


def towers(monkeypatch):
    calls = []
    whole = small_model().encode_images
    monkeypatch.setattr(small_model(), "encode_images", lambda images: calls.append(len(images)) or whole(images))
    return calls


def test_an_image_goes_through_the_tower_once(monkeypatch):
    calls, engine = towers(monkeypatch), engine_of()
    run(engine, ask("a", (40, CAT, 41, 42)), ask("b", (50, CAT, 41, 42, DOG)), ask("c", (51, DOG)))
    assert calls == [2]
    result = run(engine, ask("d", (CAT, 43, 44)))["d", 0]
    assert calls == [2] and result.ids == expected((CAT, 43, 44), 8)
    assert engine.stats().images_encoded == 2 and engine.stats().image_hits == 3
    assert result.last.usage.image_tokens == 2 * 4


def test_features_are_kept_under_a_limit(monkeypatch):
    calls = towers(monkeypatch)
    engine = engine_of(image_cache_bytes=6 * 40 * 4, max_num_batched_tokens=3, prefix_caching=False)
    results = run(engine, *(ask(name, (40, name_of, 41)) for name, name_of in (("a", CAT), ("b", DOG), ("c", CAT))))
    assert calls == [1, 1, 1]
    assert results["b", 0].ids == expected((40, DOG, 41), 8)
    assert engine.stats().image_cache_bytes <= engine.stats().image_cache_limit


def test_several_continuations_run_the_prompt_once(monkeypatch):
    rows = []
    whole = small_model().forward_packed
    monkeypatch.setattr(
        small_model(), "forward_packed", lambda embeds, *a: rows.append(len(embeds)) or whole(embeds, *a)
    )
    results = run(engine_of(), ask("a", (*WORDS[:18], CAT), draws(n=3, seed=7)), ask("b", WORDS[:4]))
    assert rows[:2] == [18 + 8 + 4, 4]
    assert len({tuple(results["a", i].ids) for i in range(3)}) == 3
    alone = run(engine_of(), ask("a", (*WORDS[:18], CAT), draws(n=1, seed=7)))
    assert alone["a", 0].ids == results["a", 0].ids
    assert results["b", 0].ids == expected(WORDS[:4], 8)
    greedy = run(engine_of(max_num_seqs=1), ask("a", WORDS[:9], SamplingParams(temperature=0, n=3, max_tokens=8)))
    assert [greedy["a", i].ids for i in range(3)] == [expected(WORDS[:9], 8)] * 3


# --- parameters


def test_a_seed_is_independent_of_neighbours():
    params = draws(seed=11, top_p=0.9, top_k=30, min_p=0.01)
    alone = run(engine_of(), ask("a", WORDS[:6], params))["a", 0].ids
    crowd = [ask(str(i), WORDS[i : i + 9], draws(seed=i)) for i in range(4)]
    assert run(engine_of(), *crowd[:2], ask("a", WORDS[:6], params), *crowd[2:])["a", 0].ids == alone
    assert run(engine_of(), ask("a", WORDS[:6], draws(seed=12)))["a", 0].ids != alone
    torch.manual_seed(1)
    free = [tuple(run(engine_of(), ask("a", WORDS[:6], draws()))["a", 0].ids) for _ in range(4)]
    assert len(set(free)) > 1, "without a seed draws differ, whatever the process has seeded"


def test_penalties_and_biases_by_their_definitions():
    """Each step's choice, by hand from the logits of the oracle's forward pass."""
    params = SamplingParams(
        temperature=0,
        max_tokens=10,
        presence_penalty=0.7,
        frequency_penalty=0.9,
        repetition_penalty=1.3,
        logit_bias=((35, 1.5), (60, -3.0)),
        min_tokens=4,
        stop_token_ids=(44,),
    )
    prompt = WORDS[:6]
    found = run(engine_of(), ask("a", prompt, params), ask("b", WORDS))["a", 0].ids
    line: list[int] = list(prompt)
    for token in found:
        scores = logits_of(line)
        for seen in set(line):
            scores[seen] = scores[seen] * 1.3 if scores[seen] < 0 else scores[seen] / 1.3
        for said in set(line[6:]):
            scores[said] -= 0.7 + 0.9 * line[6:].count(said)
        scores[35] += 1.5
        scores[60] -= 3.0
        if len(line) < 10:
            scores[44] = -math.inf
        assert token == int(scores.argmax())
        line.append(token)
    assert found != expected(prompt, 10)


def logits_of(ids):
    from pixtral.ops.kv_cache import Packing

    model = small_model()
    with torch.no_grad():
        hidden = model.forward_packed(
            model.embed(torch.tensor(ids)), torch.arange(len(ids)), Packing.full([len(ids)], causal=True), None
        )
        return model.logits(hidden[-1:])[0].clone()


def test_log_probabilities_are_the_models_own():
    params = SamplingParams(
        temperature=2.0, seed=1, top_k=3, max_tokens=5, logprobs=4, logit_bias=((40, 9.0),), presence_penalty=1.0
    )
    results = run(engine_of(), ask("a", WORDS[:5], params), ask("b", WORDS[:5], SamplingParams(seed=2, max_tokens=4)))
    line = list(WORDS[:5])
    assert len(results["a", 0].logprobs) == 5 and results["b", 0].logprobs == []
    for token, given in zip(results["a", 0].ids, results["a", 0].logprobs, strict=True):
        exact = logits_of(line).log_softmax(-1)
        assert given.token == token
        assert given.logprob == pytest.approx(float(exact[token]), abs=1e-4)
        values, ids = exact.topk(4)
        assert [i for i, _ in given.top] == ids.tolist()
        assert [value for _, value in given.top] == pytest.approx(values.tolist(), abs=1e-4)
        line.append(token)
    chosen = run(engine_of(), ask("a", WORDS[:5], SamplingParams(temperature=0, logprobs=0, max_tokens=2)))["a", 0]
    assert [one.top for one in chosen.logprobs] == [(), ()] and chosen.logprobs[0].token == chosen.ids[0]


def test_ends():
    plain = expected(WORDS[:5], 20)
    end = plain[6]
    first = plain.index(end)
    with_eos = engine_of(eos_token_ids=(end,))
    params = {"temperature": 0, "max_tokens": 20}
    stopped = run(with_eos, ask("a", WORDS[:5], SamplingParams(**params)))["a", 0]
    assert stopped.ids == plain[: first + 1]
    assert (stopped.last.finish_reason, stopped.last.stop_reason) == ("stop", end)
    assert stopped.text == Letters().ids_to_text(plain[:first], True)
    on = run(with_eos, ask("a", WORDS[:5], SamplingParams(**params, ignore_eos=True)))["a", 0]
    assert on.ids == plain and on.last.finish_reason == "length"
    own = run(engine_of(), ask("a", WORDS[:5], SamplingParams(**params, stop_token_ids=(end,), ignore_eos=True)))
    assert own["a", 0].ids == stopped.ids
    late = run(with_eos, ask("a", WORDS[:5], SamplingParams(**params, min_tokens=first + 2)))["a", 0]
    assert late.ids[:first] == plain[:first] and end not in late.ids[: first + 2]


def test_stop_strings_end_the_text_before_them():
    plain = run(engine_of(), ask("a", WORDS[:5], SamplingParams(temperature=0, max_tokens=20)))["a", 0]
    stop = plain.text[5:8]
    stopped = run(engine_of(), ask("a", WORDS[:5], SamplingParams(temperature=0, max_tokens=20, stop=("@@", stop))))
    assert stopped["a", 0].text == plain.text[: plain.text.index(stop)]
    assert (stopped["a", 0].last.finish_reason, stopped["a", 0].last.stop_reason) == ("stop", stop)
    assert len(stopped["a", 0].ids) < 20
    held = run(engine_of(), ask("a", WORDS[:5], SamplingParams(temperature=0, max_tokens=20, stop=(stop[:-1] + "~",))))
    assert held["a", 0].text == plain.text


def test_the_context_ends_an_answer():
    result = run(engine_of(), ask("a", (*WORDS, *WORDS, *WORDS), SamplingParams(temperature=0)))["a", 0]
    assert len(result.ids) == CONTEXT - 90 and result.last.finish_reason == "length"
    small = engine_of(max_model_len=20)
    assert small.max_model_len == 20
    assert len(run(small, ask("a", WORDS[:15], SamplingParams(temperature=0)))["a", 0].ids) == 5


def test_priorities():
    engine = engine_of(max_num_seqs=1)
    for name, priority in (("last", 2), ("second", 1), ("first", 0)):
        engine.add_request(ask(name, WORDS[:4], priority=priority))
    order = []
    while engine.has_unfinished:
        order += [output.request_id for output in engine.step() if output.finish_reason]
    assert order == ["first", "second", "last"]


# --- aborts and errors


def test_abort_at_any_step_gives_everything_back():
    for at in range(7):
        engine, outputs = engine_of(max_num_batched_tokens=8), []
        engine.add_request(ask("a", (*WORDS[:5], CAT, 40), draws(n=2, seed=1)))
        engine.add_request(ask("b", (*WORDS[:7], CAT, 41)))
        for _ in range(at):
            outputs += engine.step()
        outputs += engine.abort("a")
        assert engine.abort("a") == engine.abort("nobody") == []
        engine.check()
        while engine.has_unfinished:
            outputs += engine.step()
        results = joined(outputs)
        assert results["b", 0].ids == expected((*WORDS[:7], CAT, 41), 8)
        assert {results["a", i].last.finish_reason for i in range(2)} == {"abort"}
        stats = engine.stats()
        assert stats.num_free_blocks == stats.num_blocks and stats.finished == {"abort": 2, "length": 1}


def broken_image(error):
    def pixels():
        raise error

    good = ask("x", (40, CAT, 41))
    image = good.images[0]
    return EngineRequest("broken", good.prompt_ids, GREEDY, (ImageInput(image.start, image.length, 6, b"?", pixels),))


def test_a_broken_image_ends_its_request_alone():
    engine = engine_of()
    results = run(engine, ask("a", (CAT, 40)), broken_image(OSError("gone")), ask("b", (DOG, 40)))
    assert results["broken", 0].last.finish_reason == "error"
    assert str(results["broken", 0].last.error) == "gone"
    assert results["a", 0].ids == expected((CAT, 40), 8) and results["b", 0].ids == expected((DOG, 40), 8)
    engine.check()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_weights_that_give_nan_end_the_request_alone(monkeypatch):
    whole = small_model().logits

    def broken(hidden):
        logits = whole(hidden).clone()
        if len(logits) == 3:
            logits[1] = torch.nan
        return logits

    monkeypatch.setattr(small_model(), "logits", broken)
    results = run(engine_of(), *(ask(str(i), WORDS[i : i + 5]) for i in range(3)))
    assert results["1", 0].last.finish_reason == "error" and "NaN" in str(results["1", 0].last.error)
    assert results["0", 0].ids == expected(WORDS[:5], 8) and results["2", 0].ids == expected(WORDS[2:7], 8)


class Alternating:
    """A grammar: even and odd tokens in turn; `fail` breaks it at a place."""

    def __init__(self, fail=None):
        self.said, self.fail = 0, fail

    def mask(self, scores):
        if self.fail == ("mask", self.said):
            raise RuntimeError("broken grammar")
        scores[(self.said + 1) % 2 :: 2] = -math.inf

    def advance(self, token):
        if self.fail == ("advance", self.said):
            raise ValueError("broken grammar")
        assert token % 2 == self.said % 2
        self.said += 1


def test_grammars():
    asked = ask("a", WORDS[:5], draws(n=2, seed=3), guide=Alternating)
    results = run(engine_of(), asked, ask("b", WORDS[:5]))
    for i in range(2):
        assert [token % 2 for token in results["a", i].ids] == [0, 1] * 6
    assert results["b", 0].ids == expected(WORDS[:5], 8)
    for fail in (("mask", 2), ("advance", 2)):
        results = run(engine_of(), ask("a", WORDS[:5], guide=lambda fail=fail: Alternating(fail)), ask("b", WORDS[:5]))
        assert results["a", 0].last.finish_reason == "error" and len(results["a", 0].ids) == 2
        assert results["b", 0].ids == expected(WORDS[:5], 8)


def test_an_error_of_the_network_ends_those_who_were_in_the_step(monkeypatch):
    engine = engine_of(max_num_seqs=2)
    for name in "abc":
        engine.add_request(ask(name, WORDS[:5]))
    whole = small_model().forward_packed
    monkeypatch.setattr(small_model(), "forward_packed", lambda *a: 1 / 0)
    outputs = engine.step()
    assert {(o.request_id, o.finish_reason) for o in outputs} == {("a", "error"), ("b", "error")}
    monkeypatch.setattr(small_model(), "forward_packed", whole)
    assert run(engine)["c", 0].ids == expected(WORDS[:5], 8)


# --- what is refused


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (EngineRequest("a", (), GREEDY), PromptError, "empty"),
        (EngineRequest("a", (33,) * CONTEXT, GREEDY), PromptError, f"{CONTEXT} tokens, the context is {CONTEXT}"),
        (EngineRequest("a", (33, 96), GREEDY), PromptError, "vocabulary has 96"),
        (EngineRequest("a", (33, -1), GREEDY), PromptError, "-1"),
        (EngineRequest("a", (33, 10, 34), GREEDY), PromptError, r"1 \[IMG\] tokens, its 0 images"),
        (EngineRequest("a", (33, 10, 10), GREEDY, (ImageInput(1, 2, 3, b"", print),)), PromptError, "3 features for 2"),
        (EngineRequest("a", (10, 10), GREEDY, (ImageInput(1, 9, 1, b"", print),)), PromptError, "image 0"),
        (EngineRequest("a", (33,), SamplingParams(logit_bias=((96, 1.0),))), GenerationError, "token 96"),
        (EngineRequest("taken", (33,), GREEDY), GenerationError, "in use"),
    ],
)
def test_refused_requests(request_, error, words):
    engine = engine_of()
    engine.add_request(EngineRequest("taken", (33,), GREEDY))
    with pytest.raises(error, match=words):
        engine.add_request(request_)
    engine.check()
    assert engine.stats().num_waiting == 1


def test_refused_sizes():
    for wrong in ({"max_num_seqs": 0}, {"max_num_batched_tokens": True}, {"max_model_len": 1}, {"max_stretch": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            EngineConfig(**wrong)
    with pytest.raises(ConfigError, match="max_model_len is 97"):
        engine_of(max_model_len=97)
    with pytest.raises(ConfigError, match="kv_cache_bytes is"):
        engine_of(tokens=32, max_model_len=33)
    with pytest.raises(ConfigError, match="holds 0 tokens"):
        engine_of(tokens=15)
    assert engine_of(tokens=32).max_model_len == 32
    with pytest.raises(GenerationError, match="kv_cache"):
        engine_of(kv_cache="int3")
    plain = Engine(small_model(), EngineConfig())
    with pytest.raises(GenerationError, match="need a tokenizer"):
        plain.add_request(EngineRequest("a", (33,), SamplingParams(stop=("x",))))
    assert run(plain, EngineRequest("a", (33,), GREEDY))["a", 0].text == ""


def test_a_model_that_reads_text_only():
    model = MistralForCausalLM(small_model().text_config).eval()
    engine = Engine(model, EngineConfig(), tokenizer=Letters())
    assert len(run(engine, ask("a", WORDS[:4]))["a", 0].ids) == 8
    with pytest.raises(PromptError, match="text only"):
        engine.add_request(ask("b", (CAT, 40)))


def test_an_image_twice_in_one_prompt(monkeypatch):
    calls = towers(monkeypatch)
    result = run(engine_of(), ask("a", (CAT, 40, CAT, 41)))["a", 0]
    assert calls == [1]
    assert result.ids == expected((CAT, 40, CAT, 41), 8)
