"""Text of an answer while its tokens come in, so that what has been said never has to be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.data.chat import ChatTokenizer

_UNFINISHED = "\ufffd"  # how a decoder writes the beginning of a character of several tokens
_WINDOW = 64  # tokens after which decoding begins at a later place: the cost of a text does not grow with its square


class TextStream:
    """Turns tokens into text as they come. What `push` and `finish` return, joined, is the decoded answer (without special
    tokens), up to the first stop string.

    stop_strings: the text ends before the first of them; a text's end that may be the beginning of one is held back.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop_strings: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stop_strings
        self._ids: list[int] = []
        self._place = 0  # where the last push began
        self._num_said = 0  # characters of the text of `_ids` that are known to be final
        self._held = ""
        self.has_stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become certain with these tokens."""
        if len(self._ids) > _WINDOW:
            # What is decoded keeps some tokens before the new ones: what a decoder makes of a text's first is another matter.
            kept = self._ids[self._place :]
            text = self._tokenizer.decode(kept)
            if not text.endswith(_UNFINISHED):
                self._ids, self._num_said = kept, len(text)
        self._place = len(self._ids)
        self._ids += ids
        text = self._tokenizer.decode(self._ids).rstrip(_UNFINISHED)
        new, self._num_said = text[self._num_said :], max(self._num_said, len(text))
        return self._say(new, is_last=False)

    def finish(self) -> str:
        """What is left."""
        return self._say(self._tokenizer.decode(self._ids)[self._num_said :], is_last=True)

    def _say(self, new: str, *, is_last: bool) -> str:
        if self.has_stopped:
            return ""
        text = self._held + new
        at = cut_at_stop(text, self._stops)
        if at is not None:
            self.has_stopped, self._held = True, ""
            return text[:at]
        keep = 0 if is_last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """Where the first stop string begins; None: there is none."""
    return min((at for stop in stop_strings if (at := text.find(stop)) >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
