"""LoRA adapters (Hu et al. 2021) through peft, on any family, by our module names. The one importer of peft."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.dist import copy_own_part
from unmask.errors import UnmaskError
from unmask.files import new_folder, read_json
from unmask.models.decoder import Backbone, Decoder
from unmask.models.experts import Experts
from unmask.models.weights import safetensors_names

if TYPE_CHECKING:
    from peft import PeftModel

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_lora(
    model: Backbone, *, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0,
    target_modules: Sequence[str] = TARGET_MODULES, use_dora: bool = False, base: str | None = None,
) -> PeftModel:  # fmt: skip
    """Puts adapters that change nothing yet into the model and freezes everything else.

    The model is changed in place and stays usable as it was; the result is for `save_adapter` and `merge_adapter`.
    target_modules: names of linear layers, for example "q_proj" (all layers) or "layers.0.self_attn.q_proj". Where a layer
        has experts, "gate_proj", "up_proj" and "down_proj" stand for the matrices of all of them.
    base: where the model is, for who loads the adapter alone: a hub name, a folder, or one seen from the adapter's own.

    Raises `UnmaskError` for names the model does not have, and when peft is not installed.
    """
    peft = _peft()
    if isinstance(target_modules, str):
        raise UnmaskError(f"target_modules {target_modules!r} is one name; give a list of names")
    if rank < 1 or not 0 <= dropout < 1 or not target_modules:
        raise UnmaskError(
            f"LoRA needs rank >= 1, 0 <= dropout < 1 and targets; found {rank}, {dropout}, {list(target_modules)}"
        )
    _refuse_adapters(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    experts = {f"{name}.{kind}" for name, module in model.named_modules() if isinstance(module, Experts)
               for kind in ("gate_proj", "up_proj", "down_proj")}  # fmt: skip
    chosen: set[str] = set()
    for target in target_modules:
        found = {name for name in linears | experts if name == target or name.endswith(f".{target}")}
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears | experts}))
            raise UnmaskError(f"LoRA target {target!r} is no linear layer of this model; known: {known}")
        if "lm_head" in found and model.spec.is_tied:
            raise UnmaskError("LoRA target 'lm_head' is tied to the embedding in this model; it cannot have an adapter")
        chosen |= found
    if chosen & experts and (use_dora or dropout):
        what = "DoRA" if use_dora else "LoRA dropout"
        raise UnmaskError(f"{what} is not available for experts; give target_modules of the attention only, or do without it")
    options: dict[str, Any] = {"target_parameters": sorted(chosen & experts)} if chosen & experts else {}
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=use_dora, target_modules=sorted(chosen & linears), **options
    )
    adapter = peft.get_peft_model(model, config)
    model.train(model.training)  # new modules are in training mode: their dropout would be in rollouts
    model.adapters = (adapter, base)
    return adapter


def save_adapter(adapter: PeftModel, folder: str | Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors (the adapters alone), atomically. Raises `UnmaskError`.

    Other files in an old adapter's folder stay.
    """
    with new_folder(Path(folder), "adapter_config.json", lambda name: name in (_CONFIG, _WEIGHTS)) as temporary:
        write_adapter(adapter, temporary)


def write_adapter(adapter: PeftModel, folder: Path, parameters: Mapping[str, Tensor] | None = None) -> None:
    """The adapter's two files, into an existing folder. parameters: by the model's names, in place of its own."""
    state = None if parameters is None else {f"base_model.model.{name}": tensor for name, tensor in parameters.items()}
    adapter.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form of peft's
    # Peft is not told: it would look for a config of transformers' there.
    model: Any = adapter.get_base_model()
    config = read_json(folder / _CONFIG) | {"base_model_name_or_path": model.adapters[1]}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def restore_adapter(adapter: PeftModel, folder: Path) -> None:
    """Reads saved adapters into those that are there, which have the same shapes. Raises `UnmaskError`."""
    file = folder / _WEIGHTS
    wanted = _peft().get_peft_model_state_dict(adapter)
    if wrong := sorted(set(wanted) ^ safetensors_names(file)):
        raise UnmaskError(f"{file}: tensor {wrong[0]!r} is not in both the file and the model ({len(wrong)} such in all)")
    for name, values in load_file(file).items():
        copy_own_part(wanted[name], values)


def is_adapter(folder: Path) -> bool:
    """Whether a folder has adapters and no weights of a model."""
    return (folder / _CONFIG).exists() and not any(folder.glob("model*.safetensors"))


def base_of(folder: Path) -> str:
    """Where the model is that the adapters of this folder belong to. Raises `UnmaskError`."""
    name = read_json(folder / _CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UnmaskError(f"{folder / _CONFIG}: does not name the adapter's model (base_model_name_or_path)")
    if (folder / name).is_dir():
        return str((folder / name).resolve())
    if name.startswith("."):
        raise UnmaskError(f"{folder / _CONFIG}: the adapter's model is not there: {name}: no such folder, seen from {folder}")
    return name


def load_adapter(model: Backbone, folder: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """Puts saved adapters into the model, in place. Only safetensors are read.

    Raises `UnmaskError` when the folder is no adapter, or one for another model.
    """
    peft, folder = _peft(), Path(folder)
    kind = read_json(folder / _CONFIG).get("peft_type")
    if kind != "LORA":
        raise UnmaskError(f"{folder / _CONFIG}: peft_type {kind!r} is not supported; known: 'LORA'")
    if not (folder / _WEIGHTS).exists():
        raise UnmaskError(f"{folder}: no {_WEIGHTS} here (only safetensors are read, never pickles)")
    stored = safetensors_names(folder / _WEIGHTS)
    _refuse_another_family(model, folder / "config.json")
    _refuse_adapters(model)
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # below, that is an error
            config = peft.LoraConfig.from_pretrained(str(folder))
            config.task_type = None  # a task would ask for methods of transformers' models
            base, config.base_model_name_or_path = config.base_model_name_or_path, None
            config.init_lora_weights = True  # all are read from the file; other ways also change the base
            adapter = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable, config=config)
        wanted = set(peft.get_peft_model_state_dict(adapter))
        if wrong := sorted(wanted ^ stored):
            problem = "is missing" if wrong[0] in wanted else "has no place in the model"
            raise UnmaskError(f"{folder / _WEIGHTS}: tensor {wrong[0]!r} {problem} ({len(wrong)} such in all)")
    except Exception as error:  # peft raises many kinds
        for parent, name, child in children:  # the model as it was, for another try
            setattr(parent, name, child)
        _forget(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen[name])
        if isinstance(error, UnmaskError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UnmaskError(f"{folder}: this adapter does not fit the model: {reason}") from None
    model.train(model.training)  # whatever peft made of it
    model.adapters = (adapter, base)
    return adapter


def _refuse_another_family(model: Backbone, file: Path) -> None:
    """Of the adapters of a run: shapes alone do not tell one family from another."""
    of, wanted = (read_json(file).get("model_type") if file.exists() else None), model.config.get("model_type")
    if of and wanted and of != wanted:
        raise UnmaskError(f"{file}: these adapters are for a model of type {of!r}; this one is of type {wanted!r}")


def _refuse_adapters(model: Backbone) -> None:
    if any(".base_layer." in name for name, _ in model.named_parameters()):
        raise UnmaskError("the model has adapters in it already; take them out first (merge_adapter)")


def merge_adapter(adapter: PeftModel) -> Decoder:
    """Adds the adapters into the weights and takes them out: an ordinary model again, the one the adapter was put in."""
    model = adapter.merge_and_unload()
    _forget(model)
    return model


def _forget(model: Backbone) -> None:
    """Removes the marks of a model with adapters."""
    model.adapters = ()
    if hasattr(model, "peft_config"):
        del model.peft_config


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UnmaskError("LoRA needs the package peft; install it with: pip install 'unmask[lora]'") from None
    return peft
