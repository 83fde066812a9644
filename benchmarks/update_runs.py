"""What benchmarks/update.py compares: the traces, the two updates on them, and what an update costs besides seconds."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from published_layout import published_update, response_rows
from torch.profiler import ProfilerActivity, profile

from unmask.attention import AttentionBackend, TokenLayout, visibility
from unmask.models import Decoder
from unmask.objectives.rows import collate, pack_rows, score_targets
from unmask.objectives.trace_rl import TraceRL
from unmask.types import Rollout, Trace

CLIP_EPS, KL_BETA = 0.2, 0.01


@dataclass(frozen=True)
class Setting:
    """prompt, response: (lowest, highest) number of tokens. `group_size` responses share a prompt.

    sigma: responses are log-normal with this `mean`, cut to their range; 0 = all have the highest number.
    """

    block_size: int
    prompt: tuple[int, int]
    response: tuple[int, int]
    mean: float = 0.0
    sigma: float = 0.0
    group_size: int = 1


def mean_steps(b: int, chance: float) -> float:
    """Expected steps of a block of b in which every step unmasks one token and each further one with this chance."""
    steps = [0.0]  # for so many tokens left
    for left in range(1, b + 1):
        share = [math.comb(left - 1, k) * chance**k * (1 - chance) ** (left - 1 - k) for k in range(left)]
        # A step takes 1 + k tokens, k of left - 1.
        steps.append(1 + sum(share[k] * steps[left - 1 - k] for k in range(left)))
    return steps[b]


def chances(b: int, per_step: float, is_even: bool) -> np.ndarray:
    """Chances to draw a block's from, so that steps unmask `per_step` tokens on average.

    Uneven, as decoding by confidence is: some blocks are easy and take a step or two, some go token by token. Chances are
    u ** c, u uniform. Even: all blocks have the same.
    """
    u = np.array([0.5]) if is_even else (np.arange(64) + 0.5) / 64
    low, high = -8.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        candidates = u ** math.exp(middle)
        is_slow = b / np.mean([mean_steps(b, chance) for chance in candidates]) < per_step
        low, high = (low, middle) if is_slow else (middle, high)
    return candidates


def synthetic_rollouts(
    setting: Setting, num_responses: int, per_step: float, vocab_size: int, *, is_even: bool = False, seed: int = 0
) -> list[Rollout]:
    """Responses with random tokens; every step of a block unmasks some of its tokens, 1 to all, `per_step` on average."""
    rng, b = np.random.default_rng(seed), setting.block_size
    easiness, rollouts, prompt = chances(b, per_step, is_even), [], []
    for i in range(num_responses):
        if i % setting.group_size == 0:
            num_blocks = rng.integers(-(-setting.prompt[0] // b), setting.prompt[1] // b + 1)
            prompt = rng.integers(3, vocab_size, b * num_blocks).tolist()
        length = setting.response[1]
        if setting.sigma:  # exp(N(mu, sigma)) has mean exp(mu + sigma^2 / 2)
            draw = rng.lognormal(np.log(setting.mean) - setting.sigma**2 / 2, setting.sigma)
            length = int(np.clip(draw, *setting.response))
        step_map, step = [], 0
        for _ in range(-(-length // b)):
            of_block, order, begin, chance = np.empty(b, dtype=int), rng.permutation(b), 0, rng.choice(easiness)
            while begin < b:
                end = begin + 1 + rng.binomial(b - begin - 1, chance)
                of_block[order[begin:end]] = step
                begin, step = end, step + 1
            step_map += of_block.tolist()
        canvas = rng.integers(3, vocab_size, len(step_map)).tolist()
        zeros = [0.0] * len(canvas)
        trace = Trace(prompt, canvas, step_map, zeros, zeros, len(canvas), b, step, "length", seed=i)
        rollouts.append(Rollout(trace, "", advantage=float(rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.5))))
    return rollouts


class Updates:
    """The same update twice, `run("published")` and `run("ours")`; gradients are left in the model.

    Old log-probabilities are the model's own plus a drift, as if a few updates had been made since: the published side
    computes them, ours has them from the sampler.
    """

    def __init__(self, model: Decoder, rollouts: list[Rollout], backend: AttentionBackend, max_tokens: int):
        self.model, self.rollouts, self.backend, self.max_tokens = model, rollouts, backend, max_tokens
        longest = max(len(r.trace.canvas_ids) for r in rollouts)
        options = TraceRL.Options(
            clip_eps_low=CLIP_EPS, clip_eps_high=CLIP_EPS, kl_beta=KL_BETA,
            loss_normalization="constant", constant_length=longest,
        )  # fmt: skip
        self.objective = TraceRL(options, model.spec)
        self.divisor = longest * len(rollouts)
        rng = np.random.default_rng(1)
        self.drifts = [rng.normal(0, 0.15, len(r.trace.canvas_ids)).astype(np.float32) for r in rollouts]

    @torch.no_grad()
    def record_logprobs(self) -> None:
        """What the sampler would have left in the traces. (The mask token is in the published distributions.)"""
        for rollout, drift in zip(self.rollouts, self.drifts, strict=True):
            logprobs = np.zeros(len(rollout.trace.canvas_ids))
            for pack in pack_rows(self.objective.views(rollout, 0), self.max_tokens):
                batch = collate(pack, self.model.device)
                stats = score_targets(self.model, batch, self.backend, excludes_mask=False)
                logprobs[batch.values["canvas_index"].long().cpu().numpy()] = stats.logprobs_N.cpu().numpy()
            rollout.trace.logprobs = (logprobs + drift).tolist()

    def run(self, side: str) -> tuple[float, int]:
        """Loss, and the number of tokens that went through the model."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()  # kept: an optimizer's memory is not an update's
        if side == "published":
            return published_update(self.model, self.rollouts, self.drifts, self.divisor, CLIP_EPS, KL_BETA)
        total, num_tokens = 0.0, 0
        for pack in pack_rows(self.objective.rows(self.rollouts, len(self.rollouts)), self.max_tokens):
            batch = collate(pack, self.model.device)
            stats = score_targets(self.model, batch, self.backend, excludes_mask=False)
            loss, _ = self.objective.loss(stats, batch)
            loss.backward()
            total += loss.item()
            num_tokens += batch.input_ids_BL.numel()
        return total, num_tokens

    def gradients(self) -> list[torch.Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def flops(self, side: str) -> float:
        """Of matrix products and visible pairs of the attention: 2 per parameter or product forward, twice that backward."""
        spec = self.model.spec
        matrices = sum(p.numel() for name, p in self.model.layers.named_parameters() if p.dim() == 2)

        def of(layout: TokenLayout, num_logits: int) -> float:
            pairs = int(visibility(layout, layout).sum())
            dense = matrices * layout.doc_BL.numel() + spec.hidden_size * spec.vocab_size * num_logits
            return 2 * dense + 4 * pairs * spec.num_heads * spec.head_dim * spec.num_layers

        if side == "ours":
            packs = pack_rows(self.objective.rows(self.rollouts, len(self.rollouts)), self.max_tokens)
            batches = (collate(pack, self.model.device) for pack in packs)
            return 3 * sum(of(batch.layout, len(batch.target_ids_N)) for batch in batches)
        size = [max(len(r.trace.prompt_ids) for r in self.rollouts), self.divisor // len(self.rollouts)]
        rows = (row for r, d in zip(self.rollouts, self.drifts, strict=True) for row in response_rows(r, d, *size, self.model))
        return 4 * sum(of(row.layout, len(row.labels_L)) for row in rows)


def time_shares(updates: Updates, side: str) -> dict[str, float]:
    """Shares of the time in attention (the moving of its keys and values included), matrix products, head, and the rest.

    Operators with the size of the vocabulary in one of their shapes are the head's.
    """
    is_gpu = updates.model.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_gpu
    with profile(activities=activities, record_shapes=True) as recorded:
        updates.run(side)
    vocab_size, seconds = updates.model.spec.vocab_size, defaultdict[str, float](float)
    for event in recorded.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        name, sizes = event.key.lower(), {n for shape in event.input_shapes or [] if isinstance(shape, list) for n in shape}
        if "scaled_dot_product" in name or "flex_attention" in name or "index_" in name:
            kind = "attention"
        elif vocab_size in sizes or "softmax" in name:
            kind = "head"
        elif name in ("aten::mm", "aten::addmm", "aten::bmm"):
            kind = "matrix products"
        elif "scatter_add" in name:  # gradients of gathered keys and values
            kind = "attention"
        else:
            kind = "rest"
        seconds[kind] += own
    total = sum(seconds.values())
    return {kind: seconds[kind] / total for kind in ("attention", "matrix products", "head", "rest")}
