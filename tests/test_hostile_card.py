"""A dataset's card and a flow's summary, with text that means harm wherever people and models may put some."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cai.constitution import load_constitution
from cai.export import export
from cai.markdown import code, plain
from cai.report.summary import summary
from tests.hostile import TREACHEROUS
from tests.runs import label, one_round, pair, text, trajectory, verdict, write_run
from tests.test_export import method

NASTY = [
    *(one for one in TREACHEROUS if one.isprintable() or "\n" in one),
    "\n---\nlicense: stolen\nconfigs: []\n---\n# mine", "```\n\n# head\n\n![x](http://h/x.png)", "` ` `` ``` ` |",
    "</td></table><img src=x onerror=alert(1)>", "<http://h/x> http://h/y www.h.org", "[a]: http://h 'x'\n\n[a] ![a]",
    "| | | |\n|---|---|---|\n| 1 | 2 | 3 |", "- a\n- b\n\n1. c\n\n> d\n\n    e", "**a** __b__ *c* ~~d~~ $$e$$",
    "\\`x\\| \\\\", "&lt;img src=x&gt; &#60;b&#62;", "a\\", "\u202e\u2066", "",
]  # fmt: skip


def structure(body: str) -> Iterator[tuple[str, str]]:
    """What a reader of Markdown makes of a text: everything but the words."""

    def walk(tokens: list[Token]) -> Iterator[tuple[str, str]]:
        for token in tokens:
            if token.type not in ("text", "softbreak"):
                yield token.type, token.tag
            yield from walk(token.children or [])

    yield from walk(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body))


def card_with(folder: Path, hostile: str) -> str:
    """The card of a dataset in which this text stands in every place that text can come into."""
    principle = (hostile or "x").strip() or "x"
    names = [f"r{n}" for n in range(6)]
    run = write_run(
        folder / "run",
        trajectories=[trajectory(n, [one_round(text(("revision", n)), principle_id=principle)]) for n in names],
        pairs=[pair(name, a_from=principle) for name in names],
        labels=[replace(label(name), principles=(principle,)) for name in names],
        verdicts=[replace(verdict(name), principle_id=principle) for name in names],
    )
    path = run.folder / "inputs" / "revise" / "constitution.yaml"
    told = yaml.safe_load(path.read_text())
    told |= {"version": principle, "description": principle, "principles": told["principles"][:2]}
    told["principles"][0]["statement"] = principle
    path.write_text(yaml.safe_dump(told))
    stages, manifest = run.settings(), run.manifest()
    for stage in stages.values():
        stage["models"] = {"generator": hostile, "critic": f"{hostile} 2"}
        stage["texts"] = {"constitution_sha": load_constitution(str(path)).sha, "templates_sha": hostile}
        stage["settings"] = {"gate": hostile, "seed": 0}
    manifest["revise"]["prompts"] = {"source": f"{hostile}.jsonl".replace("/", "-"), "rows": 6, "sha": "0"}
    (run.folder / "settings.json").write_text(json.dumps(stages))
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    name = "".join(one for one in hostile if one not in "/\x00")[:60] or "x"
    (folder / f"{name}.txt").write_text("some words of an evaluation set")
    changes = {"licence": hostile or "x", "decontaminate": (str(folder / f"{name}.txt"),)}
    export(run, folder / "out", method(**changes), f"cai export '{hostile}'", lambda sentence: None)
    return (folder / "out" / "README.md").read_text()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return card_with(tmp_path_factory.mktemp("plain"), "x")


# Several at a time: each takes an export.
GROUPS = [" ".join(NASTY[n : n + 4]) for n in range(0, len(NASTY), 4)] + ["---\nlicense: mine\n---", "| x", "```", ""]


@pytest.mark.parametrize("hostile", GROUPS)
def test_text_changes_neither_the_front_of_a_card_nor_its_structure(wanted: str, tmp_path: Path, hostile: str):
    found = card_with(tmp_path, hostile)
    fronts: list[Any] = []
    bodies: list[str] = []
    for card in (wanted, found):
        made: Any = DatasetCard(card)
        fronts.append(made.data.to_dict())
        bodies.append(made.text)
        configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**made.data.to_dict()))
        assert set(configs) == {"sft", "preference", "reward", "kto"}, "as load_dataset reads them"
    assert fronts[1].pop("license") == (hostile or "x") and fronts[0].pop("license") == "x"
    for front in fronts:
        for config in front["configs"]:
            config.pop("description")  # the digest of what is in it
    assert fronts[0] == fronts[1]
    assert list(structure(bodies[1])) == list(structure(bodies[0]))


def test_the_structure_that_is_compared_sees_what_markup_there_is():
    kinds = {kind for one in NASTY for kind, _ in structure(f"a\n\n{one}\n\nb")}
    assert kinds >= {
        "image", "link_open", "html_inline", "html_block", "table_open", "heading_open", "fence", "hr", "code_inline",
        "strong_open", "s_open", "bullet_list_open", "blockquote_open", "code_block",
    }  # fmt: skip


@pytest.mark.parametrize("hostile", NASTY)
def test_a_text_in_a_cell_is_one_text_and_in_code_one_piece_of_code(hostile: str):
    row = list(structure(f"| a | b |\n|---|---|\n| {plain(hostile)} | {code(hostile)} |"))
    assert row == list(structure("| a | b |\n|---|---|\n| x | `x` |"))


def test_no_address_becomes_a_link_where_addresses_do():
    assert "http://" not in plain("see http://h/x") and "www." not in plain("see www.h.org")
    assert MarkdownIt().renderInline(plain("http://h www.h.org")) == "http://h www.h.org"


@pytest.mark.parametrize("hostile", [one for one in NASTY if one.isprintable() and one])
def test_a_row_id_and_texts_of_a_run_cannot_break_out_of_a_flow_s_summary(tmp_path: Path, hostile: str):
    found: list[list[tuple[str, str]]] = []
    for name, told in (("plain", "x"), ("hostile", hostile)):
        row = trajectory(told, [one_round(f"{told}\n{told}")], prompt=told, response=told)
        run = write_run(tmp_path / name, trajectories=[row])
        (run.folder / "manifest.json").unlink()
        found.append(list(structure(summary(run, told))))
    assert found[0] == found[1]
