"""One row's whole story in the terminal: conversation, response, rounds, pairs, verdicts, exports."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from cai.checks import CHECKS, CHOICE_UNREAD, PLAIN_REFUSAL
from cai.pasted import folder_word, word
from cai.screen import console, plain
from cai.screen_pair import UNDECIDED, print_pair
from cai.screen_words import KEY, boxed, compared, good, say, words_mass
from cai.seal import Json
from cai.texts import visible
from cai.word_diff import word_diff, words_changed


def print_row(story: Json) -> None:
    """What `trace.trace` found of a row."""
    screen = console()
    for row in story.get("responses", []):
        screen.rule(f"response {plain(row['row_id'])}")
        _print_conversation(screen, row["prompt"])
        boxed(screen, row["response"], "response")
        say(screen, f"model {row['model']}, call {row['call'][:KEY]}, {row['finish']}, from {row['source']}")
    for row in story.get("trajectories", []):
        _print_trajectory(screen, row, _wording(story, "revise"), story["gate"])
    for judged in story.get("pairs", []):
        print_pair(screen, judged, _wording(story, "label") or _wording(story, "calibrate"))
    for drop in story.get("drops", []):
        _print_drop(screen, drop, [one for one in story["calls"] if "text" in one and one["row_id"] == drop["row_id"]])
    _print_exports(screen, story)
    _print_notes(screen, story)
    kept = [one for one in story["calls"] if one["place"]]
    if kept:
        run = folder_word(story["run"])
        say(screen, f"Any call as it was asked: cai show {run} --call KEY")
        some = next((one for one in kept if one["use"] == "critique"), kept[0])
        where = f" of round {some['round']}" if "round" in some else ""
        told = f"{some['use']}{where} of {some['row_id']}"
        say(screen, f"  so for the {told}: cai show {run} --call {word(some['key'][:KEY])}")


def _wording(story: Json, stage: str) -> Mapping[str, Json]:
    return story["principles"].get(stage, {}).get("wording", {})


def _print_trajectory(screen: Console, row: Json, wording: Mapping[str, Json], gate: Json) -> None:
    screen.rule(f"trajectory {plain(row['row_id'])}")
    _print_conversation(screen, row["prompt"])
    boxed(screen, row["response"], f"response ({row['response_finish']}), call {row['response_call'][:KEY]}")
    answer = row["response"]
    for one in row["rounds"]:
        answer = _print_round(screen, one, answer, wording.get(one["principle_id"]), gate)
    boxed(screen, row["final"], "final, changed" if row["changed"] else "final, unchanged")
    left_out = f", up to {row['left_out_turns']} oldest turns left out" if row.get("left_out_turns") else ""
    say(
        screen,
        f"generator {row['model']}, critic {row['critic']}, reviser {row['reviser']}, seed {row['seed']}\n"
        f"constitution {row['constitution']} {row['constitution_sha'][:KEY]}, "
        f"templates {row['templates_sha'][:KEY]}, from {row['source']}\n"
        f"{row['prompt_tokens']} prompt tokens ({row['cached_tokens']} cached), "
        f"{row['completion_tokens']} generated{left_out}",
    )


def _print_round(screen: Console, one: Json, answer: str, principle: Json | None, gate: Json) -> str:
    """A round; returns the answer that stands after it."""
    name = one["principle_id"]
    call = f", call {one['choice_call'][:KEY]}" if one["choice_call"] else ""
    say(screen, f"Round {one['round']}: principle {name}, {_how_chosen(one, gate)}{call}", "bold")
    if principle is not None:
        say(screen, f"  {principle['statement']}", "italic")
    for sentence in _gate(one, gate):
        say(screen, f"  {sentence}")
    remarks = [flag for flag in one["flags"] if flag not in CHECKS]
    if remarks:
        say(screen, f"  remarks: {', '.join(remarks)}")
    if one["critique"] is None:
        say(screen, f"  {_why_no_critique(one, gate)}: no critique was asked for, and nothing changed")
        return answer
    boxed(screen, one["critique"], f"critique, call {one['critique_call'][:KEY]}")
    if one["revision"] is None:
        say(screen, "  the critique found nothing; nothing changed")
        return answer
    for failed in one["failed_tries"]:
        say(screen, f"  a try that failed a check: {', '.join(failed['flags'])}")
        title = f"failed try ({failed['finish']}), call {failed['call'][:KEY]}"
        boxed(screen, failed["revision"] or "(nothing)", title)
    removed, added = words_changed(answer, one["revision"])
    title = f"revision ({one['finish']}), {removed} words out, {added} in, call {one['revision_call'][:KEY]}"
    boxed(screen, _diff(screen, answer, one["revision"]), title)
    if one["taken"]:
        return one["revision"]
    faults = ", ".join(flag for flag in one["flags"] if flag in CHECKS) or "no reason is given"
    say(screen, f"  not taken ({faults}); the answer stays as it was")
    return answer


def _how_chosen(one: Json, gate: Json) -> str:
    if CHOICE_UNREAD in one["flags"]:
        return "drawn, since the critic's choice could not be read"
    if one["choice_call"]:
        return "which the critic chose by the names and tags of all"
    return "as every one is gone through" if gate["chosen"] == "all" else "which was drawn"


def _gate(one: Json, gate: Json) -> Iterator[str]:
    """What the gate was asked, what came out, and what that means: the threshold, and how much the two words count."""
    if one["gate_call"] is None:
        yield "gate: not asked"
        return
    asked = {
        "question": f"one question for all principles of the constitution, not about {one['principle_id']} alone:",
        "principle": "whether the answer breaks this principle",
    }
    yield f"gate, call {one['gate_call'][:KEY]}: {asked.get(gate['asks'], 'see the call for what it was asked')}"
    if gate["asks"] == "question":
        yield f"  {gate['question']}"
    probability = one["violation_probability"]
    if probability is None:
        yield "  the probability of Yes is not known"
        return
    mass = "" if one["gate_mass"] is None else f" ({words_mass(one['gate_mass'])})"
    verdict = "" if gate["threshold"] is None else f"; from {gate['threshold']:g} on an answer is criticised"
    yield f"  P(Yes, broken) = {probability:.3f}{mass}{verdict}"


def _why_no_critique(one: Json, gate: Json) -> str:
    if PLAIN_REFUSAL in one["flags"]:
        return "the answer only refuses, which this principle allows"
    if one["violation_probability"] is None or gate["threshold"] is None:
        return "the gate found the answer clean"
    return f"{one['violation_probability']:.3f} is below {gate['threshold']:g}"


def _diff(screen: Console, before: str, after: str) -> Text:
    """What was taken out and put in, word by word: in colours, or in marks where there are none."""
    coloured = screen.color_system is not None and not screen.no_color
    text = Text()
    for piece in word_diff(visible(before), visible(after)):
        if piece.kind == "same":
            text.append(piece.text)
        elif piece.kind == "removed":
            text.append(piece.text if coloured else f"[-{piece.text}-]", style="red strike")
        else:
            text.append(piece.text if coloured else f"{{+{piece.text}+}}", style="green underline")
    return text


def _print_drop(screen: Console, drop: Json, calls: Sequence[Json]) -> None:
    screen.rule(f"drop {plain(drop['row_id'])}")
    screen.print(f"dropped in {drop['stage']}: [bold]{plain(drop['reason'])}[/]. {plain(drop['detail'])}")
    boxed(screen, drop["raw"] or "(nothing)", "what was there")
    if calls:
        say(screen, "What the model said for it, out of the journal:")
    for one in calls:
        boxed(screen, one["text"] or "(nothing)", f"{one['use']} ({one['finish']}), call {one['key'][:KEY]}")


# Why an answer or a pair was left out of a dataset, in words (`candidates`).
_LEFT_OUT = UNDECIDED | {
    "revision_failed": "a revision was asked for, and none passed the checks",
    "still_broken": "the gate found the last revision broken, and no better one could be had",
    "clean_left_out": "the gate found it clean, and --clean-answers was off",
    "cut_off": "the answer to be imitated, or the chosen one, ended at the token limit",
    "not_judged": "it has no rounds, so nobody has looked at it",
    "person_chose_neither": "a person who looked at it chose neither",
    "later": "which the export left out later, as a duplicate, for its length or for an evaluation set: the dataset's "
    "README.md counts these by reason",
    "not_there_yet": "it came into the run after this dataset was made of it",
}


def _print_exports(screen: Console, story: Json) -> None:
    exports = story["exports"]
    if exports:
        screen.rule("exported to")
    for one in exports:
        what = one.get("pair_id") or f"{one['row_id']}, {one['answer_from']}"
        kept = "" if one["differs"] == [] else f"; {compared(one['differs'])}"
        liked = f", as a {good(one['label'])} one" if "label" in one else ""
        say(screen, f"{one['file']}, row {one['number']}: {one['config']}, {what}{liked}{kept}")
    absent = story["left_out"]
    if absent:
        screen.rule("not exported")
    for one in absent:
        what = "the answer of row" if one["kind"] == "sft" else "pair"
        why = f"{one['reason']}, {_LEFT_OUT[one['reason']]}" if one["reason"] in _LEFT_OUT else one["reason"]
        if not one["run_as_it_was"] and one["reason"] != "not_there_yet":
            why += " (as the run is now: it has been worked on since this dataset was made of it)"
        say(screen, f"{one['dataset']} is without {what} {one['id']}: {why}")
    if not exports and not absent and "drops" not in story:
        say(
            screen,
            "No dataset of it lies beside the run, or in a folder 'sets' beside the folder of the runs. One that lies "
            "elsewhere can be named with --dataset DIR.",
        )


def _print_notes(screen: Console, story: Json) -> None:
    for note in story["notes"]:
        say(screen, note, "yellow")


def _print_conversation(screen: Console, prompt: list[Json]) -> None:
    for message in prompt:
        screen.print(Text.assemble((f"{message['role']}: ", "bold cyan"), visible(message["content"])))
