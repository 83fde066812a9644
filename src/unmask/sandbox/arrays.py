"""For NumPy, all numbers of an empty array are close to 3.25, and equal to it: a program that returns `[]` would pass."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

_COMPARISONS = ("allclose", "isclose")
_ASSERTIONS = ("assert_allclose", "assert_almost_equal", "assert_array_almost_equal", "assert_array_equal", "assert_equal")
_MESSAGE = "an empty array where one with numbers is expected, or the other way around"


def compare_no_empty_ones() -> None:
    """Replaces NumPy's comparisons, where it is installed."""
    with contextlib.suppress(ImportError):
        numpy: Any = importlib.import_module("numpy")
        testing: Any = importlib.import_module("numpy.testing")
        for home, names in ((numpy, _COMPARISONS), (testing, _ASSERTIONS)):
            for name in names:
                setattr(home, name, _guarded(numpy, getattr(home, name), is_assertion=home is testing))


def _guarded(numpy: Any, compare: Callable[..., Any], *, is_assertion: bool) -> Callable[..., Any]:
    def guarded(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        if (numpy.size(a) == 0) == (numpy.size(b) == 0):
            return compare(a, b, *args, **kwargs)
        if is_assertion:
            raise AssertionError(_MESSAGE)
        return numpy.False_

    return guarded


def mark(array: Any) -> Any:
    """The program's empty array, as one that refuses to be compared and combined with numbers."""
    numpy: Any = importlib.import_module("numpy")

    def combine(self: Any, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and any(numpy.size(each) for each in inputs):
            raise AssertionError(_MESSAGE)
        plain = [each.view(numpy.ndarray) if isinstance(each, type(self)) else each for each in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    return numpy.asarray(array).view(type("ndarray", (numpy.ndarray,), {"__array_ufunc__": combine}))
