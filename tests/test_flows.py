"""The flows: their parameters without a server, and runs on Prefect's test server (a real one: test_serve.py)."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from datasets import load_dataset
from prefect.exceptions import ParameterTypeError
from prefect.testing.utilities import prefect_test_harness
from prefect.utilities.callables import parameter_schema

from cai import stages
from cai.engines.key import server_key
from cai.engines.scripted import ScriptedEngine
from cai.errors import BadInput, CheckFailed, EngineGaveUp
from cai.settings import (
    ExportSettings,
    GenerateSettings,
    LabelSettings,
    PipelineSettings,
    ReviseSettings,
    Settings,
)
from cai.stages import export_stage, label_stage, revise_stage
from cai.store import open_run
from flows import watch
from flows.export import export
from flows.generate import generate
from flows.label import label
from flows.pipeline import pipeline
from flows.revise import revise
from flows.shared import API_KEY_BLOCK, load_api_key
from tests.conftest import write_jsonl
from tests.servers import Server, chat

ROOT = Path(__file__).parent.parent


FLOWS: list[tuple[Any, type[Settings], list[str]]] = [
    (revise, ReviseSettings, ["prompts", "out"]),
    (generate, GenerateSettings, ["prompts", "out"]),
    (label, LabelSettings, ["run"]),
    (export, ExportSettings, ["run", "out"]),
    (pipeline, PipelineSettings, ["prompts", "out"]),
]


@pytest.mark.parametrize(("flow", "kind", "required"), FLOWS, ids=[kind.__name__ for _, kind, _ in FLOWS])
def test_a_deployment_has_one_described_flat_parameter_for_each_setting(
    flow: Any, kind: type[Settings], required: list[str]
):
    assert flow.name == "cai"
    schema = parameter_schema(flow.fn).model_dump()
    engine = ["engine_limit"] if kind is not ExportSettings else []
    assert list(schema["properties"]) == [*kind.model_fields, *engine]
    assert sorted(schema["required"]) == sorted(required)
    for name, field in kind.model_fields.items():
        assert schema["properties"][name]["description"].strip() == field.description
    if "samples" in kind.model_fields:
        assert schema["properties"]["samples"]["maximum"] == 64


def test_a_pipeline_run_into_another_folder_is_no_version_of_the_nightly_dataset():
    told = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (nightly,) = (one["parameters"] for one in told if one["name"] == "pipeline")
    mine = PipelineSettings.model_validate({**nightly, "out": "mine"})
    assert mine.exporting().out == "mine-dataset"


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 9}, {"gate": "perhaps"}, {"temperature": -1}, {"rounds": "two"}, {"alarm": ["x=1"]}, {"out": "  "}],
)
def test_bad_parameters_are_refused_before_a_run_starts(wrong: dict[str, Any]):
    with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
        revise.validate_parameters({"prompts": "p", "out": "o", **wrong})


@pytest.fixture(scope="module")
def harness() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_a_flow_run_writes_the_tables_and_leaves_progress_and_a_summary(tmp_path: Path):
    from prefect.client.orchestration import get_client

    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(10)])
    outcome = await revise(prompts=str(prompts), out=str(tmp_path / "run"), engine="scripted", shard_rows=4)
    assert outcome.entry["counts"]["kept"] == 10
    async with get_client() as client:
        artifacts = {artifact.key: artifact for artifact in await client.read_artifacts()}
    assert artifacts["cai-revise-progress"].data == 100
    assert "10 of 10 rows, 0 dropped" in str(artifacts["cai-revise-progress"].description)
    summary = str(artifacts["cai-revise-summary"].data)
    assert "| kept | 10 (100.0%) |" in summary and summary.count("**after**") == 4
    page = tmp_path / "run-report.html"
    assert "</html>" in page.read_text() and page.as_uri() in str(artifacts["cai-report"].data)
    rates = {(row["what"], row["name"]): row for row in json.loads(str(artifacts["cai-revise-rates"].data))}
    assert rates["rows", "kept"] == {"what": "rows", "name": "kept", "count": 10, "of": 10, "share": "100.0 %"}
    assert sum(row["of"] for (what, _), row in rates.items() if what == "criticised") >= 10
    assert "`trajectories/part-00002.parquet` | 2 |" in str(artifacts["cai-revise-files"].data)
    assert (tmp_path / "run").as_uri() in str(artifacts["cai-revise-folder"].data)
    again = await revise(prompts=str(prompts), out=str(tmp_path / "run"), engine="scripted", shard_rows=4)
    assert again.session.asked_calls == 0


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_generate_runs_too(tmp_path: Path):
    outcome = await generate(prompts="redteam", out=str(tmp_path / "run"), engine="scripted", limit=3, samples=2)
    assert outcome.entry["counts"]["kept"] == 6


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_a_figure_that_has_shifted_is_an_event_and_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from prefect.client.orchestration import get_client
    from prefect.events import Event

    events: list[Event] = []

    def emit(name: str, **told: Any) -> None:
        events.append(Event(event=name, occurred=datetime.now(UTC), **told))

    monkeypatch.setattr(watch, "emit_event", emit)
    answers = iter(["Here you are."] * 200 + ["I'm sorry, but I can't help with that."] * 200)
    monkeypatch.setattr(stages, "open_engine", lambda spec: ScriptedEngine(lambda request: next(answers)))
    given: dict[str, Any] = {"prompts": "redteam", "engine": "scripted", "limit": 200}
    first = await generate(out=str(tmp_path / "first"), **given)
    assert (first.alarms, events) == ((), [])
    second = await generate(out=str(tmp_path / "second"), **given)
    assert [alarm.figure for alarm in second.alarms] == ["refusal_rate", "length_words"]
    assert [event.event for event in events] == ["cai.alarm", "cai.alarm"]
    assert events[0].payload == {
        "run": str(tmp_path / "second"), "stage": "generate", "figure": "refusal_rate", "now": 1.0, "earlier": 0.0,
        "sentence": second.alarms[0].sentence,
    }  # fmt: skip
    assert events[0].resource.id == f"cai.run.generate.{tmp_path / 'second'}"
    async with get_client() as client:
        artifacts = {artifact.key: artifact for artifact in await client.read_artifacts()}
    told = str(artifacts["cai-generate-alarms"].data)
    assert told.count("\n- ") == 1 and "is 1; over the session before it was 0." in told


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_the_pipeline_ends_with_datasets_and_their_card(tmp_path: Path):
    from prefect.client.orchestration import get_client

    gold = write_jsonl(
        tmp_path / "g.jsonl", [{"prompt": "q", "chosen": f"good {n}", "rejected": "x"} for n in range(9)]
    )
    given: dict[str, Any] = {
        "prompts": "redteam", "out": str(tmp_path / "run"), "dataset": str(tmp_path / "set"), "engine": "scripted",
        "limit": 20, "gate": "off", "failed_revision": "keep", "judge_principles": 2,
    }  # fmt: skip
    finished = await pipeline(**given)
    assert finished.dataset.manifest["counts"]["sft"]["written"]["train"] > 10
    assert set(open_run(str(tmp_path / "run")).manifest()) == {"revise", "label"}
    assert load_dataset(str(tmp_path / "set"), "preference", split="train").column_names[:2] == ["prompt", "chosen"]
    async with get_client() as client:
        artifacts = {artifact.key: artifact for artifact in await client.read_artifacts()}
    assert "preference" in str(artifacts["cai-export-card"].data) and "cai-label-summary" in artifacts
    # A judge under the bar stops it before anything else is spent.
    with pytest.raises(CheckFailed, match="under --min-accuracy"):
        await pipeline(**given | {"out": str(tmp_path / "no"), "gold": str(gold), "min_accuracy": 1.0})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("environment", "key"),
    [({}, "block"), ({"CAI_API_KEY": ""}, "block"), ({"CAI_API_KEY": " ", "OPENAI_API_KEY": ""}, "block"),
     ({"CAI_API_KEY": "own"}, "own"), ({"CAI_API_KEY": "", "OPENAI_API_KEY": "other"}, "other")],
)  # fmt: skip
async def test_the_secret_block_is_asked_where_the_environment_has_no_key_or_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], key: str
):
    class Block:
        def get(self) -> str:
            return "block"

    async def block(name: str) -> Block:
        assert name == API_KEY_BLOCK
        return Block()

    monkeypatch.setattr("flows.shared.Secret.aload", block)
    for name in ("CAI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    await load_api_key()
    assert server_key() == key


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_a_key_from_a_secret_block_is_sent_and_is_in_no_log_parameter_state_artifact_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server says the key in its errors: first it refuses one row, then the key itself."""
    from prefect.blocks.system import Secret
    from prefect.client.orchestration import get_client

    key = "sk-planted-in-a-block-4711"
    for name in ("CAI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "")  # so that what the flow sets is gone after the test
        monkeypatch.delenv(name)
    await Secret(value=key).save(API_KEY_BLOCK, overwrite=True)

    def behave(body: dict[str, Any], number: int) -> Any:
        sent = server.keys[-1]
        return (200, chat("An answer.")) if number < 4 else (400, f"no: {sent}") if number < 6 else (401, f"no: {sent}")

    server, logged = Server(behave), io.StringIO()
    handler = logging.StreamHandler(logged)
    loggers = [logging.getLogger(name) for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addHandler(handler)
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(8)])
    given: dict[str, Any] = {"prompts": str(prompts), "out": str(tmp_path / "run"), "endpoint": (server.url,)}
    try:
        with pytest.raises(EngineGaveUp, match="refuses the key"):
            await revise(**given, rounds=0, rows_in_flight=1, retries=0, shard_rows=2)
    finally:
        server.stop()
        for logger in loggers:
            logger.removeHandler(handler)
        await Secret.adelete(API_KEY_BLOCK)
    assert set(server.keys) == {f"Bearer {key}"}
    async with get_client() as client:
        flows, tasks = await client.read_flow_runs(), await client.read_task_runs()
        told = [*flows, *tasks, *await client.read_artifacts(), *await client.read_logs()]
    said = "".join(one.model_dump_json() for one in told) + logged.getvalue()
    assert "refuses the key (401)" in said and str(prompts) in said, "states and parameters are there"
    assert "rows are finished" in logged.getvalue(), "and so is the log"
    assert "Traceback" not in logged.getvalue() and said.count("refuses the key (401)") > 2, "the sentence says it all"
    assert key not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.parent.name == "drops" for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs", "prefect.engine"])
def test_the_log_of_a_failed_run_has_the_sentence_and_of_an_error_that_nobody_foresaw_the_traceback(name: str):
    logger, logged = logging.getLogger(name), io.StringIO()
    handler, level = logging.StreamHandler(logged), logger.level
    logger.addHandler(handler)
    told: list[bool] = []
    try:
        for kind in (logging.INFO, logging.DEBUG):
            logger.setLevel(kind)
            for error in (BadInput("a.jsonl", "nothing", "prompts", "See to it."), ValueError("a surprise")):
                try:
                    raise error
                except (BadInput, ValueError):
                    logger.exception("Encountered exception during execution: %r", error)
                assert str(error) in logged.getvalue()
                told.append("Traceback" in logged.getvalue())
                logged.seek(0)
                logged.truncate()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert told == [False, True, True, True], "with DEBUG all of it"


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_progress_and_speed_are_seen_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from prefect.client.orchestration import get_client

    monkeypatch.setattr("flows.watch.SECONDS_BETWEEN_LINES", 0.2)
    slow = tmp_path / "slow.yaml"
    slow.write_text("latency_seconds: 0.1\n")
    given: dict[str, Any] = {"engine": "scripted", "model": str(slow), "limit": 40, "rows_in_flight": 4}
    running = asyncio.create_task(revise(prompts="redteam", out=str(tmp_path / "run"), shard_rows=5, **given))
    told: list[str] = []
    counted: list[str] = []
    async with get_client() as client:
        while not running.done():
            artifacts = [one for one in await client.read_artifacts() if one.description]
            here = [one for one in artifacts if str(tmp_path / "run") in str(one.description)]
            counted += [str(one.data) for one in here if one.key == "cai-revise-rates"]
            last = max((one for one in artifacts if one.key == "cai-revise-progress"), key=lambda one: one.created)
            told.append(f"{last.data}: {last.description}")
            await asyncio.sleep(0.1)
    await running
    halfway = [line for line in told if re.match(r"[1-9]\d?\.\d: \d+ of 40 rows", line)]
    assert len({line.split(":")[0] for line in halfway}) > 2, "progress moves"
    assert re.search(r"[1-9][\d.]* calls/s, [1-9]\d* tokens/s", halfway[-1])
    assert any('"name": "kept", "count": 40' not in text for text in counted), "rates are there before the end"


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_what_a_library_warns_of_is_in_the_log_of_the_run_and_its_chatter_is_not(tmp_path: Path):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import LogSort

    gone, there = Server(), Server()
    gone.stop()
    given: dict[str, Any] = {"endpoint": (gone.url, there.url), "model": "m", "rounds": 0, "limit": 4}
    try:
        await revise(prompts="redteam", out=str(tmp_path / "run"), **given)
    finally:
        there.stop()
    await asyncio.sleep(2.5)  # logs go to the server every two seconds
    async with get_client() as client:
        said = [(log.name, log.message) for log in await client.read_logs(limit=100, sort=LogSort.TIMESTAMP_DESC)]
    assert [message for name, message in said if name.startswith("cai") and f"{gone.url}/v1 is taken out" in message]
    assert not [message for _, message in said if "HTTP Request" in message]


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_artifacts_that_cannot_be_written_end_no_run_and_a_run_by_hand_tells_no_automation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def refuse(**_: Any) -> Any:
        raise httpx.ConnectError("no server")

    emitted: list[str] = []
    for kind in ("progress", "table", "markdown", "link"):
        monkeypatch.setattr(f"flows.watch.acreate_{kind}_artifact", refuse)
    monkeypatch.setattr("flows.watch.emit_event", lambda event, *_, **__: emitted.append(event))
    outcome = await revise(prompts="redteam", out=str(tmp_path / "run"), engine="scripted", limit=3)
    assert outcome.entry["counts"]["kept"] == 3
    assert emitted == []


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_runs_with_one_engine_limit_ask_their_models_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    order: list[str] = []

    async def noted(settings: ReviseSettings, watch: Any) -> Any:
        order.append(f"begins {settings.out}")
        outcome = await revise_stage(settings, watch)
        order.append(f"ends {settings.out}")
        return outcome

    monkeypatch.setattr("flows.revise.revise_stage", noted)
    (tmp_path / "slow.yaml").write_text("latency_seconds: 0.1\n")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    given: dict[str, Any] = {
        "prompts": "redteam",
        "engine": "scripted",
        "model": str(tmp_path / "slow.yaml"),
        "limit": 4,
    }
    with pytest.raises(
        BadInput, match=r"engine_limit gpu-0: found no such limit .* prefect gcl create gpu-0 --limit 1"
    ):
        await revise(**given, out=one, engine_limit="gpu-0")
    assert order == []
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu-0", limit=1))
        await asyncio.gather(*(revise(**given, out=out, engine_limit="gpu-0") for out in (one, two)))
        assert order in (
            [f"{what} {out}" for out in both for what in ("begins", "ends")] for both in ((one, two), (two, one))
        )
        assert (await client.read_global_concurrency_limit_by_name("gpu-0")).active_slots == 0


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_the_pipeline_gives_its_engine_back_before_it_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    taken: list[int] = []

    async def look(stage: Any, *told: Any) -> Any:
        async with get_client() as client:
            taken.append((await client.read_global_concurrency_limit_by_name("gpu-1")).active_slots)
        return await stage(*told)

    monkeypatch.setattr("flows.label.label_stage", partial(look, label_stage))
    monkeypatch.setattr("flows.export.export_stage", partial(look, export_stage))
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu-1", limit=1))
    given: dict[str, Any] = {"engine": "scripted", "gate": "off", "failed_revision": "keep", "judge_principles": 2}
    await pipeline(prompts="redteam", out=str(tmp_path / "run"), limit=8, engine_limit="gpu-1", **given)
    assert taken == [1, 0]
