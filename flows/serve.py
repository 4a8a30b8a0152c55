"""Everything on one machine with one command: a Prefect server, the work pool, the deployments, the automations and a
worker.

    make serve
    python -m flows.serve --port 4201

Runs until Ctrl-C or SIGTERM, or until its server or worker ends. Then the runs under way are cancelled first, so that
none is left as running, and what they have finished is kept.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import click
import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import Scheduled

from cai.cli import run_cli
from cai.errors import BadInput, CaiError
from cai.lock import Held, let_go, take
from flows.deploy import ROOT, deploy_all
from flows.shared import reaching_the_server

POOL = "cai"
STARTED_WITHIN_SECONDS, CANCELLED_WITHIN_SECONDS, ENDED_WITHIN_SECONDS = 300.0, 45.0, 20.0
_AFTER_PID = 32  # bytes of the lock file that are the process id, as cai.lock reads it
OTHER = "another port (make serve PORT=4201; --port 4201)"
UNTOLD = (
    " Runs that were under way stay Running, since it cannot be told: give make serve again, wait five minutes until"
    " they are Crashed, then prefect flow-run retry ID (prefect flow-run ls has the ids)."
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(CaiError):
    """A part of it has ended, or did not start."""

    exit_code = 3


class _Told(BaseException):
    """Ctrl-C, SIGTERM, or the terminal was closed."""


class _Port(click.IntRange):
    name = "port"  # as an error calls it; click's word is "integer range"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address that the server listens on.")
@click.option("--port", default=4200, show_default=True, type=_Port(1, 65535), help="And its port.")
@click.option("--automations/--no-automations", default=True, help="Those of automations.yaml.  [default: on]")
def serve(host: str, port: int, automations: bool) -> None:
    """Bring up a Prefect server, the work pool, the deployments, the automations and a worker, until Ctrl-C.

    \b
    Example:
      python -m flows.serve --port 4201
      PREFECT_API_URL=http://127.0.0.1:4201/api prefect deployment run cai/revise --param limit=16 --watch
    """
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}"
    _refuse_taken(host, port, address)
    home = get_current_settings().home
    logs = home if home.is_absolute() else ROOT / home
    lock = _hold(logs / "serve.lock", address)
    for number in SIGNALS:
        signal.signal(number, _tell)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        click.echo(f"Starting a Prefect server on {address} ...")
        command = ["server", "start", "--host", host, "--port", str(port)]
        running["server"] = _start("server", command, address, logs, lock)
        os.pwrite(lock, f"{address} {running['server'].pid}".encode(), _AFTER_PID)
        _wait_for(address, running["server"], logs)
        with temporary_settings({PREFECT_API_URL: f"{address}/api"}), reaching_the_server():
            for sentence in asyncio.run(deploy_all(automations)):
                click.echo(f"  {sentence}")
        running["worker"] = _start("worker", ["worker", "start", "--pool", POOL, "--type", "process"], address, logs)
        click.echo(f"\nA worker waits for runs. What runs, and what has run: {address}")
        click.echo(f"  export PREFECT_API_URL={address}/api")
        click.echo("  prefect deployment run cai/revise --param limit=16 --watch")
        click.echo(f"Ctrl-C ends all of it. Logs: {logs}/server.log, {logs}/worker.log")
        _watch(running, logs)
    except _Told:
        click.echo("\nStopping.")
        _end_all(running, address)
        click.echo("Stopped.")
    finally:
        _end_all(running, address)
        let_go(lock, logs / "serve.lock", remove=False)


def _hold(path: Path, address: str) -> int:
    """Take the folder of Prefect's database: two servers in it would each work on the other's runs.

    The file holds the process id, then address and process id of the server. The server has the lock, too, so that it
    is ours for as long as that one lives, also where only this process is killed. Raises BadInput if another has it.
    """
    try:
        lock = take(path)
    except Held as held:
        other, server = (*path.read_text(encoding="utf-8", errors="replace")[_AFTER_PID:].split(), "?", "?")[:2]
        found = f"another make serve (process {held.pid.strip()}), with its server (process {server}) on {other}"
        remedy = (
            f"Use that one (export PREFECT_API_URL={other}/api), or end it with Ctrl-C or kill, and its server where "
            "only that is left; another PREFECT_HOME is a server of its own."
        )
        raise BadInput(str(path.parent), found, "a folder that no server works in", remedy) from None
    pid = str(os.getpid()).encode()
    os.pwrite(lock, b" " * (_AFTER_PID - len(pid)) + f"{address} ?".encode(), len(pid))
    return lock


def _tell(number: int, _frame: object) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # it is ending already
    raise _Told


def _refuse_taken(host: str, port: int, address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if _answers(address):
                found = "a Prefect server that runs there already"
                remedy = f"Use it (export PREFECT_API_URL={address}/api; docs/deploying.md), stop it, or take {OTHER}."
            else:
                found, remedy = f"a port that cannot be had ({error.strerror})", f"Take {OTHER}."
            raise BadInput(f"{host}:{port}", found, "a free port", remedy) from None


def _start(name: str, arguments: list[str], address: str, logs: Path, *keep: int) -> subprocess.Popen[bytes]:
    """A Prefect command in the background, in a group of its own, so that Ctrl-C reaches it only through us."""
    told = {**os.environ, "PREFECT_API_URL": f"{address}/api", "PREFECT_HOME": str(logs)}
    command = [sys.executable, "-m", "prefect", *arguments]
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, env=told, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, pass_fds=keep
        )


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _wait_for(address: str, server: subprocess.Popen[bytes], logs: Path) -> None:
    begun = time.monotonic()
    while not _answers(address):
        if server.poll() is not None or time.monotonic() - begun > STARTED_WITHIN_SECONDS:
            raise Ended(f"The server does not start; the end of {logs}/server.log:\n{_tail(logs / 'server.log')}")
        time.sleep(0.3)


def _watch(running: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Wait until one of them ends, which none should."""
    while True:
        for name, process in running.items():
            if process.poll() is not None:
                log = logs / f"{name}.log"
                left = UNTOLD if name == "server" else ""
                raise Ended(f"The {name} has ended with {process.returncode}.{left} The end of {log}:\n{_tail(log)}")
        time.sleep(0.5)


def _end_all(running: dict[str, subprocess.Popen[bytes]], address: str) -> None:
    """Cancel the runs under way, then end the worker, then the server, each with whatever it has started."""
    cancelled: set[UUID] | None = None
    if "worker" in running and running["server"].poll() is None:
        lives = running["worker"].poll() is None
        if not lives:
            _kill_group(running["worker"])  # no run may go on that is called cancelled
        with temporary_settings({PREFECT_API_URL: f"{address}/api"}), suppress(httpx.HTTPError, PrefectException):
            cancelled = asyncio.run(_cancel_runs(lives))
    while running:
        name, process = running.popitem()
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDED_WITHIN_SECONDS)
        _kill_group(process)  # itself, if it does not end, and what it has left behind
        process.wait()
        if name == "worker" and cancelled is not None:
            with temporary_settings({PREFECT_API_URL: f"{address}/api"}), suppress(httpx.HTTPError, PrefectException):
                asyncio.run(_settle_runs(cancelled))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _cancel_runs(worker_lives: bool) -> set[UUID]:
    """Else Prefect would believe them to be running for ever, and let no other run of their deployments begin.

    A worker that lives ends them, which is waited for; without one their processes are gone, and they are cancelled.
    Those that are pending have not begun: a worker ends none of these, and they are put back once it is gone.
    """
    async with get_client() as client:
        under_way = [run for run in await _under_way(client) if run.state_type != StateType.PENDING]
        state = StateType.CANCELLING if worker_lives else StateType.CANCELLED
        for run in under_way:
            await client.set_flow_run_state(run.id, State(type=state), force=not worker_lives)
        ended = time.monotonic() + CANCELLED_WITHIN_SECONDS
        while under_way and await _not_ended(client, [run.id for run in under_way]) and time.monotonic() < ended:
            await asyncio.sleep(0.5)
        for run in under_way:
            click.echo(f"  cancelled: {run.name}. What it has finished is kept. To go on, once this runs again:")
            click.echo(f"    prefect flow-run retry {run.id}")
    return {run.id for run in under_way}


async def _settle_runs(cancelled: set[UUID]) -> None:
    """What the worker has left, once it is gone: runs that were slow to end, and those that it took up meanwhile, such
    as the next one that waited for the place of one that was cancelled, or an earlier worker before it died. These have
    not begun: they are put back."""
    async with get_client() as client:
        for run in await _under_way(client):
            if run.id in cancelled:
                state = State(type=StateType.CANCELLED)
            else:
                state = Scheduled()
                click.echo(f"  put back: {run.name}. It begins by itself, once this runs again.")
            await client.set_flow_run_state(run.id, state, force=True)


async def _under_way(client: PrefectClient) -> list[FlowRun]:
    states = ["RUNNING", "PENDING", "CANCELLING"]
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": states}}})
    pool = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    return await client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=pool)


async def _not_ended(client: PrefectClient, ids: list[UUID]) -> bool:
    wanted = FlowRunFilter.model_validate({"id": {"any_": [str(one) for one in ids]}})
    runs = await client.read_flow_runs(flow_run_filter=wanted)
    return any(run.state is not None and not run.state.is_final() for run in runs)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else "(none)"


if __name__ == "__main__":
    run_cli(serve, sys.argv[1:])
