"""Parquet files in a run that the run did not write: nobody reads them, and where no shard belongs they stay."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cai.audit import report
from cai.errors import BadInput, EngineGaveUp
from cai.store import open_run
from tests.conftest import Quiet, table_bytes
from tests.small import STAGES, Asked, answer_by_script, before, label, revise


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return answer_by_script(monkeypatch)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        return before("", tmp_path_factory.mktemp("strays") / "finished")


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, asked: Asked) -> Path:
    """A folder in which every stage is finished."""
    return shutil.copytree(made_once, tmp_path / "finished")


def foreign_text(source: Path, target: Path) -> None:
    """A copy of a shard, footer and all, that says something else."""
    table = pq.read_table(source)
    other = pa.array(["somebody else's"] * table.num_rows, table.schema.field("final").type)
    target.parent.mkdir(exist_ok=True)
    pq.write_table(table.set_column(table.schema.get_field_index("final"), table.schema.field("final"), other), target)
    assert pq.read_schema(target).metadata[b"cai"] == pq.read_schema(source).metadata[b"cai"]


STRAYS = {
    "trajectories/part-00007.parquet": (revise, label),
    "trajectories/part-0 copy.parquet": (revise, label),
    "trajectories/part-0000.parquet": (revise, label),
    "drops/revise-00000.parquet": (revise, label),
    "pairs/part-00007.parquet": (label,),
    "verdicts/part-00007.parquet": (label,),
    "labels/part-00007.parquet": (label,),
    "drops/label-00000.parquet": (label,),
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_file_that_a_finished_run_did_not_write_is_refused_by_every_command_and_left_where_it_is(
    finished: Path, asked: Asked, name: str
):
    wanted, path = table_bytes(finished / "run"), finished / "run" / name
    own = next(one for one in sorted(path.parent.glob("*.parquet")) if one != path)
    shutil.copy(own, path)
    for command in (*STRAYS[name], STAGES["export"]):
        with pytest.raises(BadInput) as told:
            command(finished)
        assert str(told.value) == (
            f"{path}: found a file that is none of this run's, expected what cai wrote, and nothing else. Move it "
            "away; should the run lack it then, the command that made the run makes it again."
        )
    assert path.read_bytes() == own.read_bytes()
    path.unlink()
    for command in STAGES.values():
        command(finished)
    assert asked == [] and table_bytes(finished / "run") == wanted


@pytest.mark.parametrize("name", ["trajectories/part-00007.parquet", "trajectories/part-0 copy.parquet"])
def test_a_file_where_an_unfinished_run_has_no_shard_is_refused_and_left_where_it_is(
    finished: Path, asked: Asked, name: str
):
    (finished / "run" / "manifest.json").unlink()
    shutil.copy(finished / "run" / "trajectories" / "part-00000.parquet", finished / "run" / name)
    with pytest.raises(BadInput, match=rf"{name}: found a file that is none of this run's"):
        revise(finished)
    assert (finished / "run" / name).exists() and asked == []


def no_line(run: Path, name: str) -> None:
    """As if the run had not come so far yet."""
    lines = (run / "shards.jsonl").read_text().splitlines()
    (run / "shards.jsonl").write_text(
        "".join(f"{line}\n" for line in lines if line and json.loads(line)["path"] != name)
    )


def test_a_shard_that_an_unfinished_run_did_not_write_is_no_data_and_is_made_anew(finished: Path, asked: Asked):
    run, name = finished / "run", "trajectories/part-00000.parquet"
    wanted = table_bytes(run)
    (run / "manifest.json").unlink()
    no_line(run, name)
    foreign_text(run / name, run / name)
    with pytest.raises(BadInput, match=rf"{name}: found a file that is none of this run's"):
        report(open_run(str(run)))
    assert revise(finished).said == [
        f"{run / name} is in no line of shards.jsonl, so it is no data: its shard is made anew."
    ]
    label(finished)
    assert asked == [] and table_bytes(run) == wanted


def test_drops_that_an_unfinished_run_did_not_write_are_no_data(finished: Path, asked: Asked):
    run, name = finished / "run", "drops/revise-00000.parquet"
    wanted = table_bytes(run)
    (run / "manifest.json").unlink()
    shutil.copy(run / "drops" / "revise-00001.parquet", run / name)
    assert revise(finished).said == [
        f"{run / name} is in no line of shards.jsonl, so it is no data: its shard is made anew."
    ]
    label(finished)
    assert asked == [] and table_bytes(run) == wanted


def test_a_shard_that_is_put_there_before_the_run_has_written_its_first_is_no_data(
    tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = before("revise", tmp_path / "a")
    answer_by_script(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(EngineGaveUp):
        patch.setattr("cai.store.Run.write_shard", _gone)
        revise(folder)
    foreign_text(
        made_once / "run" / "trajectories" / "part-00000.parquet",
        folder / "run" / "trajectories" / "part-00000.parquet",
    )
    assert "so it is no data" in revise(folder).said[0]
    wanted = table_bytes(made_once / "run")
    assert table_bytes(folder / "run") == {
        name: data for name, data in wanted.items() if "revise" in name or "traj" in name
    }


@pytest.mark.parametrize("ends", [Quiet, EngineGaveUp])
def test_an_unfinished_run_of_an_earlier_version_goes_on_with_the_shards_that_it_has(
    finished: Path, asked: Asked, ends: type, monkeypatch: pytest.MonkeyPatch
):
    """Such a run has no shards.jsonl. Also where it is killed once more: then the shards have lines."""
    run, wanted = finished / "run", table_bytes(finished / "run")
    (run / "manifest.json").unlink()
    (run / "shards.jsonl").unlink()
    (run / "trajectories" / "part-00001.parquet").unlink()
    kept = (run / "trajectories" / "part-00000.parquet").stat().st_ino
    if ends is EngineGaveUp:
        with monkeypatch.context() as patch, pytest.raises(EngineGaveUp):
            patch.setattr("cai.store.Run.write_shard", _gone)
            revise(finished)
        assert "trajectories/part-00000.parquet" in (run / "shards.jsonl").read_text()
    assert revise(finished).said == []
    assert (run / "trajectories" / "part-00000.parquet").stat().st_ino == kept
    label(finished)
    assert asked == [] and table_bytes(run) == wanted


def _gone(*_: object) -> None:
    raise EngineGaveUp("the engine is gone")
