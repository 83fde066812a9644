"""What a step of RL says of itself. All of it follows from the recipe; seconds are logged elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unmask.rl.collect import Collected, accuracy, has_signal


def rollout_metrics(collected: Collected) -> dict[str, float]:
    """Over all responses of the step, those that are left out of the update included."""
    groups = collected.groups
    traces = [rollout.trace for group in groups for rollout in group.rollouts]
    rewards = np.array([[rollout.reward for rollout in group.rollouts] for group in groups])
    num_tokens = sum(trace.num_response_tokens for trace in traces)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "accuracy": float(np.mean([accuracy(group) for group in groups])),
        "pass_at_group": float(np.mean([accuracy(group) > 0 for group in groups])),
        **part_means([rollout.reward_parts for group in groups for rollout in group.rollouts]),
        "num_groups": len(groups),
        "groups_without_signal": sum(not has_signal(group) for group in groups),
        "groups_trained": len(collected.kept),
        "sampling_rounds": collected.num_rounds,
        "response_length": num_tokens / len(traces),
        "cut_share": sum(trace.finish_reason == "length" for trace in traces) / len(traces),
        "tokens_per_forward": num_tokens / max(1, sum(trace.num_forwards for trace in traces)),
    }


def staleness_metrics(collected: Collected, optimizer_step: int) -> dict[str, float]:
    """How many optimizer steps older than the trainer's the weights were that decoded these responses."""
    ages = [optimizer_step - rollout.trace.policy_version for group in collected.groups for rollout in group.rollouts]
    return {"staleness_mean": float(np.mean(ages)), "staleness_max": max(ages)}


def part_means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every sub-score over the responses that have it."""
    names = dict.fromkeys(name for given in parts for name in given)
    return {f"reward/{name}": float(np.mean([given[name] for given in parts if name in given])) for name in names}


def update_metrics(stats: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the step's optimizer steps; token means where the objective gave sums. A step without any has counts alone.

    stats: of all updates, those that were skipped (which have no "loss") included.
    """
    num_begun, num_forwarded = len(stats), sum(s["num_tokens"] for s in stats)
    stats = [s for s in stats if "loss" in s]
    num_targets = sum(s["num_targets"] for s in stats)
    counts: dict[str, float] = {
        "num_updates": len(stats),
        "num_nonfinite_updates": num_begun - len(stats),
        "num_trained_tokens": num_targets,
        "num_forwarded_tokens": num_forwarded,
    }
    if not stats:
        return counts

    def mean(key: str) -> float:
        return sum(s[key] for s in stats) / len(stats)

    def per_token(key: str) -> float:
        return sum(s[key] for s in stats) / max(1.0, num_targets)

    metrics: dict[str, float] = {
        **counts,
        "loss": mean("loss"),
        "grad_norm": mean("grad_norm"),
        "lr": mean("lr"),
        "kl": per_token("kl_sum"),
        "clip_share": per_token("clip_sum"),
        "entropy": per_token("entropy_sum"),
        "neg_logprob": per_token("neg_logprob_sum"),
        **{key: mean(key) for key in ("expert_load_max", "expert_load_min") if key in stats[0]},
    }
    if "ref_kl_sum" in stats[0]:
        metrics["ref_kl"] = per_token("ref_kl_sum")
    if "truncated_sum" in stats[0]:
        metrics["truncated_share"] = per_token("truncated_sum")
    if "mismatch_sum" in stats[0]:
        # The first update's forward pass still has the weights that sampled: what is left is the sampler's arithmetic.
        metrics["mismatch_kl"] = stats[0]["mismatch_sum"] / max(1.0, stats[0]["num_targets"])
    return metrics
