"""Turns -> the text of the model's own chat template, and the character spans of the assistant's words in it.

1. `ChatRenderer.render` applies the template to all turns: this is the text that the model reads.
2. For each answer it renders the conversation up to the answer again, once with the header that makes the model speak and
   once with the answer. The difference is the answer with its end-of-turn token, whatever the template writes around it.
3. `label_mask` turns these spans into bool[T], which tokens are labelled.

No template is copied into this file. A template may shorten the header of earlier answers, as Qwen3's does (it drops their
think block): such answers are labelled where the full text has them, since that is what the model reads later.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drive_vlm.data.samples import IMAGE, VIDEO, BadRow, Sample, Turn

# Tags that a template looks for in the texts that it is given, an answer's thought, and code points that no text has.
_TAG = re.compile(r"</?[a-z_]+>")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_STAND_INS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """Template output: `text`, and `spans` [(start, end)] of the assistant's words with their end-of-turn token."""

    text: str
    spans: tuple[tuple[int, int], ...]


def to_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as the content lists that chat templates take."""
    kinds = {IMAGE: {"type": "image"}, VIDEO: {"type": "video"}}
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "user":
            content: Any = [kinds.get(part) or {"type": "text", "text": part} for part in turn.parts]
        else:
            content = [{"type": "text", "text": turn.text}]
        messages.append({"role": turn.role, "content": content})
    return messages


class ChatRenderer:
    """Renders turns with a model's chat template.

    Args:
        tokenizer: a fast tokenizer (transformers).
        template: the Jinja chat template, from the processor or the tokenizer.
        reserved: special tokens that no row may hold, since they would forge a turn.
    """

    def __init__(self, tokenizer: Any, template: str, reserved: Sequence[str]) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.special = dict(tokenizer.special_tokens_map)
        # The placeholders are special tokens of some models, and rows write them.
        self.reserved = [token for token in reserved if token not in (IMAGE, VIDEO)]
        # Words that the template looks for in a text, such as </think>: it cuts the text there.
        tags = sorted({tag for tag in _TAG.findall(template) if tag not in (*reserved, IMAGE, VIDEO)})
        self.hidden = dict(zip(tags, _STAND_INS, strict=False))
        self.thinks = "</think>" in template
        self.plain_text = self._takes_plain_text()
        self.writes_video = not self.plain_text and self._writes_video()

    def _apply(self, turns: Sequence[Turn], prompt: bool, thinking: bool = False) -> str:
        turns = [self._covered(turn) for turn in turns]
        messages = to_messages(turns)
        if self.plain_text:
            messages = [{"role": turn.role, "content": "".join(turn.parts)} for turn in turns]
        text = self._template(messages, prompt, thinking)
        for tag, stand_in in self.hidden.items():
            text = text.replace(stand_in, tag)
        return text

    def _covered(self, turn: Turn) -> Turn:
        """The turn as the template may see it: of the words that it looks for, only those of a thought before an answer."""

        def cover(text: str) -> str:
            for tag, stand_in in self.hidden.items():
                text = text.replace(tag, stand_in)
            return text

        if self.thinks and turn.role == "assistant" and (found := _THOUGHT.match(turn.text)):
            text = f"<think>{cover(found[1])}</think>{cover(turn.text[found.end() :])}"
            return dataclasses.replace(turn, parts=(text,))
        return dataclasses.replace(turn, parts=tuple(p if p in (IMAGE, VIDEO) else cover(p) for p in turn.parts))

    def _template(self, messages: list[dict[str, Any]], prompt: bool, thinking: bool = False) -> str:
        # Qwen3's template knows enable_thinking: the header then holds the empty think block that it writes before an
        # answer, so that the block is not labelled as the assistant's words. Other templates ignore it.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        # What apply_chat_template (transformers 5.23) renders for plain dicts, without the copies that it makes of them first: a third
        # of the time of measuring a row. The compiled template is kept there, by its text.
        return _compile_jinja_template(self.template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=prompt,
            **{**self.special, "enable_thinking": thinking},
        )

    def _takes_plain_text(self) -> bool:
        """Whether the template joins contents as strings, as those of language models do, and cannot take lists of parts."""
        from jinja2.exceptions import UndefinedError

        try:
            text = self._template(to_messages([Turn("user", ("probe",)), Turn("assistant", ("probe",))]), False)
        except (TypeError, UndefinedError):
            return True
        return "'type'" in text

    def _writes_video(self) -> bool:
        """Whether the template writes a placeholder for a video; those of picture models leave it out without a word."""
        words, video = (self._template(to_messages([Turn("user", ("a", *end))]), False) for end in ((), (VIDEO,)))
        return words != video

    def render(
        self,
        turns: Sequence[Turn],
        where: str,
        expand: Callable[[str], str] = str,
        prompt: bool = False,
        thinking: bool = False,
    ) -> Rendered:
        """Text of all turns; with `prompt` the header that makes the model answer is added and there are no spans. With
        `thinking` the header lets it think before, where the template knows that.

        Raises BadRow when a text holds one of the template's own tokens, which would forge a turn (special_token), and when
        the template rewrites earlier turns, so that no span can be trusted (rewritten_turn). `expand` is applied to every
        rendered text, e.g. to write out the frames of a video.
        """
        for turn in turns:
            for token in self.reserved:
                if token in turn.text:
                    problem = f"the text holds the reserved token {token!r}"
                    raise BadRow("special_token", where, problem, "Remove it from the row")
            if any(stand_in in turn.text for stand_in in self.hidden.values()):
                problem = "the text holds a code point that stands for no character (U+FDD0 to U+FDEF)"
                raise BadRow("special_token", where, problem, "Remove it from the row")
        text = expand(self._apply(turns, prompt, thinking))
        if prompt:
            return Rendered(text, ())
        spans = []
        for i, turn in enumerate(turns):
            if turn.role == "assistant" and turn.learned:
                span = self._span(turns, i, text, expand)
                if span is None:
                    problem = "the chat template does not keep earlier turns as they were, so the assistant's words cannot be separated from the rest"
                    way_out = "Give a template that only appends (chat_template.jinja in the model's folder), or split the row"
                    raise BadRow("rewritten_turn", where, problem, way_out)
                spans.append(span)
        return Rendered(text, tuple(spans))

    def _span(self, turns: Sequence[Turn], i: int, text: str, expand: Callable[[str], str]) -> tuple[int, int] | None:
        """Where answer `i` stands in the `text` of all turns, with its end-of-turn token; None where it cannot be found.

        What follows the end-of-turn token (a newline in most templates) is not the assistant's.
        """
        thinking = self.thinks and has_thought(turns[i].text)
        header = expand(self._apply(turns[:i], True, thinking))
        closed = (expand(self._apply(turns[: i + 1], False)) if i + 1 < len(turns) else text).rstrip()
        if not closed.startswith(header):
            return None
        if text.startswith(closed):
            return len(header), len(closed)
        # An earlier answer under a shorter header: its words stand where the text stops being a beginning of the full header.
        before, spoken = expand(self._apply(turns[:i], False)), closed[len(header) :]
        start = text.find(spoken, len(before))
        if start < 0 or not text.startswith(before) or not header.startswith(text[:start]):
            return None
        return start, start + len(spoken)


def has_thought(text: str) -> bool:
    """Whether an answer begins with a think block."""
    return _THOUGHT.match(text) is not None


def label_mask(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool[T]: tokens that lie within a span. `offsets` int[T, 2] are the tokens' character ranges."""
    mask = np.zeros(len(offsets), dtype=bool)
    for start, end in spans:
        mask |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
    return mask


def turns_of(sample: Sample, prompt: bool) -> tuple[Turn, ...]:
    """The turns to render: all of them to train on, all but the last answer as a prompt."""
    return sample.prompt_turns() if prompt else sample.turns
