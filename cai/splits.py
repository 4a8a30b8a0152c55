"""Which rows of a dataset are for training and which for testing, and the tables that they make.

A prompt's split hangs on a hash of its group's name alone, so it stays when other prompts come or go. In a new version
of a dataset it also stays where the version before has it, whatever groups have become one since.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cai.dataset import SPLITS, Answer, DecidedPair, Tables, kto_rows, preference_row, reward_row, sft_row
from cai.hygiene import prompt_key
from cai.ids import digest
from cai.seal import Json


def split_of(groups: Iterable[str], seed: int, test_share: float) -> dict[str, str]:
    """The split of each prompt group, by a hash of its name: a group stays where it is when others come or go."""
    return {
        group: "test" if (int(digest([seed, "split", group])[:13], 16) + 0.5) / 16**13 < test_share else "train"
        for group in groups
    }


def between_splits(groups: Mapping[str, str], settled: Mapping[str, str]) -> set[str]:
    """The prompts, by key, that are not `settled` and alike to some of both splits: in either they would give the
    other away."""
    found: dict[str, set[str]] = {}
    for key, split in settled.items():
        if key in groups:
            found.setdefault(groups[key], set()).add(split)
    return {key for key, group in groups.items() if key not in settled and len(found.get(group, ())) > 1}


def split_tables(
    answers: Sequence[Answer], pairs: Sequence[DecidedPair], groups: Mapping[str, str], seed: int, test_share: float,
    settled: Mapping[str, str],
) -> tuple[Tables, Counter[str]]:  # fmt: skip
    """The rows of each config, by split, and why rows of `kto` were left out.

    `groups` has the group of each prompt, `settled` the split of the prompts that have one already, both by the
    prompt's key; a group goes where those of it that have one are.
    """
    by_group = split_of(set(groups.values()), seed, test_share)
    by_group |= {groups[key]: split for key, split in settled.items() if key in groups}
    for rows in (answers, pairs):
        keys = {prompt_key(one.prompt) for one in rows}
        used = {groups[key] for key in keys}
        if not keys & settled.keys() and all(by_group[group] == "test" for group in used):
            by_group |= dict.fromkeys(used, "train")  # so few that none would be left to train on

    def split(one: Answer | DecidedPair) -> str:
        key = prompt_key(one.prompt)
        return settled.get(key, by_group[groups[key]])

    by_split: dict[str, tuple[list[Answer], list[DecidedPair]]] = {
        name: ([one for one in answers if split(one) == name], [one for one in pairs if split(one) == name])
        for name in SPLITS
    }
    kto, left_out = _without_repeats({split: [*map(kto_rows, pairs)] for split, (_, pairs) in by_split.items()})
    tables: Tables = {
        "sft": {split: [sft_row(one) for one in answers] for split, (answers, _) in by_split.items()},
        "preference": {split: [preference_row(one) for one in pairs] for split, (_, pairs) in by_split.items()},
        "reward": {split: [reward_row(one) for one in pairs] for split, (_, pairs) in by_split.items()},
        "kto": kto,
    }
    return tables, left_out


def _without_repeats(rows: Mapping[str, Sequence[Sequence[Json]]]) -> tuple[dict[str, list[Json]], Counter[str]]:
    """The rows of `kto` without those that say the same again, or that are good in one pair and bad in another."""
    said: dict[str, set[bool]] = {}
    for two in (two for split in rows.values() for two in split):
        for row in two:
            said.setdefault(_said(row), set()).add(row["label"])
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    kept: dict[str, list[Json]] = {split: [] for split in rows}
    for split, pairs in rows.items():
        for row in (row for two in pairs for row in two):
            if len(said[_said(row)]) > 1:
                left_out["good_and_bad"] += 1
            elif _said(row) in seen:
                left_out["duplicate"] += 1
            else:
                seen.add(_said(row))
                kept[split].append(row)
    return kept, left_out


def _said(row: Json) -> str:
    return digest([row["prompt"], row["completion"]])
