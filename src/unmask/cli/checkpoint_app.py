"""The commands of `unmask checkpoint` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[str, typer.Argument(metavar="CKPT", help="model folder, run folder or hub name")]
Revision = Annotated[str, typer.Option(help="branch, tag or commit of a hub name")]

checkpoint_app = typer.Typer(help="Make and convert model folders, look after those of runs.")


@checkpoint_app.callback(invoke_without_command=True)
def _checkpoint(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@checkpoint_app.command()
def new(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help='"family/size", for example sdar/tiny')],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="model folder to write")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keys of its config.json")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of the random weights")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
) -> None:
    """Write a randomly initialised model."""
    from unmask.cli.checkpoints import run_new

    run_new(preset, output, settings or [], seed, dtype)


@checkpoint_app.command()
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="model folder to write")],
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter folder, merged into the weights")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto = as stored")] = "auto",
    max_shard_gb: Annotated[float, typer.Option(help="largest size of one file")] = 5.0,
    untie_head: Annotated[bool, typer.Option("--untie-head", help="write a tied head as a tensor of its own")] = False,
    code_from: Annotated[str, typer.Option(help="published checkpoint of the family; its Python files come along")] = "",
    revision: Revision = "",
) -> None:
    """Write a plain model folder that other tools load."""
    from unmask.cli.checkpoints import run_export

    run_export(
        checkpoint, output, adapter, dtype, max_shard_gb, revision, has_own_head=untie_head, code_from=code_from
    )  # fmt: skip


Run = Annotated[Path, typer.Argument(metavar="RUN", help="run folder")]


@checkpoint_app.command("list")
def list_run(run: Run) -> None:
    """What a run has kept: steps, sizes, times, which is the best."""
    from unmask.cli.run_checkpoints import run_list

    run_list(run)


@checkpoint_app.command()
def verify(where: Annotated[Path, typer.Argument(metavar="RUN|CKPT", help="run folder, or one of its checkpoints")]) -> None:
    """Compare all files of checkpoints with their checksums; exit code 2 if one is damaged."""
    from unmask.cli.run_checkpoints import run_verify

    run_verify(where)


@checkpoint_app.command()
def adapt(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="autoregressive model (Qwen): model folder or hub name")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="model folder to write")],
    block_size: Annotated[int | None, typer.Option(min=1, max=2**14, help="of a block model; 4 unless given")] = None,
    revision: Revision = "",
) -> None:
    """Write an autoregressive model as a diffusion model that is to be trained."""
    from unmask.cli.checkpoints import run_adapt

    run_adapt(checkpoint, output, block_size, revision)
