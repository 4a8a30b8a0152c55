"""From a run to datasets that trainers load: pick, clean, split, write, describe.

    tables of the run -> answers and decided pairs -> hygiene -> splits -> Parquet, views, README.md, manifest.json

Every row is either written or counted under the reason for which it was left out. Nothing is drawn: the same run and
the same method give the same bytes. The folder appears in one piece under its name, or not at all.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cai.audit import count_labels
from cai.candidates import Candidates, helpful_answers, helpful_origin, run_answers, run_pairs
from cai.card import card
from cai.constitution import Constitution, load_constitution
from cai.dataset import (
    CONFIGS,
    KIND,
    SPLITS,
    Answer,
    Config,
    DecidedPair,
    Tables,
    json_text,
    write_configs,
    write_text,
)
from cai.errors import BadInput
from cai.folder import new_folder, refuse_other_files
from cai.hygiene import clean_answers, clean_pairs, prompt_groups, prompt_key, read_evaluation
from cai.ids import digest, file_digest
from cai.pairs import made_of
from cai.probes import separability, two_sides
from cai.seal import sealed
from cai.signing import PrivateKey, sign
from cai.splits import between_splits, split_tables
from cai.store import Json, Run
from cai.versions import Since, Version, check_versions, last_version, next_version, write_changes
from cai.views import Trainer, make_view, write_view


@dataclass(frozen=True, slots=True)
class ExportMethod:
    """What goes into a dataset.

    `sft` "final" takes the last revision of each row, "all" every revision that was taken, as in Bai et al. 2022; with
    `clean_answers` the responses that the gate left alone come too. `helpful` is a run with responses, or a file with
    `messages`, or with `prompt` and `response`, and `helpful_share` the share of the sft rows that shall be helpful
    ones. `test_share` of the prompts go into the test split. `near_duplicates` is the Jaccard similarity from which
    two texts count as one, `length_ratio` how many times longer one answer of a pair may be than the other, in words
    (None turns either off); `decontaminate` are files of evaluation sets. `licence` goes into the card as it is.
    """

    seed: int
    sft: Literal["final", "all"]
    clean_answers: bool
    helpful: str | None
    helpful_share: float
    test_share: float
    near_duplicates: float | None
    length_ratio: float | None
    decontaminate: tuple[str, ...]
    licence: str
    trainer: Trainer


Say = Callable[[str], None]
GoOn = Callable[[], None]


def export(
    run: Run, out: Path, method: ExportMethod, command: str, say: Say, go_on: GoOn = lambda: None,
    key: PrivateKey | None = None,
) -> Json:  # fmt: skip
    """Write the datasets of a run to the folder `out`, and return what its manifest.json holds.

    An earlier export in `out` is replaced once the new one is finished. `command` is how a person repeats it; `say` is
    told what they should know; `go_on` is called between the steps, and ends the export by raising an error; with a
    `key` the manifest is signed. Raises
    BadInput if `out` holds anything else, the run nothing to train on, or a file that the method names cannot be read,
    CannotWrite if a file cannot be written.
    """
    check_place(run.folder, out)
    with new_folder(out) as folder, _standing_still(run):
        manifest = _fill(folder, run, method, command, None, say, go_on, key)
        refuse_other_files(out, KIND)  # nobody has put a file there meanwhile
        go_on()
    return manifest


def export_version(
    run: Run, out: Path, method: ExportMethod, command: str, say: Say, go_on: GoOn = lambda: None,
    key: PrivateKey | None = None,
) -> tuple[Path, Json]:  # fmt: skip
    """Write the datasets of a run as the next version in the folder `out`, unless nothing is new since the last one.

    Returns the folder of that version, or of the last one, and what its manifest.json holds. See `export` for the rest.
    """
    check_version_place(run.folder, out, method)
    target = next_version(out)
    try:
        with new_folder(target, lock_beside=out) as folder, _standing_still(run):
            since = Since(target.name, last_version(out))
            manifest = _fill(folder, run, method, command, since, say, go_on, key)
            if target.exists():  # another process was quicker to the lock, and is done
                found = "a folder that was not there a moment ago"
                raise BadInput(str(target), found, "none yet", "Give the command again.")
            go_on()
    except _NothingNew as same:
        say(f"Nothing is new since {same.last.folder}, so no version is written.")
        return same.last.folder, same.last.manifest
    return target, manifest


class _NothingNew(Exception):
    """What would be written is what the last version is."""

    def __init__(self, last: Version) -> None:
        super().__init__(str(last.folder))
        self.last = last


@contextmanager
def _standing_still(run: Run) -> Generator[None]:
    """Raise BadInput if the run is not fit for a dataset, or changes while one is made of it."""
    before = run.manifest()
    _refuse_unfit(run)
    yield
    if run.manifest() != before:
        found, remedy = "a run that has changed meanwhile", "Wait for the command that is working on it."
        raise BadInput(str(run.folder), found, "one that stands still", remedy)


def _fill(
    folder: Path, run: Run, method: ExportMethod, command: str, since: Since | None, say: Say, go_on: GoOn,
    key: PrivateKey | None,
) -> Json:  # fmt: skip
    """Write the datasets into a folder that is empty, and return what the manifest holds. Raises _NothingNew."""
    evaluations = [read_evaluation(file) for file in method.decontaminate]
    revised = run_answers(run, method.sft, method.clean_answers)
    helpful = helpful_answers(method.helpful) if method.helpful is not None else Candidates()
    decided = run_pairs(run)
    go_on()
    groups = prompt_groups(
        (one.prompt for one in (*revised.answers, *helpful.answers, *decided.pairs)), method.near_duplicates
    )
    offered = [*revised.answers, *helpful.answers]
    settled = since.splits() if since is not None else {}
    between = between_splits(groups, settled)
    go_on()
    answers, unclean = clean_answers(offered, groups, evaluations, method.near_duplicates, between)
    answers, too_many = _mix(answers, method)
    pairs, unclean_pairs = clean_pairs(
        decided.pairs, groups, evaluations, method.near_duplicates, method.length_ratio, between
    )
    sft = _Count(len(offered), revised.left_out + helpful.left_out, unclean + too_many)
    preference = _Count(len(decided.pairs), decided.left_out, unclean_pairs)
    if not answers and not pairs:
        reasons = sft.left_out() + preference.left_out()
        raise BadInput(
            str(run.folder), f"nothing to train on (left out: {json.dumps(dict(sorted(reasons.items())))})",
            "revised answers that were taken, or labels that decide", "See cai report, or let fewer rows be left out.",
        )  # fmt: skip
    go_on()
    tables, left_out_kto = split_tables(answers, pairs, groups, method.seed, method.test_share, settled)
    view = make_view(method.trainer, tables)
    share = sum(answer.answer_from == "helpful" for answer in answers) / len(answers) if answers else 0.0
    labels = count_labels(run)
    manifest: Json = {
        "kind": KIND,
        "versions": {name: version(name) for name in ("cai", "pyarrow", "datasets", "datasketch", "scikit-learn")},
        "command": command,
        "method": asdict(method)
        | {"decontaminate": [evaluation.name for evaluation in evaluations]}
        | {"helpful": Path(method.helpful).name if method.helpful is not None else None},
        "run": _origin(run),
        "helpful": helpful_origin(method.helpful) if method.helpful is not None else None,
        "evaluation_sets": [{"name": evaluation.name, "sha256": evaluation.sha256} for evaluation in evaluations],
        "counts": _config_counts(sft, preference, tables, left_out_kto),
        "view_left_out": dict(sorted(view.left_out.items())),
        "labels": labels,
        "helpful_share": round(share, 4),
        "mean_letter_mass": _mean_mass(labels["verdicts"]),
        "sure_pairs": {
            str(bound): sum(pair.chosen_probability >= bound for pair in pairs) for bound in (0.6, 0.7, 0.8, 0.9)
        },
        "by_person": sum(pair.by_person for pair in pairs),
        "reviewed": sum(pair.reviewed for pair in pairs),
        "pair_kinds": dict(sorted(Counter(f"{pair.chosen_from} over {pair.rejected_from}" for pair in pairs).items())),
        "sft_rejected": _also_rejected(answers, pairs),
        "distinct_prompts": {
            "sft": len({prompt_key(one.prompt) for one in answers}),
            "preference": len({prompt_key(one.prompt) for one in pairs}),
        },
        "answers": dict(sorted(Counter(answer.answer_from for answer in answers).items())),
        "mean_chosen_probability": _mean([pair.chosen_probability for pair in pairs if not pair.by_person]),
        "sides": two_sides(pairs),
        "separability": separability(pairs, groups),
        "principles": {"sft": _principles(answers), "preference": _principles(pairs)},
    }
    files = write_configs(folder, tables) + write_view(folder, method.trainer, view)
    manifest["content_sha"] = digest([[file["path"], file["sha256"]] for file in files])
    if since is not None:
        manifest["version"], changes = since.told(tables)
        if since.last is not None:
            if not changes and since.last.made_like(manifest):
                raise _NothingNew(since.last)
            files += write_changes(folder, changes)
    for sentence in _worth_saying(manifest):
        say(sentence)
    text = card(manifest, constitutions_of(run))
    manifest["files"] = [*files, write_text(folder, folder / "README.md", text)]
    manifest = sealed(manifest, KIND)
    write_text(folder, folder / "manifest.json", json_text(manifest))
    if key is not None:
        sign(folder, key)
    return manifest


def check_place(run: Path, out: Path) -> None:
    """Raise BadInput if the folder `out` cannot be made, or holds anything but an earlier export: the run, for one."""
    _check_name(run, out)
    refuse_other_files(out, KIND)
    _check_writable(out)


def _check_name(run: Path, out: Path) -> None:
    """Raise BadInput if a dataset in the folder `out` could not be loaded, or would lie around its run."""
    if set(out.name) & set("*?[]"):
        raise BadInput(f"--out {out}", "a pattern", "a name without *, ?, [ and ]", "datasets could not load it.")
    if out.absolute() == run.absolute() or out.absolute() in run.absolute().parents:
        raise BadInput(f"--out {out}", "the run, or a folder that it lies in", "another one", "Choose another --out.")


def check_version_place(run: Path, out: Path, method: ExportMethod) -> None:
    """Raise BadInput if the folder `out` cannot be made, or cannot hold one more version of a run's dataset."""
    _check_name(run, out)
    last = check_versions(out)
    if last is not None and last["method"]["near_duplicates"] != method.near_duplicates:
        was, now = last["method"]["near_duplicates"] or 1, method.near_duplicates or 1
        raise BadInput(
            f"--near-duplicates {now}", f"versions in {out} that were made with {was}", "the same in all of them",
            "Choose another --out: what was put into different splits may be nearly the same now.",
        )  # fmt: skip
    _check_writable(out)


def _check_writable(out: Path) -> None:
    parent = next(one for one in out.absolute().parents if one.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"--out {out}", f"{parent}, which is no writable folder", "one", "Choose another --out.")


def _refuse_unfit(run: Run) -> None:
    """Raise BadInput for gold, which is there to measure with, for labels of which some may be another judge's, and for
    a finished stage that is no more as its manifest says."""
    stages, finished = run.settings(), run.manifest()
    for stage in finished:
        run.check_files(stage)
    if "calibrate" in stages:
        raise BadInput(str(run.folder), "verdicts on gold pairs", "a run to train on", "Gold is for measuring.")
    if "label" in stages and "label" not in finished:
        raise BadInput(str(run.folder), "an unfinished cai label", "a finished one", "Give that command once more.")


def _mix(answers: Sequence[Answer], method: ExportMethod) -> tuple[list[Answer], Counter[str]]:
    """As many helpful answers as make up their share, or all of them, picked and put among the others by hash."""
    others = [one for one in answers if one.answer_from != "helpful"]
    helpful = [one for one in answers if one.answer_from == "helpful"]
    if not helpful:
        return others, Counter()
    wanted = round(method.helpful_share / (1 - method.helpful_share) * len(others))
    picked = sorted(helpful, key=lambda one: _place(method.seed, "helpful", one))[:wanted]
    mixed = sorted([*others, *picked], key=lambda one: _place(method.seed, "order", one))
    return mixed, +Counter({"over_helpful_share": len(helpful) - len(picked)})


def _place(seed: int, purpose: str, one: Answer) -> str:
    return digest([seed, purpose, prompt_key(one.prompt), one.row_id, one.answer_from, one.answer])


# The manifest


@dataclass(frozen=True, slots=True)
class _Count:
    """Candidates, and what was left out before they were any and after."""

    candidates: int
    unfit: Counter[str]
    unclean: Counter[str]

    def left_out(self) -> Counter[str]:
        return self.unfit + self.unclean


def _config_counts(sft: _Count, preference: _Count, tables: Tables, left_out_kto: Counter[str]) -> dict[Config, Json]:
    """By config: rows read, left out by reason, and written by split. Raises AssertionError if a row is lost."""
    found: dict[Config, Json] = {}
    for config in CONFIGS:
        of, times = (
            (sft, 1) if config == "sft" else (preference, 2 if config == "kto" else 1)
        )  # a pair is two rows there
        read = times * (of.candidates + of.unfit.total())
        left_out = Counter({reason: times * count for reason, count in of.left_out().items()})
        left_out += left_out_kto if config == "kto" else Counter()
        written = {split: len(tables[config][split]) for split in SPLITS}
        if read != sum(written.values()) + left_out.total():
            raise AssertionError(f"{config}: {read} rows were read, but {written} written and {left_out} left out")
        found[config] = {"read": read, "written": written, "left_out": dict(sorted(left_out.items()))}
    return found


def _origin(run: Run) -> Json:
    """Where the rows come from: the digest of the run's manifest and, by stage, models, texts, settings and counts."""
    manifest, path = run.manifest(), run.folder / "manifest.json"
    stages = {
        stage: {
            "finished": stage in manifest,
            "models": belongs["models"],
            "texts": belongs["texts"],
            "settings": belongs["settings"],
            "counts": manifest.get(stage, {}).get("counts"),
            "prompts": _prompts(manifest.get(stage, {})) if stage in ("revise", "generate") else None,
        }
        for stage, belongs in run.settings().items()
    }
    labelled = manifest.get("label")
    older = labelled is not None and labelled.get("prompts", {}).get("made_of") not in (None, made_of(run))
    sha256 = file_digest(path) if path.exists() else None
    return {"manifest_sha256": sha256, "labels_are_older": older, "stages": stages}


def _prompts(entry: Json) -> Json | None:
    """Where a stage's prompts came from: of a file only its name, since its folder is nobody's business."""
    told = entry.get("prompts")
    if told is None:
        return None
    source: str = told["source"]
    name = source if source.startswith("datasets:") else Path(source).name
    return {"name": name, "rows": told["rows"], "sha": told["sha"]}


def constitutions_of(run: Run) -> list[Constitution]:
    """The constitutions that the run keeps copies of, each once."""
    copies = [run.constitution(path.parent.name) for path in sorted(run.folder.glob("inputs/*/constitution.yaml"))]
    return list({one.sha: one for one in (load_constitution(str(path)) for path in copies if path)}.values())


def _principles(rows: Sequence[Answer] | Sequence[DecidedPair]) -> dict[str, int]:
    return dict(sorted(Counter(name for one in rows for name in one.principle_ids).items()))


def _also_rejected(answers: Sequence[Answer], pairs: Sequence[DecidedPair]) -> int:
    """How many answers of `sft` are the worse one of a pair."""
    rejected = {(prompt_key(pair.prompt), pair.rejected) for pair in pairs}
    return sum((prompt_key(one.prompt), one.answer) in rejected for one in answers)


def _mean_mass(verdicts: Json) -> float | None:
    """The mean over all verdicts of the probability that fell on the words the judge was to choose from."""
    asked = sum(one["asked"] for one in verdicts.values())
    return round(sum(one["asked"] * one["mean_letter_mass"] for one in verdicts.values()) / asked, 4) if asked else None


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _worth_saying(manifest: Json) -> Iterator[str]:
    if manifest["run"]["labels_are_older"]:
        yield "The run has other rows than it was labelled with: give cai label once more to have pairs of all of them."
    for stage, entry in manifest["run"]["stages"].items():
        if not entry["finished"]:
            yield f"cai {stage} is not finished; the dataset holds what is there."
    method = manifest["method"]
    all_taken = "over_helpful_share" not in manifest["counts"]["sft"]["left_out"]
    if method["helpful"] is not None and all_taken and manifest["helpful_share"] < method["helpful_share"] - 0.01:
        yield f"There are too few helpful answers: their share is {manifest['helpful_share']:.1%}."
    for config, entry in manifest["counts"].items():
        if not sum(entry["written"].values()):
            yield f"No rows for {config}."
    if manifest["separability"]["verdict"] == "style":
        yield "Single words tell chosen from rejected answers: these pairs teach style. See the card."
