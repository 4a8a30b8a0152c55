"""The README.md of an exported dataset: what is in it, how it was made, what to mistrust, how to train on it.

It is made from the manifest and the constitutions alone, so it says what the manifest says, and `cai verify` makes it
once more: no order in it may be that of names in the manifest, which a file has sorted. Text from people and models is
escaped or fenced, so that it cannot become Markdown.
"""

from collections.abc import Iterator, Sequence

import yaml

from cai.card_making import (
    configs_there,
    counts_of,
    how_it_was_made,
    left_out,
    rates,
    rows_written,
    style,
    the_constitution,
)
from cai.constitution import Constitution
from cai.dataset import CONFIGS, SPLITS, Config
from cai.markdown import percent, plain, table
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
        *how_it_was_made(manifest),
        *rates(manifest),
        *style(manifest),
        *left_out(manifest),
        *the_constitution(manifest, constitutions),
        *_again(manifest),
    ]
    return f"---\n{_front(manifest)}---\n\n" + "\n".join(sections) + "\n"


def smoothing(manifest: Json) -> float:
    """The label smoothing that fits: the share of labels that are wrong if the judge's probabilities are right."""
    mean = manifest["mean_chosen_probability"]
    least, most = _SMOOTHING
    return least if mean is None else max(least, min(most, round(1 - mean, 3)))


def _front(manifest: Json) -> str:
    counts, there = manifest["counts"], configs_there(manifest)
    total = sum(rows_written(manifest, config) for config in CONFIGS)
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
    distinct, there = manifest["distinct_prompts"], configs_there(manifest)
    yield from table(
        ("config", "train", "test", "prompts", "what a row is"),
        [
            (
                f"`{config}`", str(entry["written"]["train"]), str(entry["written"]["test"]),
                str(distinct["sft" if config == "sft" else "preference"]), _WHAT[config],
            )
            for config, entry in counts_of(manifest)
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
    there = configs_there(manifest)
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
    answers, pairs = rows_written(manifest, "sft"), rows_written(manifest, "preference")
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


def _use(manifest: Json) -> Iterator[str]:
    first = configs_there(manifest)[0]
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
