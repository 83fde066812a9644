"""One training run and its folder: metrics, evaluations, checkpoints, resuming, stopping. Shared by SFT and RL.

RUN/recipe.toml        the resolved recipe          RUN/metrics.jsonl   what the recipe determines, per step
RUN/versions.json      software and machine         RUN/timings.jsonl   wall-clock seconds, per step
RUN/origins.json       where its models came from  RUN/base/           the model that adapters are trained for, if a preset
RUN/checkpoints/       see train/checkpoint.py      RUN/tensorboard/, wandb-id.txt, wandb/   see train/sinks.py
RUN/best               link to the best of them
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.config import LogConfig, RlRecipe, SftRecipe
from unmask.errors import UnmaskError
from unmask.files import replace_link
from unmask.metrics import JsonlWriter
from unmask.models import Decoder, ValueModel
from unmask.models.decoder import Backbone
from unmask.train.checkpoint import load_checkpoint, newest_valid, rng_state, save_checkpoint, step_folder
from unmask.train.folder import BEST, lock_folder, prepare_folder
from unmask.train.interruption import Interruption
from unmask.train.progress import RL_COLUMNS, SFT_COLUMNS, Progress
from unmask.train.sinks import Sink, open_sinks
from unmask.train.stopping import Stopping
from unmask.train.trainer import Trainer

Evaluate = Callable[[], Mapping[str, float]]  # measures the model as it is now, always on the same questions


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: "target" (the measured value was reached), "patience" (it got no better any more), "max_steps"; or, to
    be resumed, "max_hours" and "interrupted"."""

    reason: Literal["target", "patience", "max_steps", "max_hours", "interrupted"]
    num_steps: int
    checkpoint: Path
    evaluation: dict[str, float]
    signal_name: str | None = None
    exit_code: int = 0


class Run:
    """A run from start or resumption to its `outcome`. Use as a context manager around `steps()`.

    for step in run.steps(): ...; run.finish_step({...}, {...})

    Of several ranks all have one; the first alone writes, and what it finds in the folder holds for all.
    """

    def __init__(
        self, folder: Path, recipe: SftRecipe | RlRecipe, trainer: Trainer[Decoder], tokenizer_from: Path, evaluate: Evaluate,
        *, resume: bool, title: str, value_trainer: Trainer[ValueModel] | None = None,
    ):  # fmt: skip
        self.value_trainer = value_trainer
        self.loop_state: dict[str, Any] = {}  # what the loop wants to know again after a resumption
        self.before_save: Callable[[], None] = lambda: None  # on all ranks; it may add to the state
        self.folder, self.recipe, self.trainer = folder, recipe, trainer
        self.tokenizer_from, self.evaluate = tokenizer_from, evaluate
        self.num_steps = 0
        self.evaluation: dict[str, float] = {}
        self.stopping = Stopping(recipe.stop, recipe.checkpoint.keep_best)
        self._reason: str | None = None
        self.ranks = trainer.ranks
        self.files: tuple[JsonlWriter, ...] = ()  # metrics and timings; the first rank alone writes
        self.sinks: list[Sink] = []
        with ExitStack() as opened:  # a run that cannot begin keeps nothing open, the lock least of all
            if self.ranks.is_first:
                opened.callback(os.close, lock_folder(folder, resume))
                prepare_folder(folder, recipe, resume)
                self.files = JsonlWriter(folder / "metrics.jsonl"), JsonlWriter(folder / "timings.jsonl")
                for file in self.files:
                    opened.callback(file.close)
            notes = self._restore() if resume else []
            if self.ranks.is_first:
                log = recipe.log if self._reason is None else LogConfig()  # an ended run has nothing more to say
                self.sinks = open_sinks(log, folder, recipe.model_dump(mode="json"), self.num_steps, resume)
            self._opened = opened.pop_all()
        self.interruption, self._start = Interruption(), time.monotonic()
        columns = RL_COLUMNS if isinstance(recipe, RlRecipe) else SFT_COLUMNS
        self.progress = Progress(
            title, recipe.train.max_steps, self.num_steps, columns=columns, is_quiet=not self.ranks.is_first
        )
        for note in notes:
            self.progress.say(note)

    def _restore(self) -> list[str]:
        checkpoint, notes = self.ranks.of_first(
            newest_valid(self.folder / "checkpoints") if self.ranks.is_first else (None, [])
        )
        if checkpoint is None and notes:
            raise UnmaskError(f"{self.folder}: no checkpoint here is whole ({notes[0]}); nothing was changed")
        if checkpoint is None:
            for file in self.files:
                file.truncate(0)
            return [*notes, f"{self.folder}: no checkpoint yet, starting from the beginning"]
        state = load_checkpoint(checkpoint, self._models(), self.ranks.rank)
        self.trainer.load_state_dict(state["trainer"])
        if self.value_trainer is not None:
            self.value_trainer.load_state_dict(state["value_trainer"])
        self.loop_state.update(state["loop"])
        self.num_steps, self.evaluation = state["num_steps"], state["evaluation"]
        self.stopping.restore(state["stopping"])
        self._link_best()
        for file, size in zip(self.files, (state["metrics_bytes"], state["timings_bytes"]), strict=False):
            file.truncate(size)
        if state["reason"] == "target" and self.stopping.is_target_reached(self.evaluation, self.num_steps):
            self._reason = "target"
        elif state["reason"] == "patience" and self.stopping.state["num_since"] >= (self.recipe.stop.patience or math.inf):
            self._reason = "patience"
        elif self.num_steps >= self.recipe.train.max_steps:
            self._reason = "max_steps"
        return [*notes, f"resuming after step {self.num_steps} from {checkpoint}"]

    def _models(self) -> dict[str, Backbone]:
        """By the folder of the checkpoint they are kept in."""
        return {"": self.trainer.model} | ({"value_model": self.value_trainer.model} if self.value_trainer else {})

    def __enter__(self) -> Run:
        self.interruption.__enter__()
        self.progress.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._opened:
            self.progress.__exit__(*exc_info)
            self.interruption.__exit__(*exc_info)
            for sink in self.sinks:
                sink.close(is_failed=exc_info[0] is not None)

    def steps(self) -> Iterator[int]:
        """Yields step 0, 1, .. (or from where the checkpoint stood) until the run ends."""
        config = self.recipe.eval
        if config.at_start and config.every_steps and not self.num_steps:
            self._measure()
        while self._reason is None:
            yield self.num_steps

    def finish_step(self, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Records the step; evaluates, checkpoints and ends the run when that is due."""
        recipe = self.recipe
        self.num_steps += 1
        self._record(0, metrics)
        measured: dict[str, float] = {}
        seconds = dict(timings)
        is_last = self.num_steps >= recipe.train.max_steps
        if recipe.eval.every_steps and (self.num_steps % recipe.eval.every_steps == 0 or is_last):
            start = time.monotonic()
            measured = self._measure()
            seconds["eval_s"] = time.monotonic() - start
            self._reason = self.stopping.see(measured, self.num_steps)
        self._record(1, seconds)
        if self._reason is None and is_last:
            self._reason = "max_steps"
        self.progress.show_step(self.num_steps, {**metrics, "seconds": timings["step_s"]}, measured)
        shown = {k: v for k, v in metrics.items() if k in ("loss", "reward_mean")}
        self.progress.show(self.num_steps, {**shown, **{f"eval {k}": v for k, v in self.evaluation.items()}})
        every = recipe.checkpoint.every_steps
        self.interruption.share(self.ranks)
        if self._reason is None and self.interruption.signal_name:
            self._reason = "interrupted"
        if self._reason is None and self.ranks.of_first(
            time.monotonic() - self._start >= 3600 * (recipe.train.max_hours or math.inf)
        ):
            self._reason = "max_hours"
        is_best = self.stopping.state["kept_step"] == self.num_steps
        if self._reason or is_best or (every and self.num_steps % every == 0):
            self.save()
        if is_best:
            self._link_best()

    def _link_best(self) -> None:
        """RUN/best leads to the best checkpoint, or is not there."""
        if not self.ranks.is_first:
            return
        link, step = self.folder / BEST, self.stopping.state["kept_step"]
        if step is not None:
            replace_link(link, f"checkpoints/{step_folder(step)}")
        elif link.is_symlink():
            link.unlink()

    def _measure(self) -> dict[str, float]:
        self.evaluation = dict(self.evaluate())
        self._record(0, {f"eval/{k}": v for k, v in self.evaluation.items()})
        return self.evaluation

    def _record(self, number: int, values: Mapping[str, float]) -> None:
        """number: 0 = metrics, 1 = timings."""
        if self.files:
            self.files[number].write({"step": self.num_steps, **values})
        for sink in self.sinks:
            sink.write(self.num_steps, values)

    def save(self) -> None:
        self.before_save()
        rng = self.ranks.gather(rng_state())
        if not self.ranks.is_first:
            return
        for sink in self.sinks:
            sink.flush()
        metrics, timings = self.files
        state = {
            "trainer": self.trainer.state_dict(),
            "value_trainer": self.value_trainer.state_dict() if self.value_trainer else None,
            "loop": self.loop_state,
            "num_steps": self.num_steps,
            "evaluation": self.evaluation,
            "stopping": self.stopping.state,
            "reason": None if self._reason in ("interrupted", "max_hours") else self._reason,
            "metrics_bytes": metrics.sync(),
            "timings_bytes": timings.sync(),
            "rng": rng,
        }
        keep, best = self.recipe.checkpoint.keep_last, self.stopping.state["kept_step"]
        folder = self.folder / "checkpoints"
        save_checkpoint(folder, self.num_steps, self._models(), state, self.tokenizer_from, keep, best)

    @property
    def outcome(self) -> Outcome:
        assert self._reason is not None, "the run has not ended"
        checkpoint = self.folder / "checkpoints" / step_folder(self.num_steps)
        signal_name, code = self.interruption.signal_name, self.interruption.exit_code
        if self._reason != "interrupted":
            signal_name, code = None, 0
        return Outcome(self._reason, self.num_steps, checkpoint, self.evaluation, signal_name, code)  # type: ignore[arg-type]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
