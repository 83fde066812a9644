"""Rows of the usual data sets of mathematics, in their original layouts and in the published one of Gen-Verse."""

from __future__ import annotations

import re
from typing import Any

from unmask.data.problems import Problem, read_text, require_text
from unmask.errors import UnmaskError


def math(row: dict[str, Any], where: str) -> Problem:
    """`question` and `ground_truth_answer`; or MATH's `problem`, `answer`, `solution`, also with capital letters (AIME)."""
    return Problem(
        where,
        require_text(row, ["question", "problem", "Problem"], where),
        answer=require_text(row, ["ground_truth_answer", "answer", "Answer"], where),
        response=read_text(row, ["response", "solution", "Solution"], where),
    )


def gsm8k(row: dict[str, Any], where: str) -> Problem:
    """The published layout; or `answer` with the solution and, after `####`, the result.

    The solution is the demonstration: its calculator's notes (`<<6/2=3>>`) are left out and the result is boxed.
    """
    if row.get("ground_truth_answer") is not None:
        return math(row, where)
    question, written = require_text(row, ["question"], where), require_text(row, ["answer"], where)
    solution, mark, result = written.rpartition("####")
    answer = result.strip().replace(",", "")
    if not mark or not answer:
        raise UnmaskError(f"{where}: answer should end with #### and the result, found {written[-40:]!r}")
    steps = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return Problem(where, question, answer=answer, response=f"{steps}\nThe answer is \\boxed{{{answer}}}.".lstrip())
