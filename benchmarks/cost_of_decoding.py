"""What rollouts cost: the cost model of `benchmarks/scale.py`, continued from cost_model.py.

Of the sequences of a forward, each forwards the b tokens of its block and, when it has just finished one, those again: b +
per_forward on average. (b + per_forward) / 2 of them are masked and meet the head.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from cost_model import Machine, Phase, Setting, forward_s, parameters

from unmask.models.flops import Work, model_flops
from unmask.models.spec import ModelSpec

CHUNK_LOGITS = 2**24  # of diffusion/denoising.py: the head is applied to so many logits at a time
PARTS = ("layers", "head", "sampling", "launches", "host")


def kv_bytes(spec: ModelSpec, machine: Machine) -> int:
    """Of a token in the pages: a key and a value in each layer; float64 where weights are float32 (CPUs)."""
    size = 2 if machine.weight_bytes == 2 else 8
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * size


@cache
def flops_of_one(spec: ModelSpec) -> tuple[int, int, int]:
    """model FLOPs of a token, of a pair of tokens that see each other, and of a token that meets the head."""
    ones = Work(1, 0, 1, 0, 0), Work(0, 1, 0, 1, 0), Work(0, 0, 0, 0, 1)
    token, pair, scored = (model_flops(spec, work) for work in ones)
    return token, pair, scored


def forward_parts(spec: ModelSpec, machine: Machine, setting: Setting, num: int, context: float) -> np.ndarray:
    """Seconds of one forward of `num` sequences with so many tokens before their blocks, by PARTS.

    layers, head: the longer of bytes / memory bandwidth and operations / peak. Bytes of layers: their weights once, keys and
    values of the context; of the head: its weights once for every chunk of 2^24 logits. sampling: bytes of the logits. host:
    forward_s + num row_s, while the device waits. launches: kernel_s for each layer; counted as far as it is longer than the
    layers take.
    """
    tokens = num * (setting.block_size + setting.per_forward)
    scored = num * (setting.block_size + setting.per_forward) / 2
    seen = context + setting.block_size
    per_token, per_pair, per_scored = flops_of_one(spec)
    of_layers, _ = parameters(spec)
    moved = of_layers * machine.weight_bytes + num * seen * kv_bytes(spec, machine)
    layers = max(moved / machine.moves, tokens * (per_token + seen * per_pair) / machine.flops)
    num_chunks = max(1, np.ceil(scored * spec.vocab_size / CHUNK_LOGITS))
    head_bytes = num_chunks * spec.hidden_size * spec.vocab_size * machine.head_bytes
    head = max(head_bytes / machine.moves, scored * per_scored / machine.flops)
    sampling = scored * spec.vocab_size * machine.sampling_bytes / machine.moves
    launches = max(0.0, spec.num_layers * machine.kernel_s - layers)
    return np.array([layers, head, sampling, launches, machine.forward_s + num * machine.row_s])


def decode_parts(spec: ModelSpec, machine: Machine, setting: Setting, lengths: np.ndarray, kv_memory: float) -> np.ndarray:
    """Seconds of one rank's decoding, by PARTS: continuous batching of its responses in their order, at most max_sequences (and
    what fits the pages) at a time. Between two ends, forwards take what one takes at the mean context of that time."""
    fits = kv_memory / (kv_bytes(spec, machine) * (setting.prompt + lengths.mean() / 2))
    most = max(1, int(min(setting.max_sequences, fits)))
    needed = np.ceil(lengths / setting.per_forward)
    left, done = needed[:most].copy(), np.zeros(min(most, len(needed)))
    following, total = most, np.zeros(len(PARTS))
    while len(left):
        steps = left.min()
        context = setting.prompt + (done + steps / 2).mean() * setting.per_forward
        total += steps * forward_parts(spec, machine, setting, len(left), float(context))
        left, done = left - steps, done + steps
        ends = left <= 0
        new = needed[following : following + int(ends.sum())]
        following += len(new)
        left, done = np.concatenate((left[~ends], new)), np.concatenate((done[~ends], np.zeros(len(new))))
    return total


def shares_of_ranks(num: int, num_ranks: int) -> list[int]:
    """What each rank gets of so many prompts that are dealt out one by one (rl/rollout.py)."""
    return [len(range(rank, num, num_ranks)) for rank in range(num_ranks)]


def rollout_phase(spec: ModelSpec, machine: Machine, setting: Setting, num_ranks: int, kv_memory: float) -> Phase:
    """The rank that is ready last, and the gathering of all groups. Looked at are the two ranks with the most tokens and the
    two with the longest responses.

    Prompts: P tokens forwarded once for each group. gather: pickled by one rank each, unpickled by all, sent over the host's
    network as by a ring of gloo (`between`).
    """
    unit = setting.group_size if setting.deals_groups else 1
    lengths, first, ranks = setting.lengths(setting.prompts * setting.group_size), 0, []
    for share in shares_of_ranks(len(lengths) // unit, num_ranks):
        if share:
            ranks.append(lengths[first : first + share * unit])
        first += share * unit
    by_sum = sorted(ranks, key=lambda own: -own.sum())[:2]
    by_longest = sorted(ranks, key=lambda own: -own.max())[:2]
    parts = max((decode_parts(spec, machine, setting, own, kv_memory) for own in by_sum + by_longest), key=np.sum)
    p = setting.prompt
    prefill = Work(p, p * (p + setting.block_size) // 2, p, p * (p + setting.block_size) // 2, 0)
    named = dict(zip(PARTS, parts.tolist(), strict=True))
    num_prompts = min(setting.prompts, max(shares_of_ranks(len(lengths) // unit, num_ranks)))
    named["prompts"] = num_prompts * forward_s(spec, machine, prefill)
    named["gather"] = gather_s(machine, float(lengths.sum()), num_ranks)
    return Phase(sum(named.values()), named)


def gather_s(machine: Machine, num_tokens: float, num_ranks: int) -> float:
    """Groups with so many response tokens in all go to every rank; 0 for one."""
    if num_ranks == 1:
        return 0.0
    link = machine.inside if num_ranks <= machine.per_node else machine.between
    sent = (num_ranks - 1) / num_ranks * num_tokens * machine.pickled_bytes / link.bandwidth + (num_ranks - 1) * link.latency
    return num_tokens * machine.gather_s + sent
