"""One training run and its folder: metrics, evaluations, checkpoints, resuming, stopping. Shared by SFT and RL.

RUN/recipe.toml        the resolved recipe          RUN/metrics.jsonl   what the recipe determines, per step
RUN/versions.json      software and machine         RUN/timings.jsonl   wall-clock seconds, per step
RUN/origins.json       where its models came from  RUN/base/           the model that adapters are trained for, if a preset
RUN/checkpoints/       see train/checkpoint.py      RUN/tensorboard/, wandb-id.txt, wandb/   see train/sinks.py
RUN/best               link to the best of them    RUN/logs/, profiles/   of every rank: see train/logs.py, train/profiling.py
RUN/nonfinite-*.json    samples that ended it, see train/nonfinite.py       RUN/max-tokens.json   see train/memory.py
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unmask.config import LogConfig, RlRecipe, SftRecipe
from unmask.errors import UnmaskError
from unmask.files import replace_link, write_text
from unmask.metrics import JsonlWriter
from unmask.models import Decoder, ValueModel
from unmask.train.checkpoint import load_checkpoint, newest_valid, rng_state, step_folder
from unmask.train.folder import BEST, lock_folder, prepare_folder
from unmask.train.interruption import Interruption
from unmask.train.logs import RankLog, fields
from unmask.train.memory import PackSizes
from unmask.train.profiling import StepProfiler
from unmask.train.progress import RL_COLUMNS, SFT_COLUMNS, Progress, format_numbers
from unmask.train.saving import CheckpointWriter
from unmask.train.sinks import Sink, open_sinks
from unmask.train.stopping import Stopping
from unmask.train.stopwatch import Stopwatch
from unmask.train.timings import over_ranks
from unmask.train.trainer import Trainer

LOGGER = logging.getLogger(__name__)
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

    Of several ranks all have one; the first alone writes (but for logs and profiles), and what it finds in the folder holds for
    all.
    """

    def __init__(
        self, folder: Path, recipe: SftRecipe | RlRecipe, trainer: Trainer[Decoder], tokenizer_from: Path, evaluate: Evaluate,
        rank_log: RankLog, *, resume: bool, title: str, value_trainer: Trainer[ValueModel] | None = None,
    ):  # fmt: skip
        # By the folder of the checkpoint that their models are kept in.
        self._trainers: dict[str, Trainer] = {"": trainer} | ({"value_model": value_trainer} if value_trainer else {})
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
            self.ranks.of_first(None)  # the folder is this run's: all may write there
            rank_log.open(folder, self.ranks, trainer.model.device)
            self._pack_sizes = PackSizes(folder, recipe.train.max_tokens_per_micro_batch)
            notes = self._restore() if resume else []
            if self.ranks.is_first:
                log = recipe.log if self._reason is None else LogConfig()  # an ended run has nothing more to say
                self.sinks = open_sinks(log, folder, recipe.model_dump(mode="json"), self.num_steps, resume)
            self._opened = opened.pop_all()
        self.writer = CheckpointWriter(
            folder / "checkpoints", self._trainers, tokenizer_from, self.ranks, keep_last=recipe.checkpoint.keep_last,
            is_asynchronous=recipe.checkpoint.is_asynchronous,
        )  # fmt: skip
        self.interruption, self._start = Interruption(), time.monotonic()
        columns = RL_COLUMNS if isinstance(recipe, RlRecipe) else SFT_COLUMNS
        self.progress = Progress(
            title, recipe.train.max_steps, self.num_steps, columns=columns, is_quiet=not self.ranks.is_first
        )
        self.profiler = StepProfiler(folder, recipe.train.profile_steps, trainer.model.device, self.ranks.rank)
        for each in self._trainers.values():
            each.say, each.keep_report = self.say, self._keep_report
            each.keep_max_tokens = partial(self._pack_sizes.keep, each.model_name)
        for note in notes:
            self.say(note)

    def say(self, line: str) -> None:
        """To people, and into the log."""
        self.progress.say(line)
        LOGGER.info(line)

    def stopwatch(self, more_flops: Callable[[], int] = lambda: 0) -> Stopwatch:
        """Of a step of this run that begins now. more_flops: so far, besides those of the run's trainers."""
        trainer, trainers = self.trainer, self._trainers.values()
        return Stopwatch(
            trainer.model.device, self.ranks, precision=trainer.precision, num_tokens=lambda: trainer.num_own_tokens,
            num_flops=lambda: more_flops() + sum(each.num_flops for each in trainers),
        )  # fmt: skip

    def _restore(self) -> list[str]:
        checkpoint, notes = self.ranks.of_first(
            newest_valid(self.folder / "checkpoints") if self.ranks.is_first else (None, [])
        )
        told = self._pack_sizes.restore(self._trainers.values(), self.ranks)
        if checkpoint is None and notes:
            raise UnmaskError(f"{self.folder}: no checkpoint here is whole ({notes[0]}); nothing was changed")
        if checkpoint is None:
            for file in self.files:
                file.truncate(0)
            return [*notes, f"{self.folder}: no checkpoint yet, starting from the beginning", *told]
        state = load_checkpoint(checkpoint, self._trainers, self.ranks)
        self.loop_state.update(state["loop"])
        self.num_steps, self.evaluation = state["num_steps"], state["evaluation"]
        self.stopping.restore(state["stopping"])
        self._link_best(self.stopping.state["kept_step"])
        for file, size in zip(self.files, (state["metrics_bytes"], state["timings_bytes"]), strict=False):
            file.truncate(size)
        if state["reason"] == "target" and self.stopping.is_target_reached(self.evaluation, self.num_steps):
            self._reason = "target"
        elif state["reason"] == "patience" and self.stopping.state["num_since"] >= (self.recipe.stop.patience or math.inf):
            self._reason = "patience"
        elif self.num_steps >= self.recipe.train.max_steps:
            self._reason = "max_steps"
        return [*notes, f"resuming after step {self.num_steps} from {checkpoint}", *told]

    def __enter__(self) -> Run:
        self.interruption.__enter__()
        self.progress.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._opened:
            self.writer.close()
            self.progress.__exit__(*exc_info)
            self.interruption.__exit__(*exc_info)
            self.profiler.close()
            for sink in self.sinks:
                sink.close(is_failed=exc_info[0] is not None)
            if exc_info[0] is None:
                LOGGER.info("end", extra=fields(step=self.num_steps, reason=self._reason))

    def steps(self) -> Iterator[int]:
        """Yields step 0, 1, .. (or from where the checkpoint stood) until the run ends."""
        config = self.recipe.eval
        if config.at_start and config.every_steps and not self.num_steps:
            self._measure()
        while self._reason is None:
            self.profiler.begin(self.num_steps + 1)
            yield self.num_steps

    def finish_step(self, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Records the step; evaluates, checkpoints and ends the run when that is due.

        metrics: the same on all ranks. timings: this rank's own.
        """
        recipe = self.recipe
        if (trace := self.profiler.end()) is not None:
            self.say(f"profiled: {trace}")
        self.num_steps += 1
        self._record(metrics)
        measured: dict[str, float] = {}
        seconds = dict(timings)
        is_last = self.num_steps >= recipe.train.max_steps
        if recipe.eval.every_steps and (self.num_steps % recipe.eval.every_steps == 0 or is_last):
            start, waited_s = time.monotonic(), self.ranks.waited_s
            measured = self._measure()
            seconds["eval_s"] = time.monotonic() - start
            if self.ranks.size > 1:
                seconds["eval_wait_s"] = self.ranks.waited_s - waited_s
            self._reason = self.stopping.see(measured, self.num_steps)
        self._record_timings(seconds)
        if self._reason is None and is_last:
            self._reason = "max_steps"
        self.progress.show_step(self.num_steps, {**metrics, "seconds": timings["step_s"]}, measured)
        shown = {k: v for k, v in metrics.items() if k in ("loss", "reward_mean")}
        LOGGER.info("step", extra=fields(step=self.num_steps, **shown, **seconds))
        self.progress.show(self.num_steps, {**shown, **{f"eval {k}": v for k, v in self.evaluation.items()}})
        every = recipe.checkpoint.every_steps
        self.interruption.share(self.ranks)
        if self.interruption.signal_name:
            LOGGER.warning("signal", extra=fields(step=self.num_steps, signal=self.interruption.signal_name))
        if self._reason is None and self.interruption.signal_name:
            self._reason = "interrupted"
        if self._reason is None and self.ranks.of_first(
            time.monotonic() - self._start >= 3600 * (recipe.train.max_hours or math.inf)
        ):
            self._reason = "max_hours"
        is_best = self.stopping.state["kept_step"] == self.num_steps
        if self._reason or is_best or (every and self.num_steps % every == 0):
            self.save()
            LOGGER.info("checkpoint", extra=fields(step=self.num_steps))
        self.writer.check()
        if self._reason:
            self.writer.wait()
            self.ranks.of_first(None)  # a rank that ends sooner would have the launcher end the one that still writes

    def _link_best(self, step: int | None) -> None:
        """RUN/best leads to the best checkpoint, that of this step, or is not there."""
        if not self.ranks.is_first:
            return
        link = self.folder / BEST
        if step is not None:
            replace_link(link, f"checkpoints/{step_folder(step)}")
        elif link.is_symlink():
            link.unlink()

    def _measure(self) -> dict[str, float]:
        self.evaluation = dict(self.evaluate())
        self._record({f"eval/{k}": v for k, v in self.evaluation.items()})
        LOGGER.info("evaluation", extra=fields(step=self.num_steps, **self.evaluation))
        return self.evaluation

    def _keep_report(self, report: Mapping[str, Any]) -> str:
        """What is known of an update that ends the run, in RUN/nonfinite-step-N.json; returns the file."""
        file = self.folder / f"nonfinite-step-{self.num_steps + 1:08d}.json"
        if self.ranks.is_first:
            write_text(file, json.dumps({"step": self.num_steps + 1, **report}, indent=2, allow_nan=False) + "\n")
        return str(file)

    def _record(self, values: Mapping[str, float]) -> None:
        """What is not finite is said and left out: JSON has no word for it."""
        if left_out := {name: value for name, value in values.items() if not math.isfinite(value)}:
            values = {name: value for name, value in values.items() if name not in left_out}
            self.say(f"step {self.num_steps}: not recorded: {format_numbers(left_out)}")
        if self.files:
            self.files[0].write({"step": self.num_steps, **values})
        for sink in self.sinks:
            sink.write(self.num_steps, values)

    def _record_timings(self, seconds: Mapping[str, float]) -> None:
        """A line for each rank; sinks have what they say together."""
        of_ranks = self.ranks.gather(dict(seconds))
        if self.files:
            for rank, values in enumerate(of_ranks):
                which = {"rank": rank} if len(of_ranks) > 1 else {}
                self.files[1].write({"step": self.num_steps, **which, **values})
        for sink in self.sinks:
            sink.write(self.num_steps, over_ranks(of_ranks))

    def save(self) -> None:
        """Begins to write a checkpoint; the run may go on."""
        self.before_save()
        for sink in self.sinks:
            sink.flush()
        sizes = [file.size() for file in self.files]
        state = {
            "trainers": {name: trainer.state_dict() for name, trainer in self._trainers.items()},
            "loop": copy.deepcopy(self.loop_state),
            "num_steps": self.num_steps,
            "evaluation": self.evaluation,
            "stopping": copy.deepcopy(self.stopping.state),
            "reason": None if self._reason in ("interrupted", "max_hours") else self._reason,
            "metrics_bytes": sizes[0] if sizes else 0,
            "timings_bytes": sizes[1] if sizes else 0,
            "rng": self.ranks.gather(rng_state()),
        }
        best = self.stopping.state["kept_step"]
        self.writer.save(self.num_steps, state, best, self.files, on_written=partial(self._link_best, best))

    @property
    def outcome(self) -> Outcome:
        assert self._reason is not None, "the run has not ended"
        checkpoint = self.folder / "checkpoints" / step_folder(self.num_steps)
        signal_name, code = self.interruption.signal_name, self.interruption.exit_code
        if self._reason != "interrupted":
            signal_name, code = None, 0
        return Outcome(self._reason, self.num_steps, checkpoint, self.evaluation, signal_name, code)  # type: ignore[arg-type]
