"""The options of `unmask serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.checkpoint_app import Checkpoint, Revision


def serve(
    checkpoint: Checkpoint,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="sampling parameters, engine.KEY and server.KEY; later ones win"),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of LoRA adapters to merge into the weights")] = None,
    revision: Revision = "",
    host: Annotated[str, typer.Option(help="address to listen on; the same as server.host")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 = any that is free; the same as server.port")] = None,
    name: Annotated[str, typer.Option(help="of the model in the API; the same as server.name")] = "",
    mode: Annotated[str, typer.Option(help="static or dynamic: the settings `unmask eval` has under this name")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto = bfloat16 on GPUs, float32 on CPUs")] = "auto",
    num_threads: Annotated[int, typer.Option("--threads", min=0, max=1024, help="of the engine, on CPUs; 0 = all")] = 0,
    api_key_file: Annotated[
        Path | None, typer.Option(help="keys of those who may use /v1, one a line; also UNMASK_API_KEYS, with commas")
    ] = None,
    admin_key_file: Annotated[
        Path | None, typer.Option(help="keys of those who may use /admin; also UNMASK_ADMIN_KEY; without any nobody may")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved settings and stop")] = False,
) -> None:
    """Answer over OpenAI's API, with a page to watch how answers are unmasked."""
    from unmask.cli.serving import run_serve

    words = list(settings or [])
    words += [f"server.host={host}"] * bool(host) + [f"server.name={name}"] * bool(name)
    words += [f"server.port={port}"] * (port is not None)
    code = run_serve(
        checkpoint, words, adapter, revision=revision, mode=mode, device=device, dtype=dtype, num_threads=num_threads,
        api_key_file=api_key_file, admin_key_file=admin_key_file, dry_run=dry_run,
    )  # fmt: skip
    raise typer.Exit(code)
