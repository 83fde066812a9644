"""What a step of RL costs on some machine, from counted operations and bytes: what `benchmarks/scale.py` predicts with.

Every term has its formula here, and every constant of a GPU its origin in ORIGINS. Nothing is fitted: a constant that has not
been measured is named an assumption. Counted are dense block models that are trained without adapters; rewards (beside the
decoding), evaluations and the first steps (compilation) are left out. Decoding is in cost_of_decoding.py,
a whole step and its memory in cost_of_step.py.

Symbols: N ranks, n of them hold one copy of the weights between them (`train.shard_size`), P parameters. Those of layers travel
in `wire_bytes` each (bfloat16 on GPUs), those outside the layers ("root": embedding, head, last norm) in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.models import find_family, preset_config
from unmask.models.flops import Work, model_flops
from unmask.models.spec import ModelSpec
from unmask.train.peak_flops import peak_of_name


@dataclass(frozen=True, slots=True)
class Link:
    """bandwidth: bytes per second that a rank can send while it receives as many. latency: seconds of a hop of a ring."""

    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A device, `per_node` of which share a node, and what its host does for it. Seconds, bytes, operations per second.

    efficiency: share of `peak` that products reach; memory_efficiency: of `bandwidth`. overlaps: whether exchanges of sharded
    layers go on beside the computing (streams of GPUs; gloo on CPUs: no). weight_bytes: of a layer's parameter as the engine
    reads it. head_bytes: that a parameter of the head moves each time it is applied. sampling_bytes: moved for each logit.
    kernel_s: launching what a layer launches; 0 with CUDA graphs. Of the host: forward_s and row_s, bookkeeping of an engine's
    forward and of each of its sequences; gather_s, pickled_bytes: a response's token in a gathered group; rows_s: making the
    rows and packs of a trained response's token.
    """

    peak: float
    bandwidth: float
    memory: float
    per_node: int
    inside: Link
    between: Link
    efficiency: float
    memory_efficiency: float
    overlaps: bool
    wire_bytes: int
    weight_bytes: int
    head_bytes: int
    sampling_bytes: int
    kernel_s: float
    forward_s: float
    row_s: float
    gather_s: float
    pickled_bytes: float
    rows_s: float

    @property
    def flops(self) -> float:
        return self.peak * self.efficiency

    @property
    def moves(self) -> float:
        return self.bandwidth * self.memory_efficiency


_PEAK = peak_of_name("H100", "bfloat16")
assert _PEAK is not None
H100 = Machine(
    peak=_PEAK, bandwidth=3.35e12, memory=80e9, per_node=8, inside=Link(0.8 * 450e9, 3e-6), between=Link(0.8 * 50e9, 8e-6),
    efficiency=0.33, memory_efficiency=0.7, overlaps=True, wire_bytes=2, weight_bytes=2, head_bytes=8, sampling_bytes=84,
    kernel_s=40 * 5e-6, forward_s=5.4e-3, row_s=115e-6, gather_s=1.8e-7, pickled_bytes=25.0, rows_s=2.9e-6,
)  # fmt: skip
ORIGINS = {
    "peak": "data sheet, dense bfloat16 (train/peak_flops.py)",
    "bandwidth": "data sheet of the H100 SXM, HBM3",
    "memory": "data sheet",
    "inside": "NVLink 4, 450 GB/s each way (data sheet) x 0.8 reached (assumption); 3 us a hop (assumption)",
    "between": "400 Gb/s a GPU (ConnectX-7, a DGX H100's) x 0.8 reached (assumption); 8 us a hop (assumption)",
    "efficiency": "torchtitan, Llama 3.1 8B, FSDP2, bfloat16, not compiled, 8 to 128 H100: 33 % MFU (end of 2024)",
    "memory_efficiency": "assumption",
    "wire_bytes": "train/techniques.py: bfloat16",
    "weight_bytes": "launch/parts.py: the layers of the engine's copy are bfloat16",
    "head_bytes": "float32 read, bfloat16 written and read: autocast casts anew at every call under inference_mode",
    "sampling_bytes": "counted in diffusion/denoising.py and drawing.py",
    "kernel_s": "assumption: 40 launches a layer, 5 us each; without CUDA graphs, which are off by default",
    "forward_s": "measured on a CPU (docs/log.md)",
    "row_s": "measured on a CPU (docs/log.md)",
    "gather_s": "measured on a CPU (docs/log.md)",
    "pickled_bytes": "measured (docs/log.md)",
    "rows_s": "measured on a CPU (docs/log.md)",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a step does. Responses are log-normal with mean `response` and `sigma`, cut at `longest`; a forward of a sequence
    unmasks `per_forward` tokens. trained_share: of the responses, whose groups carry a signal."""

    prompts: int = 128
    group_size: int = 32
    prompt: int = 128
    response: float = 600.0
    sigma: float = 0.7
    longest: int = 2000
    block_size: int = 4
    per_forward: float = 2.4
    trained_share: float = 0.5
    max_tokens: int = 8192
    max_sequences: int = 256
    deals_groups: bool = True  # a group's responses are decoded by one rank
    num_old: int = 1  # forwards of the rows for old log-probabilities, and for those of a reference
    has_value: bool = True
    checkpoints_activations: bool = True

    def lengths(self, num: int, seed: int = 0) -> np.ndarray:
        """Tokens of so many responses: drawn, at least 1, the mean before the cut."""
        draws = np.random.default_rng(seed).lognormal(np.log(self.response) - self.sigma**2 / 2, self.sigma, num)
        return np.clip(draws, 1, self.longest)


def preset_spec(name: str) -> ModelSpec:
    config = preset_config(name)
    return find_family(config).spec(config)


def parameters(spec: ModelSpec) -> tuple[int, int]:
    """(of all layers, outside of them) of a dense model without biases: with D, H, G, K, F as in models/flops.py, in a layer
    2 D H K + 2 D G K + 3 D F + 2 D (norms) + 2 K (norms of queries and keys); outside V D (twice where untied) + D."""
    d, hk, gk = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer = 2 * d * hk + 2 * d * gk + 3 * d * spec.intermediate_size + 2 * d + 2 * spec.head_dim * spec.has_qk_norm
    return spec.num_layers * layer, spec.vocab_size * d * (1 if spec.is_tied else 2) + d


def ring_s(num_bytes: float, size: int, link: Link) -> float:
    """An all-gather of tensors of this size in all, or a reduce-scatter, over a ring: (n - 1) / n bytes / bandwidth, and
    n - 1 hops. An all-reduce is both, twice as long (Patarasuk and Yuan 2009)."""
    return (size - 1) / size * num_bytes / link.bandwidth + (size - 1) * link.latency


def shard_link(machine: Machine, size: int) -> Link:
    """Of neighbouring ranks. Rings over whole nodes run as often as a node has network cards, each with a part of the bytes:
    the node's cards together, or a rank's links inside, whichever is less."""
    if size <= machine.per_node:
        return machine.inside
    together = machine.per_node * machine.between.bandwidth
    return Link(min(machine.inside.bandwidth, together), machine.between.latency)


def copies_link(machine: Machine, num_ranks: int, size: int) -> Link:
    """Of the ranks that hold the same part: every `size`-th. As many such rings cross a node as it has parts, and share its
    cards."""
    if num_ranks <= machine.per_node:
        return machine.inside
    cards = machine.per_node / min(size, machine.per_node)
    return Link(min(machine.inside.bandwidth, cards * machine.between.bandwidth), machine.between.latency)


def response_work(setting: Setting, lengths: np.ndarray) -> Work:
    """Of the rows of these responses, the prompt's tokens once for each pack that has several of its group (here: a pack has
    max_tokens / row of them).

    A row: P + R clean tokens, of which each sees those of its block and before; one noisy copy of b tokens for each of the
    R / per_forward steps, whose tokens see all clean ones before their block, and each other. R targets.
    """
    b, p = setting.block_size, setting.prompt
    noisy = lengths * b / setting.per_forward
    per_pack = np.maximum(1, np.minimum(setting.group_size, setting.max_tokens / (lengths.mean() + noisy.mean() + p)))
    clean_pairs = p * lengths + lengths * (lengths + b) / 2 + p * (p + b) / 2 / per_pack
    seen_by_noisy = p + (lengths - b).clip(0) / 2 + b  # at the mean place
    return Work(
        num_tokens=round(float((lengths + noisy + p / per_pack).sum())),
        num_pairs=round(float((clean_pairs + noisy * seen_by_noisy).sum())),
        num_read=round(float(lengths.sum())),
        num_read_pairs=round(float((lengths * seen_by_noisy).sum())),
        num_scored=round(float(lengths.sum())),
    )


def scaled(work: Work, share: float) -> Work:
    fields = ("num_tokens", "num_pairs", "num_read", "num_read_pairs", "num_scored")
    return Work(*(round(getattr(work, field) * share) for field in fields))


def pack_sizes(row_tokens: np.ndarray, max_tokens: int, num_ranks: int) -> tuple[int, float]:
    """(packs of each rank, tokens of the largest pack) as objectives/rows.py shares rows out: the smallest budget that needs no
    further round. Rows over the budget are cut beforehand; more than 4,096 rows are looked at in part."""
    part = min(1.0, 4096 / len(row_tokens))
    row_tokens, num_ranks = row_tokens[: round(len(row_tokens) * part)], max(1, round(num_ranks * part))
    pieces = np.concatenate([np.full(-(-int(t) // max_tokens), t / -(-int(t) // max_tokens)) for t in row_tokens])

    def count(budget: float) -> int:
        num, filled = 1, 0.0
        for tokens in pieces.tolist():
            if filled and filled + tokens > budget:
                num, filled = num + 1, 0.0
            filled += tokens
        return num

    rounds = -(-count(max_tokens) // num_ranks)
    low, high = 0.0, float(max_tokens)
    while num_ranks > 1 and high - low > 1:
        middle = (low + high) / 2
        low, high = (low, middle) if count(middle) <= rounds * num_ranks else (middle, high)
    return rounds, max(high, float(pieces.max()))


@dataclass(frozen=True, slots=True)
class Phase:
    """seconds; parts: of which they are made, some beside each other; bound: what they follow."""

    seconds: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def forward_s(spec: ModelSpec, machine: Machine, work: Work, *, num_outputs: int | None = None) -> float:
    """model FLOPs / (peak x efficiency)."""
    return model_flops(spec, work, num_outputs=num_outputs) / machine.flops


def update_flops(spec: ModelSpec, work: Work, *, num_outputs: int | None = None, checkpoints_activations: bool = True) -> int:
    """Model FLOPs of forward and backward, and what is computed twice: the head, whose logits are not kept, and with
    activation checkpointing the layers."""
    again = model_flops(spec, work, num_outputs=num_outputs)
    head = model_flops(spec, Work(0, 0, 0, 0, work.num_scored), num_outputs=num_outputs)
    return model_flops(spec, work, num_outputs=num_outputs, backward="all") + (again if checkpoints_activations else head)


def passes(
    spec: ModelSpec, machine: Machine, compute_s: float, num_packs: int, num_ranks: int, size: int, *, backward: bool
) -> Phase:
    """`num_packs` forwards (and backwards) of this computing in all, with the exchanges of weights held by `size` ranks.

    For each pack all layers are gathered, (n - 1) / n of wire_bytes P; in the backward pass once more, and their gradients
    are reduced and scattered in float32; what is outside the layers is gathered and scattered once a pack. Overlapped, a pack
    takes the longer of computing and the exchange of layers; before its first layer and after its last gradient, and for what
    is outside of them, it waits. Without: the sum. Copies of a part add up their gradients once, at the end: an all-reduce
    of 4 P / n bytes, not overlapped; with n = 1 that is done by hand after a copy of all gradients (Ranks.sum_).
    """
    layers, root = parameters(spec)
    link = shard_link(machine, size)
    parts = {"compute": compute_s}
    waited = exchange = 0.0
    if size > 1:
        one = layers / spec.num_layers
        gather, scatter = ring_s(machine.wire_bytes * one, size, link), ring_s(4 * one, size, link)
        per_pack = spec.num_layers * (2 * gather + scatter if backward else gather)
        outside = ring_s(4 * root, size, link) * (2 if backward else 1)
        exchange = num_packs * per_pack
        waited = num_packs * (outside + (gather + scatter * backward if machine.overlaps else 0.0))
        parts |= {"exchange of layers": exchange, "exchange outside layers": waited}
    if backward and (num_copies := num_ranks // size) > 1:
        added = 2 * ring_s(4 * (layers + root) / size, num_copies, copies_link(machine, num_ranks, size))
        if size == 1:
            added += 4 * 4 * (layers + root) / machine.moves  # into one tensor and back: two reads, two writes
        parts["sum over copies"] = added
        waited += added
    seconds = (max(compute_s, exchange) if machine.overlaps else compute_s + exchange) + waited
    return Phase(seconds, parts)


def optimizer_s(spec: ModelSpec, machine: Machine, size: int) -> float:
    """Bytes / memory bandwidth, of float32: AdamW reads 4 and writes 3 for each parameter of this rank, clipping reads the
    gradient twice and writes it once."""
    return 4 * (7 + 3) * sum(parameters(spec)) / size / machine.moves


def publish_s(spec: ModelSpec, machine: Machine, size: int) -> float:
    """Weights of the engine's copy: one gather of each layer and of the rest, and the copying (read and written), of which all
    but the last layer's goes on beside the next gather. 0 where the engine decodes with the trainer's own weights."""
    if size == 1:
        return 0.0
    layers, root = parameters(spec)
    one = layers / spec.num_layers
    link = shard_link(machine, size)
    gathers = spec.num_layers * ring_s(machine.wire_bytes * one, size, link) + ring_s(4 * root, size, link)
    copies = [2 * machine.wire_bytes * one / machine.moves] * spec.num_layers + [2 * 4 * root / machine.moves]
    return max(gathers, sum(copies)) + copies[-1] if machine.overlaps else gathers + sum(copies)
