"""The flows: their parameters without a server, one run on Prefect's test server, and a real server with a worker."""

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset
from prefect.exceptions import ParameterTypeError
from prefect.testing.utilities import prefect_test_harness
from prefect.utilities.callables import parameter_schema

from cai.engines.key import server_key
from cai.errors import CheckFailed, EngineGaveUp
from cai.settings import (
    ExportSettings,
    GenerateSettings,
    LabelSettings,
    PipelineSettings,
    ReviseSettings,
    Settings,
)
from cai.store import open_run
from flows.export import export
from flows.generate import generate
from flows.label import label
from flows.pipeline import pipeline
from flows.revise import revise
from flows.shared import API_KEY_BLOCK, load_api_key
from tests.conftest import table_bytes, write_jsonl
from tests.test_server import Server, chat

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
    assert list(schema["properties"]) == list(kind.model_fields)
    assert sorted(schema["required"]) == sorted(required)
    for name, field in kind.model_fields.items():
        assert schema["properties"][name]["description"].strip() == field.description
    if "samples" in kind.model_fields:
        assert schema["properties"]["samples"]["maximum"] == 64


@pytest.mark.parametrize("wrong", [{"rounds": 9}, {"gate": "perhaps"}, {"temperature": -1}, {"rounds": "two"}])
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
    summary = str(artifacts["cai-revise-summary"].data)
    assert "| kept | 10 |" in summary and "**after**" in summary
    again = await revise(prompts=str(prompts), out=str(tmp_path / "run"), engine="scripted", shard_rows=4)
    assert again.session.asked_calls == 0


@pytest.mark.prefect
@pytest.mark.usefixtures("harness")
async def test_generate_runs_too(tmp_path: Path):
    outcome = await generate(prompts="redteam", out=str(tmp_path / "run"), engine="scripted", limit=3, samples=2)
    assert outcome.entry["counts"]["kept"] == 6


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
    assert "Traceback" in logged.getvalue() and "rows are finished" in logged.getvalue(), "and so is the log"
    assert key not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.parent.name == "drops" for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.prefect
@pytest.mark.timeout(400)
def test_a_server_a_worker_and_deployment_run_write_the_same_tables_as_the_command(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    prefect = [sys.executable, "-m", "prefect"]
    log = (tmp_path / "log").open("w")
    started: list[subprocess.Popen[Any]] = []

    def start(*arguments: str) -> None:
        command = [*prefect, *arguments]
        started.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True))

    def run(*arguments: str) -> str:
        done = subprocess.run([*prefect, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log").read_text()[-3000:]
        return done.stdout

    try:
        start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        run("--no-prompt", "work-pool", "create", "cai", "--type", "process", "--overwrite")
        run("--no-prompt", "deploy", "--all")
        start("worker", "start", "--pool", "cai", "--type", "process")
        out = tmp_path / "run"
        given = {"prompts": "redteam", "out": str(out), "engine": "scripted", "limit": 12, "model": None}
        run("deployment", "run", "cai/revise", "--params", json.dumps(given), "--watch")
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        log.close()
    assert open_run(str(out)).manifest()["revise"]["counts"]["kept"] == 12
    nightly = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]["parameters"]
    (tmp_path / "same.yaml").write_text(yaml.safe_dump({**nightly, **given, "out": str(tmp_path / "direct")}))
    command = [sys.executable, "-m", "cai", "revise", "--config", str(tmp_path / "same.yaml")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert table_bytes(out) == table_bytes(tmp_path / "direct")
