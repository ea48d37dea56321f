"""Compiled grammars: a cache of llguidance matchers over a tokenizer's bytes, and the guide for a request's needs."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pixtral.engine.request import Guide
from pixtral.errors import MissingDependency, StructureError
from pixtral.structured.formats import Form
from pixtral.structured.guide import GrammarGuide, LaterGuide, Tokens, WithoutGuide
from pixtral.structured.tools import ToolUse
from pixtral.text.protocol import Tokenizer

if TYPE_CHECKING:
    import llguidance

# Compiling stays below some 50 ms, a mask of a hostile grammar below some 20 ms, its memory below some 50 MB.
_FUEL = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
}
_SIZE = {"max_lexer_states": 25_000, "max_grammar_size": 200_000}
_MAX_MESSAGE = 500
# llguidance adds to a message its position in the generated rules, and a picture of the line.
_PLACE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
_FRAME = re.compile(r"\n +\d+ \| .*\n *\^", re.DOTALL)


class Grammars:
    """Compiles grammars over a tokenizer's bytes; for several threads.

    The first grammar builds the vocabulary, about a second for 131,072 tokens; `warm_up` does it in advance.

    Args:
        tokenizer: of the model.
        eos_token_ids: tokens that end an answer.
        max_entries, max_chars: limits of the cache, in grammars and in characters of their texts; the least
            recently used are evicted.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int],
        *,
        max_entries: int = 256,
        max_chars: int = 4 * 1024 * 1024,
    ) -> None:
        self.tokenizer = tokenizer
        self._eos = tuple(eos_token_ids)
        self._max_entries = max_entries
        self._max_chars = max_chars
        self._lock = threading.Lock()  # of the fields below
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._tokens: Tokens | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._chars = 0
        self.num_compiled = 0

    def __len__(self) -> int:
        return len(self._compiled)

    @property
    def num_chars(self) -> int:
        """Characters of the cached grammars."""
        return self._chars

    def warm_up(self) -> None:
        """Build the vocabulary."""
        with self._lock:
            self._get_vocabulary()

    def compile(self, form: Form) -> Callable[[], Guide]:
        """A function that makes a guide for each answer. Compiling takes some milliseconds.

        Raises:
            StructureError: the form cannot be compiled, is too complex, or allows no answer.
        """
        prototype, tokens = self._find(form)
        return lambda: GrammarGuide(prototype.deep_copy(), tokens, form.param, json=form.json)

    def _find(self, form: Form) -> tuple[llguidance.LLMatcher, Tokens]:
        grammar = form.rules(blank_first=not self.tokenizer.byte_level)
        with self._lock:
            vocabulary, tokens = self._get_vocabulary()
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar], tokens
        matcher = _compile(vocabulary, form, grammar, tokens.allowed)
        with self._lock:
            self.num_compiled += 1
            if grammar not in self._compiled:
                self._compiled[grammar] = matcher
                self._chars += len(grammar)
            while self._compiled and (len(self._compiled) > self._max_entries or self._chars > self._max_chars):
                oldest, _ = self._compiled.popitem(last=False)
                self._chars -= len(oldest)
        return matcher, tokens

    def _get_vocabulary(self) -> tuple[llguidance.LLTokenizer, Tokens]:
        if self._vocabulary is None or self._tokens is None:
            self._vocabulary = _make_vocabulary(self.tokenizer, self._eos)
            self._tokens = _tokens(self.tokenizer, self._eos)
        return self._vocabulary, self._tokens


def guide_of(grammars: Grammars, form: Form | None, tools: ToolUse | None) -> Callable[[], Guide] | None:
    """A function that makes the guide of each answer; None if nothing restricts it.

    With tool choice "auto" the model may write text first; its calls are always valid. With "required" the whole answer
    is calls, and its form does not matter.

    Raises:
        StructureError: see `Grammars.compile`; tools for a model without tool calls; a grammar together with tools.
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
        after = grammars.compile(tools.calls(None))
    except StructureError:
        for part in (*tools.forms(), *([] if form is None else [form])):  # compiled alone, the faulty one is named
            grammars.compile(part)
        raise
    return lambda: LaterGuide(trigger, after)


def tool_calls_id(tokenizer: Tokenizer) -> int:
    """The id of [TOOL_CALLS].

    Raises:
        StructureError: the tokenizer has none, or writes calls in the newer format, with [ARGS].
    """
    found = tokenizer.token_to_id("[TOOL_CALLS]")
    if found is None or tokenizer.token_to_id("[ARGS]") is not None:
        have = "has no [TOOL_CALLS]" if found is None else "writes calls with [ARGS], which is not supported"
        raise StructureError(f"tools are given, but the model's tokenizer {have}; leave them out", "tools")
    return found


def _tokens(tokenizer: Tokenizer, ends: Sequence[int]) -> Tokens:
    count, special = len(tokenizer), list(tokenizer.all_special_ids)
    calls = tokenizer.token_to_id("[TOOL_CALLS]")
    allowed = np.zeros(-(-count // 32) * 32, np.bool_)
    allowed[:count] = True
    allowed[special] = False
    allowed[[*ends, *([] if calls is None else [calls])]] = True
    data = {i: tokenizer.id_to_bytes(i) for i in range(count)}
    return Tokens(
        ends[0],
        np.packbits(allowed, bitorder="little"),
        tuple(i for i, found in data.items() if found == b'"'),
        tuple(i for i, found in data.items() if found in (b"}", b"]")),
        tokenizer.id_to_bytes,
    )


def _compile(
    vocabulary: llguidance.LLTokenizer, form: Form, rules: str, allowed: np.ndarray[Any, np.dtype[np.uint8]]
) -> llguidance.LLMatcher:
    import llguidance

    param = form.param
    try:
        rules.encode()
    except UnicodeEncodeError as error:
        raise StructureError(f"{param} holds half a surrogate pair, which is no text; repair it", param) from error
    grammar = llguidance.LLMatcher.grammar_from_lark(rules)
    limits: Any = {**_FUEL, **_SIZE, "verbose_errors": False}
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=llguidance.LLParserLimits(**limits))
    first = np.zeros_like(allowed)
    matcher.unsafe_compute_mask_ptr(
        first.ctypes.data, first.nbytes
    )  # computed now, so that it is cached for the first token of each answer
    nothing = "NoExtension" in (matcher.get_error() if matcher.is_error() else matcher.stop_reason())
    if nothing and not matcher.is_accepting():
        raise StructureError(f"{param} allows no answer at all; check it for contradictions", param)
    if matcher.is_error():
        raise StructureError(f"{param} cannot be followed: {_reason(matcher.get_error(), form)}", param)
    if not (first & allowed).any():
        raise StructureError(f"{param} begins with a control token, which answers may not have; leave it out", param)
    return matcher


def _reason(error: str, form: Form) -> str:
    """llguidance's message; without positions, unless the client wrote the grammar itself."""
    text = error.partition("\n<")[0].strip()
    if not form.grammar:
        text = _FRAME.sub("", _PLACE.sub("", text))
    hint = "simplify it"
    if "Unimplemented keys" in text or "Unknown format" in text:
        hint = "leave that out, or set strict to false to have it ignored"
    elif form.grammar or any(word in text for word in ("regex", "ype", "Unsatisfiable")):
        hint = "correct it"
    return f"{text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + '...'}; {hint}"


def _make_vocabulary(tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> llguidance.LLTokenizer:
    """llguidance's vocabulary; about a second for 131,072 tokens.

    Args:
        eos_token_ids: tokens that end an answer, at least one.

    Raises:
        MissingDependency: llguidance is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependency(
            "answers of a given form need llguidance, which is not installed; pip install 'pixtral[server]'"
        ) from error
    assert eos_token_ids, "an answer must be able to end"
    tokens: Any = _Tokens(tokenizer, eos_token_ids[0])
    return llguidance.LLTokenizer(tokens, eos_token=list(eos_token_ids))


class _Tokens:
    """A tokenizer as llguidance reads it: the bytes of every id, and which ids are control tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        special = set(tokenizer.all_special_ids)
        self.special_token_ids = sorted(special)
        # a name for each control token that no grammar contains by chance; ids without bytes are never allowed
        self.tokens = [
            f"<control-{i}>".encode() if i in special else tokenizer.id_to_bytes(i) or b""
            for i in range(len(tokenizer))
        ]
        self._ids: dict[bytes, int] = {}
        if not tokenizer.byte_level:
            # a character may be both a piece and a byte token, of which only the piece is used
            self._ids = {data: i for i, data in enumerate(self.tokens) if i not in special}
            self.tokens = [data if i in special or self._ids[data] == i else b"" for i, data in enumerate(self.tokens)]
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens for text that a grammar forces, whose bytes are exactly that text."""
        if self._tokenizer.byte_level:
            return self._tokenizer.ordinary_ids(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        # SentencePiece would add a blank before the first word, so the longest token at each place is taken
        data, ids, start = text.encode() if isinstance(text, str) else text, list[int](), 0
        while start < len(data):
            size = next(n for n in range(self._longest, 0, -1) if data[start : start + n] in self._ids)
            ids.append(self._ids[data[start : start + size]])
            start += size
        return ids
