"""HuggingFaceTokenizer: a tokenizer.json through the `tokenizers` package, with the names of Transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral.batch_feature import BatchEncoding
from pixtral.errors import PromptError, Refused, nearest, refuse
from pixtral.hub import resolve
from pixtral.text import templates
from pixtral.text.base import TokenizerBase
from pixtral.text.huggingface_vocab import HuggingFaceVocabulary
from pixtral.text.padding import VERY_LARGE
from pixtral.text.tokenizer_files import FILES, TokenizerFiles, read_files, write_files

if TYPE_CHECKING:
    import tokenizers

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
OPTIONS = (
    *_NAMED,
    "chat_template",
    "add_bos_token",
    "add_eos_token",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
)


class HuggingFaceTokenizer(HuggingFaceVocabulary, TokenizerBase):
    """A tokenizer over a `tokenizers.Tokenizer`.

    Control tokens written in a text become ids, as in Transformers; `apply_chat_template(tokenize=True)` takes them
    from the template only, never from the conversation.

    Args:
        backend: the tokenizer; its own padding and truncation are switched off, since they are arguments of each call.
        special_tokens: bos_token, eos_token, unk_token, pad_token, those there are.
        chat_template: Jinja text.
        add_bos_token, add_eos_token: what `add_special_tokens` adds; None leaves it to the tokenizer.json.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str | None] | None = None,
        chat_template: str | None = None,
        *,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        model_max_length: int = VERY_LARGE,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: list[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("left", "right"):
                raise PromptError(f"{name} is {side!r}; expected 'left' or 'right'")
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self._named = {name: (special_tokens or {}).get(name) for name in _NAMED}
        self.chat_template = chat_template
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        self.model_max_length = model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.model_input_names = list(model_input_names or ["input_ids", "attention_mask"])
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str | None = None,
        **overrides: Any,
    ) -> HuggingFaceTokenizer:
        """The tokenizer of a folder or Hub id: tokenizer.json with its settings and its chat template.

        Args:
            overrides: padding_side, model_max_length, chat_template and the like, in place of the files' settings.

        Raises:
            NoTokenizer: no tokenizer.json; the message lists what is there.
            CheckpointError: a file cannot be read, or the Hub cannot be reached.
        """
        folder = resolve(
            pretrained_model_name_or_path,
            patterns=FILES if subfolder is None else [f"{subfolder}/{name}" for name in FILES],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        tokenizer = cls.from_files(read_files(folder / subfolder if subfolder else folder), **overrides)
        tokenizer.name_or_path = os.fspath(pretrained_model_name_or_path)
        return tokenizer

    @classmethod
    def from_files(cls, files: TokenizerFiles, **overrides: Any) -> HuggingFaceTokenizer:
        """The tokenizer of files already read."""
        for name in overrides:
            if name not in OPTIONS:
                raise Refused(f"{cls.__name__} got an unknown argument {name!r}; {nearest(name, OPTIONS)}")
        named = {name: overrides.pop(name) for name in _NAMED if name in overrides}
        return cls(files.backend, {**files.special_tokens, **named}, **{**files.options, **overrides})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: object) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
        refuse({key: value for key, value in kwargs.items() if value}, "save_pretrained()")
        options = {
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_input_names": self.model_input_names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
        }
        files = TokenizerFiles(self.backend, self.special_tokens_map, {**options, "chat_template": self.chat_template})
        return write_files(files, Path(save_directory))

    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of these ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """As for every tokenizer, except that a byte-pair vocabulary is never cleaned up: its blanks are the text's."""
        clean = False if type(self.backend.model).__name__ == "BPE" else clean_up_tokenization_spaces
        return super().decode(token_ids, skip_special_tokens, clean, **kwargs)

    @cached_property
    def _affixes(self) -> tuple[list[int], list[int]]:
        """The ids that `add_special_tokens` puts before and after a text."""
        if self.add_bos_token is not None or self.add_eos_token is not None:
            bos = [self.bos_token_id] if self.add_bos_token and self.bos_token_id is not None else []
            eos = [self.eos_token_id] if self.add_eos_token and self.eos_token_id is not None else []
            return bos, eos
        bare, full = (list(self.backend.encode("a", add_special_tokens=flag).ids) for flag in (False, True))
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise PromptError("the tokenizer.json adds special tokens inside a text, which is not supported")

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: None = None) -> list[int]:
        """The ids with the special tokens that the tokenizer adds, often none; pairs are refused."""
        if token_ids_1 is not None:
            raise PromptError("pairs of sequences are not supported; leave token_ids_1 out")
        before, after = self._affixes
        return [*before, *token_ids_0, *after]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where a special token is, or would be added, and 0 elsewhere."""
        if token_ids_1 is not None:
            raise PromptError("pairs of sequences are not supported; leave token_ids_1 out")
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(int(token) in special) for token in token_ids_0]
        before, after = self._affixes
        return [1] * len(before) + [0] * len(token_ids_0) + [1] * len(after)

    def encode(self, text: Any, add_special_tokens: bool = True, **options: Any) -> Any:
        """The ids of a text: a list, or a tensor with `return_tensors`. Options as in a call."""
        return self(text, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def __call__(
        self,
        text: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: object = False,
        truncation: object = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: object = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: object,
    ) -> BatchEncoding:
        """input_ids and attention_mask of a text, a row of ids, or a list of either.

        Arguments as in Transformers; pairs of texts, texts split into words, offsets and overflowing rows are refused.
        """
        refuse({key: value for key, value in kwargs.items() if value}, "the tokenizer")
        return self._encode_rows(
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
            return_token_type_ids=return_token_type_ids,
            return_overflowing_tokens=False,
            return_special_tokens_mask=return_special_tokens_mask,
            return_length=return_length,
        )

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[object] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: object = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: object = None,
        return_dict: bool = True,
        **variables: object,
    ) -> Any:
        """The prompt of a conversation, or of a list of conversations, by the checkpoint's template.

        Images in it become one image token each; `PixtralProcessor` turns that into the image's own number.

        Args:
            conversation: messages in any shape that `pixtral.messages.normalize` takes, or a list of such.
            tools: JSON schemas, or functions with annotations and a docstring.
            chat_template: Jinja text in place of the tokenizer's own.
            add_generation_prompt, continue_final_message, documents: see `ChatTemplate.render`.
            tokenize: False returns the text. Encoded again, control tokens in the conversation would become real.
            variables: further values for the template.

        Raises:
            PromptError: there is no template, or it refuses the conversation.
        """
        batched, rendered = templates.render(
            self,
            conversation,
            template=chat_template,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        if not tokenize:
            texts = [item.text for item in rendered]
            return texts if batched else texts[0]
        rows = [self.rendered_ids(item) for item in rendered]
        result = self(
            rows if batched else rows[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return result if return_dict else result["input_ids"]
