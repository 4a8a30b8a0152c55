"""What lies between cai and a server: redirects, and the proxies and certificates that the environment names."""

import gzip
import json
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.engines import Spec, open_engine
from cai.engines.connection import client_of
from cai.errors import BadInput, EngineGaveUp
from tests.servers import Answer, Server, ask, chat

pytestmark = pytest.mark.usefixtures("quick", "bare")
Serve = Callable[..., Server]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
            monkeypatch.delenv(name)


def sent_on(status: int, to: str) -> Answer:
    return status, "", {"Location": to}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_prompt_follows_a_server_to_another_one_whose_address_is_named(serve: Serve, status: int):
    other = serve()
    server = serve(lambda body, n: sent_on(status, f"{other.url}/team/v1/chat/completions?x=1"))
    told = rf"{server.url}/v1 sends its callers on to {other.url}/team/v1, .* Give --endpoint {other.url}/team/v1\."
    with pytest.raises(EngineGaveUp, match=told):
        ask(server.url)
    assert other.calls == [] and len(server.calls) == 1


@pytest.mark.parametrize("model", ["m", None])
def test_a_server_that_sends_a_look_at_its_models_elsewhere_is_bad_input(serve: Serve, model: str | None):
    server = serve()
    server.listing = (308, "", {"Location": "https://user:hunter2@models.invalid/v1/models?key=hunter2"})
    with pytest.raises(BadInput) as refused:
        ask(server.url, model=model)
    assert str(refused.value) == (
        f"{server.url}/v1: found a server that sends its callers on to https://models.invalid/v1, expected the server "
        "itself. Give --endpoint https://models.invalid/v1."
    )


@pytest.mark.parametrize("to", ["/v1/chat/completions/", "{url}/v2/chat/completions"])
def test_a_server_may_send_a_call_on_within_itself(serve: Serve, to: str):
    server = serve(lambda body, n: (200, chat()) if n > 1 else sent_on(307, to.format(url=server.url)))
    assert ask(server.url)[0].text == "hi there"
    assert server.calls[0] == server.calls[1]


@pytest.mark.parametrize("answer", [sent_on(302, "/login"), sent_on(307, "http://[zz"), (304, ""), (300, "which?")])
def test_a_server_that_sends_calls_nowhere_ends_the_run_and_drops_no_row(serve: Serve, answer: Answer):
    with pytest.raises(EngineGaveUp, match="does not answer any more: 30"):
        ask(serve(lambda body, n: answer).url, retries=0)


@pytest.mark.parametrize("status", [402, 405, 407])
def test_a_server_that_has_not_looked_at_the_call_ends_the_run_and_drops_no_row(serve: Serve, status: int):
    with pytest.raises(EngineGaveUp, match=f"does not answer any more: {status}: no balance"):
        ask(serve(lambda body, n: (status, {"error": {"message": "no balance"}})).url, retries=0)


@pytest.mark.parametrize("model", ["m", None])
@pytest.mark.parametrize(
    ("name", "value", "endpoint", "told"),
    [
        ("ALL_PROXY", "socks5://u:hunter2@127.0.0.1:9", "http://a.invalid", "a SOCKS proxy, which needs the"),
        ("HTTPS_PROXY", "http://u:hunter2@[zz:9", "https://a.invalid", "a proxy whose address cannot be used"),
        ("http_proxy", "socks9://u:hunter2@127.0.0.1:9", "http://a.invalid", "a proxy whose address cannot be used"),
        ("http_proxy", "http://", "http://a.invalid", "a proxy whose address cannot be used"),
        ("all_proxy", "http://h:hunter2", "http://a.invalid", "a proxy whose address cannot be used"),
        ("SSL_CERT_FILE", "/nope", "http://a.invalid", r"'/nope', which cannot be used \(No such file or directory\)"),
    ],
)  # fmt: skip
def test_what_the_environment_says_wrongly_is_named_and_no_secret_is_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, endpoint: str, told: str, model: str | None
):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as refused:
        ask(endpoint, model=model)
    assert re.match(f"{name}: found {told}.*, expected .*(Mend|Install)", str(refused.value))
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_a_file_without_certificates_and_one_that_cannot_be_written_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "empty.pem").write_text("nothing\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(
        BadInput, match=r"SSL_CERT_FILE: found '.*empty.pem', which cannot be used \(.+\), expected a file that can"
    ):
        client_of("https://a.invalid/v1", "none", 1.0)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", "/nope/x")
    with pytest.raises(BadInput, match=r"SSLKEYLOGFILE: found '/nope/x', which cannot be used \(No such"):
        client_of("https://a.invalid/v1", "none", 1.0)


@pytest.mark.parametrize("value", ["{url}", "127.0.0.1:{port}"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_that_the_environment_names_is_used_but_for_hosts_that_go_without(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    proxy = serve()
    monkeypatch.setenv(name, value.format(url=proxy.url, port=proxy.port))
    assert ask("http://model.invalid/v1")[0].text == "hi there"
    for hosts in ("model.invalid", ".invalid", "*", "127.0.0.1,model.invalid"):
        monkeypatch.setenv("NO_PROXY", hosts)
        with pytest.raises(BadInput, match="found no server that answers"):
            ask("http://model.invalid/v1")
    assert len(proxy.calls) == 1


def test_a_proxy_for_other_addresses_is_not_looked_at(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks9://x")
    server = serve(models=["only"])
    assert open_engine(Spec("auto", None, (server.url,))).model == "only@server"


def test_compressed_answers_and_errors_are_read(serve: Serve):
    def behave(body: dict[str, Any], n: int) -> Answer:
        status, said = (200, chat("hello")) if n > 1 else (500, {"error": {"message": "boom"}})
        data = gzip.compress(json.dumps(said).encode())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
        return head.encode() + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(data) + data

    assert ask(serve(behave).url)[0].text == "hello"
    with pytest.raises(EngineGaveUp, match="500: boom"):
        ask(serve(lambda body, n: behave(body, 1)).url, retries=0)
