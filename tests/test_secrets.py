"""A key that is planted in the environment reaches no file, output or traceback, whatever a server does with it."""

import asyncio
import html
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cai.engines import Spec, open_engine
from cai.errors import BadInput, CaiError, EngineGaveUp, RequestRefused
from cai.rows import Message
from cai.settings import GenerateSettings
from cai.settings_load import load_settings
from cai.stages import generate_stage
from cai.store import open_run
from tests.conftest import Quiet, write_jsonl
from tests.servers import Answer, Server, chat
from tests.test_server import REQUEST

pytestmark = pytest.mark.usefixtures("quick")
KEY = "sk-planted-4711-abcdefgh"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


SAYINGS: dict[str, Callable[[str], Any]] = {
    "an error": lambda sent: {"error": {"message": f"not with {sent}", "type": "x", "param": sent, "code": sent}},
    "a text": lambda sent: f"<html>Your header was {sent}</html>",
    "a long text": lambda sent: "x" * 190 + sent,
    "another object": lambda sent: {"headers": {"Authorization": sent}},
    "a list": lambda sent: [sent],
    "an odd end": lambda sent: chat(finish=sent),
}


@pytest.mark.parametrize(
    ("status", "saying"),
    [
        *((status, "an error") for status in (400, 401, 404, 422, 503)),
        (403, "a text"), (500, "a text"), (429, "a long text"), (409, "a list"),
        (200, "another object"), (200, "an odd end"),
    ],
)  # fmt: skip
def test_an_error_of_a_server_that_says_the_key_does_not_say_it_again(
    serve: Callable[..., Server], status: int, saying: str
):
    server = serve(lambda body, number: (status, SAYINGS[saying](str(server.keys[-1]))))

    async def failure() -> BaseException:
        async with open_engine(Spec("server", "m", (server.url,), retries=0, deadline_seconds=3)) as engine:
            with pytest.raises((EngineGaveUp, RequestRefused)) as failed:
                await engine.complete(REQUEST)
        return failed.value

    error = asyncio.run(failure())
    assert set(server.keys) == {f"Bearer {KEY}"}, "it was sent"
    said = everything_of(error)
    assert KEY[:12] not in said and "[key]" in said


def test_a_failing_run_leaves_the_key_nowhere(serve: Callable[..., Server], tmp_path: Path):
    """Some rows are refused with the key in the reason, then the server refuses the key itself."""
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(12)])

    def behave(body: dict[str, Any], number: int) -> Any:
        sent = server.keys[-1]
        asked = str(body["messages"])
        if "question 3" in asked:
            return 400, {"error": {"message": f"I refuse {sent}"}}
        if "question 5" in asked:
            return 400, "", {":reason": f"refused with {sent}"}
        if "question 9" in asked:
            return 401, f"wrong: {sent}"
        return 200, chat(f"An answer of some words, call {number}.")

    server = serve(behave)
    command = [sys.executable, "-m", "cai", "--debug", "revise", prompts, "--endpoint", server.url, "--rounds", "0"]
    command += ["--out", tmp_path / "run", "--shard-rows", "4", "--rows-in-flight", "1", "--retries", "0"]
    failed = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ, timeout=120)
    assert failed.returncode == 3, failed.stderr
    said = failed.stdout + failed.stderr
    assert "refuses the key (401). Set CAI_API_KEY." in said and "Traceback" in said
    assert KEY not in said
    drops = list(open_run(str(tmp_path / "run")).dropped("revise", "trajectories"))
    assert "I refuse Bearer [key]" in drops[0]["detail"] and "refused with Bearer [key]" in drops[1]["detail"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= {"run", "journal", "drops", "trajectories"}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


ODD = """sk-planted"47\\11'/+=%&"""
PARTS: dict[str, Callable[[str], Answer]] = {
    "a reason phrase with 500": lambda sent: (500, "", {":reason": f"bad {sent}"}),
    "a reason phrase with 400": lambda sent: (400, "", {":reason": f"bad {sent}"}),
    "a reason phrase and a body": lambda sent: (503, {"error": {}}, {":reason": f"bad {sent}"}),
    "a status line": lambda sent: f"HTTP/9 {sent}\r\n\r\n".encode(),
    "a header line": lambda sent: b"HTTP/1.1 200 OK\r\nX\x00" + sent.encode() + b": y\r\n\r\n",
    "the length of a chunk": lambda sent: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + sent.encode() + b"\r\n"
    ),
    "JSON in numbers": lambda sent: (500, '{"message": "' + "".join(f"\\u{ord(one):04x}" for one in sent) + '"}'),
    "JSON in UTF-16": lambda sent: json_bytes({"error": {"message": sent}}, "utf-16"),
    "JSON in JSON": lambda sent: (400, {"error": {"message": json.dumps({"Authorization": sent})}}),
    "a dump in Python": lambda sent: (400, {"error": {"message": repr({"Authorization": sent.encode()})}}),
    "a list in an object": lambda sent: (422, {"detail": [{"msg": "x", "input": {"headers": [sent]}}]}),
    "a page": lambda sent: (500, f"<p>{html.escape(sent)}</p>"),
    "an address": lambda sent: (307, "", {"Location": "http://127.0.0.1:9/" + quote(sent)}),
    "the same address": lambda sent: (307, "", {"Location": "/v1/" + quote(sent)}),
    "an answer that is none": lambda sent: (200, {"debug": {"headers": {"Authorization": sent}}}),
    "content that is none": lambda sent: (200, {"choices": [{"message": {"content": [sent]}}]}),
    "an odd end": lambda sent: (200, chat(finish=f"stopped {sent}")),
}


def json_bytes(said: Any, encoding: str) -> bytes:
    data = json.dumps(said).encode(encoding)
    head = f"HTTP/1.1 500 X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@pytest.mark.parametrize("key", [KEY, ODD])
@pytest.mark.parametrize("part", PARTS)
def test_whatever_part_of_a_reply_says_the_key_no_error_and_no_log_says_it_again(
    serve: Callable[..., Server],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    key: str,
):
    monkeypatch.setenv("CAI_API_KEY", key)
    for name in ("cai", "openai", "httpx", "httpx2"):
        caplog.set_level(logging.DEBUG, logger=name)
    server = serve(lambda body, number: PARTS[part](str(server.keys[-1])))

    async def failure() -> BaseException:
        async with open_engine(Spec("server", "m", (server.url,), retries=0, deadline_seconds=0.5)) as engine:
            with pytest.raises((EngineGaveUp, RequestRefused)) as failed:
                await engine.complete(REQUEST)
        return failed.value

    error = asyncio.run(failure())
    assert set(server.keys) == {f"Bearer {key}"}, "it was sent"
    said = everything_of(error) + "".join(f"{one.getMessage()} {one.args}" for one in caplog.records)
    assert "planted" not in said and "HTTP Request: POST" in said


@pytest.mark.parametrize("key", [KEY, ODD])
@pytest.mark.parametrize("said", ["your key is {}.", "<|x|>{}", '{{"Authorization": "Bearer {}"}}'])
def test_an_answer_that_tells_the_key_ends_the_run_and_nothing_of_it_is_kept(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, said: str
):
    monkeypatch.setenv("CAI_API_KEY", key)
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(4)])
    told = json.dumps(key)[1:-1] if "Authorization" in said else key
    server = serve(lambda body, n: (200, chat(said.format(told) if n == 3 else f"An answer of some words, {n}.")))
    settings = GenerateSettings(
        prompts=str(prompts), out=str(tmp_path / "run"), endpoint=(server.url,), rows_in_flight=1
    )
    with pytest.raises(EngineGaveUp, match=r"answers with the key in its text.* give another --endpoint") as ended:
        asyncio.run(generate_stage(settings, Quiet()))
    assert "planted" not in everything_of(ended.value)
    journal = next((tmp_path / "run" / "journal").iterdir()).read_text()
    assert journal.count("An answer of some words") == 2, "what came before is kept"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"planted" in path.read_bytes()]


@pytest.mark.parametrize(("key", "prompt"), [("EMPTY", "hello"), (KEY, f"What is {KEY}?")])
def test_a_mere_placeholder_and_a_key_that_the_prompt_tells_may_stand_in_an_answer(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, key: str, prompt: str
):
    monkeypatch.setenv("CAI_API_KEY", key)
    server = serve(lambda body, n: (200, chat(f"It is {key}.")))
    request = replace(REQUEST, messages=(Message("user", prompt),))

    async def answer() -> str:
        async with open_engine(Spec("server", "m", (server.url,))) as engine:
            return (await engine.complete(request)).text

    assert asyncio.run(answer()) == f"It is {key}."


def everything_of(error: BaseException) -> str:
    """An error and all that led to it, as a traceback tells it and as they are."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    return "".join(traceback.format_exception(error)) + "".join(repr(one) + repr(vars(one)) for one in chain)


@pytest.mark.parametrize(
    "settings",
    [
        "endpoint: {url: http://a, api_key: sk-planted}",
        "endpoint: [{url: http://a, api_key: sk-planted}]",
        "endpoint: [[sk-planted]]",
        "endpoint: !!binary c2stcGxhbnRlZA==",
        'endpoint:\n  - url: http://a\n    api_key: "sk-planted',
        "api_key: sk-planted",
        "api_key: @sk-planted",
        "endpoint: http://a: sk-planted",
        "? {api_key: sk-planted}\n: 5",
        "retries: !!int sk-planted",
    ],
)
def test_a_key_in_a_file_of_settings_is_not_shown_when_the_file_is_refused(tmp_path: Path, settings: str):
    (tmp_path / "c.yaml").write_text(settings)
    with pytest.raises(BadInput) as refused:
        load_settings(GenerateSettings, str(tmp_path / "c.yaml"), {"prompts": "p", "out": "o"})
    assert str(refused.value).startswith(f"{tmp_path / 'c.yaml'}:")
    assert "planted" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{KEY}@127.0.0.1:9/v1",
        f"http://{KEY}@127.0.0.1:9",
        f"user:{KEY}@127.0.0.1:9",
        f"http://127.0.0.1:9/v1?api_key={KEY}",
        f"http://127.0.0.1:9/v1#{KEY}",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_shown(tmp_path: Path, address: str):
    with pytest.raises(BadInput) as refused:
        open_engine(Spec("auto", "m", (address,)))
    assert str(refused.value).endswith("Put the key into CAI_API_KEY, and give --endpoint without it.")
    assert KEY not in "".join(traceback.format_exception(refused.value))


def test_a_key_with_a_line_end_is_used_without_it(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAI_API_KEY", f" {KEY}\n")
    server = serve()

    async def asked() -> None:
        async with open_engine(Spec("server", "m", (server.url,))) as engine:
            await engine.complete(REQUEST)

    asyncio.run(asked())
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY} x", f"{KEY}\u00e9", f"{KEY}\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("CAI_API_KEY", key)
    with pytest.raises(CaiError) as refused:
        open_engine(Spec("server", "m", ("http://127.0.0.1:9",)))
    assert str(refused.value).startswith("CAI_API_KEY: found a key with spaces or special characters")
    assert KEY not in "".join(traceback.format_exception(refused.value))
