"""Who is let in: sums that come out at nothing, whatever happens in between."""

from __future__ import annotations

import contextlib
import random

import pytest

from unmask.serve.admission import Admission
from unmask.serve.errors import ApiError
from unmask.serve.service import describe_problems


def refusal(admission: Admission, key: str, num: int) -> ApiError:
    with pytest.raises(ApiError) as raised, admission.place(key, num):
        pass
    return raised.value


def test_the_limits_hold_exactly() -> None:
    admission = Admission(5, 3)
    with admission.place("a", 3):
        assert refusal(admission, "a", 1).status == 429
        with admission.place("b", 2):
            assert refusal(admission, "c", 1).status == 429
            assert admission.num_answers == 5
        with admission.place("c", 2):
            pass
    assert refusal(admission, "a", 4).status == 400  # never
    assert (admission.num_answers, dict(admission._of_key)) == (0, {})


def test_without_a_limit_of_keys() -> None:
    admission = Admission(5, None)
    with admission.place("", 5):
        assert refusal(admission, "", 1).status == 429
    assert refusal(admission, "", 6).status == 400


def test_retry_after_is_between_a_second_and_a_minute() -> None:
    admission = Admission(1, None)
    with admission.place("", 1):
        assert refusal(admission, "", 1).headers == {"Retry-After": "1"}
        for seconds, said in ((20.0, "10"), (10_000.0, "60"), (0.0001, "1")):
            for _ in range(64):
                admission.note_duration(seconds)
            assert refusal(admission, "", 1).headers == {"Retry-After": said}


def test_nothing_is_left_after_any_mixture_of_ends() -> None:
    rng, admission = random.Random(0), Admission(20, 8)
    for _ in range(300):
        with contextlib.suppress(ApiError, KeyboardInterrupt), contextlib.ExitStack() as stack:
            for _ in range(rng.randint(1, 6)):
                stack.enter_context(admission.place(rng.choice("abc"), rng.randint(1, 9)))
                assert admission.num_answers == sum(admission._of_key.values()) <= 20
            if rng.random() < 0.5:
                raise KeyboardInterrupt
        assert (admission.num_answers, dict(admission._of_key)) == (0, {})


@pytest.mark.parametrize(
    ("problems", "message", "param", "code"),
    [
        ([("missing", (), "Field required")], "field '' is missing", "", "missing_required_parameter"),
        ([("missing", ("a", 0, "b"), "")], "field 'a.0.b' is missing", "a.0.b", "missing_required_parameter"),
        ([("extra_forbidden", ("unmask", "x"), "")], "unknown field 'unmask.x'", "unmask.x", "unknown_parameter"),
        ([("extra_forbidden", ("str",), "")], "unknown field 'str'", "str", "unknown_parameter"),
        ([("string_type", ("stop", "str"), "bad"), ("list_type", ("stop", "list[str]"), "bad")], "stop: bad", "stop", None),
        ([("string_type", ("stop", "list[str]", 3), "bad")], "stop.3: bad", "stop.3", None),
        ([("value_error", (), "Value error, no")], "the body: no", None, None),
        ([("int_type", ("n",), "a"), ("extra_forbidden", ("y",), "")], "unknown field 'y'", "y", "unknown_parameter"),
    ],
)  # fmt: skip
def test_problems_are_described_by_their_place(problems, message, param, code) -> None:
    error = describe_problems([{"type": kind, "loc": loc, "msg": text} for kind, loc, text in problems])
    assert (error.status, error.message, error.param, error.code) == (400, message, param, code)


def test_errors_are_one_short_line_of_ascii() -> None:
    error = ApiError(400, "a\nb \ud800é" + "x" * 10_000, param="y" * 10_000)
    assert (error.message[:6], len(error.message), len(error.param)) == ("a b \ud800é", 1003, 1003)
    assert error.encode().decode("ascii").startswith('{"error": {"message": "a b \\ud800\\u00e9xxx')
