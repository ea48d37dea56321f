"""Chat templates: the checkpoint's Jinja text turns a conversation into the prompt, in a sandbox.

A template comes from the Hub and is untrusted code: it sees plain strings, numbers, lists and dictionaries only, in
jinja2's immutable sandbox, with the helpers that Transformers offers.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pixtral.errors import PromptError
from pixtral.hub import read_json
from pixtral.messages import Message, is_batch, normalize, to_openai
from pixtral.text.control import Mask, TokenFinder, mask_for
from pixtral.text.tools import tool_schemas

if TYPE_CHECKING:
    import jinja2


_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "  # if its blank is gone, the template strips the message
_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt, in which the control tokens of the user's strings are masked."""

    masked: str
    mask: Mask = field(repr=False)

    @property
    def text(self) -> str:
        """The prompt as the template wrote it."""
        return self.mask.show(self.masked)

    def split(self) -> list[tuple[bool, str]]:
        """(is a control token of the template, piece), in order; the pieces joined are `text`."""
        return self.mask.split(self.masked)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.

    Raises:
        PromptError: the text is not valid Jinja.
    """

    def __init__(self, source: str) -> None:
        import jinja2
        import jinja2.meta

        self.source = source
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(f"the chat template is not valid Jinja (line {error.lineno}): {error.message}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        control_tokens: TokenFinder | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> Rendered:
        """The prompt of one conversation.

        Args:
            messages: from `pixtral.messages.normalize`; images appear to the template without their source.
            tools: JSON schemas of the functions the assistant may call.
            documents: mappings with a title and a text, for templates that know them.
            add_generation_prompt: asks the template to open an assistant turn.
            continue_final_message: leave the last message open, so that the model goes on with it.
            control_tokens: tokens that must not be read from the user's strings; None allows all.
            variables: further values for the template, bos_token and the like among them.

        Raises:
            PromptError: the template refuses the conversation, or fails.
        """
        import jinja2

        if add_generation_prompt and continue_final_message:
            raise PromptError("add_generation_prompt and continue_final_message exclude each other; choose one")
        chat = to_openai(messages, sources=False)
        data: dict[str, Any] = {"messages": chat, "tools": plain(tools), "documents": plain(documents)}
        mask = mask_for(data, control_tokens or TokenFinder(()))
        data = mask.hide(data)
        final = _open_final_message(data["messages"][-1]) if continue_final_message else ""
        try:
            text = self._template.render(
                **data, add_generation_prompt=add_generation_prompt, **(plain(variables) or {})
            )
        except jinja2.TemplateError as error:
            raise PromptError(f"the chat template refuses this conversation: {error.message}") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise PromptError(f"the chat template failed on this conversation: {error}") from error
        return Rendered(_cut(text, final) if continue_final_message else text, mask)


def find_template(folder: Path) -> str | None:
    """The chat template among a checkpoint's files, None if it has none.

    Looked for in chat_template.jinja, chat_template.json, processor_config.json and tokenizer_config.json, in this
    order; of several named templates the one called "default" is taken.
    """
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise PromptError(f"{path} is not UTF-8 text ({error}); fetch the file again") from error
        found = read_json(path, error=PromptError).get("chat_template")
        if isinstance(found, list):
            named = {entry["name"]: entry["template"] for entry in found}
            if "default" not in named:
                raise PromptError(f"{path} has the chat templates {', '.join(named)} and none called 'default'")
            found = named["default"]
        if found:
            return str(found)
    return None


def plain(value: Any) -> Any:
    """The value rebuilt from strings, numbers, lists and dictionaries; anything else becomes "<its type>"."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _open_final_message(message: dict[str, Any]) -> str:
    """Append the tag to the last text of the message; returns that text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _CONTINUE
        return content
    for part in reversed(content or []):
        if part["type"] == "text":
            text: str = part["text"]
            part["text"] = text + _CONTINUE
            return text
    raise PromptError("continue_final_message needs text in the last message, which has none")


def _cut(text: str, final: str) -> str:
    """The rendered text up to the end of the final message."""
    tag = text.rfind(_CONTINUE.strip())
    if tag < 0 or final.strip() not in text:
        raise PromptError(
            "continue_final_message is set but the chat template drops or changes the end of the last message; "
            "end the conversation with an assistant message that has text"
        )
    return text[:tag] if text.startswith(_CONTINUE, tag) else text[:tag].rstrip()


def _environment() -> jinja2.Environment:
    import jinja2
    import jinja2.exceptions
    import jinja2.ext
    import jinja2.sandbox

    class Namespace(jinja2.utils.Namespace):
        """As Jinja's, but without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, rest = args[0], args[1:]
            for name in dict(*rest, **kwargs):
                _public(name)
            jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _public(name)
            super().__setitem__(name, value)

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's tokens for training; here its body is only rendered."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def public_error(message: str) -> None:
        raise jinja2.TemplateError(message)

    def _public(name: object) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a chat template may not set {name!r}, which begins with an underscore"
            )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    helpers: dict[str, Callable[..., object]] = {
        "raise_exception": public_error,
        "strftime_now": lambda pattern: datetime.datetime.now().strftime(pattern),
        "namespace": Namespace,
    }
    environment.globals.update(helpers)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escaping for HTML that Jinja's own filter does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class TemplateTokenizer(Protocol):
    """`HuggingFaceTokenizer`, as far as it is needed here; `huggingface.py` imports this module."""

    chat_template: str | None

    @property
    def control_tokens(self) -> TokenFinder:
        """Tokens that must not be read from the user's strings."""
        ...

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Variables of the template: bos_token and the like."""
        ...


def render(
    tokenizer: TemplateTokenizer,
    conversation: Any,
    *,
    template: str | None,
    tools: Sequence[object] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, object],
) -> tuple[bool, list[Rendered]]:
    """(whether several conversations came, their prompts). Conversations may be normalised already.

    Raises:
        PromptError: no template, or it refuses a conversation.
    """
    source = template_of(tokenizer, template)
    batched = is_batch(conversation)
    conversations = [normalize(item) for item in (conversation if batched else [conversation])]
    compiled = _compiled(source)
    rendered = [
        compiled.render(
            messages,
            tools=tool_schemas(tools),
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            control_tokens=tokenizer.control_tokens,
            variables={**tokenizer.special_tokens_map, **variables},
        )
        for messages in conversations
    ]
    return batched, rendered


def template_of(tokenizer: TemplateTokenizer, template: str | None) -> str:
    """The template to use: the one given, else the tokenizer's own."""
    source = tokenizer.chat_template if template is None else template
    if source is None:
        raise PromptError(
            "the tokenizer has no chat template; pass chat_template=..., or put a chat_template.jinja beside its files"
        )
    return source


def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads."""
    return _compiled(source).variables


@lru_cache(maxsize=16)
def _compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source)
