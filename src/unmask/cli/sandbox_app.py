"""`unmask sandbox`: the commands; what they do is in sandboxing.py."""

from __future__ import annotations

from typing import Annotated

import typer

sandbox_app = typer.Typer(help="Run programs that nobody trusts: what protects this machine; for other machines.")


@sandbox_app.callback(invoke_without_command=True)
def _sandbox(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@sandbox_app.command("check")
def check_sandbox() -> None:
    """Which protections this system grants, and how many programs it runs in a second."""
    from unmask.cli.sandboxing import run_check

    run_check()


@sandbox_app.command("serve")
def serve_sandbox(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free")] = 8750,
) -> None:
    """Run programs for the reward `code` of other machines, which name this one in its option endpoint."""
    from unmask.cli.sandboxing import run_serve

    run_serve(host, port)
