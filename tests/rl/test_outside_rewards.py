"""Runs whose rewards come from elsewhere: programs in the sandbox, a judge behind an endpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.recipes import RL, unmask, write_recipe
from tests.rewards.chat_server import Server
from unmask import new_model, save_model
from unmask.data.chat import ChatTokenizer
from unmask.metrics import read_metrics

PROGRAM = "```python\ndef f(): return 1"  # as the turn begins; the response adds digits to the number


@pytest.fixture
def writer(tmp_path) -> Path:
    """A model that has digits to write, and the program's beginning to read."""
    tokenizer = ChatTokenizer.tiny([*"0123456789?", PROGRAM])
    ids = tokenizer.tokenizer
    model = new_model(
        "sdar/tiny", seed=3, vocab_size=len(ids), mask_token_id=ids.mask_token_id, pad_token_id=ids.pad_token_id,
        eos_token_id=tokenizer.turn_end_id,
    )  # fmt: skip
    save_model(model, tmp_path / "writer")
    tokenizer.save(tmp_path / "writer")
    return tmp_path / "writer"


def test_programs_are_run(writer, tmp_path) -> None:
    """Paid is what the whole turn computes: even numbers are half of what the tests ask for."""
    tests = ["assert f() > 1", "assert f() % 2 == 0"]
    row = {"test_method": "function", "test_list": tests, "response_prefix": PROGRAM}
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row | {"question": f"{i}?"}) + "\n" for i in range(10)))
    recipe = RL.replace('preset = "sdar/tiny"', f'path = "{writer}"').replace("chained_arithmetic", "jsonl")
    recipe = recipe.replace("min_operations = 1, max_operations = 2", f'path = "{data}", held_out_share = 0.5')
    recipe = recipe.replace('name = "exact"\noptions = { wrong_reward = 0.5, is_cut_wrong = false }', 'name = "code"')
    words = ("reward.options.is_cut_wrong=false", "train.max_steps=3", "eval.every_steps=0", f"run.dir={tmp_path / 'run'}")
    result = unmask("rl", write_recipe(tmp_path, "code", recipe), *words)
    assert result.returncode == 0, result.stderr
    assert "code sandbox: " in result.stderr
    records = read_metrics(tmp_path / "run")
    assert sum(r["num_updates"] for r in records) > 0
    assert all(r["reward_mean"] == r["reward/tests_passed"] for r in records)
    settings = ("modes.static.max_new_tokens=4", "modes.static.temperature=1.0", "modes.static.top_k=0", "--sampling", "static")
    output = tmp_path / "evaluated"
    result = unmask("eval", tmp_path / "run", *settings, "-k", 4, "--output", output)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (output / "traces-jsonl-static.jsonl").read_text().splitlines()]
    texts = ["".join(row["canvas_pieces"][: row["trace"]["num_response_tokens"]]) for row in rows]
    numbers = [1 if PROGRAM in text else int("1" + re.sub(r"<\|\w+\|>", "", text)) for text in texts]
    assert [row["reward"] for row in rows] == [((n > 1) + (n % 2 == 0)) / 2 for n in numbers], texts
    assert {row["reward"] for row in rows} == {0.0, 0.5, 1.0}


def test_a_judge_of_chunks_trains_the_value_model(tmp_path) -> None:
    """And what it has said is in the cache: the same run asks nothing again."""
    pytest.importorskip("openai", reason="the extra `judge` is not installed")
    recipe = RL.replace('name = "exact"\noptions', 'name = "judge"\noptions.outcome.name = "exact"\noptions.outcome.options')
    found = []
    with Server(lambda question, seed: f"\\boxed{{{sum(question.encode()) % 2}}}") as server:
        for name in ("first", "again"):
            options = [f"reward.options.{o}" for o in (f"base_url={server.url}", "model=m", "votes=1", "chunk_tokens=4")]
            options += [f"reward.options.cache={tmp_path / 'judge.sqlite'}", f"run.dir={tmp_path / name}"]
            words = ("train.max_steps=3", "eval.every_steps=0", "value.enabled=true", *options)
            result = unmask("rl", write_recipe(tmp_path, "judge", recipe), *words)
            assert result.returncode == 0, result.stderr
            found.append((read_metrics(tmp_path / name), len(server.requests)))
    (records, asked), (again, asked_again) = found
    assert asked == asked_again > 20
    assert records == again
    assert all(r["num_updates"] == 2 and r["grad_norm"] > 0 and r["value_loss"] > 0 for r in records)
    assert all(r["groups_without_signal"] < r["num_groups"] and r["reward_mean"] == r["reward/outcome"] for r in records)
