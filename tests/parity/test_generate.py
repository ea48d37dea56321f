"""generate() against Transformers 5.23 on random small networks in float32: tokens identical, scores within 1e-5."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import pytest
import torch
from random_models import MIXED, llava_dict, random_batch, random_pair

from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM

VOCABULARY = 96
EOS, PAD = 5, 0
GRIDS = {
    "text": ((), (), ()),
    "one": (((3, 4),),),
    "several": (((2, 3), (2, 3)), ((2, 3), (1, 1))),
    "sizes": (((1, 1), (4, 2), (2, 5)),),
    "mixed": MIXED,
}


@dataclasses.dataclass
class Two:
    ours: LlavaForConditionalGeneration
    theirs: Any

    def __call__(self, batch=None, seed=None, inputs=None, **settings):
        """Both outputs for the same call, each from the same global random state."""
        inputs = batch.inputs() if inputs is None else inputs
        outputs = []
        for model in (self.ours, self.theirs):
            torch.manual_seed(0 if seed is None else seed)
            with warnings.catch_warnings():
                # Transformers names the classes of tensors that torch is about to rename
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="transformers")
                outputs.append(model.generate(**inputs, **settings))
        return outputs


@pytest.fixture(scope="module")
def two():
    values = llava_dict(text={"eos_token_id": None, "pad_token_id": PAD, "bos_token_id": 1})
    pair = random_pair(values)
    return Two(pair.ours, pair.theirs)


@pytest.mark.parametrize("name", GRIDS)
def test_greedy_tokens(two, name):
    for seed in range(3):
        left = random_batch(two.ours.config, GRIDS[name], side="left", seed=seed)
        ours, theirs = two(left, max_new_tokens=16)
        assert ours.tolist() == theirs.tolist()
        right = random_batch(two.ours.config, GRIDS[name], side="right", seed=seed)
        assert right.attention_mask.equal(left.attention_mask.flip(1))
        # Transformers continues after the padding; here the same prompts give the same tokens
        length = left.input_ids.shape[1]
        assert (
            two.ours.generate(**right.inputs(), max_new_tokens=16)[:, length:].tolist() == theirs[:, length:].tolist()
        )


def test_bfloat16_runs_and_text_model(two):
    theirs_text = two.theirs
    text = MistralForCausalLM(two.ours.config.text_config).eval()
    state = {k.replace("model.language_model.", "model."): v for k, v in two.ours.state_dict().items()}
    text.load_state_dict(
        {k: v for k, v in state.items() if k.startswith(("model.layers", "model.norm", "model.embed", "lm_"))}
    )
    batch = random_batch(two.ours.config, GRIDS["text"])
    ours = text.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8)
    theirs = theirs_text.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8)
    assert ours.tolist() == theirs.tolist()
    half = MistralForCausalLM(two.ours.config.text_config).eval().bfloat16()
    assert half.generate(batch.input_ids, max_new_tokens=4, do_sample=True).shape == (3, batch.input_ids.shape[1] + 4)


def first_tokens(model, batch, n=12):
    """Which tokens a greedy run makes, to choose stops that hit at different places."""
    return model.generate(**batch.inputs(), max_new_tokens=n)[:, batch.input_ids.shape[1] :]


@pytest.mark.parametrize("side_seed", range(3))
def test_eos_pads_and_leaves(two, side_seed):
    batch = random_batch(two.ours.config, MIXED, seed=side_seed)
    tokens = first_tokens(two.ours, batch)
    for eos in (int(tokens[0, 4]), [int(tokens[1, 2]), int(tokens[2, 6])]):
        for pad in (PAD, None):
            ours, theirs = two(batch, max_new_tokens=12, eos_token_id=eos, pad_token_id=pad)
            assert ours.tolist() == theirs.tolist()
    ours, theirs = two(batch, max_new_tokens=12, eos_token_id=eos, min_new_tokens=9)
    assert ours.tolist() == theirs.tolist()
    length = batch.input_ids.shape[1]
    ours, theirs = two(batch, max_length=length + 10, eos_token_id=eos, min_length=length + 8)
    assert ours.tolist() == theirs.tolist()
    assert ours.shape[1] == length + 10


PROCESSORS = {
    "raw": {},
    "repetition": {"repetition_penalty": 1.7},
    "fewer_repeats": {"repetition_penalty": 0.6},
    "minimum": {"min_new_tokens": 4, "eos_token_id": [5, 9, 200]},
    "minimum_length": {"min_length": 40, "eos_token_id": EOS},
    "temperature": {"do_sample": True, "temperature": 0.6, "top_k": 0},
    "top_k": {"do_sample": True, "top_k": 7},
    "top_k_default": {"do_sample": True},
    "top_k_all": {"do_sample": True, "top_k": 1000},
    "top_p": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "top_p_tiny": {"do_sample": True, "top_p": 0.01, "top_k": None},
    "min_p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
    "all": {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "temperature": 1.8,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.02,
        "min_new_tokens": 3,
        "eos_token_id": EOS,
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_scores_and_sampled_tokens(two, name):
    """Full score tensors, and with one global seed the same tokens."""
    for seed in range(2):
        batch = random_batch(two.ours.config, MIXED, seed=seed)
        asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 6}
        ours, theirs = two(batch, seed=seed, **PROCESSORS[name], **asked)
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        compare_rows(ours.scores, theirs.scores, ours, batch, PROCESSORS[name])
        compare_rows(ours.logits, theirs.logits, ours, batch, PROCESSORS[name])
        assert len(ours.scores) == 6


def compare_rows(ours, theirs, output, batch, settings):
    eos = settings.get("eos_token_id", [])
    eos = eos if isinstance(eos, list) else [eos]
    new = output.sequences[:, batch.input_ids.shape[1] :]
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape == (len(new), VOCABULARY) and a.dtype == b.dtype == torch.float32
        running = ~torch.isin(new[:, :step], torch.tensor(eos)).any(1)
        torch.testing.assert_close(a[running], b[running], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"temperature": 1.5, "top_p": 0.95, "num_return_sequences": 3}])
def test_same_seed_same_tokens_when_sequences_end(two, settings):
    """A sequence that leaves the batch must not shift the noise of the others."""
    batch = random_batch(two.ours.config, MIXED)
    ended = 0
    for seed in range(6):
        ours, theirs = two(
            batch, seed=seed, do_sample=True, max_new_tokens=16, eos_token_id=list(range(20, 32)), **settings
        )
        assert ours.tolist() == theirs.tolist()
        ended += bool((ours[:, -1] == PAD).any())
    assert ended >= 4, "the test needs sequences that end early"


def test_defaults(two):
    """20 new tokens when nothing is said, as Transformers, and with the same kind of warning."""
    batch = random_batch(two.ours.config, GRIDS["one"])
    with pytest.warns(UserWarning, match="max_new_tokens"):
        ours = two.ours.generate(**batch.inputs())
    with pytest.warns(UserWarning, match="max_length"):
        theirs = two.theirs.generate(**batch.inputs())
    assert ours.tolist() == theirs.tolist()
    assert ours.shape[1] == batch.input_ids.shape[1] + 20


def test_embeddings_instead_of_ids(two):
    batch = random_batch(two.ours.config, MIXED)
    with torch.no_grad():
        features = two.ours.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes).pooler_output
        embeds = two.ours.embed(batch.input_ids.flatten(), features).unflatten(0, batch.input_ids.shape)
    inputs = {"inputs_embeds": embeds, "attention_mask": batch.attention_mask}
    alone, theirs = two(inputs=inputs, max_new_tokens=7)
    assert alone.shape == (3, 7)  # without the prompt
    assert alone.tolist() == theirs.tolist()
    both, theirs = two(inputs={**inputs, "input_ids": batch.input_ids}, max_new_tokens=7)
    assert both.tolist() == theirs.tolist()
    assert both[:, -7:].tolist() == alone.tolist()
    length = embeds.shape[1]
    short, theirs = two(inputs=inputs, max_length=length + 4, min_length=length + 2, eos_token_id=int(alone[0, 0]))
    assert short.tolist() == theirs.tolist()


def test_bos_when_there_is_no_prompt(two):
    ours, theirs = two(inputs={}, max_new_tokens=5, bos_token_id=1)
    assert ours.tolist() == theirs.tolist()
    assert ours[0, 0] == 1


def test_padding_recognised_by_its_id(two):
    batch = random_batch(two.ours.config, GRIDS["text"])
    ids = batch.input_ids.masked_fill((batch.input_ids == PAD) & (batch.attention_mask == 1), 3)
    ours, theirs = two(inputs={"input_ids": ids}, max_new_tokens=6, pad_token_id=PAD)
    assert ours.tolist() == theirs.tolist()
    masked = two.ours.generate(ids, attention_mask=batch.attention_mask, max_new_tokens=6)
    assert ours.tolist() == masked.tolist()


def test_custom_processors_and_criteria(two):
    """LlavaForConditionalGeneration and Transformers' call the same functions with the same arguments."""
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        StoppingCriteriaList,
        SuppressTokensLogitsProcessor,
    )

    batch = random_batch(two.ours.config, MIXED)
    seen = []

    def note(input_ids, scores):
        seen.append((input_ids.tolist(), scores.shape))
        return scores - 0.5 * (torch.arange(scores.shape[-1]) % 3)

    def stop(input_ids, scores, **_):
        return (input_ids[:, -1] % 7 == 0) | (input_ids.shape[1] > 40)

    processors = LogitsProcessorList(
        [note, NoRepeatNGramLogitsProcessor(2), SuppressTokensLogitsProcessor([7, 8, 9], device="cpu")]
    )
    ours, theirs = two(
        batch,
        max_new_tokens=12,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([stop]),
        do_sample=True,
        temperature=1.4,
        eos_token_id=EOS,
    )
    assert ours.tolist() == theirs.tolist()
    half = len(seen) // 2
    assert seen[:half] == seen[half:]


def test_stop_strings(two):
    """A string over several tokens, one that begins in the prompt, and one inside a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 6]
    pairs = [a + b for a, b in itertools.pairwise(alphabet[33:61])]
    words = list(dict.fromkeys([*alphabet[33:60], *pairs, *alphabet]))[:VOCABULARY]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    batch = random_batch(two.ours.config, GRIDS["text"], seed=3)
    length = batch.input_ids.shape[1]
    plain = two.ours.generate(**batch.inputs(), max_new_tokens=10)
    texts = [tokenizer.decode(row) for row in plain[:, length:].tolist()]
    edges = [tokenizer.decode(row) for row in plain[:, length - 2 : length + 2].tolist()]
    stops = [[texts[0][3:6], texts[1][2:5]], texts[2][4:6], [edges[0][1:], edges[1][1:], "never"]]
    shorter = 0
    for strings in stops:
        ours, theirs = two(batch, max_new_tokens=10, stop_strings=strings, tokenizer=tokenizer, eos_token_id=95)
        assert ours.tolist() == theirs.tolist(), strings
        shorter += ours.tolist() != plain.tolist()
    assert shorter == 3


def test_settings_from_files(two):
    """Transformers' own file is read, and what it asks for is done."""
    from transformers import GenerationConfig as Theirs

    from pixtral.configuration import GenerationConfig

    batch = random_batch(two.ours.config, MIXED)
    theirs = Theirs(do_sample=True, temperature=0.8, top_k=9, max_new_tokens=6, eos_token_id=[EOS], pad_token_id=PAD)
    ours = GenerationConfig.from_dict(theirs.to_dict())
    assert (ours.top_k, ours.eos_token_id, ours.top_p) == (9, [EOS], None)
    a, b = two(batch, generation_config=theirs, seed=4)
    assert a.tolist() == b.tolist()
    torch.manual_seed(4)
    assert two.ours.generate(**batch.inputs(), generation_config=ours).tolist() == b.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_prompt_lookup(two, seed):
    """Transformers takes one prompt at a time for it; the tokens are those of plain search in both."""
    batch = random_batch(two.ours.config, GRIDS["sizes"], seed=seed)
    plain = two.ours.generate(**batch.inputs(), max_new_tokens=40)
    for settings in ({}, {"max_matching_ngram_size": 3}, {"repetition_penalty": 0.7}):
        ours, theirs = two(batch, max_new_tokens=40, prompt_lookup_num_tokens=6, **settings)
        assert ours.tolist() == theirs.tolist()
        assert ours.equal(plain) or "repetition_penalty" in settings
