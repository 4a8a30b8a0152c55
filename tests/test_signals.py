"""Ctrl-C and SIGTERM at any moment: soon over, the right exit code, one sentence, and what is finished is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.crash import ENGINE, STAGES
from benchmarks.forks import Forks
from benchmarks.runs import write_prompts
from cai.store import open_run
from tests.conftest import journaled, table_bytes

STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
COMMANDS = {
    "revise": STAGES["revise"],
    "label": STAGES["label"],
    "export": STAGES["export"],
    "run": ["run", "prompts.jsonl", "--out", "run", "--dataset", "set", "--shard-rows", "8", *ENGINE],
}
KEPT = "Stopped. Finished rows and calls are kept in run. The same command goes on from here."
ANEW = "Stopped. The same command writes the datasets anew."


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as made:
        yield made


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def prepare(folder: Path, forks: Forks, command: str) -> None:
    """All that comes before the command."""
    write_prompts(folder, 16, 0)
    (folder / "script.yaml").write_text("latency_seconds: 0.02\nledger: asked.txt\nanswered: answered.txt\n")
    for earlier in {"label": ["revise"], "export": ["revise", "label"]}.get(command, []):
        assert forks.ended(forks.start(folder, COMMANDS[earlier])) == 0


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("revise", signal.SIGTERM, 143),
        ("label", signal.SIGINT, 130),
        ("export", signal.SIGTERM, 143),
        ("run", signal.SIGINT, 130),
    ],
)
def test_a_command_that_is_stopped_ends_soon_says_how_to_go_on_and_loses_nothing(
    tmp_path: Path, forks: Forks, command: str, number: int, code: int
):
    folder = tmp_path / "stopped"
    prepare(folder, forks, command)
    before = len(lines(folder / "asked.txt"))
    pid = forks.start(folder, COMMANDS[command])
    if command == "export":
        until(lambda: lines(folder / ".set.cai-lock") == [str(pid)])
    else:
        until(lambda: len(lines(folder / "answered.txt")) >= before + 30)
    begun = time.monotonic()
    os.kill(pid, number)
    assert forks.ended(pid, 60) == code and time.monotonic() - begun < 10
    assert lines(folder / "log.txt")[-1] == (ANEW if command == "export" else KEPT)
    assert "Traceback" not in (folder / "log.txt").read_text()
    assert journaled(folder / "run") == {line.split()[-1] for line in lines(folder / "answered.txt")}
    if command != "export":
        (last,) = open_run(str(folder / "run")).sessions({"run": "revise"}.get(command, command))
        assert last["asked_calls"] == len(lines(folder / "answered.txt")) - before
    assert forks.ended(forks.start(folder, COMMANDS[command])) == 0
    answered = lines(folder / "answered.txt")
    assert len(answered) == len(set(answered)), "no finished call is asked again"
    unbroken = tmp_path / "unbroken"
    prepare(unbroken, forks, command)
    assert forks.ended(forks.start(unbroken, COMMANDS[command])) == 0
    for one in (folder, unbroken):
        shutil.rmtree(one / "history", ignore_errors=True)  # it says when
    assert table_bytes(folder) == table_bytes(unbroken)


# A command in a process of its own, in which one thing never ends.
STUCK = """
import sys, time
import cai.cli, cai.export, cai.stage_run, cai.stop
cai.stop.GRACE_SECONDS = 1.0
def never(*_):
    open("stuck", "w").close()
    while True:
        {never}
{name} = never
cai.cli.main()
"""


@pytest.mark.parametrize(
    ("command", "name", "never", "said"),
    [
        ("export", "cai.export.card", "time.sleep(1)", ANEW),  # in a thread, which nobody can break off
        ("revise", "cai.stage_run.count_stage", "pass", KEPT),  # in the event loop, which hears of nothing then
    ],
)
def test_a_command_that_does_not_come_to_its_end_is_ended_in_time(
    tmp_path: Path, forks: Forks, command: str, name: str, never: str, said: str
):
    prepare(tmp_path, forks, command)
    script = [sys.executable, "-c", STUCK.format(never=never, name=name), *COMMANDS[command]]
    with subprocess.Popen(script, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until((tmp_path / "stuck").exists)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told.splitlines()[-1]) == (143, said) and 1 <= time.monotonic() - begun < 10
    assert "Traceback" not in told
    assert forks.ended(forks.start(tmp_path, COMMANDS[command])) == 0


def test_a_command_that_is_stopped_does_not_wait_for_its_libraries_to_be_taken_down(tmp_path: Path, forks: Forks):
    prepare(tmp_path, forks, "revise")
    script = "import atexit, time; atexit.register(time.sleep, 60); import cai.__main__ as m; m.main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, *COMMANDS["revise"]], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: lines(tmp_path / "answered.txt"))
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=40)
    assert process.returncode == 143 and told.splitlines()[-1] == KEPT


@pytest.mark.parametrize(("number", "code"), STOPS)
@pytest.mark.parametrize("how", [["-m", "cai"], ["-c", "import cai.__main__ as m; m.main()"]])
def test_a_command_that_is_stopped_while_it_loads_says_so_too(tmp_path: Path, how: list[str], number: int, code: int):
    (tmp_path / "click.py").write_text("import time\nopen('loading', 'w').close()\nwhile True:\n    time.sleep(1)\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    command = [sys.executable, *how, "revise", "redteam", "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        until((tmp_path / "loading").exists)
        process.send_signal(number)
        _, told = process.communicate(timeout=10)
    assert process.returncode == code
    assert told == "Stopped. What is finished is kept; the same command goes on from there.\n"


def test_a_job_in_the_background_of_a_script_goes_on_ignoring_ctrl_c(tmp_path: Path):
    (tmp_path / "click.py").write_text(
        "import json, signal, sys\nprint(json.dumps(signal.getsignal(2) == signal.SIG_IGN))\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "cai"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert json.loads(done.stdout) is True
