"""Lines of `traces.jsonl`: written while decoding goes on, found again when it is continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from unmask.data.chat import ChatTokenizer
from unmask.errors import UnmaskError
from unmask.files import new_file
from unmask.types import Example, Rollout, Trace, TraceRecord


def trace_record(
    example: Example, rollout: Rollout, tokenizer: ChatTokenizer, *, member: int = 0, checkpoint: str = ""
) -> TraceRecord:
    """A rollout as a line of traces.jsonl."""
    return TraceRecord(
        id=example.id,
        member=member,
        trace=rollout.trace,
        prompt_text=example.messages[-1].content,
        response_text=rollout.text,
        prompt_pieces=tokenizer.pieces(rollout.trace.prompt_ids),
        canvas_pieces=tokenizer.pieces(rollout.trace.canvas_ids),
        answer=example.answer,
        reward=rollout.reward,
        reason=rollout.reward_reason,
        parts=dict(rollout.reward_parts),
        checkpoint=checkpoint,
    )


def write_records(path: Path, records: Iterable[TraceRecord]) -> None:
    """One JSON object per line, written whole or not at all. Raises `UnmaskError`."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")


def read_finished(path: Path, known_ids: set[str], checkpoint: str) -> list[TraceRecord]:
    """What an earlier, interrupted run has appended; a line that it was torn from in the middle is cut off.

    Raises `UnmaskError` for a file with anything else in it, which is left as it is.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    records: dict[tuple[str, int], TraceRecord] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        where = f"{path}:{number}"
        try:
            record = TraceRecord.from_dict(json.loads(line), where)
        except ValueError:
            raise UnmaskError(f"{where}: is not a line of traces; choose another file, or --overwrite") from None
        if record.id not in known_ids or record.checkpoint.split("@")[-1] != checkpoint.split("@")[-1]:
            what = "another checkpoint" if record.id in known_ids else "another input"
            raise UnmaskError(f"{path}: has row {record.id!r} of {what}; choose another file, or --overwrite")
        records[record.id, record.member] = record
    if torn and not torn.startswith(b'{"id"'[: len(torn)]):
        raise UnmaskError(f"{path}: does not end with a line of traces; choose another file, or --overwrite")
    if torn:
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    return list(records.values())


def check_finished(
    record_id: str, trace: Trace, prompt_ids: list[int], settings: dict, response_ids: list[int] | None = None
) -> None:  # fmt: skip
    """Raises `UnmaskError` for a trace of another prompt, with other settings, or of another response than the given one."""
    is_same_response = response_ids is None or trace.response_ids == response_ids
    if (trace.prompt_ids, trace.settings) != (prompt_ids, settings) or not is_same_response:
        what = "prompt" if response_ids is None else "prompt or answer"
        raise UnmaskError(
            f"row {record_id!r} of the output was made from another {what} or with other settings; choose another file, or "
            "--overwrite"
        )


def fingerprint(folder: Path) -> str:
    """Tells checkpoints apart by samples of their weights' bytes, wherever the folder lies."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with open(file, "rb") as stream:
            for i in range(65):
                stream.seek(max(0, size - 4096) * i // 64)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:12]
