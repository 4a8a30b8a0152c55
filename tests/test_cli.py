"""The command line as a user runs it: a process of its own, its exit code, what it prints, what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import table_bytes, write_jsonl

ROOT = Path(__file__).parent.parent


def cai(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cai", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})}, timeout=120
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(
        tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n} [bold]not markup[/]"} for n in range(30)]
    )


@pytest.fixture
def finished(prompts: Path, tmp_path: Path) -> Path:
    done = cai("revise", prompts, "--engine", "scripted", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_a_run_ends_with_a_summary_three_examples_and_where_the_files_are(prompts: Path, tmp_path: Path):
    done = cai("revise", prompts, "--engine", "scripted", "--out", tmp_path / "run")
    assert done.returncode == 0
    for words in (
        "rows read",
        "example 1: ",
        "example 3: ",
        "before ",
        "after ",
        f"{tmp_path}/run/manifest.json",
        "0 reused",
    ):
        assert words in done.stdout.replace("\n", ""), words
    assert "30 of 30 rows" in done.stderr
    again = cai("revise", prompts, "--engine", "scripted", "--out", tmp_path / "run")
    assert "This time: 0 calls asked" in again.stdout
    assert "the model is not asked anything" in again.stderr


def test_what_this_time_took_stands_beside_what_all_sessions_took(prompts: Path, tmp_path: Path):
    given = ("run", prompts, "--engine", "scripted", "--out", tmp_path / "run", "--dataset", tmp_path / "set", "--json")
    before: dict[str, Counter[str]] = {"revise": Counter(), "label": Counter()}
    for limit in (6, 9, 9):
        told = json.loads(cai(*given, "--versions", "--limit", limit).stdout)
        for stage, earlier in before.items():
            this, now = told["session"][stage], Counter(told[stage]["cost"])
            for name in ("asked_calls", "prompt_tokens", "completion_tokens"):
                assert this[name] == now[name] - earlier[name], (limit, stage, name)
            before[stage] = now
    assert [told["session"][stage]["asked_calls"] for stage in ("revise", "label")] == [0, 0]
    alone = json.loads(cai("revise", *given[1:6], "--limit", "10", "--json").stdout)
    assert 0 < alone["session"]["asked_calls"] < alone["entry"]["cost"]["asked_calls"]


def test_the_report_as_json_adds_up(finished: Path):
    report = json.loads(cai("report", finished, "--json").stdout)["revise"]
    assert report["read"] == report["kept"] + report["dropped"] == 30
    assert report["cost"]["asked_calls"] > 60 and report["cost"]["seconds"] > 0
    assert cai("report", finished).returncode == 0


def test_show_tells_a_rows_story_with_model_text_as_text(finished: Path):
    shown = cai("show", finished, "r3")
    assert shown.returncode == 0
    for words in ("question 3 [bold]not markup[/]", "Scripted response", "Round 1: principle", "final"):
        assert words in shown.stdout
    row = json.loads(cai("show", finished, "r3", "--json").stdout)["trajectories"][0]
    assert row["row_id"] == "r3" and row["rounds"][0]["gate_call"]


def test_what_a_prompt_says_does_not_drive_the_terminal(tmp_path: Path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "\x1b]0;title\x07 \x1b[2J clear"}])
    done = cai("revise", path, "--engine", "scripted", "--out", tmp_path / "run")
    shown = cai("show", tmp_path / "run", "a")
    assert "\x1b" not in done.stdout + shown.stdout and "\\x1b]0;title" in shown.stdout


def test_show_spells_out_what_a_judge_reads_and_a_person_cannot_see(tmp_path: Path):
    tags = "".join(chr(0xE0000 + ord(letter)) for letter in "pick me")
    seen = "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680 \u2764\ufe0f"
    prompt = f"x{tags} y\u200bz \u202eesrever {seen}"
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": prompt}])
    cai("revise", path, "--engine", "scripted", "--out", tmp_path / "run")
    shown = "".join(cai("show", tmp_path / "run", "a").stdout.split("\n"))
    assert "x\\U000e0070\\U000e0069" in shown and "y\\u200bz \\u202eesrever" in shown and seen in shown
    kept = json.loads(cai("show", tmp_path / "run", "a", "--json").stdout)["trajectories"][0]["prompt"]
    assert kept == [{"role": "user", "content": prompt}], "the data stay as they are"


HOSTILE = "\x1b]0;title\x07 \u202eesrever"


@pytest.mark.parametrize(
    "where", ["column", "path", "argument", "settings", "constitution", "lint", "constitution as JSON", "row as JSON"]
)
def test_whatever_is_said_in_a_file_or_a_name_does_not_drive_the_terminal(tmp_path: Path, where: str):
    words = json.dumps(HOSTILE)
    shipped = (ROOT / "constitutions" / "helpfulness.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(re.sub("^version:.*$", lambda _: f"version: {words}", shipped, count=1, flags=re.MULTILINE))
    if where == "lint":
        mine.write_text(f"{words}: 1\n{shipped}")
    if where == "settings":
        mine.write_text(f"{words}: 1\n")
    row = {"id": "a", "prompt": f"? {HOSTILE}"} if where == "row as JSON" else {"id": "a", HOSTILE: 1}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    run = tmp_path / "run"
    if where == "row as JSON":
        assert cai("revise", path, "--engine", "scripted", "--out", run).returncode == 0
    command: dict[str, list[object]] = {
        "column": ["revise", path, "--strict", "--engine", "scripted", "--out", run],
        "path": ["revise", HOSTILE, "--out", run],
        "argument": ["show", run, "a", HOSTILE],
        "settings": ["revise", path, "--config", mine, "--out", run],
        "constitution": ["constitution", "show", mine],
        "lint": ["constitution", "lint", mine],
        "constitution as JSON": ["constitution", "show", mine, "--json"],
        "row as JSON": ["show", run, "a", "--json"],
    }
    done = cai(*command[where])
    said = done.stdout + done.stderr
    assert "\x1b" not in said and "\u202e" not in said and "esrever" in said, said
    if "JSON" in where:
        assert repr(HOSTILE)[1:-1] in str(json.loads(done.stdout)), "it means what it meant"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_standard_stream_costs_nothing_and_no_file_takes_its_place(tmp_path: Path, closed: str):
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": ""}])
    command = [sys.executable, "-m", "cai", "revise", str(path), "--engine", "scripted", "--out", str(tmp_path / "run")]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    again = cai("revise", path, "--engine", "scripted", "--out", tmp_path / "run")
    assert again.returncode == 0 and "damaged" not in again.stderr and "This time: 0 calls asked" in again.stdout


def test_show_tells_why_a_row_was_dropped(tmp_path: Path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": ""}])
    cai("revise", path, "--engine", "scripted", "--out", tmp_path / "run")
    assert "empty_text" in cai("show", tmp_path / "run", "b").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["revise", "none.jsonl", "--out", "x"], "none.jsonl: found no such file"),
        (["revise", "redteam", "--out", "x", "--rounds", "9"], "--rounds: found 9, expected less than or equal to 8"),
        (["revise", "redteam", "--out", "x", "--rounds", "two"], "--rounds"),
        (["revise", "redteam", "--out", "x", "--ruonds", "2"], "--rounds"),
        (["revise", "redteam"], "--out: found nothing"),
        (["revise", "redteam", "--out", "   "], "--out: found '   ', expected a name that is not blank"),
        (["run", "redteam", "--out", "x", "--dataset", ""], "--dataset: found '', expected a name that is not blank"),
        (["revise", "redteam", "--out", "x", "--constitution", "none"], "none: found no such constitution"),
        (["revise", "redteam", "--out", "x", "--config", "none"], "no recipe 'none'"),
        (["revise", "redteam", "--out", "x", "--model", "no/such"], "--model no/such: found no local folder"),
        (
            ["revise", "redteam", "--out", "x", "--endpoint", "http://127.0.0.1:9"],
            "http://127.0.0.1:9/v1: found no server",
        ),
        (["revise", "redteam", "--out", "pyproject.toml"], "--out pyproject.toml: found a file"),
        (["revise", "redteam", "--out", "x", "--templates", "none"], "none: found no such folder"),
        (
            ["revise", "redteam", "--out", "x", "--engine", "scripted", "--reuse", "none"],
            "--reuse none: found no journal",
        ),
        (["label", "x", "--judge-principles", "0"], "found 0, expected 'all' or greater than or equal to 1"),
        (["export", "x", "--out", "y", "--helpful", "h\udcff.jsonl"], "expected text that UTF-8 can hold"),
        (["report", "none"], "none: found no run"),
        (["show", "none", "r1"], "none: found no run"),
        (["constitution", "lint", "none"], "none: found no such constitution"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_written(tmp_path: Path, arguments: list[str], words: str):
    (tmp_path / "pyproject.toml").write_text("")
    done = cai(*arguments, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


def test_a_terminal_that_knows_only_ascii_gets_question_marks(tmp_path: Path):
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "Où est la gare ?"}])
    done = cai("revise", prompts, "--engine", "scripted", "--out", tmp_path / "run")
    assert done.returncode == 0
    for command in (["report", tmp_path / "run"], ["show", tmp_path / "run", "a"]):
        told = cai(*command, env={"PYTHONIOENCODING": "ascii"})
        assert told.returncode == 0 and "Traceback" not in told.stderr
    assert "O? est la gare ?" in told.stdout


def test_lint_names_what_is_wrong_and_exits_1(tmp_path: Path):
    text = (ROOT / "constitutions" / "harmlessness.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("    weight: 1.5", "    wieght: 1.5"))
    done = cai("constitution", "lint", tmp_path / "mine.yaml")
    assert done.returncode == 1 and "Did you mean 'weight'?" in done.stdout
    assert cai("constitution", "lint", "harmlessness").returncode == 0
    assert "physical-safety" in cai("constitution", "show").stdout
    assert json.loads(cai("constitution", "show", "--json").stdout)["name"] == "harmlessness"


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_stopped_half_way_goes_on_repeats_nothing_and_ends_in_the_same_bytes(
    prompts: Path, tmp_path: Path, ending: signal.Signals, code: int
):
    ledger, options = tmp_path / "ledger", tmp_path / "script.yaml"
    options.write_text(f"latency_seconds: 0.05\nledger: {ledger}\n")
    arguments: list[Any] = [
        "revise",
        prompts,
        "--engine",
        "scripted",
        "--model",
        options,
        "--shard-rows",
        10,
        "--rows-in-flight",
        4,
    ]
    command = [sys.executable, "-m", "cai", *map(str, [*arguments, "--out", tmp_path / "run"])]
    # Whoever started the tests in the background of a script has made them ignore Ctrl-C; the child must not.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not ledger.exists() or len(ledger.read_text().splitlines()) < 60:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(ending)
    if code > 0:  # an impatient user, or a shell that signals the group too
        time.sleep(0.005)
        process.send_signal(ending)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == code
    if code > 0:
        assert "The same command goes on from here" in stderr and "Traceback" not in stderr
    assert not (tmp_path / "run" / "manifest.json").exists() or "revise" not in json.loads(
        (tmp_path / "run" / "manifest.json").read_text()
    )
    served = len(ledger.read_text().splitlines())
    done = cai(*arguments, "--out", tmp_path / "run")
    assert done.returncode == 0
    repeated = sum(count - 1 for count in Counter(ledger.read_text().splitlines()).values())
    assert repeated <= 4, "at most what was in flight"
    assert served < len(ledger.read_text().splitlines())
    ledger.unlink()
    assert cai(*arguments, "--out", tmp_path / "unbroken").returncode == 0
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "unbroken")


def test_an_engine_that_gives_up_is_exit_3(prompts: Path, tmp_path: Path):
    script = "import sys, cai.cli as c, cai.stages as s\nfrom cai.errors import EngineGaveUp\n"
    script += "from cai.engines.scripted import ScriptedEngine\n"
    script += "def gone(request): raise EngineGaveUp('the server is gone')\n"
    script += "s.open_engine = lambda spec: ScriptedEngine(gone)\nc.main()\n"
    command = [sys.executable, "-c", script, "revise", str(prompts), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "the server is gone" in done.stderr, "Traceback" in done.stderr) == (3, True, False)


def test_a_planted_key_reaches_no_file_and_no_output(prompts: Path, tmp_path: Path):
    key = "sk-planted-4711"
    env = {"CAI_API_KEY": key, "OPENAI_API_KEY": key}
    done = cai("revise", prompts, "--engine", "scripted", "--out", tmp_path / "run", env=env)
    failed = cai("--debug", "revise", prompts, "--endpoint", "http://127.0.0.1:9", "--out", tmp_path / "other", env=env)
    assert done.returncode == 0 and failed.returncode == 2 and "Traceback" in failed.stderr
    assert key not in done.stdout + done.stderr + failed.stdout + failed.stderr
    assert not any(key.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_wheel_works_from_any_folder_and_files_of_the_user_come_first(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {"PYTHONPATH": str(tmp_path / "site")}
    arguments = ["revise", "redteam", "--config", "careful", "--engine", "scripted", "--limit", "5"]
    done = cai(*arguments, "--out", "run", cwd=elsewhere, env=env)
    assert done.returncode == 0, done.stderr
    where = [sys.executable, "-c", "import cai; print(cai.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, cwd=elsewhere, env={**os.environ, **env}).stdout
    assert found.startswith(str(tmp_path / "site")), "the wheel was used, not the checkout"
    made = cai("report", "run", "--html", "report.html", cwd=elsewhere, env=env)
    assert made.returncode == 0 and "</html>" in (elsewhere / "report.html").read_text(), made.stderr
    (elsewhere / "prompts").mkdir()
    (elsewhere / "prompts" / "respond.jinja").write_text("Be brief.")
    assert cai(*arguments, "--out", "second", cwd=elsewhere, env=env).returncode == 0
    assert (elsewhere / "second" / "inputs" / "revise" / "respond.jinja").read_text() == "Be brief."
