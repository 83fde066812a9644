"""The commands of `unmask data` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Look at data sets, check and convert them.")
DataSource = Annotated[str, typer.Argument(metavar="SOURCE", help="name of a source or task, recipe, or file with rows")]
Options = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options of the source; later ones win")]
SplitName = Annotated[str, typer.Option(help="train or held_out; default: both")]


@data_app.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@data_app.command()
def show(
    source: DataSource,
    settings: Options = None,
    num: Annotated[int, typer.Option(min=0, help="examples of each split")] = 1,
    tokenizer: Annotated[
        str, typer.Option(metavar="CKPT", help="show the text in its chat template, count its tokens; default: characters")
    ] = "",
    split: SplitName = "",
) -> None:
    """Counts and lengths of a data set, and its first examples as a model gets them."""
    from unmask.cli.data import run_show

    run_show(source, settings or [], num, tokenizer, split)


@data_app.command()
def check(
    source: DataSource,
    settings: Options = None,
    max_errors: Annotated[int, typer.Option(min=1, help="so many malformed rows are named")] = 20,
    split: SplitName = "",
) -> None:
    """Read every row: name the malformed ones, questions that are there twice, and those in both splits."""
    from unmask.cli.data import run_check

    run_check(source, settings or [], max_errors, split)


@data_app.command()
def convert(
    source: DataSource,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="file of JSON lines to write, for the source `jsonl`")],
    settings: Options = None,
    split: Annotated[str, typer.Option(help="train or held_out")] = "train",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Write a data set as JSON lines, prompts made."""
    from unmask.cli.data import run_convert

    run_convert(source, output, settings or [], split, overwrite)
