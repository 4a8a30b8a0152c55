"""What makes rows unfit to train or to measure on: duplicates, contradictions, lengths apart, evaluation texts.

Near duplicates are texts whose runs of three words have at least a given Jaccard similarity. MinHash finds candidates
(`datasketch`, banded so that a pair at the threshold is missed less than once in a hundred times), and each candidate
is then compared word for word, so that none is removed by chance.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cai.dataset import Answer, DecidedPair
from cai.errors import BadInput
from cai.ids import digest, file_digest
from cai.rows import Message
from cai.sources import Unreadable, read_records
from cai.texts import phrases, words_of

T = TypeVar("T", Answer, DecidedPair)
GRAM = 13  # words in a row that two texts do not share by chance (Brown et al. 2020, appendix C)
BETWEEN = "between_splits"  # alike to prompts of both splits, none of which may move
_PERMUTATIONS = 128
_MISSED = 0.01


def normal(text: str) -> str:
    """A text as it is compared: without regard to case, spacing and the forms of a character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(prompt: Sequence[Message]) -> str:
    """The name of a conversation: equal for conversations with the same turns."""
    return digest([[message.role, normal(message.content)] for message in prompt])


def _spoken(prompt: Sequence[Message]) -> list[Message]:
    return [message for message in prompt if message.role != "system"]


# Near duplicates


def shingles(text: str, mark: str = "") -> frozenset[str]:
    """A text's runs of three words, each behind `mark`; of a shorter text, the text itself."""
    runs = phrases(text, 3) or {normal(text)}
    return frozenset(f"{mark} {run}" for run in runs) if mark else frozenset(runs)


def near_duplicates(texts: Iterable[frozenset[str]], threshold: float, keep: bool) -> Iterator[list[int]]:
    """For each text, the numbers of those before it that are at least so similar.

    Without `keep`, a text that has some is not compared with those behind it: it is to be removed.
    """
    from datasketch import MinHash, MinHashLSH

    index: Any = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(threshold))
    kept: dict[int, frozenset[str]] = {}
    for number, one in enumerate(texts):
        sketch: Any = MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch([run.encode("utf-8") for run in one])
        found = [other for other in sorted(index.query(sketch)) if _jaccard(one, kept[other]) >= threshold]
        if keep or not found:
            index.insert(number, sketch)
            kept[number] = one
        yield found


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows: as many rows as still find a pair at the threshold, so that there are few false candidates."""
    fits = [
        rows for rows in range(1, _PERMUTATIONS // 2 + 1) if (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISSED
    ]
    rows = max(fits, default=1)
    return _PERMUTATIONS // rows, rows


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def prompt_groups(prompts: Iterable[Sequence[Message]], threshold: float | None) -> dict[str, str]:
    """The group of each prompt, by its key: prompts of one group go into one split.

    Equal prompts are in one group, whatever the system said, near duplicates too (with a threshold), and so are a
    conversation and the prompt that it goes on from, and conversations that begin with the same question and answer. A
    group is named by the smallest key in it, so that its name does not depend on the order.
    """
    unique = {prompt_key(prompt): prompt for prompt in prompts}
    group = {key: key for key in unique}

    def find(key: str) -> str:
        while group[key] != key:
            group[key] = key = group[group[key]]
        return key

    def join(one: str, other: str) -> None:
        low, high = sorted((find(one), find(other)))
        group[high] = low

    # The first prompt with each beginning: a single question is one only where it is a whole prompt.
    first: dict[str, str] = {}
    for key, prompt in unique.items():
        first.setdefault(prompt_key(_spoken(prompt)), key)
    for key, prompt in unique.items():
        spoken = _spoken(prompt)
        for length, message in enumerate(spoken, start=1):
            begun = prompt_key(spoken[:length])
            if length > 1 and message.role == "assistant":
                first.setdefault(begun, key)
            if begun in first:
                join(key, first[begun])
    if threshold is not None:
        keys = list(unique)
        texts = (shingles("\n".join(message.content for message in unique[key])) for key in keys)
        for number, near in enumerate(near_duplicates(texts, threshold, keep=True)):
            for other in near:
                join(keys[number], keys[other])
    return {key: find(key) for key in unique}


# Texts that are too far apart in length, and texts of evaluation sets


def apart(pair: DecidedPair, ratio: float) -> bool:
    """Whether one answer of a pair has more than `ratio` times the words of the other."""
    short, long = sorted(max(1, len(words_of(text))) for text in (pair.chosen, pair.rejected))
    return long > ratio * short


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The texts of an evaluation set: their runs of 13 words, and whole texts that are shorter than that.

    Languages that do not put spaces between words have few of them, and are found only where a whole text is equal.
    """

    name: str
    sha256: str
    grams: frozenset[str]
    short: frozenset[str]


def read_evaluation(file: str) -> Evaluation:
    """Every text in a .jsonl, .parquet, .csv or .txt file, whatever its columns are called.

    Raises BadInput if there is a record that cannot be read: a set that is read in part protects in part.
    """
    grams: set[str] = set()
    short: set[str] = set()
    for text in _texts_of_file(file):
        words = words_of(text)
        if len(words) >= GRAM:
            grams |= phrases(text, GRAM)
        elif len(words) >= 3 or len("".join(words)) >= 12:  # "yes" or "(B)" is in every text
            short.add(" ".join(words))
    if not grams and not short:
        raise BadInput(f"--decontaminate {file}", "no text", "the texts of an evaluation set", "Check the file.")
    return Evaluation(Path(file).name, file_digest(Path(file)), frozenset(grams), frozenset(short))


def _texts_of_file(file: str) -> Iterator[str]:
    if not Path(file).is_file():
        raise BadInput(f"--decontaminate {file}", "no such file", "an evaluation set", "Check the path.")
    if Path(file).suffix == ".txt":
        try:
            yield from Path(file).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise BadInput(f"--decontaminate {file}", f"no UTF-8 ({error})", "UTF-8 text", "Convert it.") from error
        return
    for place, record in read_records(file):
        if isinstance(record, Unreadable):
            raise BadInput(place, record.found, "a record of an evaluation set", "Mend it.")
        yield from _texts(record)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def found_in(texts: Iterable[str], evaluations: Sequence[Evaluation]) -> str | None:
    """The name of the first evaluation set that shares 13 words in a row with one of the texts, or has it whole."""
    for text in texts:
        grams, whole = phrases(text, GRAM), " ".join(words_of(text))
        for evaluation in evaluations:
            if whole in evaluation.short or not grams.isdisjoint(evaluation.grams):
                return evaluation.name
    return None


# All of it, in order


def clean_answers(
    answers: Sequence[Answer], groups: Mapping[str, str], evaluations: Sequence[Evaluation], threshold: float | None,
    between: Set[str] = frozenset(),
) -> tuple[list[Answer], Counter[str]]:  # fmt: skip
    """The answers without duplicates and evaluation texts, and how many were left out for what; the first one stays.

    `groups` are those of `prompt_groups`; `threshold` None leaves near duplicates in; `between` are the keys of prompts
    that belong to no split.
    """
    left_out: Counter[str] = Counter()
    kept: list[Answer] = []
    seen: set[str] = set()
    for one in answers:
        prompt = prompt_key(one.prompt)
        key = digest([prompt, normal(one.answer)])
        if prompt in between:
            reason = BETWEEN
        else:
            reason = "duplicate" if key in seen else _contaminated(one.prompt, [one.answer], evaluations)
        seen.add(key)
        if reason is None:
            kept.append(one)
        else:
            left_out[reason] += 1
    kept, near = _without_near_duplicates(kept, lambda one: [one.answer], groups, threshold)
    return kept, left_out + Counter({"near_duplicate": near})


def clean_pairs(
    pairs: Sequence[DecidedPair], groups: Mapping[str, str], evaluations: Sequence[Evaluation],
    threshold: float | None, length_ratio: float | None, between: Set[str] = frozenset(),
) -> tuple[list[DecidedPair], Counter[str]]:  # fmt: skip
    """The pairs without duplicates, contradictions, evaluation texts and answers too far apart in length.

    Two pairs contradict each other if each chooses what the other rejects; neither stays. Nor does a pair whose answers
    differ in case and spacing only.
    """
    left_out: Counter[str] = Counter()
    sides = [(prompt_key(one.prompt), normal(one.chosen), normal(one.rejected)) for one in pairs]
    every = set(sides)
    kept: list[DecidedPair] = []
    seen: set[tuple[str, str, str]] = set()
    for one, (prompt, chosen, rejected) in zip(pairs, sides, strict=True):
        if prompt in between:
            reason = BETWEEN
        elif chosen == rejected:
            reason = "alike"
        elif (prompt, rejected, chosen) in every:
            reason = "contradicted"
        elif (prompt, chosen, rejected) in seen:
            reason = "duplicate"
        elif length_ratio is not None and apart(one, length_ratio):
            reason = "lengths_apart"
        else:
            reason = _contaminated(one.prompt, [one.chosen, one.rejected], evaluations)
        seen.add((prompt, chosen, rejected))
        if reason is None:
            kept.append(one)
        else:
            left_out[reason] += 1
    kept, near = _without_near_duplicates(kept, lambda one: [one.chosen, one.rejected], groups, threshold)
    return kept, left_out + Counter({"near_duplicate": near})


def _contaminated(prompt: Sequence[Message], texts: Sequence[str], evaluations: Sequence[Evaluation]) -> str | None:
    found = found_in([*(message.content for message in prompt), *texts], evaluations) if evaluations else None
    return f"in_evaluation_set:{found}" if found is not None else None


def _without_near_duplicates(
    rows: Sequence[T], texts: Callable[[T], Sequence[str]], groups: Mapping[str, str], threshold: float | None
) -> tuple[list[T], int]:
    """The rows whose texts, taken together, are no near duplicate of those of a row before, and how many are.

    Only answers to like prompts are compared, by marking their runs of words with the prompt's group: a hundred prompts
    that are refused in the same words are a hundred rows. The mark also keeps chosen and rejected answers apart.
    """
    if threshold is None:
        return list(rows), 0
    names = [groups[prompt_key(row.prompt)] for row in rows]
    several = Counter(names)
    places = [place for place, name in enumerate(names) if several[name] > 1]
    runs = (
        frozenset[str]().union(
            *(shingles(text, f"{names[place]} {side}") for side, text in enumerate(texts(rows[place])))
        )
        for place in places
    )
    near = near_duplicates(runs, threshold, keep=False)
    gone = {place for place, found in zip(places, near, strict=True) if found}
    return [row for place, row in enumerate(rows) if place not in gone], len(gone)
