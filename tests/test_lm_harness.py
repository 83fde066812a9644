"""lm-evaluation-harness with tiny random models: it decodes what the engine decodes, likelihoods are plain products."""

from __future__ import annotations

import pytest
import torch

import unmask
from tests.recipes import unmask as command
from unmask import UnmaskError
from unmask.data.chained_arithmetic import ChainedArithmetic
from unmask.data.chat import ChatTokenizer

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from unmask.lm_harness import UnmaskLM


@pytest.fixture(scope="module", params=["sdar/tiny", "llada/tiny"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / request.param.replace("/", "-")
    tokenizer = ChatTokenizer.tiny(ChainedArithmetic.vocabulary)
    ids = tokenizer.tokenizer
    model = unmask.new_model(
        request.param, seed=3, vocab_size=len(ids), mask_token_id=ids.mask_token_id, pad_token_id=ids.pad_token_id,
        eos_token_id=tokenizer.turn_end_id,
    )  # fmt: skip
    unmask.save_model(model, path)
    tokenizer.save(path)
    return path


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def plain(model, prompt: list[int], text: list[int]) -> tuple[float, bool]:
    """One forward per token: those before it are known, those after it masked."""
    spec, total, is_greedy = model.spec, 0.0, True
    for i, token in enumerate(text):
        ids = prompt + text[:i] + [spec.mask_token_id] * (len(text) - i)
        if spec.attention == "block_causal":
            end = ((len(prompt) + i) // spec.block_size + 1) * spec.block_size
            ids = (ids + [spec.mask_token_id] * spec.block_size)[:end]
        logits = model.logits(torch.tensor([ids]))[0, len(prompt) + i].double()
        logits[spec.mask_token_id] = -torch.inf
        total += torch.log_softmax(logits, -1)[token].item()
        is_greedy &= int(logits.argmax()) == token
    return total, is_greedy


@torch.inference_mode()
def test_likelihoods(folder) -> None:
    lm = UnmaskLM(pretrained=str(folder))
    model, encode = lm.engine.model, lm.chat.encode
    (greedy,) = lm.generate_until(requests("generate_until", ("1+2=?", {"until": [], "max_gen_toks": 3})))
    arguments = [("1+2=?", "3;\\boxed{3}"), ("4*", "5=?"), ("", "7"), ("1+2=?", greedy)]
    found = lm.loglikelihood(requests("loglikelihood", *arguments))
    for (context, text), (score, is_greedy) in zip(arguments, found, strict=True):
        wanted = plain(model, encode(context) if context else [lm.chat.turn_end_id], encode(text))
        assert score == pytest.approx(wanted[0], abs=1e-5 * len(text))  # float32, a sum over tokens
        assert is_greedy == wanted[1]
    (whole,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("1+2=?3;",)))
    assert whole == pytest.approx(plain(model, [lm.chat.turn_end_id], encode("1+2=?3;"))[0], abs=1e-4)


def test_a_task_of_the_harness(folder) -> None:
    """Both kinds of tasks, defined here; the answers are those of the engine."""
    docs = [{"question": f"{i}+1=?", "answer": i % 2, "choices": ["0", "1"]} for i in range(4)]

    common = {
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    writes = ConfigurableTask(config={
        **common, "task": "writes", "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [";"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
    })  # fmt: skip
    chooses = ConfigurableTask(config={
        **common, "task": "chooses", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    })  # fmt: skip
    lm = UnmaskLM(pretrained=str(folder), temperature=0.0)
    found = simple_evaluate(model=lm, tasks=[writes, chooses], log_samples=True, bootstrap_iters=0)
    answers = [sample["resps"][0][0] for sample in found["samples"]["writes"]]
    stops = tuple(sorted({*lm.engine.model.spec.eos_token_ids, lm.chat.turn_end_id}))
    params = unmask.SamplingParams(max_new_tokens=8, temperature=0.0, stop_strings=(";",), stop_token_ids=stops)
    traces = lm.engine.generate([lm.chat.encode(doc["question"]) for doc in docs], params)
    assert answers == [lm.chat.decode(trace.response_ids).split(";")[0] for trace in traces]
    assert 0 <= found["results"]["chooses"]["acc,none"] <= 1


def test_arguments_that_mean_nothing(folder) -> None:
    with pytest.raises(UnmaskError, match="model_args: unknown key 'temprature'"):
        UnmaskLM(pretrained=str(folder), temprature=1.0)
    with pytest.raises(UnmaskError, match="model_args: unknown mode 'fast'; known: static, dynamic"):
        UnmaskLM(pretrained=str(folder), mode="fast")
    lm = UnmaskLM(pretrained=str(folder), mode="dynamic", max_batch_size=2)
    with pytest.raises(UnmaskError, match="generation setting 'num_beams' is not known"):
        lm.generate_until(requests("generate_until", ("1+2=?", {"num_beams": 3})))


def test_the_command_is_the_harness_with_our_model_type(monkeypatch) -> None:
    given = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: given.append(__import__("sys").argv))
    assert command("lm-eval", "--model_args", "pretrained=x", "--tasks", "y").returncode == 0
    assert given == [["lm-eval", "--model_args", "pretrained=x", "--tasks", "y", "--model", "unmask"]]
