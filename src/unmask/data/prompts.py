"""From a problem to an example: the template of the user's turn, system prompt, solved examples before it, thinking prefix.

The turns become text through the tokenizer's own chat template (`unmask.data.chat`), which is where families differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from unmask.config import check
from unmask.data.digests import normalized, question_digest
from unmask.data.problems import Problem
from unmask.errors import UnmaskError
from unmask.types import Example, Message

MATH = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
FUNCTION = "{question}\nWrite the code in Python, whole and in a single block that begins with ```python and ends with ```."
STDIO = (
    "{question}\nWrite a program in Python, whole and in a single block that begins with ```python and ends with ```. It reads "
    "with input() and writes with print()."
)


class PromptOptions(BaseModel):
    """Options of every source whose rows become prompts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt_template: str = Field(
        "{question}", description="the user's turn; {question} is replaced, and {tests} by the tests of a function"
    )
    system_prompt: str = Field("", description="a system turn before all others; empty = none of its own")
    response_prefix: str = Field(
        "", description='text the assistant\'s turn is begun with, part of the prompt, for example "<think>\\n"'
    )
    num_shots: int = Field(0, ge=0, le=64, description="solved examples as turns before the question")
    shots_path: str = Field("", description="where these come from, in its order; empty = the training split, by hash")

    @field_validator("prompt_template", "stdio_template", check_fields=False)
    @classmethod
    def _has_place(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("should have {question} in it, in whose place the task's text is put")
        return template

    def template_of(self, problem: Problem) -> str:
        return self.prompt_template


def user_turn(problem: Problem, options: PromptOptions) -> str:
    """The problem in its template. Raises `UnmaskError` where the template wants tests that are not there."""
    template, tests = options.template_of(problem), problem.tests
    if "{tests}" in template and not (tests and tests.test_list):
        raise UnmaskError(f"{problem.where}: prompt_template has {{tests}}, but the row has no tests of a function")
    parts = {"{question}": problem.question, "{tests}": "\n".join(tests.test_list) if tests else ""}
    return re.sub(r"\{question\}|\{tests\}", lambda match: parts[match[0]], template)


def make_example(problem: Problem, options: PromptOptions, shots: Sequence[Problem] = ()) -> Example:
    """The example of a problem: system prompt, shots, the problem's own turns. Raises `UnmaskError`.

    A demonstration that begins with the options' `response_prefix` goes on after it: the prefix is in the prompt. A
    prefix of the row's own goes before the options' one.
    """
    own = problem.messages or (Message(role="user", content=user_turn(problem, options)),)
    turns = [m for m in own[:1] if m.role == "system"]
    if options.system_prompt and not turns:
        turns = [Message(role="system", content=options.system_prompt)]
    for shot in shots:
        assert shot.response is not None
        turns += shot.messages or [Message(role="user", content=user_turn(shot, options))]
        turns.append(Message(role="assistant", content=shot.response))
    turns += own[1:] if own[0].role == "system" else own
    response, prefix = problem.response, problem.response_prefix
    if prefix is None:
        prefix = options.response_prefix
        response = response.removeprefix(prefix) if response is not None else None
    fields = {"answer": problem.answer, "response": response, "tests": problem.tests, "response_prefix": prefix}
    named = {"id": problem.id, "messages": turns, "step_map": problem.step_map}
    example = check(Example, named | fields, problem.where)
    try:
        example.model_dump_json()
    except ValueError:  # JSON can write it, no file and no tokenizer can
        raise UnmaskError(f"{problem.where}: half of a surrogate pair (\\ud800 to \\udfff) is no text") from None
    return example


def shot_candidates(problems: Iterable[Problem], num: int) -> list[Problem]:
    """The first `num` in the order of a hash of the question: problems with a response, no question twice."""
    kept: dict[str, tuple[tuple[bytes, str], Problem]] = {}
    for problem in problems:
        if problem.response is None:
            continue
        question, key = normalized(problem.question), (question_digest(problem.question, "shots"), problem.where)
        if question not in kept or key < kept[question][0]:
            kept[question] = key, problem
        if len(kept) > num:
            del kept[max(kept, key=lambda question: kept[question][0])]
    return [problem for _, problem in sorted(kept.values(), key=lambda pair: pair[0])]


def pick_shots(problem: Problem, candidates: Sequence[Problem], num: int) -> list[Problem]:
    """The first `num` candidates, the problem's own question left out. Raises `UnmaskError` if there are fewer."""
    question = normalized(problem.question)
    shots = [shot for shot in candidates if normalized(shot.question) != question][:num]
    if len(shots) < num:
        raise UnmaskError(
            f"{problem.where}: num_shots is {num}, but there are {len(shots)} other questions with a response to take"
        )
    return shots
