"""Two results side by side, on the examples that both have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from unmask.errors import UnmaskError
from unmask.evaluate.statistics import Difference, paired_bootstrap


class Comparison(NamedTuple):
    """Of one task in one mode. accuracy: paired over examples. remarks: what makes the two results hard to compare."""

    task: str
    mode: str
    accuracy: Difference
    tokens_per_forward: tuple[float, float]
    remarks: list[str]


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Comparison]:
    """All tasks and modes that both results have. Raises `UnmaskError` where there are none, or no common examples."""
    found = []
    for task, a in first["tasks"].items():
        b = second["tasks"].get(task)
        for mode in a["modes"] if b is not None else ():
            if mode in b["modes"]:
                found.append(_compare(task, mode, a, b))
    if not found:
        names = [", ".join(f"{task}/{mode}" for task, t in r["tasks"].items() for mode in t["modes"]) for r in (first, second)]
        raise UnmaskError(f"the two results have no task and mode in common: {names[0] or 'nothing'}; {names[1] or 'nothing'}")
    return found


def _compare(task: str, mode: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    first, second = a["modes"][mode], b["modes"][mode]
    shares = [
        {example: sum(reward >= 1 for reward in rewards) / len(rewards) for example, rewards in each["rewards"].items()}
        for each in (first, second)
    ]
    if not shares[0].keys() & shares[1].keys():
        raise UnmaskError(f"{task}/{mode}: the two results have no example in common")
    remarks = []
    if a["dataset_hash"] != b["dataset_hash"]:
        num = len(shares[0].keys() & shares[1].keys())
        remarks.append(f"other examples: {num} ids in common of {len(shares[0])} and {len(shares[1])}")
    settings = [key for key, value in first["sampling"].items() if second["sampling"].get(key) != value]
    if settings:
        shown = ", ".join(f"{key} {first['sampling'][key]} / {second['sampling'].get(key)}" for key in settings)
        remarks.append(f"other settings: {shown}")
    if a["reward"] != b["reward"]:
        remarks.append("other rewards")
    ways = [each.get("scored_with", {}) for each in (a, b)]
    for name in sorted(ways[0].keys() | ways[1].keys()):
        if ways[0].get(name) != ways[1].get(name):
            remarks.append(f"scored with another {name}: {ways[0].get(name)} / {ways[1].get(name)}")
    speeds = (first["metrics"]["tokens_per_forward"], second["metrics"]["tokens_per_forward"])
    return Comparison(task, mode, paired_bootstrap(shares[0], shares[1]), speeds, remarks)
