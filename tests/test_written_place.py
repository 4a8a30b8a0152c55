"""Files that a person names may lie anywhere but in a run or a dataset, which hold what their commands wrote."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cai.cli import cai
from cai.errors import BadInput
from tests import sets
from tests.small import answer_by_script


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a dataset of it, and a folder of versions."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        sets.revise(folder)
        sets.label(folder)
        sets.export(folder)
        sets.export(folder, "sets", versions=True)
    (folder / "link").symlink_to(folder / "run" / "journal")
    return folder


def _asked(*words: str) -> None:
    result = CliRunner().invoke(cai, words)
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("inside", ["run", "run/journal", "link", "set", "set/sft", "sets", "sets/v0001"])
def test_no_report_picture_or_constitution_is_written_into_a_run_or_a_dataset(made: Path, inside: str):
    before, run, place = sorted(made.rglob("*")), str(made / "run"), made / inside
    what = f"found a place in the {'dataset' if inside.startswith('set') else 'run'} {made}/"
    for told in (
        ("report", run, "--html", str(place / "x.html")),
        ("report", run, "--html", str(made / "x.html"), "--markdown", str(place / "x.md")),
        ("report", "--history", str(made), "--plot", str(place / "x.svg")),
        ("constitution", "show", "harmlessness", "--format", "html", "--out", str(place / "x.html")),
    ):
        with pytest.raises(BadInput) as refused:
            _asked(*told)
        assert what in str(refused.value), told
        assert sorted(made.rglob("*")) == before


def test_a_place_that_never_was_is_said_to_be_none_and_others_are_taken(made: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=r"no/x.html: found no such folder, expected a folder that is there. Make it"):
        _asked("report", str(made / "run"), "--html", str(tmp_path / "no" / "x.html"))
    with pytest.raises(BadInput, match=r"found a folder, expected a file"):
        (tmp_path / "x.md").mkdir()
        _asked("report", str(made / "run"), "--markdown", str(tmp_path / "x.md"))
    (tmp_path / "settings.json").write_text("{}")  # of another program
    _asked("report", str(made / "run"), "--html", str(tmp_path / "x.html"))
    assert (tmp_path / "x.html").is_file() and list(made.glob("*.html")) == []
