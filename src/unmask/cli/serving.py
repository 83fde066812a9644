"""`unmask serve`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from unmask.config import ServeRecipe, load_recipe, recipe_of_run, to_toml
from unmask.config.evaluation import DEFAULT_MODES
from unmask.errors import UnmaskError
from unmask.types import SamplingParams
from unmask.types.sampling import without_other_steps


def run_serve(
    checkpoint: str, settings: list[str], adapter: Path | None, *, revision: str, mode: str, device: str, dtype: str,
    num_threads: int, api_key_file: Path | None, admin_key_file: Path | None, dry_run: bool,
) -> int:  # fmt: skip
    """Serves until it is told to end; the exit code. Raises `UnmaskError` for whatever is wrong before that."""
    from unmask.cli.generation import check_dtype

    if mode and mode not in DEFAULT_MODES:
        raise UnmaskError(f"unknown mode {mode!r}; known: {', '.join(DEFAULT_MODES)}")
    check_dtype(dtype)
    base = without_other_steps(_of_run(checkpoint), [word.partition("=")[0] for word in settings])
    recipe = load_recipe(ServeRecipe, [], settings, base={**base, **DEFAULT_MODES.get(mode, {})})
    if dry_run:
        print(to_toml(recipe), end="")
        return 0
    try:
        from unmask.serve.server import address_of, is_loopback, keys_from, listen, serve
    except ImportError as error:
        raise UnmaskError(f"needs the extra serve: pip install 'unmask[serve]' ({error})") from None
    from unmask.data.chat import ChatTokenizer
    from unmask.diffusion.remasking import get_strategy
    from unmask.launch import find_model_folder
    from unmask.models.checkpoint import read_spec, weights_folder
    from unmask.serve.engine_process import EngineOptions, ProcessLink, Source
    from unmask.serve.service import Service, context_of
    from unmask.viewer import render_live

    get_strategy(recipe.remasking_strategy)
    api_keys, admin_keys = keys_from(api_key_file, "UNMASK_API_KEYS"), keys_from(admin_key_file, "UNMASK_ADMIN_KEY")
    folder = find_model_folder(checkpoint, revision)
    source = Source(folder, adapter)
    _, _, spec = read_spec(weights_folder(folder))
    tokenizer = ChatTokenizer.load(folder)
    name = recipe.server.name or Path(checkpoint).name or folder.name

    def make_page(service: Service) -> str:
        defaults = service.sampling.model_dump(mode="json")
        defaults |= {"max_tokens": defaults.pop("max_new_tokens"), "seed": service.seed}
        return render_live(
            f"unmask: {name}", model_name=name, attention=spec.attention, block_size=spec.block_size, defaults=defaults
        )

    with listen(recipe.server.host, recipe.server.port) as sock:
        _say(f"loading {folder}")
        room = context_of(recipe.server, spec) - 1
        sampling = recipe.sampling.model_copy(update={"max_new_tokens": min(recipe.max_new_tokens, room)})
        link = ProcessLink(EngineOptions(source, device, dtype, recipe.engine, sampling, num_threads))
        if not api_keys and not is_loopback(sock.getsockname()[0]):
            _say(f"everybody who reaches {address_of(sock)} may use the model: give keys (--api-key-file) to change that")
        is_well = asyncio.run(
            serve(
                link, sock, tokenizer=tokenizer, spec=spec, recipe=recipe, source=source, name=name, make_page=make_page,
                find=lambda path: find_model_folder(path) if path else find_model_folder(checkpoint, revision),
                api_keys=api_keys, admin_keys=admin_keys, say=_say,
            )
        )  # fmt: skip
    if not is_well:
        print("error: the engine's process has ended; what it said is above", file=sys.stderr)
    return 0 if is_well else 1


def _of_run(checkpoint: str) -> dict:
    """How a run folder's recipe decodes: its rollouts (RL), or its evaluation (SFT), where it says more than the defaults; and
    how the prompts that it was trained on were made."""
    recipe = recipe_of_run(checkpoint)
    given = recipe.get("rollout") or recipe.get("eval", {}).get("sampling") or {}
    base = {key: value for key, value in given.items() if key in SamplingParams.model_fields and key != "seed"}
    turns = recipe.get("source", {}).get("options", {})
    turns = {key: turns[key] for key in ("system_prompt", "response_prefix") if turns.get(key)}
    return {**base, "server": turns} if turns else base


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
