"""Is what the manifest and the card of a dataset say what its run makes of it?

    the command     means the method that the manifest has
    the card        is made once more from the manifest and the constitutions, line by line
    other trainers  their files are made once more from the rows
    the run         rows, splits and every number of the manifest are made once more by the code of `cai export`

Only the code that wrote a dataset makes it again: the manifest has its digest. Where not all that went into it is there
(helpful answers, evaluation sets, the version before, the same libraries), the numbers that do not hang on it are
counted. It takes as long, and as much memory, as the export did.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cai.audit import count_labels
from cai.candidates import helpful_origin, run_answers, run_pairs
from cai.card import card
from cai.card_making import CONSTITUTION
from cai.constitution import Constitution
from cai.contents import Contents, ExportMethod, code_sha, described, make_contents, origin, told_of, versions
from cai.dataset import CONFIGS, SPLITS, Answer, Config, Tables, rows_of
from cai.errors import BadInput
from cai.export import constitutions_of
from cai.findings import Findings, brief_of
from cai.ids import file_digest
from cai.options import meant_by
from cai.probes import verdict_on
from cai.rows import as_messages
from cai.seal import Json
from cai.settings_load import repeat
from cai.store import Run
from cai.versions import Since, Version, read_version
from cai.views import make_view

_OF_THE_FILES = {"command", "content_sha", "files", "version"}
# So far may the area under the curve be from ours: sums of floating-point numbers come out otherwise elsewhere.
_AUC = 0.01
_NOTHING = "nothing"


def check_contents(folder: Path, manifest: Json, run: Run | None, findings: Findings) -> None:
    """Name every difference between what a dataset says of itself and what comes out once more. `run` is None where it
    is not there as it was. Raises BadInput if its run is not what was written."""
    if manifest.get("code_sha") != code_sha():
        findings.note(
            f"{folder}: another version of cai wrote it, so its card and the numbers of its manifest were not made "
            "once more."
        )
        return
    method = _check_command(folder, manifest, findings)
    _check_card(folder, manifest, constitutions_of(run) if run is not None else None, findings)
    if manifest["method"]["trainer"] != "trl":
        _check_view(folder, manifest, findings)
    if run is not None:
        _check_numbers(folder, manifest, run, method, findings)


def _check_command(folder: Path, manifest: Json, findings: Findings) -> ExportMethod | None:
    """The method that the command means, with the paths of files; None if cai writes no such command."""
    try:
        settings = meant_by(manifest["command"])
        known = repeat("cai export", settings) == manifest["command"]
    except (BadInput, ValueError):
        known, settings = False, None
    if not known or settings is None:
        findings.note(f"{folder}: its command is none that cai writes, so nothing was held against it.")
        return None
    method = settings.export_method(settings.seed)
    where = f"{folder}/manifest.json"
    for name, told, meant in _unlike(manifest["method"], told_of(method), "method"):
        findings.differ(f"{where}, {name}", brief_of(told), f"what the command means: {brief_of(meant)}")
    findings.same(where, "version" in manifest, settings.versions, "one of several versions:")
    return method


# The card


def _check_card(folder: Path, manifest: Json, constitutions: Sequence[Constitution] | None, findings: Findings) -> None:
    found, made = (folder / "README.md").read_bytes().decode("utf-8"), card(manifest, constitutions or ())
    if constitutions is None:
        found, made = _without_constitution(found), _without_constitution(made)
    lines = zip_longest(found.split("\n"), made.split("\n"))
    for number, (line, wanted) in enumerate(lines, start=1):
        if line != wanted:
            told, expected = _parts(line, wanted)
            expected = f"what the manifest and the constitution make: {expected}"
            findings.differ(f"{folder}/README.md, line {number}", told, expected)
            return
    findings.looked["cards made once more"] += 1


def _parts(line: str | None, wanted: str | None) -> tuple[str, str]:
    """Two lines from shortly before they part; None is the end of a text."""
    if line is None or wanted is None:
        return ("the end", brief_of(wanted)) if line is None else (brief_of(line), "the end")
    both = enumerate(zip(line, wanted, strict=False))
    same = next((at for at, pair in both if pair[0] != pair[1]), min(len(line), len(wanted)))
    first, second = (brief_of(f"...{one[same - 40 :]}" if same > 40 else one) for one in (line, wanted))
    return first, second


def _without_constitution(text: str) -> str:
    """A card without the section that only the run's constitutions make."""
    before, _, rest = text.partition(f"\n{CONSTITUTION}\n")
    return before + rest[max(0, rest.find("\n## ")) :]


# The files for other trainers


def _check_view(folder: Path, manifest: Json, findings: Findings) -> None:
    trainer = manifest["method"]["trainer"]
    view = make_view(trainer, _tables(folder))
    made: dict[str, Any] = {name: rows for name, (rows, _) in view.parquet.items()} | view.lines | view.json
    listed = {one["path"] for one in manifest["files"] if one["path"].startswith(f"{trainer}/")}
    where = f"{folder}/{trainer}"
    findings.same(where, sorted(listed), sorted(f"{trainer}/{name}" for name in made), "the files")
    for name in made:
        path = folder / trainer / name
        if path.is_file() and not _is_like(_read(path), made[name]):
            findings.differ(path, "other rows than those of the dataset", "these, as that trainer reads them")
    left_out = dict(sorted(view.left_out.items()))
    findings.same(f"{folder}/manifest.json", manifest["view_left_out"], left_out, "left out of them:")


def _read(path: Path) -> object:
    if path.suffix == ".parquet":
        rows: list[Json] = pq.read_table(path).to_pylist()
        return rows
    text = path.read_text(encoding="utf-8")
    # Not splitlines, which also ends a line at characters that stand in JSON as they are.
    return [json.loads(line) for line in text.split("\n") if line] if path.suffix == ".jsonl" else json.loads(text)


def _tables(folder: Path) -> Tables:
    return {config: {split: list(rows_of(folder, config, split)) for split in SPLITS} for config in CONFIGS}


# The numbers


def _check_numbers(folder: Path, manifest: Json, run: Run, method: ExportMethod | None, findings: Findings) -> None:
    findings.step(f"{folder}: making it once more from {run.folder}.")
    where = f"{folder}/manifest.json"
    sources = _sources(folder, manifest, method)
    last = _version_before(folder, manifest)
    others = "the libraries have other versions now" if manifest["versions"] != versions() else None
    why = others or next((one for one in (sources, last) if isinstance(one, str)), None)
    made: Json
    if isinstance(sources, str) or isinstance(last, str) or why is not None:
        findings.note(
            f"{folder}: it was not made once more, since {why}: which rows were left out, the splits, and whether "
            "words tell the answers apart (separability) rest on the manifest alone."
        )
        made = _counted(folder, run, manifest)
        told = {name: manifest.get(name, _NOTHING) for name in made}
        told["counts"] = {config: {"read": manifest["counts"][config]["read"]} for config in made["counts"]}
    else:
        since = Since(manifest["version"]["name"], last) if "version" in manifest else None
        contents = make_contents(run, sources, since.splits() if since is not None else {})
        made, told = dict(contents.manifest), {one: manifest[one] for one in manifest.keys() - _OF_THE_FILES}
        if is_nearly(told.get("separability"), made["separability"]):
            told["separability"] = made["separability"]
            if manifest["separability"] != made["separability"]:
                findings.note(f"{where}, separability: it comes out a little otherwise here, as it may elsewhere.")
        if since is not None:
            made["version"], told["version"] = since.told(contents.tables)[0], manifest["version"]
        _check_tables(folder, contents, findings)
    for name, one, wanted in _unlike(told, made, ""):
        findings.differ(f"{where}, {name}", brief_of(one), f"what the run makes: {brief_of(wanted)}")
    findings.looked["numbers of the manifest made once more"] += sum(1 for _ in _leaves(made))


def _counted(folder: Path, run: Run, manifest: Json) -> Json:
    """What of the manifest hangs on the rows of the dataset and of the run alone."""
    answers = [
        Answer(
            row["row_id"], as_messages(row["messages"][:-1]), row["messages"][-1]["content"], row["answer_from"],
            tuple(row["principle_ids"]),
        )
        for split in SPLITS
        for row in rows_of(folder, "sft", split)
    ]  # fmt: skip
    here = {row["pair_id"] for split in SPLITS for row in rows_of(folder, "preference", split, ["pair_id"])}
    decided = run_pairs(run)
    pairs = [one for one in decided.pairs if one.pair_id in here]
    of_pairs = len(decided.pairs) + decided.left_out.total()
    read: dict[Config, int] = {"preference": of_pairs, "reward": of_pairs, "kto": 2 * of_pairs}
    if manifest["method"]["helpful"] is None:
        of_run = run_answers(run, manifest["method"]["sft"], manifest["method"]["clean_answers"])
        read["sft"] = len(of_run.answers) + of_run.left_out.total()
    counts = {config: {"read": rows} for config, rows in read.items()}
    return {"run": origin(run), "counts": counts, **described(answers, pairs, count_labels(run))}


def _check_tables(folder: Path, made: Contents, findings: Findings) -> None:
    for config in CONFIGS:
        for split in SPLITS:
            wanted, number = made.tables[config][split], 0
            for number, (row, other) in enumerate(zip_longest(rows_of(folder, config, split), wanted), start=1):
                if not _is_like(row, other):
                    found = "another row" if row is not None and other is not None else "fewer rows"
                    found = "more rows" if other is None else found
                    expected = "what the run gives by this method, in this split and order"
                    findings.differ(f"{folder}/{config}, {split}, row {number}", found, expected)
                    break


def _sources(folder: Path, manifest: Json, method: ExportMethod | None) -> ExportMethod | str:
    """The method with the files that it names, as they were, where they were seen from here or any folder above the
    dataset; or why there is none."""
    told = manifest["method"]
    plain = ExportMethod(**told | {"helpful": None, "decontaminate": ()})
    if method is None:
        return plain if told["helpful"] is None and not told["decontaminate"] else "its command does not name its files"
    above = [Path("."), *folder.absolute().parents]
    evaluations: list[str] = []
    for name, was in zip(method.decontaminate, manifest["evaluation_sets"], strict=False):
        places = [place / name for place in above if (place / name).is_file()]
        sound = [place for place in places if file_digest(place) == was["sha256"]]
        if not sound:
            return f"the evaluation set {was['name']} is not there as it was"
        evaluations.append(str(sound[0]))
    helpful = None
    if method.helpful is not None:
        helpful = next((place for place in above if _is_helpful(place / method.helpful, manifest["helpful"])), None)
        if helpful is None:
            return f"the helpful answers of {manifest['helpful']['name']} are not there as they were"
        helpful = str(helpful / method.helpful)
    return replace(plain, helpful=helpful, decontaminate=tuple(evaluations))


def _is_helpful(place: Path, was: Json) -> bool:
    if was["sha"] is None or not place.exists():
        return False
    with suppress(BadInput, OSError):
        return helpful_origin(str(place)) == was
    return False


def _version_before(folder: Path, manifest: Json) -> Version | str | None:
    """The version before this one, if there is one; or why it cannot be read."""
    before = manifest.get("version", {}).get("before")
    if before is None:
        return None
    with suppress(BadInput, OSError):
        last = read_version(folder.parent / before["name"])
        if last.manifest["content_sha"] == before["content_sha"]:
            return last
    return f"the version before, {before['name']}, is not beside it as it was"


def is_nearly(told: Any, made: Json) -> bool:
    """Whether what is told of the words that tell answers apart is what another machine may have computed."""
    if told == made:
        return True
    if not isinstance(told, dict) or told.keys() != made.keys() or told["auc"] is None or made["auc"] is None:
        return False
    words = [name for name in made if name.endswith("_words")]
    return (
        told["pairs"] == made["pairs"]
        and abs(told["auc"] - made["auc"]) <= _AUC
        and told["verdict"] == verdict_on(told["auc"])
        and all(len(told[name]) == len(made[name]) for name in words)
        and all(2 * len(set(told[name]) & set(made[name])) >= len(made[name]) for name in words)
    )


# Values


def _unlike(told: Any, made: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ, as JSON has them: the name of the place, and both values."""
    if isinstance(told, dict) and isinstance(made, dict):
        for key in sorted({**told, **made}):
            inner = f"{name}.{key}" if name else key
            yield from _unlike(told.get(key, _NOTHING), made.get(key, _NOTHING), inner)
    elif not _is_like(told, made):
        yield name, told, made


def _is_like(one: object, other: object) -> bool:
    """Whether two values are the same as JSON, in which 1 and true are two."""
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _leaves(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    else:
        yield value
