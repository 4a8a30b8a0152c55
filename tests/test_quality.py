"""The command behind docs/quality.md, with scripted engines."""

import json
import subprocess
import sys
from pathlib import Path

from cai.store import open_run

ROOT = Path(__file__).parent.parent


def quality(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.quality", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_table_is_made_from_the_runs_and_repeated_without_asking(tmp_path: Path):
    config = tmp_path / "scripted.yaml"
    config.write_text("engine: scripted\nrounds: 1\nfailed_revision: keep\n")
    options = ("--config", config, "--limit", 12, "--out", tmp_path / "runs")
    first = quality(*options, "--variant", "as configured", "--variant", "gate off")
    assert first.returncode == 0, first.stderr
    lines = [line.strip("| ").split(" | ") for line in first.stdout.splitlines() if not line.startswith("|--")]
    columns = ["as configured, red-team", "as configured, benign", "gate off, red-team", "gate off, benign"]
    assert lines[0] == columns and all(len(line) == 5 for line in lines[1:])
    (changed,) = [line[1:] for line in lines if line[0] == "changed"]
    for name, cell in zip(columns, changed, strict=True):
        run = open_run(str(tmp_path / "runs" / name.replace(", ", "-").replace(" ", "-")))
        assert cell.startswith(f"{run.manifest()['revise']['counts']['changed']} (")
    figures = json.loads(quality(*options, "--variant", "as configured", "--json").stdout)
    for one in figures["as configured"].values():
        assert one["changed"] + one["left_alone"] + sum(one["dropped"].values()) == one["read"] == 12
    calls = open_run(str(tmp_path / "runs" / "gate-off-red-team")).sessions("revise")
    assert sum(session["reused_calls"] for session in calls) >= 12, "the responses are those of the first variant"


def test_a_mistake_is_one_sentence(tmp_path: Path):
    done = quality("--config", "none", "--out", tmp_path)
    assert done.returncode != 0 and "no recipe 'none'" in done.stderr and "Traceback" not in done.stderr
