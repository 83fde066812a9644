"""A fuzzer over the description of the API: whatever fits it, or nearly does, is answered as described and never with a 5xx."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from tests.serve.models import tokenizer
from tests.serve.running import Local
from unmask.data.chat import ChatTokenizer
from unmask.serve.described import ChatCompletion, Completion


@pytest.fixture(scope="module")
def open_one(folders) -> Local:
    """Answers end early: what is asked for is absurd, and each answer is not the point."""
    limits = {"num_pages": 3000, "page_size": 4, "server_max_context": 256, "server_request_timeout_s": 20}
    with Local(folders["sdar"], "max_new_tokens=5", admin_keys=("boss",), **limits) as running:
        running.service.tokenizer = AnyText(tokenizer().tokenizer)
        yield running
        running.assert_idle()


class AnyText(ChatTokenizer):
    """Has tokens for whatever comes."""

    def encode(self, text: str) -> list[int]:
        return [5 + ord(character) % 40 for character in text]


def fuzz(server: Local, num: int) -> dict[str, int]:
    """Statuses that were seen, of each operation."""
    schema = schemathesis.openapi.from_url(f"http://{server.client.host}:{server.client.port}/openapi.json")
    load_all_checks()
    # What fits the description may still be more than the model's context, or text that its vocabulary does not have.
    unfair = CHECKS.get_by_names(["positive_data_acceptance"])
    seen: dict[str, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=num, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def check(case) -> None:
            if isinstance(case.body, dict) and case.meta.generation.mode.is_positive:
                case.body.pop("model", None)  # there is only one
                case.body.pop("max_tokens", None)  # the context is small
            response = case.call(headers={"Authorization": "Bearer boss"})
            label = f"{case.method} {case.path} {response.status_code}"
            seen[label] = seen.get(label, 0) + 1
            case.validate_response(response, excluded_checks=unfair)

        check()
    return seen


def test_the_description_holds(open_one) -> None:
    seen = fuzz(open_one, 15)
    print(seen)
    assert {"POST /v1/completions 200", "POST /v1/chat/completions 200", "POST /admin/reload 400"} <= set(seen)


def test_answers_are_as_described(open_one) -> None:
    """With everything that they may have; the fuzzer asks for it rarely."""
    body = {"n": 2, "unmask": {"return_trace": True}}
    chat = open_one.client.post(
        "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "a"}], "logprobs": True}
    )
    ChatCompletion.model_validate_json(chat.body)
    ChatCompletion.model_validate_json(open_one.client.chat("a").body)
    Completion.model_validate_json(open_one.client.post("/v1/completions", {**body, "prompt": ["a", "b"], "logprobs": 0}).body)


@pytest.mark.parametrize("keys", [(), ("one",)])
def test_keys_are_described(folders, keys) -> None:
    with Local(folders["sdar"], api_keys=keys) as running:
        description = json.loads(running.client.get("/openapi.json").body)
    with_keys = {path for path, methods in description["paths"].items() if any("security" in m for m in methods.values())}
    of_models = {path for path in description["paths"] if path.startswith("/v1/")}
    assert with_keys == {"/admin/reload"} | (of_models if keys else set())
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    answer = description["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"] == {"$ref": "#/components/schemas/Completion"}
    assert "text/event-stream" in answer


@pytest.mark.slow
def test_the_description_holds_for_long(open_one) -> None:
    fuzz(open_one, 1000)
