"""Who may ask: keys, the admin's, and pages of other origins."""

from __future__ import annotations

import pytest

from tests.serve.client import head
from tests.serve.running import Local
from unmask.config import ServerConfig
from unmask.errors import UnmaskError
from unmask.serve.server import hosts_of, keys_from, listen

ORIGIN = "https://page.example"
PREFLIGHT = {
    "Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type",
}  # fmt: skip


@pytest.fixture(scope="module")
def keyed(folders) -> Local:
    words = {"num_pages": 500, "page_size": 4, "server_cors_origins": f'["{ORIGIN}"]', "server_body_timeout_s": 0.5}
    with Local(folders["sdar"], api_keys=("key-a", "key-b"), admin_keys=("boss",), **words) as running:
        yield running
        running.assert_idle()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/tiny", "/v1/none"])
@pytest.mark.parametrize(
    "given",
    [None, "", "key-a", "Bearer", "Bearer ", "Bearer key-c", "Bearer key-", "Bearer boss", "Basic key-a", "Bearer \xff"],
)
def test_without_a_key_nothing_is_told(keyed, path, given) -> None:
    headers = {} if given is None else {"Authorization": given}
    answer = keyed.client.request("GET" if "models" in path else "POST", path, None, headers)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "key-a" not in answer.error["message"]


def test_with_any_key(keyed) -> None:
    for line in ("Bearer key-a", "bearer key-b", "BEARER   key-b  "):
        assert keyed.client.get("/v1/models", Authorization=line).status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/openapi.json"])
def test_what_needs_no_key(keyed, path) -> None:
    assert keyed.client.get(path).status == 200


def test_admin_has_a_key_of_its_own(keyed, local) -> None:
    for client in (keyed.client, keyed.client.with_key("key-a")):
        assert client.post("/admin/reload", {}).status == 401
    assert keyed.client.with_key("boss").post("/admin/reload", {"path": "/none such"}).status == 400
    for client in (local.client, local.client.with_key("boss")):  # without one nobody is the admin
        answer = client.post("/admin/reload", {})
        assert (answer.status, answer.error["type"]) == (403, "permission_error")


def test_a_body_without_a_key_is_not_read(keyed) -> None:
    answer = keyed.client.raw(head("POST", "/v1/completions", 10**6))
    assert answer.status == 401


def test_pages_of_others_are_not_let_in_by_default(local) -> None:
    answer = local.client.complete("a", max_tokens=2)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = local.client.request("OPTIONS", "/v1/completions", None, PREFLIGHT)
    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_of_an_origin_that_is_let_in(keyed) -> None:
    """It asks without its key whether it may ask; and reads errors, too."""
    asked = keyed.client.request("OPTIONS", "/v1/completions", None, PREFLIGHT)
    assert (asked.status, asked.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "authorization" in asked.headers["access-control-allow-headers"]
    answers = [
        keyed.client.with_key("key-a").post("/v1/completions", {"prompt": "a", "max_tokens": 2}, Origin=ORIGIN),
        keyed.client.with_key("key-a").post("/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True}, Origin=ORIGIN),
        keyed.client.post("/v1/completions", {"prompt": "a"}, Origin=ORIGIN),
        keyed.client.with_key("key-a").post("/v1/completions", b"{", Origin=ORIGIN),
        keyed.client.with_key("key-a").post("/v1/completions", b"x" * 2**21, Origin=ORIGIN),
    ]
    assert [answer.status for answer in answers] == [200, 200, 401, 400, 413]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {ORIGIN}
    assert "Retry-After" in answers[0].headers["access-control-expose-headers"]
    other = keyed.client.with_key("key-a").get("/v1/models", Origin="https://other.example")
    assert "access-control-allow-origin" not in other.headers
    refused = keyed.client.request("OPTIONS", "/v1/completions", None, {**PREFLIGHT, "Origin": "https://other.example"})
    assert (refused.status, refused.error["message"]) == (400, "Disallowed CORS origin")
    assert "access-control-allow-origin" not in refused.headers


def test_keys_of_files_and_of_the_environment(tmp_path, monkeypatch) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two  \n")
    monkeypatch.setenv("SOME_KEYS", "three, four,")
    assert keys_from(file, "SOME_KEYS") == ["three", "four", "one", "two"]
    assert keys_from(None, "NO_SUCH_KEYS") == []
    for text, said in (("\n \n", "has no key"), ("a b\n", "without blanks"), ("schlüssel\n", "printable ASCII")):
        file.write_text(text)
        with pytest.raises(UnmaskError, match=said):
            keys_from(file, "NO_SUCH_KEYS")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UnmaskError, match="cannot be read"):
        keys_from(file, "NO_SUCH_KEYS")
    with pytest.raises(UnmaskError, match="cannot be read"):
        keys_from(tmp_path / "none", "NO_SUCH_KEYS")


def test_a_page_that_gives_its_name_this_address_is_a_stranger(folders) -> None:
    """Names are looked at where a server is for its own machine only."""
    with listen("127.0.0.1", 0) as sock:
        assert set(hosts_of(sock, ServerConfig())) == {"127.0.0.1", "localhost", "::1"}
        assert hosts_of(sock, ServerConfig(allowed_hosts=("my.name",))) == ("my.name",)
        assert hosts_of(sock, ServerConfig(allowed_hosts=("*",))) == ()
    with listen("0.0.0.0", 0) as sock:
        assert hosts_of(sock, ServerConfig()) == ()
    with Local(folders["sdar"], hosts=("localhost", "::1")) as running:
        for name, status in (("evil.example", 421), ("localhost:80", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("", 421)):
            answer = running.client.raw(f"GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            assert answer.status == status, name
            assert status == 200 or answer.error["type"] == "invalid_request_error"
