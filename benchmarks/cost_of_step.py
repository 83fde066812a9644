"""A whole RL step and the memory it takes: the cost model of `benchmarks/scale.py`, continued from cost_model.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_model import (
    Machine,
    Phase,
    Setting,
    forward_s,
    optimizer_s,
    pack_sizes,
    parameters,
    passes,
    publish_s,
    response_work,
    scaled,
    update_flops,
)
from cost_of_decoding import rollout_phase

from unmask.models.spec import ModelSpec

KV_SHARE = 0.3  # of what is free as the engine is made: launch/parts.py
USED = 0.95  # assumption: the allocator loses the rest
LEAST_PAGES = 3e9  # assumption: some fifty sequences at their mean length
HEAD_CHUNK = 3 * 2**26 * 4  # float32 logits, their gradients and exponentials of a chunk: objectives/fused_head.py


def memory_parts(spec: ModelSpec, machine: Machine, setting: Setting, size: int) -> dict[str, float]:
    """Bytes of a rank, without the allocator's losses.

    Of policy and value model: weights, gradients, AdamW's two, float32: 16 P / n (the value model's P about the same). engine:
    a whole copy, wire_bytes for layers and 4 outside. pages: KV_SHARE of what it leaves, the default; or what
    there is room for, if that is less (`engine.kv_memory_gb` has to say so). gathered: two layers and their
    gradients, all outside with theirs. activations of a pack: see `activation_bytes`.
    """
    layers, root = parameters(spec)
    models = 1 + setting.has_value
    parts = {"weights, gradients, AdamW": 16.0 * models * (layers + root) / size}
    parts["engine's weights"] = 0.0
    if size > 1:
        parts["engine's weights"] = machine.wire_bytes * layers + 4.0 * root
        parts["gathered weights"] = 2 * (machine.wire_bytes + 4) * layers / spec.num_layers + 8.0 * root
    else:
        parts["casts of weights"] = 2.0 * (layers + root) if machine.weight_bytes == 2 else 0.0
    parts["activations"] = activation_bytes(spec, setting)
    room = USED * machine.memory - sum(parts.values())
    parts["pages"] = max(0.0, min(KV_SHARE * (machine.memory - parts["engine's weights"]), room))
    return parts


def activation_bytes(spec: ModelSpec, setting: Setting) -> float:
    """Of a pack, under bfloat16 autocast: a layer keeps 26 D + 14 H K + 12 G K + 8 F bytes for a token (counted with hooks on
    saved tensors, FlexAttention's the same as the dense backend's without its mask); with activation checkpointing one layer
    does, all others 4 D. And chunks of the head."""
    d, hk, gk = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    whole = 26 * d + 14 * hk + 12 * gk + 8 * spec.intermediate_size
    kept = spec.num_layers * 4 * d + whole if setting.checkpoints_activations else spec.num_layers * whole
    return float(setting.max_tokens * kept + HEAD_CHUNK)


@dataclass(frozen=True, slots=True)
class Step:
    """Predicted. memory: bytes of a rank by part; fits: whether there is room for pages."""

    num_ranks: int
    size: int
    setting: Setting
    phases: dict[str, Phase]
    memory: dict[str, float]
    fits: bool

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def tokens_per_s(self) -> float:
        """Response tokens that were decoded, in a second of the step."""
        num = self.setting.prompts * self.setting.group_size
        return float(self.setting.lengths(num).sum()) / self.seconds

    @property
    def hours_per_100_steps(self) -> float:
        """GPU-hours."""
        return self.num_ranks * self.seconds * 100 / 3600


def predict(spec: ModelSpec, machine: Machine, setting: Setting, num_ranks: int, size: int) -> Step:
    """A step of the loop (rl/loop.py) on so many ranks, `size` of which hold a copy of the weights between them.

    Rows of the trained responses are shared out in packs (`pack_sizes`); a round of packs takes what its largest takes. All
    ranks make the rows of all responses.
    """
    memory = memory_parts(spec, machine, setting, size)
    num = max(1, round(setting.prompts * setting.group_size * setting.trained_share))
    lengths = setting.lengths(num, seed=1)
    work = response_work(setting, lengths)
    noisy = lengths * setting.block_size / setting.per_forward
    num_packs, largest = pack_sizes(
        lengths + noisy + work.num_tokens / num - (lengths + noisy).mean(), setting.max_tokens, num_ranks
    )
    own = scaled(work, min(1.0, num_packs * largest / work.num_tokens))

    def forwards(num_outputs: int | None = None) -> Phase:
        seconds = forward_s(spec, machine, own, num_outputs=num_outputs)
        return passes(spec, machine, seconds, num_packs, num_ranks, size, backward=False)

    def update(num_outputs: int | None = None) -> Phase:
        flops = update_flops(
            spec, own, num_outputs=num_outputs, checkpoints_activations=setting.checkpoints_activations
        )  # fmt: skip
        phase = passes(spec, machine, flops / machine.flops, num_packs, num_ranks, size, backward=True)
        more = optimizer_s(spec, machine, size)
        return Phase(phase.seconds + more, phase.parts | {"optimizer": more})

    phases = {"publish": publish_phase(spec, machine, size)}
    phases["rollout"] = rollout_phase(spec, machine, setting, num_ranks, memory["pages"])
    phases["rows"] = Phase(s := float(lengths.sum()) * machine.rows_s, {"host": s})
    if setting.num_old:
        one = forwards()
        phases["old"] = Phase(one.seconds * setting.num_old, one.parts)
    if setting.has_value:
        before, after = forwards(1), update(1)
        parts = {name: after.parts[name] + before.parts.get(name, 0.0) for name in after.parts}
        phases["value"] = Phase(before.seconds + after.seconds, parts)
    phases["update"] = update()
    return Step(num_ranks, size, setting, phases, memory, memory["pages"] >= LEAST_PAGES)


def publish_phase(spec: ModelSpec, machine: Machine, size: int) -> Phase:
    seconds = publish_s(spec, machine, size)
    return Phase(seconds, {"exchange": seconds})


def weak(setting: Setting, num_ranks: int, base: int = 8) -> Setting:
    """The setting with a batch that grows with the ranks: the recipe's is that of `base`."""
    return replace(setting, prompts=setting.prompts * num_ranks // base)
