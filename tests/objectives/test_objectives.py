"""Semi-autoregressive rows, TraceRL's loss against golden numbers, advantages."""

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


def describe(row, num_prompt: int) -> tuple:
    return (
        row.input_ids.tolist(),
        row.position.tolist(),
        row.copy.tolist(),
        row.target_column.tolist(),
        row.target_ids.tolist(),
    )


def test_rows_hold_what_they_should(model) -> None:
    items = demonstrations()
    for item, row in zip(items, semi_ar(model).rows(items), strict=True):
        ids, num_prompt = [*item.prompt_ids, *item.response_ids], len(item.prompt_ids)
        padded = ids + [PAD] * (-len(ids) % 4)
        is_clean = row.copy == 0
        assert row.input_ids[is_clean].tolist() == padded[: is_clean.sum()]
        for copy in range(1, row.copy.max() + 1):
            mine = (row.copy == copy).nonzero()[0]
            assert len(mine) == 4
            assert len({p // 4 for p in row.position[mine]}) == 1
            for column in mine:
                position, token = row.position[column], row.input_ids[column]
                is_target = column in row.target_column
                assert is_target == (token == MASK)
                assert token in (MASK, padded[position])
                assert not (is_target and position < num_prompt)  # prompt tokens heading a block are never masked
        assert [padded[row.position[c]] for c in row.target_column] == row.target_ids.tolist()


def test_masks_depend_on_seed_sample_and_epoch_only(model) -> None:
    items = demonstrations()
    together = [describe(r, 0) for r in semi_ar(model).rows(items)]
    alone = [describe(semi_ar(model).rows([item])[0], 0) for item in reversed(items)][::-1]
    assert together == alone
    next_epoch = [Demonstration(i.key, 1, i.prompt_ids, i.response_ids) for i in items]
    assert [describe(r, 0) for r in semi_ar(model).rows(next_epoch)] != together
    assert [describe(r, 0) for r in semi_ar(model, seed=1).rows(items)] != together


def test_mask_rates(model) -> None:
    """The rate is the block's own, U(lo, hi): the share of masks is its mean, and blocks differ more than tokens would."""
    items = [Demonstration(i, 0, [], [5] * 4) for i in range(4000)]
    drawn = semi_ar(model, min_rate=0.2, max_rate=0.8)._draw_masks(items, np.zeros(4000, dtype=np.int64), 1)[:, 0]
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    per_block = drawn.sum(1)
    assert per_block.var() == pytest.approx(4 * 0.25 + 12 * 0.6**2 / 12, rel=0.08)  # binomial + spread of the rate


def test_trained_pads(model) -> None:
    items = [Demonstration(i, 0, [7], [5, 6]) for i in range(300)]  # one pad fills the block

    def pads(**options) -> int:
        return sum(int((r.target_ids == PAD).sum()) for r in semi_ar(model, **options).rows(items))

    assert pads() > 0
    assert pads(num_trained_pads=0) == 0
    assert pads(num_trained_pads=1) == pads()


def test_several_noisy_copies_share_the_clean_one(model) -> None:
    items = demonstrations()
    one, three = (sum(len(r.input_ids) for r in semi_ar(model, num_noisy_copies=n).rows(items)) for n in (1, 3))
    assert one < three < 3 * one


def test_weights_make_a_token_mean(model) -> None:
    rows = semi_ar(model).rows(demonstrations())
    weights = np.concatenate([row.values["weight"] for row in rows])
    assert len({len(row.target_ids) for row in rows}) > 1
    assert weights == pytest.approx(np.full(len(weights), 1 / len(weights)))  # every token the same, whatever its row


def test_noisy_copies_have_their_own_masks(model) -> None:
    drawn = semi_ar(model, num_noisy_copies=2)._draw_masks(demonstrations(), np.zeros(6, dtype=np.int64), 5)
    assert (drawn[:, 0] != drawn[:, 1]).any()


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
