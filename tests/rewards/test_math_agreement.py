"""Agreement of the verifier of mathematical answers with published gradings, and with pairs of our own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from unmask.rewards.math import DEFAULT_RULES
from unmask.rewards.workers import WorkerPool

OWN_PAIRS = Path(__file__).with_name("answer_pairs.jsonl")
GRADED = Path(__file__).parents[3] / "shared" / "data" / "graded"


def agreement(rows: list[tuple[str, str, bool]]) -> tuple[float, list[str]]:
    """Share of rows on which we agree, and the others in a line each; two workers."""

    async def judge() -> list[bool]:
        pool = WorkerPool("unmask.rewards.equality", "make_judge", (), 2)
        await pool.start()
        results = await asyncio.gather(*(pool.run((text, gold, DEFAULT_RULES), 5.0) for text, gold, _ in rows))
        await pool.close()
        return [bool(result.value and result.value[0]) for result in results]

    verdicts = asyncio.run(judge())
    wrong = [
        f"{i}: {text[-60:]!r}, {gold[-60:]!r}: {verdict}"
        for i, ((text, gold, expected), verdict) in enumerate(zip(rows, verdicts, strict=True))
        if verdict != expected
    ]
    return 1 - len(wrong) / len(rows), wrong


def lines(name: str) -> list[dict]:
    if not GRADED.is_dir():
        pytest.skip(f"{GRADED} is not there")
    return [json.loads(line) for line in (GRADED / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_forms_of_answers(every: int) -> None:
    """Numbers, units, choices, lists, intervals, points, expressions, words: forms of 218 answers, and what is near them."""
    rows = []
    for line in OWN_PAIRS.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        rows += [(f"\\boxed{{{text}}}", pair["gold"], name == "right") for name in ("right", "wrong") for text in pair[name]]
    assert len(rows) > 900
    _, wrong = agreement(rows[::every])
    assert not wrong, wrong


@pytest.mark.slow
def test_agreement_with_gsm8k_solutions() -> None:
    rows = []
    for row in lines("gsm8k_example_model_solutions.jsonl"):
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            rows.append((row[model]["solution"], row["ground_truth"], row[model]["is_correct"]))
    assert len(rows) == 5276
    share, wrong = agreement(rows)
    assert share >= 0.998, wrong


@pytest.mark.slow
def test_agreement_with_graded_mathcoder_answers() -> None:
    rows = []
    for kind in ("correct", "wrong"):
        for row in lines(f"mathcoder70b_dm_mathematics_{kind}.jsonl"):
            rows.append((row["completion"], row["ground_truth"]["answer"], kind == "correct"))
    assert len(rows) == 1000
    share, wrong = agreement(rows)
    assert share >= 0.985, wrong


def test_agreement_with_the_pairs_of_math_verify() -> None:
    rows = [
        (row["pred"], row["gold"], bool(row.get("expected", row.get("result"))))
        for row in lines("mathverify_pairs.derived.jsonl")
    ]
    assert len(rows) == 268
    share, wrong = agreement(rows)
    assert share >= 0.97, wrong
