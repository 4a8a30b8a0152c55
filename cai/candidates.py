"""What of a run may be trained on: answers for supervised fine-tuning, decided pairs, helpful answers from elsewhere.

Whatever may not is counted by reason, so that read = given on + left out. The reasons:

    revision_failed      a revision of the response was asked for and none could be taken
    still_broken         the gate found the last revision broken, and a better one could not be had
    clean_left_out       the gate found the response clean, and clean answers were not asked for
    cut_off              the answer ended at the token limit
    not_judged           the row has no rounds: nobody has looked at the response
    no_label             a pair without a label
    too_few_readable ... a pair whose label decides nothing: the reason that the label gives (`label.REASONS`)
    person_chose_neither a person looked at the pair
    unusable             helpful rows only: no prompt that ends with the user, or no answer behind it
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cai.dataset import Answer, DecidedPair
from cai.errors import BadInput
from cai.ids import file_digest
from cai.inputs import ROLES
from cai.label import why_none
from cai.pairs import row_of
from cai.rows import Message, as_messages, is_text
from cai.seal import Json
from cai.sources import Unreadable, read_records
from cai.store import Run, open_run

# Before the ids of helpful answers, which come from another run or file and may be called like rows of this one.
HELPFUL = "helpful:"


@dataclass(slots=True)
class Candidates:
    """What may be trained on, in input order, and how many of what else there was."""

    answers: list[Answer] = field(default_factory=list[Answer])
    pairs: list[DecidedPair] = field(default_factory=list[DecidedPair])
    left_out: Counter[str] = field(default_factory=Counter[str])

    def add(self, found: Answer | DecidedPair | str) -> None:
        """An answer, a pair, or the reason why there is none."""
        if isinstance(found, Answer):
            self.answers.append(found)
        elif isinstance(found, DecidedPair):
            self.pairs.append(found)
        else:
            self.left_out[found] += 1


def run_answers(run: Run, which: Literal["final", "all"], clean_answers: bool) -> Candidates:
    """The answers of a run's trajectories.

    "final" gives the last revision of each row that was taken, "all" every one of them, as in Bai et al. 2022, section
    3.1. With `clean_answers` also the responses that the gate, or a critique that found nothing, left alone.
    """
    found = Candidates()
    for row in run.records("trajectories", ["row_id", "prompt", "response", "response_finish", "rounds"]):
        for one in answers_of(row, which, clean_answers):
            found.add(one)
    return found


def answers_of(row: Json, which: Literal["final", "all"], clean_answers: bool) -> Iterator[Answer | str]:
    """The answers of one trajectory, see `run_answers`, or the reason why there is none."""
    prompt = as_messages(row["prompt"])
    asked = [one for one in row["rounds"] if one["revision"] is not None]
    if not asked:
        yield _response(row, prompt, clean_answers)
        return
    taken = [place for place, one in enumerate(asked) if one["taken"]]
    if not taken:
        yield "revision_failed"
        return
    # Without a gate every answer is revised: that a later revision failed then says nothing against this one.
    broken = any(one["gate_call"] is not None for one in asked[taken[-1] + 1 :])
    for number, place in enumerate(taken, start=1):
        if place == taken[-1] and broken:
            yield "still_broken"
        elif place == taken[-1] or which == "all":
            principles = dict.fromkeys(one["principle_id"] for one in asked[: place + 1])
            yield Answer(row["row_id"], prompt, asked[place]["revision"], f"revision-{number}", tuple(principles))


def _response(row: Json, prompt: tuple[Message, ...], clean_answers: bool) -> Answer | str:
    # No round asked for a revision, so the gate was on: without one, every round does.
    if not row["rounds"]:
        return "not_judged"
    if row["response_finish"] == "length":
        return "cut_off"
    return Answer(row["row_id"], prompt, row["response"], "response", ()) if clean_answers else "clean_left_out"


def run_pairs(run: Run) -> Candidates:
    """The pairs of a run that its labels decide, seen from the chosen answer.

    Where a person chose against the judge, or the judge gave no probability, `chosen_probability` is 1 (a person's word
    is no estimate) and the margin is 0 (nobody has said how much better the answer is). Raises BadInput if a label
    that no person has looked at chooses the less likely answer: then something has swapped the two.
    """
    found = Candidates()
    labels = {label["pair_id"]: label for label in run.records("labels")}
    cut_off = cut_off_rows(run)
    for pair in run.records("pairs"):
        label = labels.get(pair["pair_id"])
        found.add(decided_pair(run, pair, label, cut_off) if label is not None else "no_label")
    return found


def decided_pair(run: Run, pair: Json, label: Json, cut_off: set[str]) -> DecidedPair | str:
    """One pair as its label decides it, see `run_pairs`, or the reason why it decides nothing to train on."""
    if label["chosen"] == "none":
        return why_none(label)
    chosen, rejected = ("a", "b") if label["chosen"] == "a" else ("b", "a")
    origin = pair[f"{chosen}_from"]
    if row_of(pair, origin) in cut_off and (origin == "response" or origin.startswith("sample-")):
        return "cut_off"
    likely = label["probability_a"]
    if likely is not None and chosen == "b":
        likely = 1 - likely
    margin = label["margin"] or 0.0
    by_person = likely is None or likely < 0.5
    if likely is None or likely < 0.5:
        if label["reviewed"] is None:
            raise BadInput(
                str(run.folder / "labels"), f"a label of {pair['pair_id']} that chooses the less likely answer",
                "the likelier one", "The table is damaged: remove its shards and label the run again.",
            )  # fmt: skip
        likely, margin = 1.0, 0.0
    return DecidedPair(
        pair["pair_id"], pair["row_id"], as_messages(pair["prompt"]), pair[chosen], pair[rejected], origin,
        pair[f"{rejected}_from"], likely, margin, tuple(label["principles"]),
        by_person, label["reviewed"] is not None,
    )  # fmt: skip


def cut_off_rows(run: Run) -> set[str]:
    """The rows whose response ended at the token limit. Revisions that did were never taken."""
    # Pairs are made of trajectories where there are any, see `pairs.RunPairs`.
    table, why = ("trajectories", "response_finish") if run.finished_shards("trajectories") else ("responses", "finish")
    return {row["row_id"] for row in run.records(table, ["row_id", why]) if row[why] == "length"}


def helpful_answers(source: str) -> Candidates:
    """Helpful answers to mix in: a run's responses, or a file's `messages`, or its `prompt` and `response`.

    Raises BadInput if `source` is neither a run nor such a file, if the run is not finished or not as it was finished,
    or if not one of its rows can be used.
    """
    found = Candidates()
    if Path(source).is_dir():
        run = open_run(source)
        if "generate" in run.settings() and "generate" not in run.manifest():
            remedy = "Run cai generate to its end."
            raise BadInput(f"--helpful {source}", "an unfinished cai generate", "a finished one", remedy)
        run.check_files("generate")
        for row in run.records("responses"):
            prompt = as_messages(row["prompt"])
            cut = row["finish"] == "length"
            found.add("cut_off" if cut else Answer(HELPFUL + row["row_id"], prompt, row["response"], "helpful", ()))
    else:
        for place, record in read_records(source):
            found.add(_helpful(place, record))
    if not found.answers:
        raise BadInput(
            f"--helpful {source}", "no answer that can be used",
            "a run with responses, or rows with 'messages', or with 'prompt' and 'response'", "Check what it holds.",
        )  # fmt: skip
    return found


def helpful_origin(source: str) -> Json:
    """The name of what helpful answers come from, and a digest of its rows if they are files."""
    path = Path(source)
    sha = open_run(source).files_sha("generate") if path.is_dir() else file_digest(path) if path.is_file() else None
    return {"name": path.name, "sha": sha}


def _helpful(place: str, record: Json | Unreadable) -> Answer | str:
    if isinstance(record, Unreadable):
        return "unusable"
    given: Any = record.get("messages")
    if given is None:
        prompt, answer = record.get("prompt"), record.get("response")
        asked: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        given = [*asked, {"role": "assistant", "content": answer}] if isinstance(asked, list) else None
    if not isinstance(given, list) or not all(_is_message(turn) for turn in given):
        return "unusable"
    messages = as_messages(given)
    if [message.role for message in messages[-2:]] != ["user", "assistant"]:
        return "unusable"
    named = str(record.get("id") or place)
    named = named if named.isprintable() else place
    return Answer(HELPFUL + named, messages[:-1], messages[-1].content, "helpful", ())


def _is_message(turn: Any) -> bool:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        return False
    content = turn.get("content")
    return isinstance(content, str) and bool(content.strip()) and is_text(content)
