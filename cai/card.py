"""The README.md of an exported dataset: what is in it, how it was made, what to mistrust, how to train on it.

It is made from the manifest and the constitutions alone, so it says what the manifest says, and `cai verify` makes it
once more: no order in it may be that of names in the manifest, which a file has sorted. Text from people and models is
escaped or fenced, so that it cannot become Markdown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from cai.constitution import Constitution
from cai.dataset import CONFIGS, SPLITS, Config
from cai.markdown import code, percent, plain, table
from cai.report.gate import gate_of
from cai.sandbox import fence
from cai.seal import Json
from cai.texts import visible
from cai.versions import CHANGES
from cai.views import snippet

_WHAT: dict[Config, str] = {
    "sft": "conversations whose last turn is to be imitated (`messages`)",
    "preference": "a prompt, a better and a worse answer (`prompt`, `chosen`, `rejected`), for DPO and its kin",
    "reward": "the same with a `margin`, for a reward model",
    "kto": "single answers that are good or not (`prompt`, `completion`, `label`)",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SMOOTHING = (0.001, 0.45)  # `exo_pair` takes no zero; at a half, nothing is left to learn
_FEW_ROWS = 200


def card(manifest: Json, constitutions: Sequence[Constitution]) -> str:
    """The card as Markdown, with the YAML in front that makes `load_dataset(DIR, config)` work."""
    sections = [
        *_what(manifest),
        *_version(manifest),
        *_before(manifest),
        *_use(manifest),
        *_how(manifest),
        *_rates(manifest),
        *_style(manifest),
        *_left_out(manifest),
        *_constitution(manifest, constitutions),
        *_again(manifest),
    ]
    return f"---\n{_front(manifest)}---\n\n" + "\n".join(sections) + "\n"


def smoothing(manifest: Json) -> float:
    """The label smoothing that fits: the share of labels that are wrong if the judge's probabilities are right."""
    mean = manifest["mean_chosen_probability"]
    least, most = _SMOOTHING
    return least if mean is None else max(least, min(most, round(1 - mean, 3)))


def _written(manifest: Json, config: Config) -> int:
    """The rows of a config, over its splits."""
    return sum(manifest["counts"][config]["written"].values())


def _there(manifest: Json) -> list[Config]:
    """The configs that have rows."""
    return [config for config in CONFIGS if _written(manifest, config)]


def _counts(manifest: Json) -> list[tuple[Config, Json]]:
    """What was read, left out and written, by config."""
    return [(config, manifest["counts"][config]) for config in CONFIGS]


def _front(manifest: Json) -> str:
    counts, there = manifest["counts"], _there(manifest)
    total = sum(_written(manifest, config) for config in CONFIGS)
    configs: list[Json] = [
        {
            "config_name": config,
            **({"default": True} if config == there[0] else {}),
            # load_dataset keeps what it has read by the folder's name and this text, not by the files: without a digest
            # of them, a dataset that was exported anew would be read from that cache as it was before.
            "description": f"content {manifest['content_sha'][:16]}",
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
        "task_categories": ["text-generation"],
        "tags": ["constitutional-ai", "rlaif", "preference", "synthetic"],
        "size_categories": [next((name for limit, name in _SIZES if total < limit), "n>1M")],
        "configs": configs,
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _what(manifest: Json) -> Iterator[str]:
    yield "# Constitutional AI data"
    yield ""
    yield (
        "Answers of a language model to prompts, which a model has criticised, rewritten and compared by a written "
        "constitution (Bai et al. 2022, arXiv:2212.08073). No person wrote the answers; people wrote the constitution, "
        "which stands below."
    )
    yield ""
    distinct, there = manifest["distinct_prompts"], _there(manifest)
    yield from table(
        ("config", "train", "test", "prompts", "what a row is"),
        [
            (
                f"`{config}`", str(entry["written"]["train"]), str(entry["written"]["test"]),
                str(distinct["sft" if config == "sft" else "preference"]), _WHAT[config],
            )
            for config, entry in _counts(manifest)
            if config in there
        ],
    )  # fmt: skip
    missing = [f"`{name}`" for name in CONFIGS if name not in there]
    if missing:
        yield f"The run had nothing for {', '.join(missing)}."
        yield ""
    if any(entry["written"]["test"] for entry in manifest["counts"].values()):
        near = manifest["method"]["near_duplicates"]
        alike = f", and none that is nearly the same (similarity from {near} on)," if near is not None else ""
        yield f"No prompt of the test split{alike} is in the training split."
        yield ""
    yield from table(("column", "in", "what it says"), list(_columns(manifest)))


def _version(manifest: Json) -> Iterator[str]:
    """What is new, in a dataset that is one of several versions."""
    version = manifest.get("version")
    if version is None:
        return
    yield f"## What is new in {version['name']}"
    yield ""
    if version["before"] is None:
        yield "It is the first version: every row is new."
        yield ""
        return
    before = version["before"]
    rows = [
        (f"`{config}`", split, *(str(version["counts"][config][split][change]) for change in CHANGES))
        for config in CONFIGS
        for split in SPLITS
        if any(version["counts"][config][split].values())
    ]
    yield f"Against the version before, {before['name']} (content `{before['content_sha'][:16]}`)" + (
        ":" if rows else ", no row has changed."
    )
    yield ""
    yield from table(("config", "split", *CHANGES), rows)
    yield (
        "`changes.parquet` has the ids of those rows. A prompt stays in the split in which the version before has it; "
        "a new one that is nearly the same as prompts of both is left out (`between_splits`)."
    )
    yield ""


def _columns(manifest: Json) -> Iterator[tuple[str, str, str]]:
    there = _there(manifest)
    by_person = " Where a person decided against the judge it is 1 and the margin 0." if manifest["by_person"] else ""
    told: tuple[tuple[str, tuple[Config, ...], str], ...] = (
        ("row_id", CONFIGS, "the answer's row in the run; `~1` marks a second sample, `helpful:` what comes from "
         "elsewhere. `cai show RUN ROW_ID` tells all of a row, down to each call of a model; the run itself is not in "
         "this folder"),
        ("pair_id", ("preference", "reward", "kto"), "the pair of answers, in the same way"),
        ("principle_ids", CONFIGS, "in `sft`: the principles of the critiques that led to the answer; else those that "
         "the pair was judged by"),
        ("answer_from", ("sft",), "`revision-N`: rewritten N times; `response`: as it came, since the critic found "
         "nothing (which is no proof); `helpful`: from elsewhere"),
        ("chosen_probability", ("preference", "reward"), "the judge's probability that the chosen answer is the "
         f"better one.{by_person}"),
        ("margin", ("reward",), "its log-odds: ln(p / (1 - p))"),
    )  # fmt: skip
    for name, configs, text in told:
        where = [f"`{one}`" for one in configs if one in there]
        if where:
            yield f"`{name}`", "all" if len(configs) == len(CONFIGS) else ", ".join(where), text


def _before(manifest: Json) -> Iterator[str]:
    """What whoever trains on it should know first."""
    answers, pairs = _written(manifest, "sft"), _written(manifest, "preference")
    yield "## Before you train on it"
    yield ""
    if answers + pairs < _FEW_ROWS:
        there = [f"{number} {name}" for number, name in ((answers, "of `sft`"), (pairs, "of `preference`")) if number]
        yield f"- The rows ({' and '.join(there)}) show what such data looks like. They are too few to train anything."
    yield (
        "- Prompts, rejected answers and chosen answers too may be harmful: chosen only means better than the other. "
        "Never imitate rejected answers, and look at a sample of the rest."
    )
    if pairs:
        seen = manifest["reviewed"]
        looked = f"A person decided {seen} of them. " if seen else "No person has looked at them. "
        by_model = f"A model decided {pairs - seen} of the {pairs} pairs. " if seen < pairs else ""
        yield f"- {by_model}{looked}`cai calibrate` measures how often such a judge is right."
        sure = ", ".join(f"{share} at least {bound}" for bound, share in manifest["sure_pairs"].items())
        yield f"- How sure the judge was: of {pairs} pairs, `chosen_probability` is for {sure}."
        mass = manifest["mean_letter_mass"]
        if mass is not None and mass < 0.5:
            yield (
                f"- The words that the judge was to choose from had {percent(mass)} of its probability on average. It "
                "hardly followed the question: mistrust these labels."
            )
    if manifest["sft_rejected"]:
        count = manifest["sft_rejected"]
        yield f"- Answers in `sft` that are the rejected side of a pair, another being better: {count}."
    if manifest["method"]["helpful"] is None and answers:
        yield "- No helpful answers are mixed in: a model trained on `sft` alone may come to refuse too much."
    for stage, entry in sorted(manifest["run"]["stages"].items()):
        if not entry["finished"]:
            yield f"- The stage {stage} was not finished when this was exported."
    yield "- A constitution says what its authors wanted, not what everyone wants."
    yield "- Refusals are recognised in English only, and words counted where there are spaces between them."
    yield ""


_TOLD = (
    *("gate", "gate_threshold", "rounds", "principles", "wording", "few_shot", "samples", "temperature", "max_tokens"),
    *("revision_tries", "failed_revision", "pairs", "judge_mode", "judge_principles", "judge_temperature"),
    *("tie_band", "min_agreement", "min_mass", "seed"),
)


def _how(manifest: Json) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    rows: list[tuple[str, str]] = []
    for stage, entry in sorted(manifest["run"]["stages"].items()):
        done = "" if entry["finished"] else " (not finished)"
        if entry["prompts"]:
            more = "; it has more, which a limit left unread" if entry["prompts"].get("unread") else ""
            told = f"{code(entry['prompts']['name'])}, {entry['prompts']['rows']}{more}"
            rows.append((f"{stage}{done}: prompts", told))
        roles: dict[str, list[str]] = {}
        for role, model in sorted(entry["models"].items()):
            roles.setdefault(model, []).append(role)
        rows += [(f"{stage}{done}: {', '.join(names)}", code(model)) for model, names in roles.items()]
        texts = [f"{name.removesuffix('_sha')} {text[:12]}" for name, text in sorted(entry["texts"].items())]
        rows.append((f"{stage}: digests", code(", ".join(one for one in texts if not one.startswith("constitution ")))))
        settings = [f"{name} {entry['settings'][name]}" for name in _TOLD if name in entry["settings"]]
        if settings:
            rows.append((f"{stage}: settings", code(", ".join(settings))))
    rows.append(("digest of the run's own manifest", code((manifest["run"]["manifest_sha256"] or "none")[:12])))
    made_with = ", ".join(f"{name} {number}" for name, number in sorted(manifest["versions"].items()))
    rows.append(("made with", code(made_with)))
    yield from table(("what", "value"), rows)
    yield "`cai revise --help` and `cai label --help` explain each setting; whole digests are in `manifest.json`."
    yield ""


def _constitution(manifest: Json, constitutions: Sequence[Constitution]) -> Iterator[str]:
    yield "## The constitution, and what each principle did"
    yield ""
    stages = manifest["run"]["stages"]
    used, header = manifest["principles"], ("principle", "what it asks", *_DEEDS)
    by_sha = {stage: entry["texts"].get("constitution_sha") for stage, entry in stages.items()}
    revised = ((stages.get("revise") or {}).get("counts") or {}).get("by_principle", {})
    every = _Deeds(revised, used["sft"], used["preference"], manifest["labels"]["verdicts"])
    for one in constitutions:
        yield (
            f"**{plain(one.name)}**, version {plain(one.version)}: {plain(one.description)} (sha256 `{one.sha[:12]}`)"
        )
        yield ""
        # Two constitutions may have a principle of the same name: each is told only what it did itself.
        wrote = (every.revised, every.sft) if one.sha == by_sha.get("revise") else ({}, {})
        judged = (every.preference, every.verdicts) if one.sha == by_sha.get("label") else ({}, {})
        mine = _Deeds(*wrote, *judged)
        rows = [(code(each.id), plain(each.statement), *mine.of(each.id)) for each in one.principles]
        yield from table(header, rows)
    known = {principle.id for one in constitutions for principle in one.principles}
    others = sorted({*every.revised, *every.sft, *every.preference, *every.verdicts} - known)
    if others:
        yield "Principles of which the run kept no text:"
        yield ""
        yield from table(header, [(code(name), "", *every.of(name)) for name in others])
    yield (
        "`chosen`: for how many answers it was chosen. `criticised`: how often the answer was then criticised by it. "
        f"{_gate(manifest, constitutions)}`sft`: rows there that such a critique led to. `pairs`: rows of "
        "`preference` that it judged. `verdicts`: all that the judge gave by it, also on pairs that are not in this "
        "dataset (two a pair where both orders are asked), and how many of those that could be read sided with the "
        "label that they are a part of."
    )
    yield ""


_DEEDS = ("chosen", "criticised", "sft", "pairs", "verdicts")


def _gate(manifest: Json, constitutions: Sequence[Constitution]) -> str:
    """What the gate was asked, and so what it says that an answer was criticised."""
    told = manifest["run"]["stages"].get("revise")
    if told is None:
        return ""
    gate = gate_of(told, constitutions)
    asked = f"The gate was asked one question about all principles at once: {plain(gate.question)} "
    return f"{asked if gate.question is not None else ''}{gate.meaning} "


@dataclass(frozen=True, slots=True)
class _Deeds:
    """What principles did, by id: in the rounds of revision, in the two datasets, and as a judge."""

    revised: Json
    sft: Json
    preference: Json
    verdicts: Json

    def of(self, name: str) -> tuple[str, ...]:
        """One principle's cells under `_DEEDS`."""
        revised = self.revised.get(name, {"applied": 0, "found_broken": 0})
        judged = self.verdicts.get(name, {"asked": 0, "unread": 0, "with_the_label": 0})
        read = judged["asked"] - judged["unread"]
        sided = f"{judged['asked']}, {judged['with_the_label']} of {read} with the label" if judged["asked"] else "0"
        looked = (str(revised["applied"]), str(revised["found_broken"]))
        return *looked, str(self.sft.get(name, 0)), str(self.preference.get(name, 0)), sided


def _rates(manifest: Json) -> Iterator[str]:
    yield "## Rates"
    yield ""
    rows: list[tuple[str, str]] = []
    for stage, entry in sorted(manifest["run"]["stages"].items()):
        counts = entry["counts"] or {}
        unit = "pairs" if stage == "label" else "rows"
        for name in ("read", "kept", "dropped", "changed"):
            if isinstance(counts.get(name), int):
                rows.append((f"{stage}: {unit} {name}", str(counts[name])))
        rounds = list(counts.get("by_round", {}).values())
        if rounds:
            asked, taken = (sum(one[name] for one in rounds) for name in ("revisions_asked", "changed"))
            rows.append((f"{stage}: revisions asked for, tries included, and taken", f"{asked}, {taken}"))
    labels = manifest["labels"]
    pairs = sum(sum(kind.values()) for kind in labels["won"].values())
    if pairs:
        rows.append(("of the pairs judged, decided", f"{labels['decided']} ({percent(labels['decided'] / pairs)})"))
        left_open = sorted(labels["undecided_by_reason"].items())
        rows += [(f"the judge left open: {plain(name)}", str(n)) for name, n in left_open]
        if labels["reviewed"]["n"]:
            same = percent(labels["reviewed"]["same"]["value"])
            rows.append(("labels that a person looked at", f"{labels['reviewed']['n']} (the same choice in {same})"))
        if labels["mean_position_gap"] is not None:
            rows.append(("mean difference between the two orders of showing a pair", str(labels["mean_position_gap"])))
    if manifest["mean_chosen_probability"] is not None:
        rows.append(
            ("mean `chosen_probability` of the pairs in this dataset", str(manifest["mean_chosen_probability"]))
        )
    rows += [(f"rows of `preference`: {plain(kind)}", str(n)) for kind, n in manifest["pair_kinds"].items()]
    rows += [(f"rows of `sft`: {plain(name)}", str(count)) for name, count in manifest["answers"].items()]
    if manifest["method"]["helpful"] is not None:
        asked = percent(manifest["method"]["helpful_share"])
        rows.append(("share of helpful answers in `sft`", f"{percent(manifest['helpful_share'])} ({asked} asked for)"))
    yield from table(("what", "value"), rows)


def _style(manifest: Json) -> Iterator[str]:
    if not _written(manifest, "preference"):
        return
    yield "## Do the pairs teach style?"
    yield ""
    sides, probe = manifest["sides"], manifest["separability"]
    yield from table(
        ("", "chosen", "rejected"),
        [
            ("mean words", *(str(sides[side]["mean_words"]) for side in ("chosen", "rejected"))),
            ("refusals (English)", *(percent(sides[side]["refusals"]) for side in ("chosen", "rejected"))),
        ],
    )
    if sides["longer_chosen"] is not None:
        longer = percent(sides["longer_chosen"])
        yield f"Where the lengths differ, the longer answer is the chosen one in {longer} of pairs."
        yield ""
    yield _verdict(probe)
    yield ""
    if probe["auc"] is not None:
        words = {side: ", ".join(code(word) for word in probe[f"{side}_words"]) for side in ("chosen", "rejected")}
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
    yield (
        "Rows read = written + left out, for every config; a pair is one row of `preference` and two of `kto`. "
        "`cut_off`: the answer to be imitated, or chosen, ended at the token limit. `revision_failed`: a revision was "
        "asked for, and none passed the checks."
    )
    yield ""
    rows: list[tuple[str, ...]] = []
    for config, entry in _counts(manifest):
        written = _written(manifest, config)
        reasons = ", ".join(f"{plain(name)} {count}" for name, count in entry["left_out"].items()) or "-"
        rows.append((f"`{config}`", str(entry["read"]), str(written), reasons))
    yield from table(("config", "read", "written", "left out"), rows)
    method = manifest["method"]
    near, ratio = method["near_duplicates"], method["length_ratio"]
    yield "What was looked for:"
    yield ""
    yield "- Exact duplicates: the same but for case and spacing."
    yield "- Near duplicates: " + (
        "not looked for."
        if near is None
        else f"answers to the same or nearly the same prompt whose runs of three words overlap by {near} (Jaccard)."
    )
    yield "- Pairs of very unequal length: " + (
        "not looked for." if ratio is None else f"pairs in which one answer has over {ratio} times the other's words."
    )
    sets = [f"{code(one['name'])} (sha256 `{one['sha256'][:12]}`)" for one in manifest["evaluation_sets"]]
    yield "- Evaluation sets: " + (
        f"rows that share 13 words in a row with {', '.join(sets)}, or a whole shorter text."
        if sets
        else "the data was compared with none."
    )
    for reason, count in manifest["view_left_out"].items():
        yield f"- Not in the files for {method['trainer']}: {count} ({plain(reason)})."
    yield ""


def _use(manifest: Json) -> Iterator[str]:
    first = _there(manifest)[0]
    yield "## How to load it and train on it"
    yield ""
    yield f'`datasets.load_dataset("DIR", "{first}")`, where DIR is the path of this folder; it needs no network.'
    yield ""
    if manifest["mean_chosen_probability"] is not None:
        smooth = smoothing(manifest)
        wrong = percent(1 - manifest["mean_chosen_probability"])
        yield (
            f"The labels are soft, and TRL's DPOTrainer takes no probability for each row. If the judge's "
            f"probabilities are right, {wrong} of the pairs are the wrong way round, and a label smoothing of {smooth} "
            f"fits. TRL 1.16 heeds it with the losses `exo_pair` and `robust` and ignores it with `sigmoid`; `robust` "
            f"has no lower bound, and the nearer the smoothing is to a half the steeper it falls."
        )
        yield ""
    trainer = manifest["method"]["trainer"]
    written = {config: entry["written"] for config, entry in manifest["counts"].items()}
    yield snippet(trainer, smoothing(manifest), written)
    yield ""


_ANEW = "From the finished run, this makes the dataset again, byte for byte:"


def _again(manifest: Json) -> Iterator[str]:
    yield "## Licence, and how to make it again"
    yield ""
    yield (
        f"Licence: {plain(manifest['method']['licence'])}. The licences of the prompts and of the models that wrote "
        "the answers hold too. " + ("From the run, this wrote this version:" if "version" in manifest else _ANEW)
    )
    yield ""
    yield fence(visible(manifest["command"]))
