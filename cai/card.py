"""The README.md of an exported dataset: what is in it, how it was made, what to mistrust, how to train on it.

It is made from the manifest and the constitutions alone, so it says what the manifest says. Text from people and
models is escaped or fenced, so that it cannot become Markdown.
"""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from cai.constitution import Constitution
from cai.dataset import CONFIGS, SPLITS, Config
from cai.store import Json
from cai.templates import fence
from cai.views import snippet

_WHAT: dict[Config, str] = {
    "sft": "conversations whose last turn is to be imitated (`messages`)",
    "preference": "a prompt, a better and a worse answer (`prompt`, `chosen`, `rejected`), for DPO and its kin",
    "reward": "the same with a `margin`, for a reward model",
    "kto": "single answers that are good or not (`prompt`, `completion`, `label`)",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MOST_SMOOTHING = 0.45  # the robust loss divides by 1 - 2 x smoothing


def card(manifest: Json, constitutions: Sequence[Constitution]) -> str:
    """The card as Markdown, with the YAML in front that makes `load_dataset(DIR, config)` work."""
    sections = [
        *_what(manifest),
        *_how(manifest),
        *_constitution(manifest, constitutions),
        *_rates(manifest),
        *_style(manifest),
        *_left_out(manifest),
        *_use(manifest),
        *_limits(manifest),
        *_again(manifest),
    ]
    return f"---\n{_front(manifest)}---\n\n" + "\n".join(sections) + "\n"


def smoothing(manifest: Json) -> float:
    """The label smoothing that fits: the share of labels that are wrong if the judge's probabilities are right."""
    mean = manifest["mean_chosen_probability"]
    return 0.0 if mean is None else min(_MOST_SMOOTHING, round(1 - mean, 3))


def _front(manifest: Json) -> str:
    counts = manifest["counts"]
    total = sum(sum(entry["written"].values()) for entry in counts.values())
    there = [config for config in CONFIGS if any(counts[config]["written"].values())]
    configs: list[Json] = [
        {
            "config_name": config,
            "data_files": [
                {"split": split, "path": f"{config}/{split}-*.parquet"}
                for split in SPLITS
                if counts[config]["written"][split]
            ],
        }
        for config in there
    ]
    front = {
        "license": manifest["method"]["licence"],
        "pretty_name": "Constitutional AI data",
        "tags": ["constitutional-ai", "rlaif", "preference", "synthetic"],
        "size_categories": [next((name for limit, name in _SIZES if total < limit), "n>1M")],
        "configs": configs,
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _what(manifest: Json) -> Iterator[str]:
    yield "# Constitutional AI data"
    yield ""
    yield (
        "Answers of a language model to prompts, judged and rewritten by a model against a written constitution "
        "(Bai et al. 2022, arXiv:2212.08073). No person wrote the answers; persons wrote the constitution below."
    )
    yield ""
    yield from _table(
        ("config", "train", "test", "what it holds"),
        [
            (f"`{config}`", str(entry["written"]["train"]), str(entry["written"]["test"]), _WHAT[config])
            for config, entry in manifest["counts"].items()
            if sum(entry["written"].values())
        ],
    )
    missing = [f"`{name}`" for name, entry in manifest["counts"].items() if not sum(entry["written"].values())]
    if missing:
        yield f"The run had nothing for {', '.join(missing)}."
        yield ""
    yield (
        "Each row has `row_id`, and those made of pairs `pair_id`, by which the run tells its story, down to each "
        "call of a model, and `principle_ids`, the principles that shaped it. `answer_from` says whether an answer is "
        "a `revision-N`, a `response` that needed none, or a `helpful` one from elsewhere. `chosen_probability` is the "
        "judge's probability that the chosen answer is the better one; where a person decided against the judge it is "
        "1, and the margin 0. No prompt, and none that is nearly the same, is in both splits."
    )
    yield ""


def _how(manifest: Json) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    rows: list[tuple[str, str]] = []
    for stage, entry in manifest["run"]["stages"].items():
        done = "" if entry["finished"] else " (not finished)"
        rows += [(f"{stage}{done}: {role}", _code(model)) for role, model in sorted(entry["models"].items())]
        rows += [(f"{stage}: {name}", _code(text)) for name, text in sorted(entry["texts"].items())]
        told = (
            *("gate", "rounds", "principles", "wording", "few_shot", "samples", "temperature", "failed_revision"),
            *("pairs", "judge_mode", "judge_principles", "judge_temperature", "tie_band", "min_agreement", "seed"),
        )
        settings = [f"{name} {entry['settings'][name]}" for name in told if name in entry["settings"]]
        if settings:
            rows.append((f"{stage}: settings", _plain(", ".join(settings))))
    rows.append(("sha256 of the run's manifest", _code(manifest["run"]["manifest_sha256"] or "none")))
    rows.append(("made with", _code(", ".join(f"{name} {number}" for name, number in manifest["versions"].items()))))
    yield from _table(("what", "value"), rows)


def _constitution(manifest: Json, constitutions: Sequence[Constitution]) -> Iterator[str]:
    yield "## The constitution, and how often each principle decided"
    yield ""
    judged, used = manifest["labels"]["verdicts"], manifest["principles"]
    header = ("principle", "what it asks", "rewrote", "in pairs", "verdicts", "with the label")
    by_sha = {stage: entry["texts"].get("constitution_sha") for stage, entry in manifest["run"]["stages"].items()}
    for one in constitutions:
        yield f"**{_plain(one.name)}** {_plain(one.version)}: {_plain(one.description)} (sha256 `{one.sha}`)"
        yield ""
        # Two constitutions may have a principle of the same name: each is told only what it did itself.
        revised, judging = one.sha == by_sha.get("revise"), one.sha == by_sha.get("label")
        rewrote = used["sft"] if revised else {}
        paired, verdicts = (used["preference"], judged) if judging else ({}, {})
        mine = {"sft": rewrote, "preference": paired}
        yield from _table(
            header,
            [
                (_code(principle.id), _plain(principle.statement), *_decided(principle.id, verdicts, mine))
                for principle in one.principles
            ],
        )
    known = {principle.id for one in constitutions for principle in one.principles}
    others = sorted({*judged, *used["sft"], *used["preference"]} - known)
    if others:
        yield "Principles of which the run kept no text:"
        yield ""
        yield from _table(header, [(_code(name), "", *_decided(name, judged, used)) for name in others])
    yield (
        "`rewrote`: rows of `sft` that a critique by this principle led to. `in pairs`: rows of `preference` that it "
        "judged. `verdicts`: all that the judge gave by it, also on pairs that are not in this dataset (two a pair "
        "where both orders are asked). `with the label`: how many of these that could be read chose what the label "
        "chose."
    )
    yield ""


def _decided(name: str, judged: Json, used: Json) -> tuple[str, ...]:
    count = judged.get(name, {"asked": 0, "unread": 0, "with_the_label": 0})
    read = count["asked"] - count["unread"]
    sided = _percent(count["with_the_label"] / read if read else None)
    return str(used["sft"].get(name, 0)), str(used["preference"].get(name, 0)), str(count["asked"]), sided


def _rates(manifest: Json) -> Iterator[str]:
    yield "## Rates"
    yield ""
    rows: list[tuple[str, str]] = []
    for stage, entry in manifest["run"]["stages"].items():
        counts = entry["counts"] or {}
        for name in ("read", "kept", "dropped", "changed"):
            if isinstance(counts.get(name), int):
                rows.append((f"{stage}: rows {name}", str(counts[name])))
    labels = manifest["labels"]
    pairs = sum(sum(kind.values()) for kind in labels["won"].values())
    if pairs:
        rows.append(("pairs that were judged", str(pairs)))
        rows.append(("decided", f"{labels['decided']} ({_percent(labels['decided'] / pairs)})"))
        rows += [(f"the judge left open: {_plain(name)}", str(n)) for name, n in labels["undecided_by_reason"].items()]
        if labels["reviewed"]["n"]:
            same = _percent(labels["reviewed"]["same"]["value"])
            rows.append(("labels that a person looked at", f"{labels['reviewed']['n']} (the same choice in {same})"))
        if labels["mean_position_gap"] is not None:
            rows.append(("mean difference between the two orders of showing a pair", str(labels["mean_position_gap"])))
    if manifest["mean_chosen_probability"] is not None:
        rows.append(("mean `chosen_probability`", str(manifest["mean_chosen_probability"])))
    rows += [(f"answers in `sft` from: {_plain(name)}", str(count)) for name, count in manifest["answers"].items()]
    if manifest["method"]["helpful"] is not None:
        asked = _percent(manifest["method"]["helpful_share"])
        rows.append(("share of helpful answers in `sft`", f"{_percent(manifest['helpful_share'])} ({asked} asked for)"))
    yield from _table(("what", "value"), rows)


def _style(manifest: Json) -> Iterator[str]:
    if not any(manifest["counts"]["preference"]["written"].values()):
        return
    yield "## Do the pairs teach style?"
    yield ""
    sides, probe = manifest["sides"], manifest["separability"]
    yield from _table(
        ("", "chosen", "rejected"),
        [
            ("mean words", *(str(sides[side]["mean_words"]) for side in ("chosen", "rejected"))),
            ("refusals (English)", *(_percent(sides[side]["refusals"]) for side in ("chosen", "rejected"))),
        ],
    )
    if sides["longer_chosen"] is not None:
        longer = _percent(sides["longer_chosen"])
        yield f"Where the lengths differ, the longer answer is the chosen one in {longer} of pairs."
        yield ""
    yield _verdict(probe)
    yield ""
    if probe["auc"] is not None:
        words = {side: ", ".join(_code(word) for word in probe[f"{side}_words"]) for side in ("chosen", "rejected")}
        yield f"Words that speak most for a chosen answer: {words['chosen']}; for a rejected one: {words['rejected']}."
        yield ""


def _verdict(probe: Json) -> str:
    if probe["verdict"] == "too_few":
        return f"{probe['pairs']} pairs are too few to measure whether single words tell chosen from rejected."
    told = {
        "style": "**These pairs teach style.** A model can win on them by using or avoiding those words, whatever it "
        "says with them. Look at the words below, and compare answers of one kind (samples with samples).",
        "leaning": "So a part of what a model learns from these pairs is wording; the words below say which.",
        "content": "So wording alone gives little away.",
    }
    return (
        "A classifier that sees single words only, and neither their order nor the prompt, tells chosen from rejected "
        f"answers with an area under the curve of {probe['auc']} (0.5 is chance, 1 is certainty; {probe['pairs']} "
        f"pairs, prompts kept apart). {told[probe['verdict']]}"
    )


def _left_out(manifest: Json) -> Iterator[str]:
    yield "## What was left out"
    yield ""
    yield "Rows read = written + left out, for every config; a pair is one row of `preference` and two of `kto`."
    yield ""
    rows: list[tuple[str, ...]] = []
    for config, entry in manifest["counts"].items():
        written = sum(entry["written"].values())
        reasons = ", ".join(f"{_plain(name)} {count}" for name, count in entry["left_out"].items()) or "-"
        rows.append((f"`{config}`", str(entry["read"]), str(written), reasons))
    yield from _table(("config", "read", "written", "left out"), rows)
    method = manifest["method"]
    near, ratio = method["near_duplicates"], method["length_ratio"]
    yield "- Exact duplicates: the same but for case and spacing."
    yield "- Near duplicates: " + (
        "not looked for."
        if near is None
        else f"answers to the same or nearly the same prompt whose runs of three words overlap by {near} (Jaccard)."
    )
    yield "- Lengths: " + (
        "not compared." if ratio is None else f"pairs in which one answer has over {ratio} times the other's words."
    )
    sets = [f"{_code(one['name'])} (sha256 `{one['sha256'][:12]}`)" for one in manifest["evaluation_sets"]]
    yield "- Evaluation sets: " + (
        f"rows that share 13 words in a row with {', '.join(sets)}, or a whole shorter text."
        if sets
        else "none was compared."
    )
    for reason, count in manifest["view_left_out"].items():
        yield f"- Not in the files for {method['trainer']}: {count} ({_plain(reason)})."
    yield ""


def _use(manifest: Json) -> Iterator[str]:
    first = next(name for name in CONFIGS if any(manifest["counts"][name]["written"].values()))
    yield "## How to load it and train on it"
    yield ""
    yield f'`datasets.load_dataset("DIR", "{first}")`, where DIR is this folder; it needs no network.'
    yield ""
    if manifest["mean_chosen_probability"] is not None:
        smooth = smoothing(manifest)
        yield (
            f"The labels are soft and no trainer takes a probability for each row. If the judge's probabilities are "
            f"right, {_percent(1 - manifest['mean_chosen_probability'])} of the pairs are the wrong way round, so a "
            f"label smoothing of {smooth} fits. "
            f"In TRL it works with the losses `robust` and `exo_pair` and is ignored with `sigmoid`. To train on sure "
            f"labels only, filter by `chosen_probability`; `reward` has the log-odds as a `margin`."
        )
        yield ""
    trainer = manifest["method"]["trainer"]
    yield snippet(trainer, smoothing(manifest))
    yield ""


def _limits(manifest: Json) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- What is written here was generated by a model and chosen by a model. Its errors and leanings are in it."
    yield "- Rejected answers, and the prompts, may be harmful on purpose. Do not train on them as they stand."
    yield "- A constitution says what its authors wanted, not what everyone wants."
    yield "- Refusals are recognised in English only, and words counted where there are spaces between them."
    for stage, entry in manifest["run"]["stages"].items():
        if not entry["finished"]:
            yield f"- The stage {stage} was not finished when this was exported."
    if manifest["method"]["helpful"] is None and any(manifest["counts"]["sft"]["written"].values()):
        yield "- No helpful answers are mixed in: a model trained on `sft` alone tends to refuse too much."
    yield ""


def _again(manifest: Json) -> Iterator[str]:
    yield "## Licence, and the command to repeat it"
    yield ""
    yield (
        f"Licence: {_plain(manifest['method']['licence'])}. The licences of the prompts and of the models that wrote "
        "the answers hold too."
    )
    yield ""
    yield fence(manifest["command"])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _plain(text: Any) -> str:
    """Text as text: on one line, and nothing in it is Markdown, HTML, the end of a table's cell, or unseen (controls
    and what turns the direction of writing)."""
    unseen = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
    visible = re.sub(unseen, "", str(text))
    flat = html.escape(" ".join(visible.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", flat)


def _code(text: Any) -> str:
    """A short text in a code span that it cannot leave."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "/") + "`"
