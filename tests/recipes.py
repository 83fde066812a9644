"""Tiny recipes for tests of whole runs: seconds, not minutes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from unmask.cli.main import main

SFT = """
[model]
preset = "sdar/tiny"
[source]
name = "chained_arithmetic"
options = { min_operations = 1, max_operations = 2 }
[optimizer]
lr = 3e-3
[train]
max_steps = 6
batch_size = 8
[eval]
every_steps = 3
num_examples = 4
sampling = { max_new_tokens = 12, temperature = 0.0 }
[checkpoint]
every_steps = 2
"""

# An untrained model boxes something now and then: paid for that, it has a signal from the first step on.
RL = """
[model]
preset = "sdar/tiny"
[source]
name = "chained_arithmetic"
options = { min_operations = 1, max_operations = 2 }
[rollout]
max_new_tokens = 12
[reward]
name = "exact"
options = { wrong_reward = 0.5, is_cut_wrong = false }
[optimizer]
lr = 1e-3
[train]
max_steps = 12
prompts_per_step = 4
group_size = 4
num_minibatches = 2
[eval]
every_steps = 4
num_examples = 4
sampling = { max_new_tokens = 12 }
[checkpoint]
every_steps = 2
"""


def write_recipe(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


def unmask(*words: object) -> Finished:
    """Runs the command within this process (no second import of torch); tests that kill use `start`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Finished(code, out.getvalue(), err.getvalue())


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as a user runs it; Ctrl-C is not ignored, as it is by a shell's background jobs."""
    return subprocess.Popen(
        [sys.executable, "-m", "unmask", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
