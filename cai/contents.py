"""What a dataset holds, made of a run: its rows, a trainer's view of them, and what its manifest says of both.

Nothing is written here, so that `cai verify` can make the same once more and compare.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cai.audit import count_labels
from cai.candidates import Candidates, helpful_answers, helpful_origin, run_answers, run_pairs
from cai.dataset import CONFIGS, KIND, SPLITS, Answer, Config, DecidedPair, Tables
from cai.errors import BadInput
from cai.hygiene import clean_answers, clean_pairs, prompt_groups, prompt_key, read_evaluation
from cai.ids import digest, file_digest
from cai.pairs import made_of
from cai.pasted import folder_word
from cai.probes import separability, two_sides
from cai.seal import Json
from cai.splits import between_splits, split_tables
from cai.store import Run
from cai.views import Trainer, View, make_view

GoOn = Callable[[], None]


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


@dataclass(frozen=True, slots=True)
class Contents:
    """The rows of a dataset, a trainer's view of them, and its manifest as far as these two and the run make it."""

    tables: Tables
    view: View
    manifest: Json


def make_contents(run: Run, method: ExportMethod, settled: Mapping[str, str], go_on: GoOn = lambda: None) -> Contents:
    """What a run gives by a method. `settled` has the split of each prompt, by its key, that an earlier version of the
    dataset has; `go_on` is called between the steps, and ends the work by raising an error.

    Raises BadInput if the run has nothing to train on, or a file that the method names cannot be read.
    """
    evaluations = [read_evaluation(file) for file in method.decontaminate]
    revised = run_answers(run, method.sft, method.clean_answers)
    helpful = helpful_answers(method.helpful) if method.helpful is not None else Candidates()
    decided = run_pairs(run)
    go_on()
    groups = prompt_groups(
        (one.prompt for one in (*revised.answers, *helpful.answers, *decided.pairs)), method.near_duplicates
    )
    offered = [*revised.answers, *helpful.answers]
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
        if not reasons:
            found = "nothing to train on: no answer that was revised, and no pair that was labelled"
            first = f"Give cai label {folder_word(run.folder)} first."
            remedy = "See cai report." if "label" in run.settings() else first
            raise BadInput(str(run.folder), found, "revised answers, or labels", remedy)
        raise BadInput(
            str(run.folder), f"nothing to train on (left out: {json.dumps(dict(sorted(reasons.items())))})",
            "revised answers that were taken, or labels that decide", "See cai report, or let fewer rows be left out.",
        )  # fmt: skip
    go_on()
    tables, left_out_kto = split_tables(answers, pairs, groups, method.seed, method.test_share, settled)
    view = make_view(method.trainer, tables)
    labels = count_labels(run)
    manifest: Json = {
        "kind": KIND,
        "versions": versions(),
        "code_sha": code_sha(),
        "method": told_of(method),
        "run": origin(run),
        "helpful": helpful_origin(method.helpful) if method.helpful is not None else None,
        "evaluation_sets": [{"name": evaluation.name, "sha256": evaluation.sha256} for evaluation in evaluations],
        "counts": _config_counts(sft, preference, tables, left_out_kto),
        "view_left_out": dict(sorted(view.left_out.items())),
        **described(answers, pairs, labels),
        "separability": separability(pairs, groups),
    }
    return Contents(tables, view, manifest)


def described(answers: Sequence[Answer], pairs: Sequence[DecidedPair], labels: Json) -> Json:
    """What the manifest says of the answers and pairs of a dataset, and of all labels of its run."""
    share = sum(answer.answer_from == "helpful" for answer in answers) / len(answers) if answers else 0.0
    return {
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
        "principles": {"sft": _principles(answers), "preference": _principles(pairs)},
    }


def told_of(method: ExportMethod) -> Json:
    """A method as the manifest has it: of files only their names, since their folders are nobody's business."""
    return asdict(method) | {
        "decontaminate": [Path(file).name for file in method.decontaminate],
        "helpful": Path(method.helpful).name if method.helpful is not None else None,
    }


def versions() -> dict[str, str]:
    """The versions of cai and of the libraries that a dataset depends on."""
    return {name: version(name) for name in ("cai", "pyarrow", "datasets", "datasketch", "scikit-learn")}


@cache
def code_sha() -> str:
    """The digest of cai's code: with other code, a dataset may come out otherwise."""
    home = Path(__file__).parent
    return digest([[path.relative_to(home).as_posix(), file_digest(path)] for path in sorted(home.rglob("*.py"))])


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


def origin(run: Run) -> Json:
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
    more = {"unread": True} if told.get("unread") else {}
    return {"name": name, "rows": told["rows"], "sha": told["sha"], **more}


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
