"""Conversation: several turns, each knowing what was said before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from pixtral.assistant.answer import Answer
from pixtral.assistant.options import ChatOptions, Images
from pixtral.assistant.prompt import compose
from pixtral.assistant.stream import AnswerStream
from pixtral.messages import to_openai

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pixtral.assistant.chat import Assistant


class Conversation:
    """Several turns; each `ask` knows what was said before. `messages` is what was said, in OpenAI's form."""

    def __init__(self, assistant: Assistant, system: str | None = None, options: ChatOptions | None = None) -> None:
        self.assistant = assistant
        self.system = system
        self.options: ChatOptions = options or {}
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    @overload
    def ask(
        self, question: str, images: Images = None, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> Answer: ...
    @overload
    def ask(
        self, question: str, images: Images = None, *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AnswerStream: ...

    def ask(
        self, question: str, images: Images = None, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> Answer | AnswerStream:
        """The next turn; arguments as in `Assistant.chat`, `options` before those of the conversation.

        The turn becomes part of the conversation when its answer is complete, for a stream when it was read to its
        end or stopped. After an error the conversation is as it was.
        """
        turn = [*self.messages, *to_openai(compose(question, images, None))]
        merged: ChatOptions = {**self.options, **options}
        answer = self.assistant.chat(turn, stream=True, **merged)
        answer.when_done(self._remember)
        return answer if stream else answer.answer

    def _remember(self, answer: Answer) -> None:
        self.messages = answer.messages
