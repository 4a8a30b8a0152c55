"""`make serve` on 127.0.0.1: a real server with a worker, runs of the deployments, and what follows from them."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import httpx
import pytest
import yaml
from datasets import load_dataset
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from cai.errors import BadInput
from cai.store import open_run
from flows import deploy
from flows.automations import _await_signs_of_life, put_all
from flows.serve import Ended, _cancel_runs, _end_all, _hold, _settle_runs, _watch, serve
from tests.conftest import table_bytes

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Served:
    """A running `flows.serve`: its process, what it prints, its environment and its API."""

    process: subprocess.Popen[str]
    home: Path
    port: int
    env: dict[str, str]

    def api(self, path: str, body: Any = None, method: str = "POST") -> Any:
        answer = httpx.request(method, f"{self.env['PREFECT_API_URL']}{path}", json=body, timeout=30)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> Any:
        return self.api(f"/deployments/name/cai/{name}", method="GET")

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=240)

    def run(self, name: str, parameters: dict[str, Any]) -> None:
        done = self.prefect("deployment", "run", f"cai/{name}", "--params", json.dumps(parameters), "--watch")
        assert done.returncode == 0, done.stdout + done.stderr + self.log()

    def flow_runs(self) -> dict[str, Any]:
        """Those that are no longer or not yet scheduled, by name."""
        runs = self.api("/flow_runs/filter", {"sort": "START_TIME_ASC"})
        return {run["name"]: run for run in runs if run["start_time"] is not None}

    def artifacts(self, flow_run: str) -> dict[str, Any]:
        found = self.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
        return {artifact["key"]: artifact for artifact in found}

    def events(self, out: Path) -> list[tuple[str, Any]]:
        """Those that cai has sent of a run, in their order; they come a moment after the run's end."""
        found = self.api("/events/filter", {"filter": {"event": {"prefix": ["cai."]}}, "limit": 50})["events"]
        return [(one["event"], one["payload"]) for one in reversed(found) if one["payload"]["run"] == str(out)]

    def log(self) -> str:
        return "".join(path.read_text()[-3000:] for path in self.home.glob("*.log"))


def until(true: Callable[[], object], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.5)


def processes(words: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if words in line]


def alive(process: int) -> bool:
    return any(line.split()[0] == str(process) and "<defunct>" not in line for line in processes(""))


def started(home: Path, port: int) -> Served:
    env = {**os.environ, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "flows.serve", "--port", str(port)]
    with (home / "printed").open("w") as printed:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=printed, stderr=printed, text=True)
    served = Served(process, home, port, {**env, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
    until(lambda: "A worker waits for runs" in (home / "printed").read_text() or process.poll() is not None, 400)
    assert process.poll() is None, (home / "printed").read_text() + served.log()
    return served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    served = started(tmp_path_factory.mktemp("prefect"), port)
    judge = {**served.deployment("label")["parameters"], "engine": "scripted"}  # who judges is the label deployment's
    served.api(f"/deployments/{served.deployment('label')['id']}", {"parameters": judge}, "PATCH")
    yield served
    if served.process.poll() is None:
        served.process.terminate()
        served.process.wait(120)


pytestmark = [pytest.mark.prefect, pytest.mark.timeout(900)]


def test_a_port_that_is_taken_is_named_before_anything_is_started(served: Served):
    with pytest.raises(BadInput, match=f"127.0.0.1:{served.port}: found a Prefect server that runs there already"):
        serve.callback("127.0.0.1", served.port, True)  # type: ignore[misc]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BadInput, match=r"a port that cannot be had .* Take another port \(make serve PORT="):
            serve.callback("127.0.0.1", other.getsockname()[1], True)  # type: ignore[misc]


def test_what_is_no_port_is_called_so():
    with pytest.raises(click.BadParameter, match="'abc' is not a valid port"):
        serve.make_context("serve", ["--port", "abc"])


@pytest.mark.parametrize(("name", "advised"), [("server", True), ("worker", False)])
def test_where_the_server_has_ended_it_is_said_what_becomes_of_the_runs(tmp_path: Path, name: str, advised: bool):
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as ended:
        ended.wait()
    with pytest.raises(Ended, match=f"The {name} has ended with 7\\. .*The end of {re.escape(str(tmp_path))}") as said:
        _watch({name: ended}, tmp_path)
    assert ("stay Running" in str(said.value) and "prefect flow-run retry ID" in str(said.value)) == advised


def test_a_folder_in_which_a_server_works_is_refused_with_its_pid_and_port_and_nothing_is_written(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    def begun(*_: Any) -> Any:
        raise AssertionError("it has begun")

    monkeypatch.setattr("flows.serve._start", begun)
    lock = served.home / "serve.lock"
    before = lock.read_bytes()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    holder = rf"another make serve \(process {served.process.pid}\), with its server \(process \d+\)"
    with (
        temporary_settings({PREFECT_HOME: served.home}),
        pytest.raises(
            BadInput, match=f"{re.escape(str(served.home))}: found {holder} on http://127.0.0.1:{served.port},"
        ),
    ):
        serve.callback("127.0.0.1", port, True)  # type: ignore[misc]
    assert lock.read_bytes() == before


HOLDS = """
import sys, time
from pathlib import Path
from flows.serve import _hold, _start
lock = _hold(Path("{folder}/serve.lock"), "http://127.0.0.1:4200")
sys.executable = "{folder}/stand-in"
print(_start("server", [], "http://127.0.0.1:4200", Path("{folder}"), lock).pid, flush=True)
time.sleep(600)
"""


def test_the_folder_is_held_until_its_server_has_ended_also_where_make_serve_is_killed(tmp_path: Path):
    (tmp_path / "stand-in").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "stand-in").chmod(0o755)
    command = [sys.executable, "-c", HOLDS.format(folder=tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        server = int(holder.stdout.readline())
        holder.kill()
    try:
        with pytest.raises(BadInput, match=rf"\(process {holder.pid}\), with its server .* on http://127.0.0.1:4200,"):
            _hold(tmp_path / "serve.lock", "http://127.0.0.1:4201")
    finally:
        os.kill(server, signal.SIGKILL)
    held: list[int] = []

    def free() -> bool:
        with suppress(BadInput):
            held.append(_hold(tmp_path / "serve.lock", "http://127.0.0.1:4201"))
        return bool(held)

    until(free)
    assert (tmp_path / "serve.lock").read_text().split() == [str(os.getpid()), "http://127.0.0.1:4201", "?"]
    os.close(held[0])


def test_automations_that_are_there_keep_their_triggers(served: Served):
    before = {one["name"]: one for one in served.api("/automations/filter", {})}
    with temporary_settings({PREFECT_API_URL: served.env["PREFECT_API_URL"]}):
        said = asyncio.run(put_all())
    assert [line.split(": ")[1] for line in said[: len(before)]] == ["is there"] * 3
    after = {one["name"]: one for one in served.api("/automations/filter", {})}
    assert {name: one["trigger"]["id"] for name, one in after.items()} == {
        name: one["trigger"]["id"] for name, one in before.items()
    }


def test_what_prefect_refuses_is_one_sentence_and_a_deployment_before_it_keeps_its_schedule_on(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (before,) = served.deployment("revise")["schedules"]
    schedule = f"/deployments/{served.deployment('revise')['id']}/schedules/{before['id']}"
    served.api(schedule, {"active": True}, "PATCH")
    told = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    revise, generate = told["deployments"][:2]
    revise["schedules"][0]["cron"] = "0 4 * * *"
    generate["parameters"]["limit"] = -3
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setattr(deploy, "FILE", tmp_path / "prefect.yaml")
    with temporary_settings({PREFECT_API_URL: served.env["PREFECT_API_URL"]}), pytest.raises(BadInput) as said:
        asyncio.run(deploy.deploy_all())
    assert said.value.place == "prefect.yaml, deployment cai/generate"
    assert "Validation failed for field 'limit'. Failure reason: -3 is less than the minimum of 1)" in said.value.found
    assert "\n" not in str(said.value) and len(str(said.value)) < 300
    (after,) = served.deployment("revise")["schedules"]
    assert (after["id"], after["active"], after["schedule"]["cron"]) == (before["id"], True, "0 4 * * *")
    assert served.deployment("revise")["parameter_openapi_schema"]["additionalProperties"] is False
    served.api(schedule, {"active": False}, "PATCH")


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("revise", {"rounds": 9}, "9 is greater than the maximum of 8"),
        ("revise", {"ronds": 1}, "'ronds' was unexpected"),
        ("revise", {"gate": "perhaps"}, "'perhaps' is not one of"),
        ("revise", {"alarm": ["refusal=0.1"]}, "'refusal=0.1' does not match"),
        ("revise", {"out": "   "}, "'   ' does not match"),
        ("pipeline", {"min_accuracy": 2}, "2 is greater than the maximum of 1"),
        ("export", {"run": None}, "None is not of type 'string'"),
    ],
)
def test_the_server_refuses_bad_parameters_before_there_is_a_run(
    served: Served, name: str, wrong: dict[str, Any], words: str
):
    before = served.api("/flow_runs/count", {})
    url = f"{served.env['PREFECT_API_URL']}/deployments/{served.deployment(name)['id']}/create_flow_run"
    answer = httpx.post(url, json={"parameters": wrong})
    assert answer.status_code == 409 and words in answer.text
    assert served.api("/flow_runs/count", {}) == before


def test_a_deployment_names_no_folder_of_the_machine_and_its_schedule_is_paused(served: Served):
    for name in ("generate", "revise", "label", "export", "pipeline"):
        deployed = served.deployment(name)
        assert str(ROOT) not in json.dumps(deployed)
        assert [one["active"] for one in deployed["schedules"]] == [False]
        assert deployed["global_concurrency_limit"]["limit"] == 1
        assert deployed["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert "cai" in deployed["tags"] and deployed["description"]


def test_a_run_of_revise_writes_what_the_command_writes_and_is_labelled_and_exported_by_itself(
    served: Served, tmp_path: Path
):
    out = tmp_path / "run"
    given = {"prompts": "redteam", "out": str(out), "engine": "scripted", "limit": 12, "model": None, "shard_rows": 6}
    served.run("revise", given)
    assert open_run(str(out)).manifest()["revise"]["counts"]["kept"] == 12
    nightly = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]["parameters"]
    (tmp_path / "same.yaml").write_text(yaml.safe_dump({**nightly, **given, "out": str(tmp_path / "direct")}))
    command = [sys.executable, "-m", "cai", "revise", "--config", str(tmp_path / "same.yaml")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    written = {
        name: data for name, data in table_bytes(out).items() if name.startswith(("trajectories", "drops/revise"))
    }
    assert written == table_bytes(tmp_path / "direct")

    revised = served.flow_runs()[f"revise redteam into {out}"]
    artifacts = served.artifacts(revised["id"])
    assert artifacts["cai-revise-progress"]["data"] == 100
    assert "**after**" in artifacts["cai-revise-summary"]["data"]
    assert {"cai-revise-rates", "cai-revise-files", "cai-revise-folder"} <= set(artifacts)

    exported = f"export {out} into {out}-dataset"
    until(lambda: served.flow_runs().get(exported, {}).get("state_type") == "COMPLETED")
    assert served.flow_runs()[f"label {out}"]["state_type"] == "COMPLETED"
    assert load_dataset(f"{out}-dataset/v0001", "sft", split="train").num_rows > 0

    until(lambda: "cai.export.finished" in dict(served.events(out)))
    told = served.events(out)
    shards = [payload for event, payload in told if event == "cai.shard.finished" and payload["stage"] == "revise"]
    assert [(one["done"], one["rows"]) for one in shards][-1] == (12, 12) and len(shards) == 2
    finished = {event: payload for event, payload in told if event != "cai.shard.finished"}
    assert list(finished) == ["cai.revise.finished", "cai.label.finished", "cai.export.finished"]
    assert finished["cai.revise.finished"]["kept"] == 12 and finished["cai.revise.finished"]["asked_calls"] > 12


def test_a_run_of_the_pipeline_labels_and_exports_once(served: Served, tmp_path: Path):
    out = tmp_path / "run"
    given = {"prompts": "redteam", "out": str(out), "dataset": str(tmp_path / "set"), "engine": "scripted", "limit": 12}
    served.run("pipeline", {**given, "gate": "off", "failed_revision": "keep", "judge_principles": 2})
    assert set(open_run(str(out)).manifest()) == {"revise", "label"}
    assert load_dataset(str(tmp_path / "set" / "v0001"), "preference", split="train").num_rows > 3
    name = f"pipeline redteam into {out}"
    artifacts = served.artifacts(served.flow_runs()[name]["id"])
    assert {"cai-revise-summary", "cai-label-summary", "cai-label-rates", "cai-export-card"} <= set(artifacts)
    until(lambda: "cai.pipeline.finished" in dict(served.events(out)))
    assert set(dict(served.events(out))) == {"cai.shard.finished", "cai.pipeline.finished"}
    assert [run for run in served.flow_runs() if str(out) in run] == [name]


async def _await() -> None:
    async with get_client() as client:
        await _await_signs_of_life(client, False)


def test_a_run_without_a_sign_of_life_is_crashed_and_one_of_other_people_is_left_alone(served: Served):
    (automation,) = [one for one in served.api("/automations/filter", {}) if one["name"] == "cai runs of dead workers"]
    told = {name: automation[name] for name in ("name", "description", "enabled", "trigger", "actions")}
    assert told["trigger"]["within"] == 300.0
    told["trigger"] |= {"within": 10.0}  # five minutes are long for a test
    served.api(f"/automations/{automation['id']}", told, "PUT")
    flow = served.deployment("revise")["flow_id"]
    runs = {}
    for tag in ("cai", "other"):
        state = {"type": "RUNNING", "name": "Running"}
        dead = {"flow_id": flow, "name": f"dead {tag}", "tags": [tag], "state": state}
        runs[tag] = served.api("/flow_runs/", dead)["id"]
    beats = [
        {
            "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "prefect.flow-run.heartbeat",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
            "related": [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}],
            "payload": {},
            "id": f"00000000-0000-4000-8000-00000000000{number}",
        }
        for number, (tag, run) in enumerate(runs.items())
    ]
    time.sleep(3)  # until the server has heard of the new trigger
    # As one is whose worker had died before the automation was put there: no heartbeat of it will ever be heard.
    silent = served.api("/flow_runs/", {**dead, "name": "dead and silent", "tags": ["cai"]})["id"]
    with temporary_settings({PREFECT_API_URL: served.env["PREFECT_API_URL"]}):
        asyncio.run(_await())
    served.api("/events", beats)
    until(lambda: served.api(f"/flow_runs/{silent}", method="GET")["state_type"] == "CRASHED")
    until(lambda: served.api(f"/flow_runs/{runs['cai']}", method="GET")["state_type"] == "CRASHED")
    assert "retry" in served.api(f"/flow_runs/{runs['cai']}", method="GET")["state"]["message"]
    assert served.api(f"/flow_runs/{runs['other']}", method="GET")["state_type"] == "RUNNING"
    told["trigger"] |= {"within": 300.0}  # heartbeats come every thirty seconds: other tests' runs are not dead
    served.api(f"/automations/{automation['id']}", told, "PUT")


def test_a_run_that_the_worker_took_up_while_it_stops_is_put_back_and_a_slow_one_is_cancelled(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = {"prompts": "redteam", "engine": "scripted", "limit": 2, "samples": 1}
    runs: list[str] = []
    for name in ("slow", "next"):
        path = f"/deployments/{served.deployment('generate')['id']}/create_flow_run"
        pending = {"parameters": {**given, "out": str(tmp_path / name)}, "state": {"type": "PENDING"}}
        runs.append(served.api(path, pending)["id"])
    slow, taken_up = runs
    with temporary_settings({PREFECT_API_URL: served.env["PREFECT_API_URL"]}):
        assert asyncio.run(_cancel_runs(True)) == set(), "what is pending has not begun, and no worker would end it"
        asyncio.run(_settle_runs({UUID(slow)}))
    assert served.api(f"/flow_runs/{slow}", method="GET")["state_type"] == "CANCELLED"
    assert capsys.readouterr().out.count("put back: ") == 1
    until(lambda: served.api(f"/flow_runs/{taken_up}", method="GET")["state_type"] == "COMPLETED")
    assert (tmp_path / "next").is_dir() and not (tmp_path / "slow").exists()


def test_a_run_whose_worker_has_died_is_cancelled_and_named_while_the_server_is_there(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    async def cancel(worker_lives: bool) -> set[UUID]:
        until(lambda: not alive(left), 20)  # before it is called cancelled
        return await _cancel_runs(worker_lives)

    monkeypatch.setattr("flows.serve._cancel_runs", cancel)
    served.api("/work_pools/cai", {"is_paused": True}, "PATCH")  # the worker that is there shall not take it
    try:
        given = {"prompts": "redteam", "engine": "scripted", "out": str(tmp_path / "run")}
        path = f"/deployments/{served.deployment('generate')['id']}/create_flow_run"
        run = served.api(path, {"parameters": given, "state": {"type": "PENDING"}})["id"]
        running = {"state": {"type": "RUNNING", "name": "Running"}, "force": True}
        served.api(f"/flow_runs/{run}/set_state", running)
        server = subprocess.Popen(["sleep", "600"], start_new_session=True)
        worker = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; exit 0"], start_new_session=True, stdout=-1)
        assert worker.stdout is not None
        left = int(worker.stdout.readline())  # a run of it that goes on
        worker.wait()
        _end_all({"server": server, "worker": worker}, served.env["PREFECT_API_URL"].removesuffix("/api"))
        states = [one["type"] for one in served.api(f"/flow_run_states/?flow_run_id={run}", method="GET")]
        assert states[-2:] == ["RUNNING", "CANCELLED"], "no worker is waited for that would end it"
        printed = capsys.readouterr().out
        assert "cancelled: " in printed and f"prefect flow-run retry {run}" in printed
        assert server.poll() is not None and not alive(left)
    finally:
        served.api("/work_pools/cai", {"is_paused": False}, "PATCH")


def test_sigterm_ends_all_of_it_and_cancels_what_runs_and_a_second_start_goes_on(served: Served, tmp_path: Path):
    schedule = served.deployment("generate")["schedules"][0]["id"]
    path = f"/deployments/{served.deployment('generate')['id']}/schedules/{schedule}"
    served.api(path, {"active": True}, "PATCH")
    out, ledger = tmp_path / "run", tmp_path / "ledger"
    (tmp_path / "slow.yaml").write_text(f"latency_seconds: 0.2\nledger: {ledger}\n")
    given = {"prompts": "redteam", "out": str(out), "engine": "scripted", "model": str(tmp_path / "slow.yaml")}
    given |= {"limit": 60, "rows_in_flight": 2, "shard_rows": 2}
    created = served.prefect("deployment", "run", "cai/revise", "--params", json.dumps(given))
    (run,) = re.findall(r"UUID: ([0-9a-f-]+)", created.stdout)
    until(lambda: len(list((out / "trajectories").glob("*.parquet"))) > 1)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(120) == 0
    printed = (served.home / "printed").read_text()
    assert f"cancelled: revise redteam into {out}" in printed and f"prefect flow-run retry {run}" in printed
    assert printed.endswith("Stopped.\n") and processes(str(served.port)) == []
    with sqlite3.connect(served.home / "prefect.db") as database:
        query = "select state_type from flow_run where id = ?"
        assert database.execute(query, (run,)).fetchone() == ("CANCELLED",)
    before = len(ledger.read_text().splitlines())

    again = started(served.home, served.port)
    try:
        assert [one["active"] for one in again.deployment("generate")["schedules"]] == [True]
        assert len(again.api("/automations/filter", {})) == 3
        (tmp_path / "slow.yaml").write_text(f"ledger: {ledger}\n")
        assert again.prefect("flow-run", "retry", run).returncode == 0
        until(lambda: again.api(f"/flow_runs/{run}", method="GET")["state_type"] == "COMPLETED")
        asked = ledger.read_text().splitlines()
        assert len(asked) > before > 10
        assert len(asked) - len(set(asked)) <= 2, "but for the two that were in flight, no call is asked twice"
    finally:
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(120) == 0
    assert processes(str(served.port)) == []
