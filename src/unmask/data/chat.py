"""Between text and token ids: chat templates, the end of a turn, and a tokenizer small enough for synthetic tasks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.utils import logging

from unmask.errors import UnmaskError
from unmask.files import read_json
from unmask.types import Example

PAD, TURN_END, MASK, USER, ASSISTANT = "<|endoftext|>", "<|im_end|>", "<|MASK|>", "<|user|>", "<|assistant|>"
_TINY_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@contextmanager
def _no_advice() -> Iterator[None]:
    """The library reads the model's config beside the tokenizer and has remarks on families that it does not know."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)


def _fast_class(folder: Path) -> Any:
    """The class of transformers that reads a folder's tokenizer files, without remote code."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast
    # Dream names a class of its own, in remote code, for Qwen's vocabulary and merges.
    file = folder / "tokenizer_config.json"
    if file.exists() and read_json(file).get("auto_map") and (folder / "merges.txt").exists():
        return Qwen2Tokenizer
    return AutoTokenizer


class ChatTokenizer:
    """A fast tokenizer with a chat template, at the level the loops need."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        if not tokenizer.chat_template:
            raise UnmaskError("the tokenizer has no chat template (chat_template in tokenizer_config.json)")
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}  # of tokens that were asked for: the vocabulary, at most
        self.turn_end_id = self._find_turn_end()

    @classmethod
    def load(cls, folder: str | Path) -> ChatTokenizer:
        """From a model folder, without remote code. Raises `UnmaskError`."""
        if not any((Path(folder) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
            raise UnmaskError(f"{folder}: no usable tokenizer here (neither tokenizer.json nor vocab.json with merges.txt)")
        try:
            with _no_advice():
                tokenizer = _fast_class(Path(folder)).from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # the library raises many kinds; all mean "not a usable tokenizer"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnmaskError(f"{folder}: no usable tokenizer here ({reason})") from None
        return cls(tokenizer)

    @classmethod
    def tiny(cls, vocabulary: Sequence[str]) -> ChatTokenizer:
        """One token per entry of the vocabulary plus the special tokens; ids: specials first, in the order above."""
        specials = [PAD, TURN_END, MASK, USER, ASSISTANT]
        ids = {token: i for i, token in enumerate([*specials, *vocabulary])}
        backend = Tokenizer(WordLevel(ids))  # no unknown token: other text is an error, not something else
        longest_first = sorted(vocabulary, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in longest_first) + "|."
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.decoder = decoders.Fuse()
        return cls(
            PreTrainedTokenizerFast(
                tokenizer_object=backend,
                eos_token=TURN_END,
                pad_token=PAD,
                mask_token=MASK,
                additional_special_tokens=[USER, ASSISTANT],
                chat_template=_TINY_TEMPLATE,
            )
        )

    @property
    def special_ids(self) -> dict[str, Any]:
        """Keys of a model's config, for one that is made for this tokenizer."""
        ids = self.tokenizer
        return {"eos_token_id": [self.turn_end_id], "pad_token_id": ids.pad_token_id, "mask_token_id": ids.mask_token_id}

    def stop_ids(self, eos_token_ids: Sequence[int]) -> tuple[int, ...]:
        """What ends a response: the model's end tokens, and that of a turn, which a config may not list."""
        return tuple(sorted({*eos_token_ids, self.turn_end_id}))

    def complete(self, mask_token: str) -> None:
        """Adds what a language model from left to right does without: a mask token; the end of a turn pads, if nothing does."""
        if self.tokenizer.mask_token is None:
            self.tokenizer.add_special_tokens({"mask_token": mask_token})
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.turn_end_id)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))

    def prompt_text(self, example: Example) -> str:
        """The conversation in the chat template, up to where the assistant goes on: its prefix is there already.

        Raises `UnmaskError` for a conversation that the template refuses.
        """
        messages = [m.model_dump() for m in example.messages]
        try:
            return self._template(messages, add_generation_prompt=True) + example.response_prefix
        except TemplateError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnmaskError(f"example {example.id}: the chat template refuses the conversation ({reason})") from None

    def prompt_ids(self, example: Example) -> list[int]:
        """Token ids of `prompt_text`: the one place where prompts of training, evaluation and generation are made."""
        return self.encode(self.prompt_text(example))

    def response_ids(self, example: Example) -> list[int]:
        """Token ids of the demonstration, its end-of-turn token included."""
        assert example.response is not None
        return [*self.encode(example.response), self.turn_end_id]

    def encode(self, text: str) -> list[int]:
        """Token ids. Raises `UnmaskError` for text that a small vocabulary has no tokens for."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library's own kind, raised in Rust
            reason = str(error).splitlines()[0]
            raise UnmaskError(f"the tokenizer has no tokens for some of {text!r} ({reason})") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, special tokens included."""
        for i in ids:
            if i not in self._pieces:
                self._pieces[i] = str(self.tokenizer.decode([i]))
        return [self._pieces[i] for i in ids]

    def shares(self, ids: Sequence[int]) -> list[str]:
        """Each token's share of the text, special tokens included; joined they are the text. What several tokens spell
        together, a character of several bytes, is with the last of them."""
        shares: list[str] = []
        begin = 0
        for end in range(1, len(ids) + 1):
            text = str(self.tokenizer.decode(list(ids[begin:end])))
            is_part = text.endswith("\ufffd") and end - begin < 4 and end < len(ids)  # at most four bytes
            shares.append("" if is_part else text)
            begin = begin if is_part else end
        return shares

    def _template(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))

    def _find_turn_end(self) -> int:
        """The token the template writes after an assistant's turn."""
        if not (zero := self.encode("0")):
            raise UnmaskError("the tokenizer has no vocabulary (tokenizer.json, or vocab.json with merges.txt)")
        marker = str(self.tokenizer.decode(zero[:1]))
        turn = [{"role": "user", "content": marker}, {"role": "assistant", "content": marker}]
        ids = self.encode(self._template(turn, add_generation_prompt=False))
        last = len(ids) - 1 - ids[::-1].index(self.encode(marker)[-1])
        if last + 1 == len(ids):
            raise UnmaskError("the chat template writes nothing after an assistant's turn; it must end the turn")
        return ids[last + 1]
