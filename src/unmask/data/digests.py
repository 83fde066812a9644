"""Hashes that mean the same on every machine: of a question, and of the examples that were used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from unmask.types import Example

if TYPE_CHECKING:
    from unmask.data.sources import Source


def normalized(question: str) -> str:
    """Questions are the same if they differ in white space alone."""
    return " ".join(question.split())


def question_digest(question: str, purpose: str) -> bytes:
    """8 bytes that depend on the words of a question alone; those of different purposes are independent."""
    return hashlib.blake2b(normalized(question).encode(errors="replace"), digest_size=8, key=purpose.encode()).digest()


def hash_examples(examples: Source | Sequence[Example]) -> str:
    """16 hexadecimal digits for the content and the order of examples, whatever their ids and wherever their files are."""
    digest = hashlib.sha256()
    for i in range(len(examples)):
        example = examples[i]
        content = example.model_dump(exclude={"id", "trace"}, exclude_defaults=True)
        if example.trace is not None:
            content["trace"] = asdict(example.trace)
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]
