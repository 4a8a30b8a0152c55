"""Stages in the actors of a real Ray cluster: the local bytes, whoever is lost, and errors that say what to do."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.runs import write_prompts
from cai import actors, handout, journal
from cai import cluster as cluster_of_ray
from cai.engines.scripted import ScriptedEngine
from cai.errors import BadInput, EngineGaveUp
from cai.pipeline import pipeline
from cai.settings import CalibrateSettings, PipelineSettings, ReviseSettings
from cai.stages import calibrate_stage, revise_stage
from cai.store import open_run
from tests.conftest import Quiet, table_bytes, write_jsonl

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
KEY = "sk-planted-4711-abcdefgh"
ENGINE: dict[str, Any] = {"engine": "scripted", "model": "script.yaml", "slots": 8}
CRITIC = {"critic": "critic.yaml"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path, 24, 0)
    scripts(0.02)
    return tmp_path


def scripts(latency_seconds: float) -> None:
    for name in ("script", "critic"):
        Path(f"{name}.yaml").write_text(
            f"latency_seconds: {latency_seconds}\nledger: asked.txt\nanswered: answered.txt\n"
        )


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """A folder for what Ray writes, with a short name: the sockets in it may have only so many letters."""
    made = Path(tempfile.mkdtemp(prefix="cai-ray-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(session: Path) -> Iterator[Any]:
    """Two nodes of one core each, on this machine. What a node inherits from us, it gives its actors."""
    from ray.cluster_utils import Cluster

    environment = {"RAY_USAGE_STATS_ENABLED": "0", "CAI_API_KEY": KEY, "RAY_TMPDIR": str(session / "cluster")}
    os.environ |= environment
    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.worker = made.add_node(**node)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    for name in environment:
        os.environ.pop(name, None)


def revising(out: str, **changes: Any) -> ReviseSettings:
    return ReviseSettings(prompts="prompts.jsonl", out=out, shard_rows=4, **ENGINE, **changes)


def revise(out: str, **changes: Any) -> tuple[Any, Quiet]:
    watch = Quiet()
    return asyncio.run(revise_stage(revising(out, **changes), watch)), watch


def lines(name: str) -> list[str]:
    return Path(name).read_text().splitlines() if Path(name).exists() else []


def keys(name: str) -> list[str]:
    return [line.split()[-1] for line in lines(name)]


def journaled(out: str) -> set[str]:
    segments = (Path(out) / "journal").glob("*.jsonl")
    return {entry["key"] for segment in segments for _, entry in journal._entries(segment, [])}


def until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.name().startswith("ray::_Worker")]


def told(out: str, stage: str) -> Any:
    """All that the manifest says, but for the times."""
    entry = json.loads((Path(out) / "manifest.json").read_text())[stage]
    cost = {name: value for name, value in entry.pop("cost").items() if "second" not in name}
    return {name: value for name, value in entry.items() if name != "sealed"} | {"cost": cost}


@pytest.mark.ray
@needs_ray
def test_of_two_actors_one_is_killed_in_the_middle_and_the_run_is_the_local_one(folder: Path, session: Path):
    revise("local")
    Path("asked.txt").unlink()
    Path("answered.txt").unlink()
    scripts(0.15)
    command = [sys.executable, "-m", "cai", "revise", "prompts.jsonl", "--out", "run", "--shard-rows", "4", "--json"]
    command += ["--engine", "scripted", "--model", "script.yaml", "--slots", "8"]
    command += ["--on", "ray", "--ray-actors", "2", "--ray-cpus", "0.5"]
    home, session = folder / "home", session / "own"
    home.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "CAI_API_KEY": KEY, "HOME": str(home), "RAY_TMPDIR": str(session)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:  # fmt: skip
        until(lambda: len(lines("answered.txt")) >= 40)
        kept, asked_before = journaled("run"), keys("asked.txt")
        (killed, _) = pair = workers(psutil.Process(process.pid))
        family = psutil.Process(process.pid).children(recursive=True)
        killed.kill()
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    # The same bytes, and the same story.
    assert table_bytes(Path("run")) == table_bytes(Path("local")) and len(table_bytes(Path("run"))) == 6
    local, run = told("local", "revise"), told("run", "revise")
    assert run["cost"].pop("engine_restarts") == 1 and local["cost"].pop("engine_restarts") == 0
    assert run == local
    # What had been written down is never asked again; what was in flight, or on its way to be written down, is.
    again = [key for key in keys("asked.txt")[len(asked_before) :] if key in set(asked_before)]
    assert kept and not kept & set(again) and len(again) <= 24
    assert len(pair) == 2 and f"(process {killed.pid} on " in error
    assert "was lost (" in error and "; another is started. What is not done of shard " in error
    # Nothing on standard output but the result, nothing left that runs, and the key in no file.
    assert json.loads(out)["asked_calls"] == run["cost"]["asked_calls"]
    until(lambda: not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE], 10)
    logs = [path for path in session.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) >= 10
    assert not [path for path in [*logs, *folder.rglob("*")] if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not list(home.rglob("auth_token"))


@pytest.mark.ray
@needs_ray
def test_a_pipeline_on_a_cluster_is_the_local_one_and_its_actors_stay_from_stage_to_stage(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[tuple[int, str]] = []
    real = actors.Actors._open

    async def noted(self: Any, seat: int) -> Any:
        actor = await real(self, seat)
        begun.append((seat, actor.name))
        return actor

    monkeypatch.setattr(actors.Actors, "_open", noted)
    for out, options in (("local", {}), ("ray", {"on": "ray", "ray_address": cluster.address, "reuse": ("empty",)})):
        Path("empty/journal").mkdir(parents=True, exist_ok=True)
        settings = PipelineSettings(prompts="prompts.jsonl", out=out, shard_rows=4, **ENGINE, **CRITIC, **options)
        asyncio.run(pipeline(settings, Quiet()))
    assert table_bytes(Path("ray")) == table_bytes(Path("local"))
    for stage in ("revise", "label"):
        local, ray = told("local", stage), told("ray", stage)
        assert local.pop("settings").keys() == ray.pop("settings").keys()
        for entry in (local, ray):
            entry.get("prompts", {}).pop("source", None)
        assert ray == local
    # A busy machine may have had room for one of them only later.
    assert {seat for seat, _ in begun} <= {0, 1} and len(begun) >= 4
    assert len(set(begun)) == len({seat for seat, _ in begun}), "the same actors for both stages"


@pytest.mark.ray
@needs_ray
def test_a_stop_is_heeded_soon_keeps_what_was_answered_and_leaves_the_cluster_alone(cluster: Any, folder: Path):
    scripts(0.1)
    command = [sys.executable, "-m", "cai", "revise", "prompts.jsonl", "--out", "run", "--shard-rows", "4"]
    command += ["--engine", "scripted", "--model", "script.yaml", "--slots", "4"]
    command += ["--on", "ray", "--ray-address", cluster.address]
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        until(lambda: len(lines("answered.txt")) >= 20)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)  # for which Ray has a handler of its own
        _, error = process.communicate(timeout=60)
        seconds = time.monotonic() - begun
    assert process.returncode == 143 and seconds < 10, error
    assert "Stopped. Finished rows and calls are kept in run. The same command goes on from here." in error
    assert "Traceback" not in error and "SIGTERM received" not in error
    assert journaled("run") == set(keys("answered.txt"))
    (session,) = open_run("run").sessions("revise")
    assert session["asked_calls"] == len(keys("answered.txt"))
    until(lambda: not workers(psutil.Process()), 20)  # those of the cluster are ours
    outcome, _ = revise("run", on="ray", ray_address=cluster.address)
    assert len(keys("answered.txt")) == len(set(keys("answered.txt"))) and outcome.session.reused_calls >= 20
    revise("local")
    assert table_bytes(Path("run")) == table_bytes(Path("local"))


@pytest.mark.ray
@needs_ray
def test_actors_find_the_key_in_the_environment_of_their_node(
    cluster: Any, folder: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CAI_API_KEY", KEY)
    server = serve()
    gold = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(4)]
    settings = CalibrateSettings(
        gold=str(write_jsonl(folder / "gold.jsonl", gold)), out="gold", endpoint=(server.url,), model=server.models[0],
        on="ray", ray_address=cluster.address, judge_principles=1,
    )  # fmt: skip
    asyncio.run(calibrate_stage(settings, Quiet()))
    assert len(server.keys) >= 8 and set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.ray
@needs_ray
def test_a_cluster_without_room_is_an_error_and_not_a_wait(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput) as refused:
        revise("run", on="ray", ray_address=cluster.address, ray_actors=2, ray_gpus=0.5)
    assert str(refused.value) == (
        "--on ray: found room for 0 actors of 0.5 GPUs and 1 CPUs in a Ray cluster of 0 GPUs, 2 CPUs, expected room "
        "for 2. Start more nodes, or lower --ray-actors, --ray-gpus or --ray-cpus; 2 nodes are there."
    )
    with pytest.raises(BadInput, match=r"found room for 0 actors of 1 GPUs and 1 CPUs .*, expected room for 1\."):
        revise("run", on="ray", ray_address=cluster.address, ray_gpus=1.0)
    assert not Path("run").exists()
    # Room that others have taken.
    monkeypatch.setattr(cluster_of_ray, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(actors, "ROOM_SECONDS", 0.5)
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        taken = [_sitter(ray) for _ in range(2)]
        ray.get([one.here.remote() for one in taken])
        with pytest.raises(EngineGaveUp) as gone:
            revise("run", on="ray")
        assert str(gone.value) == (
            "No actor can be had: 0 GPUs and 1 CPUs are not free on any node. See to the Ray cluster; the same command "
            "goes on from here."
        )
        assert ray.is_initialized(), "a Ray that was there before stays"
    finally:
        ray.shutdown()


def _sitter(ray: Any) -> Any:
    class Sitter:
        def here(self) -> None: ...

    return ray.remote(Sitter).options(num_cpus=1).remote()


@pytest.mark.ray
@needs_ray
def test_models_and_versions_of_the_nodes_are_this_process_own(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ScriptedEngine, "versions", lambda self: {"torch": "9.9"})
    with pytest.raises(BadInput) as refused:
        revise("run", on="ray", ray_address=cluster.address)
    assert "Actor " in refused.value.place and "torch 9.9" in refused.value.expected
    assert (
        "torch" not in refused.value.found and refused.value.remedy == "Have the same files and versions on every node."
    )


@pytest.mark.ray
@needs_ray
def test_a_node_that_is_lost_costs_what_was_in_flight_and_the_others_go_on(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The last test with the cluster: one of its nodes is gone afterwards, and there is no room for another actor."""
    monkeypatch.setattr(handout, "FIRST_PAUSE_SECONDS", 0.1)
    revise("local")
    for name in ("asked.txt", "answered.txt"):
        Path(name).unlink()
    scripts(0.3)

    async def lose() -> Quiet:
        watch = Quiet()
        running = asyncio.create_task(
            revise_stage(revising("run", on="ray", ray_address=cluster.address, ray_actors=2), watch)
        )
        while len(lines("answered.txt")) < 30:
            await asyncio.sleep(0.02)
            assert not running.done()
        before = journaled("run")
        await asyncio.to_thread(cluster.remove_node, cluster.worker, False)
        await running
        assert not before & {key for key in keys("asked.txt") if keys("asked.txt").count(key) > 1}
        return watch

    watch = asyncio.run(lose())
    assert any("was lost (" in sentence for sentence in watch.said), watch.said
    assert table_bytes(Path("run")) == table_bytes(Path("local"))


@needs_ray
def test_where_no_node_is_left_nobody_waits_for_room():
    async def nobody() -> None:
        raise TimeoutError

    actor = SimpleNamespace(where=SimpleNamespace(remote=nobody))
    made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: actor))
    nodes: list[dict[str, bool]] = []
    here = cluster_of_ray.Connected(cluster_of_ray.Cluster(None, 1, None, 1.0), object)
    here._ray = SimpleNamespace(remote=lambda _: made, nodes=lambda: nodes)
    with pytest.raises(EngineGaveUp, match=r"^Ray is gone: none of its nodes is alive any more"):
        asyncio.run(here.actor(0))
    nodes[:] = [{"Alive": False}, {"Alive": True}]
    here = cluster_of_ray.Connected(cluster_of_ray.Cluster(None, 1, None, 1.0), object)
    here._ray = SimpleNamespace(remote=lambda _: made, nodes=lambda: nodes)
    with pytest.raises(handout.NoRoom):
        asyncio.run(here.actor(0))


def test_without_ray_there_is_a_sentence_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster_of_ray, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as refused:
        revise("run", on="ray")
    expected = "--on ray: found no Ray in this environment, expected the extra 'ray'. pip install 'cai[ray]'."
    assert str(refused.value) == expected
    assert not Path("run").exists()


@pytest.mark.ray
@needs_ray
@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:{free}"])
def test_an_address_without_a_cluster_is_refused_soon(folder: Path, address: str):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        free = held.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(BadInput) as refused:
            revise("run", on="ray", ray_address=address.format(free=free))
    assert str(refused.value).startswith(f"--ray-address {address.format(free=free)}: found no cluster that can be ")
    assert str(refused.value).endswith(
        "expected HOST:PORT of a Ray cluster of the same versions, or auto. Check the address; this machine has to be "
        "one of its nodes."
    )
    assert time.monotonic() - begun < 10 and not Path("run").exists()
