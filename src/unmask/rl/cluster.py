"""The Ray cluster that actors are in: what can be wrong with it, and how it is started. The one importer of ray."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import torch

from unmask.config.training import FleetConfig
from unmask.errors import UnmaskError

_CONNECT_S = 5.0


def num_gpus(config: FleetConfig, device: torch.device) -> float:
    """Of an actor, where the training is on `device`."""
    return float(device.type == "cuda") if config.num_gpus_per_actor is None else config.num_gpus_per_actor


def check_fleet(config: FleetConfig, device: torch.device) -> None:
    """Raises `UnmaskError` for what can be known to be missing before anything is started."""
    if importlib.util.find_spec("ray") is None:
        raise UnmaskError("fleet.num_actors needs the package ray; install it with: pip install 'unmask[ray]'")
    if config.address.startswith("ray://"):
        raise UnmaskError(f"fleet.address {config.address!r} is a Ray client's; give auto, or HOST:PORT of the head")
    if not config.address:
        num_with_room(config, device, [{"GPU": float(torch.cuda.device_count()), "CPU": math.inf}])


def num_with_room(config: FleetConfig, device: torch.device, machines: Sequence[dict[str, float]]) -> int:
    """How many of the actors find what they need on these machines, if nobody else is there. Raises `UnmaskError` where none
    does, and where one does not and nothing can join: in a cluster of the run's own."""
    needs = {"GPU": num_gpus(config, device), "CPU": float(config.num_cpus_per_actor)}
    room = sum(min(_times(there.get(name, 0.0), each) for name, each in needs.items() if each) for there in machines)
    if room >= (1 if config.address else config.num_actors):
        return min(room, config.num_actors)
    for name, each in needs.items():
        found = max([there.get(name, 0.0) for there in machines], default=0.0)
        if config.address and found < each:
            raise UnmaskError(
                f"fleet.address {config.address}: an actor takes {each:g} {name}s, no machine there has more than {found:g}"
            )
        if not config.address and _times(found, each) < config.num_actors:
            raise UnmaskError(
                f"fleet.num_actors: {config.num_actors} actors with {each:g} {name}s each need {config.num_actors * each:g}, "
                f"there are {found:g}"
            )
    raise UnmaskError(f"fleet.address {config.address}: no machine there has both the GPUs and the CPUs that an actor takes")


def _times(there: float, each: float) -> int:
    """How often there is that much. Ray counts in 10,000ths."""
    return int((there + 5e-5) / each) if each and math.isfinite(there) else sys.maxsize


def machines_of(ray: Any) -> list[dict[str, float]]:
    """What each machine of the cluster has, in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def start_ray(config: FleetConfig, device: torch.device) -> tuple[Any, bool]:
    """The package, connected to the cluster of the recipe or to one of its own, and whether it was not connected before (where
    it was, that cluster is used). Raises `UnmaskError`."""
    if config.address:
        _check_address(config.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each actor without a GPU warns
    import ray
    import ray._private.worker as noise

    # Ray prints the death of every worker to stdout, which is ours. A private name: without it the lines are printed.
    noise.print_to_stdstream = lambda *args, **kwargs: None
    if ray.is_initialized():
        num_with_room(config, device, machines_of(ray))
        return ray, False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if not config.address:
        options |= {"num_cpus": config.num_actors * config.num_cpus_per_actor, "include_dashboard": False}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if not config.address:
            gpus = _free_gpus(device) if num_gpus(config, device) else []
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            options["num_gpus"] = len(gpus)
        ray.init(address=config.address or "local", **options)
    except Exception as error:  # Ray raises many kinds, the bare one among them
        where = f"fleet.address {config.address}: no Ray cluster there" if config.address else "fleet: Ray did not start"
        raise UnmaskError(f"{where}: {' '.join(str(error).split())[:300]}") from None
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        num_with_room(config, device, machines_of(ray))
    except UnmaskError:
        ray.shutdown()
        raise
    return ray, True


def _free_gpus(device: torch.device) -> list[str]:
    """Those of this machine that no rank trains on; all of them, to be shared, where there is no other."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = [name for name in visible.split(",") if name]
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cuda" else 0
    return names[num_ranks:] or names


def _check_address(address: str) -> None:
    """Ray itself tries for minutes. Raises `UnmaskError`."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise UnmaskError(
            f"fleet.address {address}: no Ray cluster there: {error}; give auto, or HOST:PORT of its head"
        ) from None
