"""The loss of SFT, TraceRL's loss against golden numbers, advantages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.golden import golden_cases
from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.objectives import make_rl_objective, make_sft_objective
from unmask.objectives.advantages import ADVANTAGES, get_advantage
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.rows import RowBatch, collate
from unmask.objectives.semi_ar import SemiAR
from unmask.objectives.trace_rl import TraceRL
from unmask.types import Demonstration

MASK, PAD = 2, 0


def demonstrations(n: int = 6) -> list[Demonstration]:
    rng = np.random.default_rng(0)
    return [
        Demonstration(i, 0, rng.integers(3, 40, 2 + i).tolist(), rng.integers(3, 40, 9 + 3 * (i % 3)).tolist())
        for i in range(n)
    ]


def semi_ar(model, seed: int = 0, **options) -> SemiAR:
    return SemiAR(SemiAR.Options(**options), model.spec, seed)


def test_sft_loss_is_cross_entropy(model) -> None:
    rows = semi_ar(model).rows(demonstrations())
    batch = collate(rows)
    logits = torch.randn(len(batch.target_ids_N), 40)

    def stats(logits) -> TargetStats:
        logprobs, is_top = logits.log_softmax(-1), (logits.argmax(-1) == batch.target_ids_N).float()
        return TargetStats(logprobs.gather(1, batch.target_ids_N[:, None])[:, 0], is_top, is_top)

    loss, sums = semi_ar(model).loss(stats(logits), batch)
    wanted = -logits.log_softmax(-1).gather(1, batch.target_ids_N[:, None]).mean()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    hits = (logits.argmax(-1) == batch.target_ids_N).float().mean()
    assert sums["token_accuracy"].item() == pytest.approx(hits.item(), abs=1e-6)
    perfect = torch.nn.functional.one_hot(batch.target_ids_N, 40).float() * 50
    assert semi_ar(model).loss(stats(perfect), batch)[1]["token_accuracy"].item() == pytest.approx(1.0)


def golden_rl(case) -> tuple[RowBatch, TraceRL, torch.Tensor]:
    """The fixture's rows as one batch of targets: padded response length as the constant, as the reference divides."""
    training, out = case["params"]["training"], case["outputs"]
    p_mask, num_rows = out["p_mask"].bool(), out["p_mask"].shape[0]
    response_length = out["noise_mask"].shape[1]
    advantage = out["row_reward"][:, None].expand(p_mask.shape)[p_mask]
    values = {
        "old_logprobs": case["inputs"]["logp_old"][p_mask],
        "rollout_logprobs": case["inputs"]["logp_old"][p_mask],
        "advantage": advantage.float(),
        "weight": torch.full_like(advantage, 1.0 / response_length / num_rows, dtype=torch.float32),
    }
    options = TraceRL.Options(
        clip_eps_low=training["eps"], clip_eps_high=training["eps"], kl_beta=training["beta"],
        kl_estimator="k3" if training["use_kl_estimator_k3"] else "k1",
    )  # fmt: skip
    ids = out["labels"][p_mask]
    return RowBatch(ids, None, ids, ids, values), options, out["logp_new"][p_mask]  # type: ignore[arg-type]


def just(logprobs: torch.Tensor) -> TargetStats:
    return TargetStats(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs))


def test_golden_policy_losses(golden_sdar, model) -> None:
    checked = 0
    for case in golden_cases(golden_sdar, "train_rl"):
        batch, options, logp_new = golden_rl(case)
        loss, _ = TraceRL(options, model.spec).loss(just(logp_new), batch)
        assert loss.item() == pytest.approx(case["outputs"]["loss"].item(), abs=1e-5), case["name"]
        checked += 1
    assert checked >= 8


def test_clipping_is_one_sided(model) -> None:
    """A ratio beyond the bound stops pushing further, but is still pulled back."""
    objective = TraceRL(TraceRL.Options(kl_beta=0.0, clip_eps_low=0.2, clip_eps_high=0.3), model.spec)
    ids = torch.zeros(4, dtype=torch.long)
    log_ratio = torch.log(torch.tensor([1.4, 1.4, 0.7, 0.7])).requires_grad_()
    values = {"old_logprobs": torch.zeros(4), "advantage": torch.tensor([1.0, -1.0, 1.0, -1.0]), "weight": torch.ones(4)}
    values["rollout_logprobs"] = values["old_logprobs"]
    loss, sums = objective.loss(just(log_ratio), RowBatch(ids, None, ids, ids, values))  # type: ignore[arg-type]
    loss.backward()
    assert (log_ratio.grad != 0).tolist() == [False, True, True, False]
    assert loss.item() == pytest.approx(-(1.3 - 1.4 + 0.7 - 0.8))
    assert sums["clip_sum"] == 2
    assert sums["num_targets"] == 4
    d = log_ratio.detach()
    assert sums["kl_sum"].item() == pytest.approx((torch.exp(-d) - 1 + d).sum().item(), abs=1e-6)
    assert sums["neg_logprob_sum"].item() == pytest.approx(-d.sum().item(), abs=1e-6)


def test_advantages() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    first = rewards[0]
    assert ADVANTAGES["group_zscore"](rewards)[0] == pytest.approx((first - 0.6) / np.sqrt(0.24))
    assert ADVANTAGES["group_mean_centred"](rewards)[0] == pytest.approx(first - 0.6)
    assert ADVANTAGES["leave_one_out"](rewards)[0] == pytest.approx([r - (3 - r) / 4 for r in first])
    assert ADVANTAGES["batch_zscore"](rewards) == pytest.approx((rewards - 0.4) / rewards.std())
    assert ADVANTAGES["none"](rewards) == pytest.approx(rewards)
    for name in ("group_zscore", "group_mean_centred", "leave_one_out"):
        assert not ADVANTAGES[name](rewards)[1].any(), name
    for name, advantage in ADVANTAGES.items():
        for n in (3, 6, 7):
            # exactly zero: rounding is no signal
            assert name == "none" or not advantage(np.full((2, n), 0.1)).any(), name
    known = "group_zscore, group_mean_centred, leave_one_out, batch_zscore, none"
    with pytest.raises(UnmaskError, match=f"unknown advantage 'gae'; known: {known}"):
        get_advantage("gae")


def test_options_are_checked(model) -> None:
    with pytest.raises(UnmaskError, match="unknown objective 'ppo'; known: trace_rl, random_masking, coupled"):
        make_rl_objective(Plugin(name="ppo"), model)
    with pytest.raises(UnmaskError, match=r"objective.options: unknown key 'min_rat'; the nearest known key is 'min_rate'"):
        make_sft_objective(Plugin(name="semi_ar", options={"min_rat": 0.1}), model, 0)
