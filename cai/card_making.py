"""The sections of a dataset's card that say how it came about, in numbers: the settings, what each principle did, the
rates, whether the pairs teach style, what was left out.

Each is a generator of Markdown lines, made from the manifest alone, but for the words of the constitutions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai.constitution import Constitution
from cai.dataset import CONFIGS, Config
from cai.markdown import code, percent, plain, table
from cai.report.gate import gate_of
from cai.seal import Json

# The heading of the one section that the manifest alone does not make.
CONSTITUTION = "## The constitution, and what each principle did"


def rows_written(manifest: Json, config: Config) -> int:
    """The rows of a config, over its splits."""
    return sum(manifest["counts"][config]["written"].values())


def configs_there(manifest: Json) -> list[Config]:
    """The configs that have rows."""
    return [config for config in CONFIGS if rows_written(manifest, config)]


def counts_of(manifest: Json) -> list[tuple[Config, Json]]:
    """What was read, left out and written, by config."""
    return [(config, manifest["counts"][config]) for config in CONFIGS]


_TOLD = (
    *("gate", "gate_threshold", "rounds", "principles", "wording", "few_shot", "samples", "temperature", "max_tokens"),
    *("revision_tries", "failed_revision", "pairs", "judge_mode", "judge_principles", "judge_temperature"),
    *("tie_band", "min_agreement", "min_mass", "seed"),
)


def how_it_was_made(manifest: Json) -> Iterator[str]:
    """What each stage read, asked and was told, with its digests."""
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


def the_constitution(manifest: Json, constitutions: Sequence[Constitution]) -> Iterator[str]:
    """Each principle, and what came of it."""
    yield CONSTITUTION
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


def rates(manifest: Json) -> Iterator[str]:
    """How many rows and pairs came through each stage, and what was decided."""
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


def style(manifest: Json) -> Iterator[str]:
    """Whether length, refusals or single words alone tell chosen from rejected answers."""
    if not rows_written(manifest, "preference"):
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


def left_out(manifest: Json) -> Iterator[str]:
    """What was read and not written, by reason, and what was looked for."""
    yield "## What was left out"
    yield ""
    yield (
        "Rows read = written + left out, for every config; a pair is one row of `preference` and two of `kto`. "
        "`cut_off`: the answer to be imitated, or chosen, ended at the token limit. `revision_failed`: a revision was "
        "asked for, and none passed the checks."
    )
    yield ""
    rows: list[tuple[str, ...]] = []
    for config, entry in counts_of(manifest):
        written = rows_written(manifest, config)
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
