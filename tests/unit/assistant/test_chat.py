"""chat(), streams and conversations on the embedded model."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import random
import threading

import pytest
import torch
from oracle import greedy
from PIL import Image

import pixtral
from pixtral.assets import demo_image_path
from pixtral.assistant import Answer
from pixtral.assistant.options import resolve_options
from pixtral.assistant.prompt import prepare
from pixtral.engine.model import model_version
from pixtral.engine.sampling_params import PromptLookup
from pixtral.engine.shared_engine import SharedEngine
from pixtral.errors import EngineError, GenerationError, ImageError, PromptError
from pixtral.ops.kv_cache import LayerCache

QUESTION = "What is in the picture?"


def assert_equal_usage(one, other):
    """But for what was cached."""
    assert dataclasses.replace(one.usage, cached_tokens=0) == dataclasses.replace(other.usage, cached_tokens=0)


def test_the_answer_is_that_of_the_plain_loop(assistant, image):
    prompt = prepare(assistant.processor, QUESTION, image, None, None, None).encoded
    tokenizer = assistant.processor.tokenizer
    ids = greedy(
        assistant.model, list(prompt.ids), [image.pixels() for image in prompt.images], 24, (tokenizer.eos_token_id,)
    )
    answer = assistant.chat(QUESTION, image, max_new_tokens=24)
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.text.strip()
    assert answer.usage.prompt_tokens == len(prompt.ids)
    assert answer.usage.image_tokens == prompt.num_image_tokens == 70
    assert answer.usage.completion_tokens == len(ids)
    assert answer.finish_reason == ("stop" if ids[-1] == tokenizer.eos_token_id else "length")


def test_the_image_matters(assistant, image):
    plain = Image.new("RGB", image.size, (120, 10, 10))
    assert assistant.chat(QUESTION, image).text != assistant.chat(QUESTION, plain).text


def test_several_images_are_all_seen(assistant, image):
    other = Image.new("RGB", (64, 64), (0, 0, 200))
    calls = []
    encode = assistant.model.encode_images

    def counted(images, *rest):
        calls.append([tuple(image.shape) for image in images])
        return encode(images, *rest)

    assistant.reset_cache()
    assistant.model.encode_images = counted
    try:
        answer = assistant.chat(QUESTION, [image, other], max_new_tokens=4)
    finally:
        del assistant.model.encode_images
    assert calls == [[(3, 112, 144), (3, 64, 64)]]  # once, both together
    assert answer.usage.image_tokens == 7 * 10 + 4 * 5


def test_a_stream_gives_the_same_text_in_pieces(assistant, image):
    whole = assistant.chat(QUESTION, image)
    stream = assistant.chat(QUESTION, image, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.answer.text
    assert len(pieces) > 1
    assert_equal_usage(stream.answer, whole)
    assert stream.answer.finish_reason == whole.finish_reason


def test_asking_for_the_answer_runs_the_rest_of_the_stream(assistant, image):
    stream = assistant.chat(QUESTION, image, stream=True)
    first = next(stream)
    assert stream.answer.text.startswith(first)
    assert stream.answer is stream.answer
    assert list(stream) == []


def test_a_stream_can_be_stopped(assistant, image):
    stream = assistant.chat(QUESTION, image, stream=True, max_new_tokens=100)
    first = next(stream)
    stream.stop()
    assert stream.answer.text == first
    assert stream.answer.finish_reason == "abort"
    assert stream.answer.messages[-1] == {"role": "assistant", "content": first}
    never = assistant.chat(QUESTION, image, stream=True)
    never.stop()
    assert never.answer.text == ""
    assert never.answer.usage.completion_tokens == 0


def test_a_broken_stream_has_no_answer(assistant, image, monkeypatch):
    assistant.reset_cache()
    stream = assistant.chat(QUESTION, image, stream=True)
    monkeypatch.setattr(assistant.model, "encode_images", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    with pytest.raises(GenerationError, match="broken off"):
        _ = stream.answer


def test_length_ends_an_answer(assistant, image):
    answer = assistant.chat(QUESTION, image, max_new_tokens=2)
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(assistant, image):
    whole = assistant.chat(QUESTION, image).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    answer = assistant.chat(QUESTION, image, stop=stop)
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    assert "".join(assistant.chat(QUESTION, image, stop=["@@", stop], stream=True)) == answer.text
    assert assistant.chat(QUESTION, image, stop=whole[-2:] + "@@@").text == whole  # only its beginning is there
    with pytest.raises(GenerationError, match="stop is"):
        assistant.chat(QUESTION, stop=[""])


def test_timings_add_up(assistant, image):
    assistant.reset_cache()
    timings = assistant.chat(QUESTION, image, max_new_tokens=6).timings
    parts = timings.prepare + timings.image + timings.prompt
    assert 0 < parts <= timings.first_token <= timings.total
    assert timings.image > 0
    assert timings.per_token > 0
    assert timings.load > 0
    text = assistant.chat("Hello", max_new_tokens=1).timings
    assert text.per_token == 0


def test_a_seed_makes_drawing_repeatable(assistant, image):
    def draw(seed):
        random.seed(seed)
        torch.manual_seed(seed * 7)
        return assistant.chat(QUESTION, image, temperature=5.0, seed=seed, max_new_tokens=12).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_prompt_lookup_changes_no_answer(assistant, image, monkeypatch):
    rows = []
    whole = assistant.model.forward_packed
    monkeypatch.setattr(assistant.model, "forward_packed", lambda x, *rest: rows.append(len(x)) or whole(x, *rest))
    assistant.reset_cache()
    plain, before = assistant.chat(QUESTION, image), sum(rows)
    rows.clear()
    assistant.reset_cache()
    stream = assistant.chat(QUESTION, image, stream=True, prompt_lookup_num_tokens=5)
    assert "".join(stream) == stream.answer.text == plain.text
    assert (stream.answer.usage, stream.answer.finish_reason) == (plain.usage, plain.finish_reason)
    assert sum(rows) > before  # drafts were checked


def test_prompt_lookup_and_the_cache_as_loaded_unless_a_chat_says_otherwise(assistant, image, monkeypatch):
    seen = []

    add = SharedEngine.add_request

    def spy(self, request):
        seen.append((self._engine.config.kv_cache, request.prompt_lookup))
        return add(self, request)

    monkeypatch.setattr(SharedEngine, "add_request", spy)
    monkeypatch.setattr(assistant, "kv_cache", "bf16")
    monkeypatch.setattr(assistant, "prompt_lookup_num_tokens", 7)
    assistant.chat(QUESTION, image, max_new_tokens=1)
    own = {"kv_cache": "int8", "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 4}
    assistant.chat(QUESTION, image, max_new_tokens=1, **own)
    assistant.conversation(kv_cache="int8", max_new_tokens=1).ask(QUESTION)
    assert seen == [("bf16", PromptLookup(7, 2)), ("int8", PromptLookup(3, 4)), ("int8", PromptLookup(7, 2))]
    monkeypatch.setattr(assistant, "prompt_lookup_num_tokens", None)
    with pytest.raises(GenerationError, match="max_matching_ngram_size is 4, but nothing is looked up"):
        assistant.chat(QUESTION, max_matching_ngram_size=4)


def test_without_a_temperature_the_likeliest_token_is_taken():
    def sampling(**options):
        return resolve_options(options).sampling

    params = sampling(max_new_tokens=7, seed=3, temperature=None, top_p=None)
    assert params.greedy
    assert params.max_tokens == 7
    assert sampling().max_tokens == 512
    assert sampling(top_p=0.5).temperature == 1
    assert sampling(temperature=0.3, top_k=5, min_p=0.1).temperature == 0.3
    assert sampling(repetition_penalty=1.2).repetition_penalty == 1.2
    assert sampling(repetition_penalty=1.2).greedy
    assert sampling(stop="###").stop == ("###",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 2},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0},
        {"top_k": 1.5},
        {"kv_cache": "int3"},
        {"prompt_lookup_num_tokens": 0},
    ],
)
def test_options_out_of_range_are_refused(assistant, wrong):
    with pytest.raises(GenerationError, match=r"is .*expected"):
        assistant.chat("Hello", **wrong)


def test_unknown_options_are_refused(assistant):
    with pytest.raises(TypeError):
        assistant.chat("Hello", max_tokens=3)


def test_a_prompt_longer_than_the_context_is_refused_before_anything_runs(assistant, image, monkeypatch):
    monkeypatch.setattr(assistant.model.config.text_config, "max_position_embeddings", 80)
    monkeypatch.setattr(assistant.model, "encode_images", lambda images: pytest.fail("the tower ran"))
    text = "word " * 60
    with pytest.raises(PromptError, match=r"\d+ tokens, 70 of them for 1 image\(s\), .* context of the model is 80"):
        assistant.chat(text, image)
    with pytest.raises(PromptError, match=r"\d+ tokens, but .*shorten the text$"):
        assistant.chat(text * 2)
    estimate = assistant.estimate(text, image)
    assert not estimate.fits
    assert estimate.context_length == 80


def test_the_context_ends_an_answer(assistant, monkeypatch):
    monkeypatch.setattr(assistant.model.config.text_config, "max_position_embeddings", 14)
    answer = assistant.chat("Hello, what is it?", max_new_tokens=50)
    assert answer.usage.total_tokens <= 14


def test_an_estimate_is_what_the_answer_takes(assistant, image):
    estimate = assistant.estimate(QUESTION, [image, image], system="Be brief.", max_new_tokens=10)
    answer = assistant.chat(QUESTION, [image, image], system="Be brief.", max_new_tokens=10)
    assert estimate.prompt_tokens == answer.usage.prompt_tokens
    assert estimate.image_tokens == answer.usage.image_tokens
    assert estimate.images == answer.images
    text = assistant.model.config.text_config
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    assert estimate.cache_bytes == (estimate.prompt_tokens + 10) * per_token


def test_messages_go_on(assistant, image):
    first = assistant.chat(QUESTION, image)
    assert [message["role"] for message in first.messages] == ["user", "assistant"]
    assert first.messages[-1]["content"] == first.text
    second = assistant.chat([*first.messages, {"role": "user", "content": "How many shapes are there?"}])
    assert second.usage.image_tokens == first.usage.image_tokens
    assert second.usage.prompt_tokens > first.usage.total_tokens
    assert [message["role"] for message in second.messages] == ["user", "assistant"] * 2


def test_an_answer_can_be_begun(assistant, image):
    whole = assistant.chat(QUESTION, image).text
    begun = whole[: len(whole) // 2].rstrip()
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": begun}]
    answer = assistant.chat(messages, max_new_tokens=20)
    assert answer.messages[-1] == {"role": "assistant", "content": begun + answer.text}
    assert len(answer.messages) == 2


def test_a_conversation_remembers(assistant, image):
    conversation = assistant.conversation(max_new_tokens=20)
    first = conversation.ask(QUESTION, image)
    second = conversation.ask("How many shapes are there?")
    by_hand = assistant.chat([*first.messages, {"role": "user", "content": "How many shapes are there?"}])
    assert isinstance(second, Answer)
    assert second.text == by_hand.text
    assert conversation.messages == second.messages
    assert len(conversation.messages) == 4
    conversation.reset()
    assert conversation.messages == []


def test_options_of_a_conversation_can_be_changed_for_a_turn(assistant):
    conversation = assistant.conversation("Be brief.", max_new_tokens=2)
    assert conversation.ask("Hello").usage.completion_tokens <= 2
    assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
    assert conversation.ask("Hello", max_new_tokens=1).usage.completion_tokens == 1
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_a_streamed_turn_counts_when_it_is_complete(assistant, image):
    conversation = assistant.conversation(max_new_tokens=20)
    stream = conversation.ask(QUESTION, image, stream=True)
    next(stream)
    assert conversation.messages == []
    assert stream.answer.messages == conversation.messages


def test_after_an_error_a_conversation_is_as_before(assistant, image):
    conversation = assistant.conversation(max_new_tokens=5)
    conversation.ask(QUESTION, image)
    before = list(conversation.messages)
    with pytest.raises(ImageError):
        conversation.ask("And this?", images="nowhere.png")
    with pytest.raises(PromptError):
        conversation.ask(" ")
    assert conversation.messages == before


def test_images_are_read_once(assistant, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(demo_image_path().read_bytes())
    conversation = assistant.conversation(max_new_tokens=3)
    conversation.ask(QUESTION, path)
    path.unlink()
    assert conversation.ask("And now?").usage.image_tokens == 70


def test_a_raw_prompt(assistant, image):
    chat = assistant.chat(QUESTION, image)
    raw = assistant.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    answer = assistant.complete(raw, image)
    assert answer.text == chat.text
    assert_equal_usage(answer, chat)
    assert answer.messages == []
    assert assistant.complete("Once upon", max_new_tokens=3).usage.image_tokens == 0
    with pytest.raises(PromptError, match="empty"):
        assistant.complete("")
    with pytest.raises(PromptError):
        assistant.complete("no place for it", image)


def test_a_prompt_explained(assistant, image):
    text = assistant.explain("What? [IMG]", [image, Image.new("RGB", (20, 40))], system="Be brief.")
    assert text.count("{image 0: 7 x 9 patches, 70 tokens}") == 1
    assert text.count("{image 1: 3 x 2 patches, 9 tokens}") == 1
    assert text.index("{image 0") < text.index("{image 1") < text.index("What? [IMG]")
    assert text.startswith("<s>[INST]")
    assert text.endswith("[/INST]")
    assert assistant.explain("Hello") == "<s>[INST]Hello[/INST]"


def test_role_order_is_the_template_s(assistant):
    with pytest.raises(PromptError):
        assistant.chat([{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hello"}])


def test_it_says_what_it_is(assistant):
    assert "float32" in repr(assistant)
    assert "tiny" in repr(assistant)


# --- the engine behind it


def test_a_second_turn_computes_its_new_tokens_only(assistant, image, monkeypatch):
    assistant.reset_cache()
    rows, encoded = [], []
    forward, encode = assistant.model.forward_packed, assistant.model.encode_images
    monkeypatch.setattr(assistant.model, "forward_packed", lambda x, *rest: rows.append(len(x)) or forward(x, *rest))
    monkeypatch.setattr(assistant.model, "encode_images", lambda x: encoded.append(len(x)) or encode(x))
    conversation = assistant.conversation(max_new_tokens=20)
    first = conversation.ask(QUESTION, image)
    rows.clear()
    second = conversation.ask("How many shapes are there?")
    computed = sum(rows) - (second.usage.completion_tokens - 1)  # the last token is not run
    # blocks are of 16 tokens, so up to 15 of those that are known are computed again
    assert second.usage.prompt_tokens - first.usage.total_tokens <= computed
    assert computed < second.usage.prompt_tokens - first.usage.total_tokens + 16 + 1
    assert second.usage.cached_tokens == second.usage.prompt_tokens - computed
    assert encoded == [1]
    assistant.reset_cache()
    assert (
        assistant.chat([*first.messages, {"role": "user", "content": "How many shapes are there?"}]).text == second.text
    )


def test_several_questions_share_steps(assistant, image, monkeypatch):
    questions = [QUESTION, "How many shapes are there?", "What colour is the circle?"]
    alone = [assistant.chat(question, image) for question in questions]
    assistant.reset_cache()
    steps = []
    forward = assistant.model.forward_packed
    monkeypatch.setattr(assistant.model, "forward_packed", lambda x, *rest: steps.append(len(x)) or forward(x, *rest))
    together = assistant.chat(questions, [image] * 3)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len(steps) <= max(answer.usage.completion_tokens for answer in together) + 1
    mixed = assistant.chat([[*alone[0].messages, {"role": "user", "content": questions[1]}], "Hello"], max_new_tokens=4)
    assert [len(answer.messages) for answer in mixed] == [4, 2]
    with pytest.raises(PromptError, match="2 entries for 3 questions"):
        assistant.chat(questions, [image] * 2)
    with pytest.raises(PromptError, match="one by one"):
        assistant.chat(questions, [image] * 3, stream=True)


def test_streams_that_are_read_in_turns_do_not_disturb_each_other(assistant, image):
    questions = [QUESTION, "How many shapes are there?"]
    expected = [assistant.chat(question, image).text for question in questions]
    streams = [assistant.chat(question, image, stream=True) for question in questions]
    texts = ["", ""]
    for _ in range(200):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
    assert texts == expected == [stream.answer.text for stream in streams]


def test_threads_get_their_own_answers(assistant, image):
    questions = [QUESTION, "How many shapes are there?", "What colour is the circle?", "Where is the star?"]
    expected = [assistant.chat(question, image).text for question in questions]
    found = {}
    threads = [
        threading.Thread(target=lambda q=question: found.update({q: assistant.chat(q, image).text}))
        for question in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[question] for question in questions] == expected


def test_a_stream_that_nobody_reads_any_more_is_dropped(assistant, image):
    assistant.reset_cache()
    stream = assistant.chat(QUESTION, image, stream=True)
    next(stream)
    engine = assistant._engines[torch.float32]._engine
    assert engine.has_unfinished
    del stream
    gc.collect()
    assistant.chat("Hello", max_new_tokens=1)
    assert not engine.has_unfinished
    engine.check()


def test_an_interrupted_step_ends_what_is_running_and_nothing_else(assistant, image, monkeypatch):
    assistant.reset_cache()
    expected = assistant.chat(QUESTION, image).text
    other = assistant.chat(QUESTION, image, stream=True)
    next(other)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assistant.model, "forward_packed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            assistant.chat(QUESTION, image)
    with pytest.raises(EngineError, match="interrupted"):
        list(other)
    assert assistant.chat(QUESTION, image).text == expected


def _negated_norm(model, patch):
    with torch.no_grad():
        model.model.language_model.norm.weight.neg_()


def _negated_data(model, patch):
    model.model.language_model.norm.weight.data.neg_()


def _a_hook(model, patch):
    model.model.language_model.layers[0].register_forward_hook(lambda module, inputs, out: out * 2 + 3)


def _another_theta(model, patch):
    patch.setattr(model.config.text_config, "rope_theta", 7.0)


@pytest.mark.parametrize("change", [_negated_norm, _negated_data, _a_hook, _another_theta])
@pytest.mark.parametrize("late", [False, True])
def test_a_changed_model_is_not_answered_from_the_cache(change, late, image, monkeypatch):
    own = pixtral.load(dtype="float32", progress=False)
    own.chat(QUESTION, image)
    stream = own.chat(QUESTION, image, stream=True, max_new_tokens=8) if late else None
    change(own.model, monkeypatch)
    changed = stream.answer if late else own.chat(QUESTION, image, max_new_tokens=8)
    assert changed.usage.cached_tokens == 0
    assert changed.text == pixtral.Assistant(own.model, own.processor).chat(QUESTION, image, max_new_tokens=8).text


def test_a_copy_has_caches_of_its_own(assistant, image):
    expected = assistant.chat(QUESTION, image)
    for twin in (copy.deepcopy(assistant), pickle.loads(pickle.dumps(assistant))):
        answer = twin.chat(QUESTION, image)
        assert answer.text == expected.text
        assert answer.usage.cached_tokens == 0


def test_two_conversations_keep_their_caches(assistant, image):
    assistant.reset_cache()
    conversations = [assistant.conversation(max_new_tokens=8) for _ in range(2)]
    for number, conversation in enumerate(conversations):
        conversation.ask(f"{number} " * 100 + QUESTION, image)
    for conversation in conversations:
        again = conversation.ask("How many shapes are there?")
        assert again.usage.cached_tokens > again.usage.prompt_tokens - 60


def test_a_failing_question_ends_alone(assistant, image, monkeypatch):
    assistant.reset_cache()
    expected = assistant.chat(QUESTION, image).text
    stream = assistant.chat(QUESTION, image, stream=True)
    text = next(stream)
    forward = assistant.model.forward_packed

    def fails(embeds, *rest):
        if len(embeds) > 100:
            raise RuntimeError("too large")
        return forward(embeds, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(assistant.model, "forward_packed", fails)
        with pytest.raises(RuntimeError, match="too large"):
            assistant.chat("word " * 200)
        assert text + "".join(stream) == expected


def test_after_a_cache_that_did_not_fit_smaller_questions_are_answered(assistant, image, monkeypatch):
    assistant.reset_cache()
    expected = assistant.chat(QUESTION, image).text
    empty = LayerCache.empty

    def limited(slots, *rest):
        if slots > 3000:
            raise RuntimeError("no memory")
        return empty(slots, *rest)

    monkeypatch.setattr(LayerCache, "empty", limited)
    with pytest.raises(RuntimeError, match="no memory"):
        assistant.chat("word " * 4000)
    assert assistant.chat(QUESTION, image).text == expected
    assert assistant._engines[torch.float32]._engine.scheduler.blocks.num_blocks * 16 <= 3000
    assistant._engines[torch.float32]._engine.check()


def test_what_other_streams_computed_does_not_count_after_a_stop(assistant, image):
    stream = assistant.chat(QUESTION, image, stream=True)
    first = next(stream)
    assistant.chat("How many shapes are there?", image)
    stream.stop()
    assert stream.answer.text == first
    assert stream.answer.finish_reason == "abort"


def test_timings_of_questions_that_share_steps(assistant, image):
    for answer in assistant.chat([QUESTION, "How many shapes are there?"], [image, image]):
        assert 0 < answer.timings.per_token < answer.timings.total
        assert answer.timings.first_token < answer.timings.total


def test_torch_s_seed_makes_unseeded_draws_repeatable(assistant, image):
    def draw():
        torch.manual_seed(3)
        return assistant.chat(QUESTION, image, temperature=5.0, max_new_tokens=12).text

    assert draw() == draw()


def test_what_became_nan_is_not_kept(assistant, image, monkeypatch):
    assistant.reset_cache()
    expected = assistant.chat(QUESTION, image).text
    assistant.reset_cache()
    forward = assistant.model.forward_packed
    with monkeypatch.context() as patch:
        patch.setattr(assistant.model, "forward_packed", lambda *args: forward(*args) * float("nan"))
        with pytest.raises(GenerationError, match="NaN"):
            assistant.chat(QUESTION, image)
    again = assistant.chat(QUESTION, image)
    assert again.text == expected
    assert again.usage.cached_tokens == 0


def test_another_tokenizer_reads_the_next_answer(image):
    own = pixtral.load(dtype="float32", progress=False)
    own.chat(QUESTION, image)
    engine = own._engine(None)
    assert own._engine(None) is engine
    own.processor = copy.deepcopy(own.processor)
    assert own._engine(None) is not engine


def test_a_fused_optimizer_is_noticed():
    model = pixtral.load(dtype="float32", progress=False).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(input_ids=torch.tensor([[1, 5, 6, 7]]), labels=torch.tensor([[1, 5, 6, 7]])).loss.backward()
    before = model_version(model)
    optimizer.step()
    assert model_version(model) != before
    assert model_version(model) == model_version(model)
