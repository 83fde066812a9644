"""What optimizers keep of each weight, in the files of torch's distributed checkpoints (DCP): in parts, whoever wrote them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.dist import Ranks
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from torch.distributed.checkpoint import FileSystemReader

# What DCP says of a process that is alone, each time.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

Optimized = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]  # by names of ours


def optimizer_tensors(optimized: Optimized) -> dict[str, Tensor]:
    """What the optimizers keep of each parameter so far, by "name/parameter/key"."""
    return {
        f"{name}/{parameter_name}/{key}": tensor
        for name, (model, optimizer) in optimized.items()
        for parameter_name, parameter in model.named_parameters()
        for key, tensor in sorted(optimizer.state.get(parameter, {}).items())  # the same order after a resumption
    }


def load_optimizer_tensors(folder: Path, optimized: Optimized, ranks: Ranks) -> None:
    """Reads what was written of `optimizer_tensors`, by whatever ranks: of sharded weights each rank gets its part. Raises
    `UnmaskError` for tensors that have no place."""
    from torch.distributed import checkpoint as dcp  # where needed: it takes a second to import

    reader = data_reader(folder)
    parameters = {
        f"{name}/{n}": (p, optimizer) for name, (model, optimizer) in optimized.items() for n, p in model.named_parameters()
    }
    read: dict[str, Tensor] = {}
    for path, facts in reader.read_metadata().state_dict_metadata.items():
        name, _, key = path.rpartition("/")
        if name not in parameters or not isinstance(facts, dcp.metadata.TensorStorageMetadata):
            raise UnmaskError(f"{folder}: has {path!r}, which is nothing of this run's optimizers")
        parameter, optimizer = parameters[name]
        like = torch.zeros((), dtype=torch.float32, device=parameter.device) if not facts.size else torch.zeros_like(parameter)
        if facts.size != like.shape:
            raise UnmaskError(f"{folder}: {path!r} has shape {list(facts.size)}, expected {list(like.shape)}")
        read[path] = optimizer.state[parameter][key] = like
    dcp.load(read, storage_reader=reader, process_group=ranks.object_group, no_dist=ranks.size == 1)


# All that the index of a checkpoint is made of.
_DATA = {
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


class _DataUnpickler(pickle.Unpickler):
    """Of data alone: a pickle can name any function of any module, and have it called."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _DATA.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no data")
        return super().find_class(module, name)


def data_reader(folder: Path) -> FileSystemReader:
    """DCP's reader, but for its index, which it would read as code. Raises `UnmaskError`."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    class DataReader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            file = folder / ".metadata"
            try:
                with open(file, "rb") as stream:
                    metadata = _DataUnpickler(stream).load()
            except (OSError, EOFError, pickle.UnpicklingError, AttributeError, TypeError) as error:
                raise UnmaskError(f"{file}: is not the index of an optimizer's tensors ({error})") from None
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return DataReader(folder)
