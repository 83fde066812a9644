"""The official client works: answers, streams, its exceptions."""

from __future__ import annotations

import openai
import pytest

from tests.serve.running import Local

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def keyed(folders) -> Local:
    limits = {"max_sequences": 4, "server_max_queue": 2, "server_max_per_key": 3}
    with Local(folders["sdar"], num_pages=2000, page_size=4, api_keys=("key-a", "key-b"), **limits) as running:
        yield running
        running.assert_idle()


@pytest.fixture
def client(keyed) -> openai.OpenAI:
    with _client(keyed, "key-a") as client:
        yield client


def _client(keyed: Local, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{keyed.client.host}:{keyed.client.port}/v1", api_key=key, max_retries=0)


def test_chat_and_its_stream(client) -> None:
    fields = {"model": "tiny", "messages": HELLO, "seed": 3, "max_tokens": 12, "logprobs": True, "n": 2}
    answer = client.chat.completions.create(**fields, extra_body={"unmask": {"block_size": 8, "return_trace": True}})
    assert (answer.object, answer.model, len(answer.choices)) == ("chat.completion", "tiny", 2)
    assert answer.choices[0].unmask["trace"]["block_size"] == 8
    assert answer.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in answer.choices)
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}, extra_body={"unmask": {"block_size": 8}}
    )
    texts, last = ["", ""], None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        assert "usage" in chunk.model_fields_set
        assert (chunk.usage is None) == bool(chunk.choices)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        last = chunk
    assert texts == [choice.message.content for choice in answer.choices]
    assert last.usage.total_tokens == answer.usage.total_tokens


def test_its_helper_for_streams(client) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO, seed=3, max_tokens=400) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    again = client.chat.completions.create(model="tiny", messages=HELLO, seed=3, max_tokens=400)
    assert final.choices[0].message.content == again.choices[0].message.content


def test_what_chat_programs_send_along(client) -> None:
    """An answer goes back as it came, or with a program's own notes; what asks for nothing may stand there."""
    ask = {"model": "tiny", "seed": 3, "max_tokens": 12}
    answer = client.chat.completions.create(messages=HELLO, **ask).choices[0].message
    turns = [
        {"role": "assistant", "content": answer.content},
        answer.to_dict(),
        {"role": "assistant", "content": [{"type": "text", "text": answer.content}], "metadata": None, "options": None},
        {"role": "assistant", "content": answer.content, "tool_calls": None, "annotations": [], "metadata": {"title": "x"}},
    ]
    nothing = {
        "presence_penalty": 0, "frequency_penalty": 0.0, "top_logprobs": 0, "logit_bias": {}, "tools": [],
        "tool_choice": "none", "response_format": {"type": "text"}, "user": "me", "store": False, "stop": None,
    }  # fmt: skip
    texts = set()
    for turn, more in zip(turns, ({}, nothing, {}, {}), strict=True):
        again = client.chat.completions.create(messages=[*HELLO, turn, *HELLO], **ask, **more)
        texts.add((again.usage.prompt_tokens, again.choices[0].message.content))
    assert len(texts) == 1


def test_completions_and_their_stream(client) -> None:
    fields = {"model": "tiny", "prompt": ["the", "an"], "seed": 3, "max_tokens": 12, "logprobs": 0}
    answer = client.completions.create(**fields)
    texts = ["", ""]
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]
    assert client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=4).usage.prompt_tokens == 3


def test_models(client) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "unmask")
    assert client.models.retrieve("tiny").unmask["family"] == "sdar"


def test_errors_are_its_exceptions(keyed, client) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    assert (bad.value.status_code, bad.value.param, bad.value.type) == (400, "temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/one")
    with _client(keyed, "wrong") as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"


def test_overload_is_its_rate_limit_error_and_its_retries_get_through(keyed, client) -> None:
    long = {"max_tokens": 3000, "unmask": {"ignore_eos": True, "stop_token_ids": []}}
    connections = [keyed.client.with_key("key-a") for _ in range(3)]
    streams = [one.begin(**long) for one in connections]
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) >= 1
    with _client(keyed, "key-b") as other:  # another key has its own room
        assert other.completions.create(model="tiny", prompt="a", max_tokens=2).choices
    for stream in streams:
        stream.close()
    assert client.with_options(max_retries=3).completions.create(model="tiny", prompt="a", max_tokens=2).choices


def test_a_stream_that_is_closed_early(keyed, client) -> None:
    before = keyed.num("disconnects_total")
    settings = {"ignore_eos": True, "stop_token_ids": []}
    for _ in range(3):
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=3000, stream=True, extra_body={"unmask": settings}
        )
        next(iter(stream))
        stream.close()
    keyed.assert_idle()
    assert keyed.num("disconnects_total") == before + 3
