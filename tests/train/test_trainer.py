"""The Trainer: accumulation changes nothing, the optimizer lives, schedules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import make_model
from tests.objectives.test_objectives import demonstrations
from unmask.attention import visibility
from unmask.config.training import OptimizerConfig
from unmask.dist import Ranks
from unmask.models.flops import Work, model_flops
from unmask.objectives.rows import collate, pack_rows, score_targets
from unmask.objectives.semi_ar import SemiAR
from unmask.train.optimizer import learning_rate
from unmask.train.trainer import Trainer


def make_trainer(max_tokens: int = 10**6, **config) -> tuple[Trainer, SemiAR]:
    model = make_model()
    optimizer = OptimizerConfig(**{"lr": 1e-2, **config})
    trainer = Trainer(model, optimizer, max_optimizer_steps=10, max_tokens_per_micro_batch=max_tokens)
    return trainer, SemiAR(SemiAR.Options(), model.spec, 0)


def step(trainer: Trainer, objective: SemiAR, num: int = 7) -> dict[str, float]:
    rows = objective.rows(demonstrations(num))
    return trainer.update(
        rows, lambda batch: objective.loss(score_targets(trainer.model, batch, trainer.backend, excludes_mask=False), batch)
    )


@pytest.mark.parametrize("max_tokens", [1, 60, 130])
def test_accumulation_changes_nothing(max_tokens: int) -> None:
    """7 rows in one batch, one by one, and in uneven parts with a tail: same loss, same gradient norm, same weights."""
    whole, split = make_trainer(), make_trainer(max_tokens)
    rows = split[1].rows(demonstrations(7))
    assert len(list(pack_rows(rows, max_tokens))) > 1
    a, b = step(*whole), step(*split)
    assert b["loss"] == pytest.approx(a["loss"], abs=1e-6)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    for p, q in zip(whole[0].model.parameters(), split[0].model.parameters(), strict=True):
        # Adam's first step is lr * sign(gradient): entries whose gradient is rounding noise may differ by 2 lr.
        close = (p - q).abs() <= 1e-5
        assert close.float().mean() > 0.999


def test_optimizer_lives_across_steps() -> None:
    trainer, objective = make_trainer()
    for _ in range(3):
        step(trainer, objective)
    state = trainer.optimizer.state[trainer.model.embed_tokens.weight]
    assert state["step"].item() == 3
    assert trainer.optimizer_step == 3


def test_state_dict_continues_exactly() -> None:
    trainer, objective = make_trainer()
    step(trainer, objective)
    saved = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.state_dict()))
    step(trainer, objective)
    other, _ = make_trainer()
    for part, state in zip((other.model, other.optimizer, other), saved, strict=True):
        part.load_state_dict(state)
    step(other, objective)
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), other.model.parameters(), strict=True))


def test_gradients_are_clipped() -> None:
    trainer, objective = make_trainer(max_grad_norm=1e-3)
    seen = []
    original = trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.append(total_norm(trainer.model)), original())[1]  # type: ignore[method-assign]
    stats = step(trainer, objective)
    assert stats["grad_norm"] > 1e-2  # reported before clipping
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)


def total_norm(model) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))


def test_weight_decay_spares_norms() -> None:
    trainer, _ = make_trainer(weight_decay=0.1)
    for group in trainer.optimizer.param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.1 if p.dim() > 1 else 0.0)
    assert sum(len(g["params"]) for g in trainer.optimizer.param_groups) == len(list(trainer.model.parameters()))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.1]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.1]),
    ],
)
def test_learning_rate(schedule: str, expected: list[float]) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, lr_schedule=schedule, final_lr_ratio=0.1)
    assert [learning_rate(config, s, 24) for s in (0, 1, 2, 3, 4, 24)] == pytest.approx(expected)
    halfway = {"constant": 1.0, "linear": 0.55, "cosine": 0.55}[schedule]
    assert learning_rate(config, 14, 24) == pytest.approx(halfway)


def test_the_schedule_reaches_the_optimizer() -> None:
    trainer, objective = make_trainer(lr=0.5, beta1=0.7, beta2=0.99, eps=1e-5, warmup_steps=4)
    rates = []
    for _ in range(5):
        assert (
            step(trainer, objective)["lr"] == trainer.optimizer.param_groups[0]["lr"] == trainer.optimizer.param_groups[1]["lr"]
        )
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert trainer.optimizer.param_groups[0]["betas"] == (0.7, 0.99)
    assert trainer.optimizer.param_groups[0]["eps"] == 1e-5


def test_bfloat16_autocast_trains() -> None:
    model = make_model()
    config = OptimizerConfig(lr=1e-2)
    trainer = Trainer(model, config, max_optimizer_steps=9, max_tokens_per_micro_batch=10**6, precision="bfloat16")
    objective = SemiAR(SemiAR.Options(), model.spec, 0)
    losses = [step(trainer, objective)["loss"] for _ in range(5)]
    exact = step(*make_trainer())["loss"]
    assert losses[0] == pytest.approx(exact, rel=0.02)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_work_of_a_pack_is_what_its_tokens_see() -> None:
    """Rows that share their prompt, with several noisy copies."""
    _, objective = make_trainer()
    batch = collate([*objective.rows(demonstrations(3)), *objective.rows(demonstrations(3))])
    num_visible_L = visibility(batch.layout, batch.layout)[0].sum(1)
    pairs = int(num_visible_L.sum()), int(num_visible_L[batch.target_index_N].sum())
    num_targets = len(batch.target_ids_N)
    assert batch.work == Work(batch.input_ids_BL.numel(), pairs[0], num_targets, pairs[1], num_targets)


def test_the_operations_of_an_update_are_counted() -> None:
    """Against PyTorch's count, which has of attention nothing (a fused kernel), and of the head one product more: its logits
    are computed a second time in the backward pass."""
    trainer, objective = make_trainer(max_tokens=60)
    rows, spec = objective.rows(demonstrations(7)), trainer.model.spec
    works = [collate(pack).work for pack in pack_rows(rows, 60)]
    with FlopCounterMode(display=False) as counter:
        stats = step(trainer, objective)
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    again = sum(2 * work.num_scored * spec.hidden_size * spec.vocab_size for work in works)
    num_pairs = sum(
        (spec.num_layers - 1) * work.num_pairs + work.num_read_pairs for work in works
    )  # what is read of the last layer alone
    assert trainer.num_flops == products - again + 3 * 4 * spec.num_heads * spec.head_dim * num_pairs
    assert trainer.num_own_tokens == stats["num_tokens"]
    before = trainer.num_flops
    trainer.measure(rows, lambda batch: (torch.zeros(()), {}))
    assert trainer.num_flops - before == sum(model_flops(spec, work) for work in works)
    assert trainer.num_own_tokens == stats["num_tokens"]  # of updates alone


def test_a_pack_that_is_not_its_own_is_not_a_ranks_work() -> None:
    """The second of two ranks where there is one pack: it forwards that, too, and it does not count."""

    class Apart(Ranks):
        def sum_(self, tensors) -> None:
            pass

    for rank, does_work in ((0, True), (1, False)):
        trainer, objective = make_trainer()
        trainer.ranks = Apart(rank, 2)
        step(trainer, objective, 1)
        assert (trainer.num_flops > 0, trainer.num_own_tokens > 0) == (does_work, does_work)
