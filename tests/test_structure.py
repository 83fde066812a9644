"""Rules of the house, executed: import direction, what loads what, one importer for each optional dependency."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unmask"

# From the top down. A part imports only from parts below its line; parts on one line do not import each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"lm_harness", "quickstart", "serve"},
    {"launch"},
    {"evaluate", "viewer"},
    {"rl"},
    {"engine", "train"},
    {"objectives", "rewards", "data"},
    {"models", "diffusion"},
    {"attention"},
    {"config", "dist", "metrics", "sandbox"},
    {"files", "types"},
    {"errors", "__init__"},
]
# Packages of extras, and the one file that imports each.
OPTIONAL = {
    "peft": "models/lora.py",
    "bitsandbytes": "models/quantize.py",
    "pyarrow": "data/parquet.py",
    "math_verify": "rewards/equality.py",
    "sympy": "rewards/equality.py",
    "matplotlib": "viewer/picture.py",
    "PIL": "viewer/animation.py",
    "lm_eval": "lm_harness.py",
    "openai": "rewards/chat_endpoint.py",
    "ray": "rl/cluster.py",
    "fastapi": "serve/api.py",
    "uvicorn": "serve/server.py",
    "prometheus_client": "serve/metrics.py",
    "tensorboard": "train/sinks.py",
    "wandb": "train/sinks.py",
}
HEIGHT = {part: -i for i, line in enumerate(LAYERS) for part in line}


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def imports(file: Path) -> list[tuple[int, str]]:
    """(line, module of ours) for every import, also those inside functions; TYPE_CHECKING blocks do not run."""
    found = []
    skip: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skip.update(ast.walk(node))
        if node in skip:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "unmask":
            names = [f"unmask.{a.name}" for a in node.names] if node.module == "unmask" else [node.module]
            found += [(node.lineno, name) for name in names]
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "unmask"]
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@cache
def imported_packages(file: Path) -> frozenset[str]:
    """Every part of the name of every module that a file imports, but for ours."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
    return frozenset(part for name in names if not name.startswith("unmask") for part in name.split("."))


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_import_direction(file: Path) -> None:
    mine = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for line, module in imports(file):
        other = part_of(module)
        if other in (mine, "__init__") or (other not in HEIGHT and module == f"unmask.{other}"):
            continue
        assert HEIGHT[other] < HEIGHT[mine], f"{file.name}:{line}: {mine} must not import {module}"


def test_every_part_has_its_layer() -> None:
    parts = {f.relative_to(PACKAGE).with_suffix("").parts[0] for f in SOURCES}
    assert parts == set(HEIGHT)


@pytest.mark.parametrize(
    "what",
    [
        "unmask",
        "unmask.cli.main",
        "unmask.cli.plotting",
        "unmask.cli.viewing",
        "unmask.config",
        "unmask.types",
        "unmask.viewer",
        "unmask.files",
    ],
)
def test_light_parts_leave_torch_unloaded(what: str) -> None:
    heavy = ("torch", "transformers", "numpy", *OPTIONAL)
    code = f"import sys, {what}; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_packages_have_one_importer(package: str) -> None:
    found = {str(file.relative_to(PACKAGE)) for file in SOURCES if package in imported_packages(file)}
    assert found == {OPTIONAL[package]}


def test_public_names_load() -> None:
    import unmask

    for name in unmask.__all__:
        assert getattr(unmask, name).__doc__, name
    assert set(unmask.__all__) <= set(dir(unmask))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        unmask.nope  # noqa: B018


def test_files_stay_short() -> None:
    long = [f"{f.relative_to(ROOT)}: {n}" for f in SOURCES if (n := len(f.read_text().splitlines())) > 300]
    assert not long, long
