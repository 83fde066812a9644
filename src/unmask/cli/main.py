"""The `unmask` command. Arguments are parsed before anything heavy is imported; each command imports what it needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.checkpoint_app import Checkpoint, Revision, checkpoint_app
from unmask.cli.data_app import data_app
from unmask.cli.sandbox_app import sandbox_app
from unmask.cli.serve_command import serve
from unmask.cli.several import describe_defect, is_rank, leave_report
from unmask.errors import UnmaskError

# Typer carries its own copy of click in newer versions; the base class of its errors is found through one of them.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    help="Train, run and evaluate diffusion language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Words = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE... [SECTION.KEY=VALUE]...", help="TOML files, later ones win; then settings"),
]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings; later ones win")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run in run.dir exactly where its checkpoint stood")]
Processes = Annotated[
    int, typer.Option("--nproc", min=1, max=1024, help="processes that train together, one for each device of this machine")
]
Restarts = Annotated[int, typer.Option("--max-restarts", min=0, help="with --nproc: restarts after a rank has failed")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and stop")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False
) -> None:
    if version:
        from unmask import __version__

        print(f"unmask {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def quickstart(
    seed: Annotated[int, typer.Option(help="all randomness follows from it")] = 0,
    directory: Annotated[Path | None, typer.Option("--dir", help="default: runs/quickstart-seed-N")] = None,
    settings: Settings = None,
) -> None:
    """Train a tiny model from scratch, improve it with TraceRL, write a report. Interrupted, it continues."""
    from unmask.quickstart.stages import run_quickstart

    raise typer.Exit(run_quickstart(seed, directory or Path(f"runs/quickstart-seed-{seed}"), settings or []))


@app.command()
def sft(
    words: Words, resume: Resume = False, dry_run: DryRun = False, nproc: Processes = 1, max_restarts: Restarts = 0
) -> None:
    """Supervised fine-tuning."""
    from unmask.cli.training import train

    raise typer.Exit(train("sft", words, resume, dry_run, nproc, max_restarts))


@app.command()
def rl(words: Words, resume: Resume = False, dry_run: DryRun = False, nproc: Processes = 1, max_restarts: Restarts = 0) -> None:
    """Reinforcement learning on the trace (TraceRL)."""
    from unmask.cli.training import train

    raise typer.Exit(train("rl", words, resume, dry_run, nproc, max_restarts))


@app.command("eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="model folder, run folder or hub name")] = "",
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]... [KEY=VALUE]...", help="default source: the run's own")
    ] = None,
    tasks: Annotated[str, typer.Option(help="names of tasks, with commas between them: gsm8k,humaneval")] = "",
    sampling: Annotated[str, typer.Option(help="names of modes, with commas between them: static,dynamic; default: all")] = "",
    num_responses: Annotated[int | None, typer.Option("-k", min=1, help="responses to each example; default: 1")] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder for results.json and all traces; what is there already is not decoded again")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start the output anew")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="two results (files or folders), instead of an evaluation")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Accuracy and speed on tasks, static and dynamic; or the difference between two results."""
    from unmask.cli.evaluation import run_compare, run_eval

    if compare is not None:
        if checkpoint:
            raise UnmaskError(f"--compare takes two results and no checkpoint; found {checkpoint!r}")
        run_compare(*compare)
        return
    if not checkpoint:
        raise UnmaskError("give a checkpoint (model folder, run folder or hub name), or --compare A B")
    words = [*(settings or []), *([] if num_responses is None else [f"num_responses={num_responses}"])]
    names = [[name.strip() for name in given.split(",") if name.strip()] for given in (tasks, sampling)]
    run_eval(checkpoint, words, output, dry_run, tasks=names[0], modes=names[1], overwrite=overwrite)


@app.command("lm-eval", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness (extra lm-eval) with our models as the model type unmask; all arguments are its own."""
    try:
        from unmask.lm_harness import main
    except ImportError as error:
        raise UnmaskError(f"needs the extra lm-eval: pip install 'unmask[lm-eval]' ({error})") from None
    main(context.args)


@app.command()
def generate(
    checkpoint: Checkpoint,
    settings: Settings = None,
    prompt: Annotated[list[str] | None, typer.Option(help="a user's turn; may be repeated")] = None,
    input_file: Annotated[Path | None, typer.Option("--input", help="JSON lines with question or messages")] = None,
    output: Annotated[
        Path | None, typer.Option(help="write traces here (JSON lines, for `unmask view`); rows that are there are skipped")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start the output anew")] = False,
    mode: Annotated[str, typer.Option(help="static or dynamic: the settings `unmask eval` has under this name")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto = bfloat16 on GPUs, float32 on CPUs")] = "auto",
    system_prompt: Annotated[str, typer.Option(help="a system turn before each prompt")] = "",
    response_prefix: Annotated[str, typer.Option(help="text the answers are begun with; rows may name their own")] = "",
    num_responses: Annotated[int, typer.Option("-k", min=1, max=10_000, help="responses to each prompt")] = 1,
    watch: Annotated[bool, typer.Option("--watch", help="draw the unmasking in the terminal, answer after answer")] = False,
    gif: Annotated[Path | None, typer.Option(help="write an animation of the unmasking; for one answer")] = None,
) -> None:
    """Decode prompts; settings are sampling parameters (temperature=0.5 seed=1 ...), engine.KEY=VALUE and reward.name=NAME."""
    from unmask.cli.generation import run_generate

    run_generate(
        checkpoint, settings or [], prompt or [], input_file, output,
        mode=mode, device=device, dtype=dtype, overwrite=overwrite,
        turns={"system_prompt": system_prompt, "response_prefix": response_prefix}, num_responses=num_responses,
        is_watched=watch, gif=gif,
    )  # fmt: skip


@app.command()
def traces(
    checkpoint: Checkpoint,
    name: Annotated[str, typer.Option("--input", metavar="SOURCE", help="file of demonstrations, source, task or recipe")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options of the source")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="file of traces (JSON lines); rows that are there are skipped; default: printed"),
    ] = None,
    tokens_per_step: Annotated[int, typer.Option("-k", min=1, help="tokens of a block that are unmasked in a step")] = 1,
    confidence_threshold: Annotated[
        float | None, typer.Option(help="instead, all tokens above this probability; at least -k of them")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, max=2**14, help="default: the model's; full attention: windows of 32")
    ] = None,
    split: Annotated[str, typer.Option(help="train or held_out")] = "train",
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of one forward; does not change results")] = 16384,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto = bfloat16 on GPUs, float32 on CPUs")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start the output anew")] = False,
) -> None:
    """In which order a model would unmask given answers: traces for SFT (objective.name=trace) without rollouts."""
    from unmask.cli.ordering import run_traces

    run_traces(
        checkpoint, name, settings or [], output, split=split, tokens_per_step=tokens_per_step,
        confidence_threshold=confidence_threshold, block_size=block_size, max_tokens=max_tokens, device=device, dtype=dtype,
        overwrite=overwrite,
    )  # fmt: skip


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="model folder, run folder, hub name or preset")],
    revision: Revision = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """What a checkpoint is: family, sizes, special tokens, dtype, parameters. Loads no weights."""
    from unmask.cli.checkpoints import run_inspect

    run_inspect(checkpoint, revision, as_json)


app.command()(serve)

app.add_typer(data_app, name="data")

app.add_typer(checkpoint_app, name="checkpoint")

app.add_typer(sandbox_app, name="sandbox")


@app.command()
def view(
    traces: Annotated[Path, typer.Argument(help="traces.jsonl")],
    compare: Annotated[Path | None, typer.Option(help="a second file, shown beside the first for the same ids")] = None,
    output: Annotated[Path | None, typer.Option(help="default: TRACES with the ending .html")] = None,
    gif: Annotated[Path | None, typer.Option(help="write an animation of one record here, and no page")] = None,
    record: Annotated[str | None, typer.Option(help="with --gif: id of the record; default: the first")] = None,
) -> None:
    """Write a page that plays how sequences were unmasked, or an animation of one."""
    from unmask.cli.viewing import run_view

    run_view(traces, compare, output, gif, record)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    output: Annotated[
        Path | None,
        typer.Option(help="NAME.png, NAME.html, or a folder for plot.png and plot.html; default: RUN, for several runs here"),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="what to draw; may be repeated; default: the most important")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="one per run, in their order; runs that share one are drawn as mean and range; default: their names"),
    ] = None,
    smooth: Annotated[int, typer.Option(min=1, help="draw running means over so many records")] = 1,
) -> None:
    """Draw the training curves of runs, as a picture and as a page."""
    from unmask.cli.plotting import run_plot

    run_plot(runs, output, metric or [], label or [], smooth)


@app.command()
def timings(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder; the run may be going on")],
    last: Annotated[int, typer.Option("--last", min=1, help="only so many of its newest steps")] = 10**9,
) -> None:
    """Where the time of a run goes: phases, tokens and operations per second, memory, and which rank the others wait for."""
    from unmask.cli.timing import run_timings

    run_timings(run, last)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. A mistake of the user is one line on stderr and exit code 2; a defect keeps its traceback."""
    # Threads that wait by spinning stand in each other's way when a machine has other work to do: a training step took
    # five times as long. A short spin keeps the speed of a quiet machine (docs/log.md). GNU OpenMP reads this when torch
    # loads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        code = app(arguments, standalone_mode=False)
    except UnmaskError as error:
        code = _fail(str(error), error.exit_code)
    except _UsageError as error:
        code = _fail(f"{error.format_message().rstrip('.')}; see unmask --help")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except OSError as error:  # of files, all others are described where they are used
        code = _fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except Exception as error:
        if not is_rank():
            raise
        leave_report(describe_defect(error))
        code = 1
    if is_rank() and isinstance(code, int) and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once: what GPUs have going with other ranks, which may wait for this one, is not waited for
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> int:
    message = " ".join(message.split())
    if is_rank():
        leave_report(message)
    else:
        print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
