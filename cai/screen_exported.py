"""A row of an exported dataset in the terminal: its texts, what it is made of, and whether its run says the same."""

from collections.abc import Sequence

from rich.console import Console

from cai.made_of import has_critique
from cai.screen import console, plain
from cai.screen_rows import print_row
from cai.screen_words import KEY, boxed, compared, good, origin_in_words, say
from cai.seal import Json


def print_exported_row(story: Json) -> None:
    """What `dataset_story.dataset_story` found of a dataset's row, then the story of the row that it was made of."""
    screen = console()
    screen.rule(f"dataset {plain(story['dataset'])}")
    if story["versions"]:
        say(screen, f"The row is in the versions {', '.join(story['versions'])}; shown is {story['versions'][0]}.")
    for one in story["rows"]:
        _print_row(screen, one)
    if "helpful" in story:
        _print_helpful(screen, story["helpful"])
        return
    others = [f"{one['config']} {one.get('pair_id', one['row_id'])}" for one in story["same_prompt"]]
    if others:
        say(screen, f"Of the same prompt the dataset also has: {', '.join(others)}")
    run = story["trace"]["run"]
    if not story["run_as_it_was"]:
        say(screen, f"{run} has been worked on since this dataset was made of it.", "yellow")
    screen.print()
    say(screen, f"The run that it was made of: {run}", "bold")
    print_row(story["trace"])


def _print_row(screen: Console, one: Json) -> None:
    row, config = one["row"], one["config"]
    say(screen, f"{config}, row {one['number']} of {one['file']}", "bold")
    if config == "sft":
        boxed(screen, row["messages"][-1]["content"], f"the answer to imitate ({row['answer_from']})")
    elif config == "kto":
        say(screen, f"  the {'chosen' if row['label'] else 'rejected'} answer, as a {good(row['label'])} one")
    elif config == "preference":
        for side in ("chosen", "rejected"):
            boxed(screen, row[side][0]["content"], side)
        say(screen, f"  probability that chosen is the better one: {row['chosen_probability']:.3f}")
    else:
        say(screen, f"  the same pair with the margin {row['margin']:.3f}")
    # Two things that have one column: in sft nothing was judged, in the others the judge goes by principles of its own.
    names = ", ".join(row["principle_ids"]) or "none"
    say(screen, f"  principles of {'the critiques that led to it' if config == 'sft' else 'the judge'}: {names}")
    if config in ("sft", "preference"):  # reward and kto have the parts of the pair
        _print_parts(screen, one.get("made_of", []))
    if "differs" in one:
        say(screen, f"  {compared(one['differs'])}")


def _print_parts(screen: Console, parts: Sequence[Json]) -> None:
    """The calls that the texts and the label of a row depend on, and that no critique is among them."""
    for part in parts:
        if part["part"] == "label":
            say(screen, f"  the label comes of the judge's calls {_keys(part['calls'])}")
            continue
        what = f"  {part['part']} is {origin_in_words(part['origin'])} of row {part['row_id']}"
        if part["calls"] is None:
            say(screen, f"{what}, whose story is its own")
            continue
        say(screen, f"{what}, made of these calls:")
        for number in dict.fromkeys(call.get("round") for call in part["calls"]):
            calls = [call for call in part["calls"] if call.get("round") == number]
            where = "" if number is None else f"round {number}, principle {calls[0]['principle_id']}: "
            say(screen, f"    {where}" + ", ".join(f"{call['use']} {call['key'][:KEY]}" for call in calls))
    known = all(part["calls"] is not None for part in parts)
    if parts and known and not has_critique(parts):
        say(screen, "  no critique and no revision is a part of this row; those shown below changed nothing in it")


def _keys(calls: Sequence[Json]) -> str:
    return ", ".join(dict.fromkeys(call["key"][:KEY] for call in calls))


def _print_helpful(screen: Console, helpful: Json) -> None:
    say(screen, "This answer was mixed in with --helpful; the run knows nothing of it.")
    if "trace" in helpful:
        print_row(helpful["trace"])
        return
    for one in helpful["records"]:
        boxed(screen, str(one["record"]), f"{one['place']}")
