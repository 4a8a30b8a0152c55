"""The server engine against small servers of our own that misbehave, on 127.0.0.1."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.engines import Completion, Request, Sampling, open_engine
from cai.engines.replies import choice_logprobs
from cai.errors import BadInput, EngineGaveUp, RequestRefused
from cai.rows import Message
from cai.settings import ReviseSettings
from cai.stages import revise_stage
from tests.conftest import Quiet, write_jsonl
from tests.servers import BOOM, GATE, Answer, Server, ask, chat, only_hello, spec

pytestmark = pytest.mark.usefixtures("quick")
REQUEST = Request("response", "r1", (Message("system", "s"), Message("user", "hello")), Sampling(7, 0.5, 0.9), seed=11)


def test_a_request_goes_out_whole_and_comes_back_whole(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAI_API_KEY", "planted-key")
    server = serve()
    (answer,) = ask(server, requests=(REQUEST,))
    assert answer == Completion("hi there", "stop", 9, 4, 2)
    body = server.calls[0]
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"], body["model"]) == (
        7,
        0.5,
        0.9,
        11,
        "m",
    )
    assert server.keys == ["Bearer planted-key"]


def test_the_seed_can_be_left_out_and_a_cut_off_answer_is_known(serve: Callable[..., Server]):
    server = serve(lambda body, n: (200, chat(finish="length")))
    (answer,) = ask(server, send_seed=False)
    assert answer.finish == "length"
    assert "seed" not in server.calls[0]


def test_the_model_is_asked_for_when_none_is_named(serve: Callable[..., Server]):
    assert open_engine(spec(serve(models=["only"]), model=None)).model == "only@server"
    with pytest.raises(BadInput, match="2 models"):
        open_engine(spec(serve(models=["a", "b"]), model=None))


def test_a_row_sticks_to_one_of_several_endpoints(serve: Callable[..., Server]):
    def sender(name: str) -> Callable[[dict[str, Any], int], Answer]:
        return lambda body, n: (200, chat(name))

    one, two = serve(sender("one")), serve(sender("two"))
    requests = [Request("response", f"r{n % 8}", (Message("user", f"{n}"),), Sampling(5), 0) for n in range(32)]
    answers = ask(one, two, requests=tuple(requests))
    by_row: dict[str, set[str]] = {}
    for request, answer in zip(requests, answers, strict=True):
        by_row.setdefault(request.row_id, set()).add(answer.text)
    assert all(len(names) == 1 for names in by_row.values())
    assert {name for names in by_row.values() for name in names} == {"one", "two"}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_fault_is_asked_again(serve: Callable[..., Server], status: int):
    server = serve(
        lambda body, n: (200, chat()) if n > 2 else (status, {"error": {"message": "busy"}}, {"Retry-After": "0.01"})
    )
    assert ask(server)[0].text == "hi there"
    assert len(server.calls) == 3


def test_a_call_has_a_deadline_over_all_its_retries(serve: Callable[..., Server]):
    server = serve(lambda body, n: (*BOOM, {"Retry-After": "0.2"}))
    begun = time.monotonic()
    with pytest.raises(EngineGaveUp, match="no answer within 1 s"):
        ask(server, retries=20, deadline_seconds=1.0)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_refuses_is_refused_for_this_row_alone(serve: Callable[..., Server], status: int):
    server = serve(lambda body, n: (status, {"error": {"message": "maximum context length is 8192"}}))
    with pytest.raises(RequestRefused, match=f"{status}: .*maximum context length"):
        ask(server)
    assert len(server.calls) == 1


def with_message(**changes: Any) -> dict[str, Any]:
    said = chat()
    said["choices"][0].update(changes)
    return said


UNREADABLE = {
    "HTML": "<html>gateway</html>",
    "no choices": {**chat(), "choices": []},
    "nothing of a completion": {"choices": []},
    "no message": with_message(message=None),
    "a number for content": with_message(message={"role": "assistant", "content": 5}),
    "a list for content": with_message(message={"role": "assistant", "content": ["x"]}),
    "half a surrogate pair": with_message(message={"role": "assistant", "content": "\ud83d"}),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_answer_that_cannot_be_read_is_asked_again_and_in_the_end_it_is_the_servers_fault(
    serve: Callable[..., Server], what: str
):
    said = UNREADABLE[what]
    good = serve(lambda body, n: (200, chat() if n > 1 else said))
    assert ask(good)[0].text == "hi there"
    with pytest.raises(EngineGaveUp, match="does not answer any more"):
        ask(serve(lambda body, n: (200, said)), retries=0)


MALFORMED: dict[str, Any] = {
    "no JSON": "{not json",
    "deep JSON": "[" * 100_000,
    "choices that are an object": {**chat(), "choices": {"a": 1}},
    "a number for a choice": {**chat(), "choices": [5]},
    "a text for a message": with_message(message="hello"),
    "a list for content": with_message(message={"content": ["x"]}),
    "a list for an end": with_message(finish_reason=["stop"]),
    "a text for log-probabilities": with_message(logprobs="x"),
    "numbers for log-probabilities": with_message(logprobs={"content": [1]}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_one_malformed_answer_costs_no_row(serve: Callable[..., Server], tmp_path: Path, what: str):
    def behave(body: dict[str, Any], number: int) -> Answer:
        gate = bool(body.get("logprobs"))
        if gate == of_gates and next(met) == 0:
            return 200, MALFORMED[what], {"Content-Type": "application/json"}
        likeliest = [("Yes", -3.0), ("No", -0.1)]
        return 200, chat("No", logprobs=likeliest) if gate else chat(f"An answer of some words, {number}.")

    of_gates, met = "log-probabilities" in what, itertools.count()
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(12)])
    given: dict[str, Any] = {"prompts": str(prompts), "out": str(tmp_path / "run"), "endpoint": (serve(behave).url,)}
    settings = ReviseSettings(**given, rounds=int(of_gates), principles="one")
    counts = asyncio.run(revise_stage(settings, Quiet())).entry["counts"]
    assert (counts["kept"], counts["dropped"], next(met)) == (12, 0, 13)


def test_json_that_is_none_is_an_answer_that_cannot_be_read(serve: Callable[..., Server]):
    server = serve(lambda body, n: (200, chat()) if n > 1 else (200, "{not json", {"Content-Type": "application/json"}))
    assert ask(server)[0].text == "hi there"


def test_missing_token_counts_are_zero_and_a_filtered_answer_is_refused(serve: Callable[..., Server]):
    (answer,) = ask(serve(lambda body, n: (200, {**chat(), "usage": {"prompt_tokens": None}})))
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("hi there", 0, 0)
    with pytest.raises(RequestRefused, match="content_filter"):
        ask(serve(lambda body, n: (200, chat(finish="content_filter"))))


@pytest.mark.parametrize("status", [500, 503])
def test_a_call_that_keeps_failing_is_dropped_only_if_the_server_answers_others(
    serve: Callable[..., Server], status: int
):
    def behave(body: dict[str, Any], n: int) -> Answer:
        poison = body["messages"][-1]["content"] == "poison"
        if poison:
            time.sleep(0.3)
        return (status, {"error": {"message": "boom"}}) if poison else (200, chat())

    server = serve(behave)
    poison = Request("response", "r9", (Message("user", "poison"),), Sampling(5), 0)

    async def both() -> list[Any]:
        async with open_engine(spec(server, retries=0)) as engine:
            return await asyncio.gather(engine.complete(poison), engine.complete(REQUEST), return_exceptions=True)

    failed, answered = asyncio.run(both())
    assert isinstance(failed, RequestRefused) and isinstance(answered, Completion)


def test_the_last_call_of_a_run_is_dropped_only_if_the_server_answers_a_harmless_one(serve: Callable[..., Server]):
    with pytest.raises(RequestRefused, match="kept failing on this call and answers a harmless one: 500: boom"):
        ask(serve(only_hello), retries=0)
    with pytest.raises(EngineGaveUp, match="does not answer any more: 500: boom"):
        ask(serve(lambda body, n: BOOM), retries=0)


def test_a_server_that_answers_nothing_but_harmless_calls_ends_the_run(serve: Callable[..., Server]):
    async def one_after_another() -> list[Any]:
        async with open_engine(spec(serve(only_hello), retries=0)) as engine:
            return [(await asyncio.gather(engine.complete(REQUEST), return_exceptions=True))[0] for _ in range(9)]

    ends = asyncio.run(one_after_another())
    assert [type(end) for end in ends] == [RequestRefused] * 8 + [EngineGaveUp]


def test_a_model_that_a_server_without_a_list_does_not_know_ends_the_run(serve: Callable[..., Server]):
    with pytest.raises(EngineGaveUp, match=r"404.*Check --model"):
        ask(serve(lambda body, n: (404, {"error": {"message": "no such model"}})))


def test_a_refused_key_ends_the_run_and_is_not_told(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAI_API_KEY", "planted-key")
    with pytest.raises(EngineGaveUp, match="refuses the key") as caught:
        ask(serve(lambda body, n: (401, {"error": {"message": "bad key planted-key"}})))
    assert "planted-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:9", "no server that answers"),
        ("ftp://x", "'ftp://x'"),
        ("127.0.0.1:80", "an address such as"),
        ("http://[::1", "an address such as"),
        ("http://[zz]/v1", "an address such as"),
        ("http://127.0.0.1:abc/v1", "an address such as"),
        ("http://127.0.0.1:99999/v1", "an address such as"),
        ("http://:80/v1", "an address such as"),
        ("http://a b/v1", "an address such as"),
        ("http://a\x00b/v1", "an address such as"),
        ("http://\ud800/v1", "an address such as"),
        ("http://ex..ample/v1", "an address such as"),
        (f"http://{'a' * 300}/v1", "an address such as"),
    ],
)
def test_an_endpoint_that_cannot_be_reached_is_bad_input(endpoint: str, words: str):
    with pytest.raises(BadInput, match=words):
        ask(endpoint)


def test_a_model_that_is_not_served_is_bad_input_and_names_those_that_are(serve: Callable[..., Server]):
    with pytest.raises(BadInput, match="no model 'm', expected one that it serves: a, b"):
        ask(serve(models=["a", "b"]))


def test_a_gate_reads_log_probabilities_of_both_words(serve: Callable[..., Server]):
    server = serve(
        lambda body, n: (
            200,
            chat("Yes", logprobs=[("Yes", math.log(0.5)), (" No", math.log(0.3)), ("No", math.log(0.1))]),
        )
    )
    (answer,) = ask(server, requests=(GATE,))
    assert server.calls[0]["max_tokens"] == 1 and server.calls[0]["top_logprobs"] == 20
    assert answer.choice_logprobs == pytest.approx((math.log(0.5), math.log(0.4)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1000.0, -math.inf])
def test_what_is_no_log_probability_says_nothing(serve: Callable[..., Server], bad: float):
    (answer,) = ask(serve(lambda body, n: (200, chat("Yes", logprobs=[("Yes", bad), ("No", bad)]))), requests=(GATE,))
    assert (answer.text, answer.choice_logprobs) == ("Yes", None)


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_log_probabilities_is_asked_for_the_word_alone(serve: Callable[..., Server], status: int):
    def behave(body: dict[str, Any], n: int) -> Answer:
        return (
            (status, {"error": {"message": "logprobs are not supported"}}) if "logprobs" in body else (200, chat("No"))
        )

    server = serve(behave)

    async def two() -> list[Completion]:
        async with open_engine(spec(server)) as engine:
            return [await engine.complete(GATE), await engine.complete(GATE)]

    assert [(answer.text, answer.choice_logprobs) for answer in asyncio.run(two())] == [("No", None)] * 2
    assert len(server.calls) == 3, "once it is known, log-probabilities are not asked for again"


def test_a_word_that_is_not_listed_is_bounded_and_none_is_made_up():
    listed = [("Yes", math.log(0.6)), ("Maybe", math.log(0.2)), ("yes", math.log(0.1))]
    assert choice_logprobs(listed, ("Yes", "No")) == pytest.approx((math.log(0.6), math.log(0.1)))
    assert choice_logprobs(listed, ("A", "B")) == ()
    # A word that is not listed cannot have more than what all that are not listed have together.
    assert choice_logprobs([("Yes", -0.1)], ("Yes", "No"))[1] == pytest.approx(math.log(1 - math.exp(-0.1)))
    first, second = choice_logprobs([("Yes", 0.0), ("x", -9999.0)], ("Yes", "No")) or (0, 0)
    assert first == 0 and -100 < second < -50
