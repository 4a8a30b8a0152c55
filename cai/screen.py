"""What a person sees in the terminal: progress, summaries, one row's story. Model text is text, never markup."""

from itertools import islice

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cai.audit import TABLES, examples, unread
from cai.pasted import folder_word, row_word
from cai.report.doubts import judge_doubts
from cai.report.doubts import share as share_of_mass
from cai.seal import Json
from cai.stage_run import Outcome
from cai.stages import Dataset
from cai.store import open_run
from cai.texts import visible, visible_json


def console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def print_outcome(outcome: Outcome) -> None:
    """The summary after a run: counts, calls, three examples, where the files are."""
    stage, out = outcome.stage, outcome.folder
    screen, run = console(), open_run(out)
    left = unread(stage, outcome.entry.get("prompts", {}))
    _print_stage(screen, stage, outcome.entry | {"finished": True, "unread": left})
    session = outcome.session
    screen.print(
        f"This time: [bold]{session.asked_calls}[/] calls asked, [bold]{session.reused_calls}[/] reused from the "
        f"journal, in {outcome.seconds:.1f} s."
    )
    if stage == "revise":
        for number, row in enumerate(islice(examples(run), 3), start=1):
            screen.print(_before_after(number, row))
    tables = [*TABLES[stage], *(["drops"] if outcome.entry["counts"]["dropped"] else [])]
    screen.print("Tables   " + ", ".join(f"{plain(out)}/{table}/*.parquet" for table in tables), soft_wrap=True)
    if (run.folder / "review.jsonl").is_file() and stage == "label":
        filled = f"cai label {folder_word(out)} --apply-review {folder_word(run.folder / 'review.jsonl')}"
        screen.print(f"Review   {plain(out)}/review.jsonl, then {plain(filled)}", soft_wrap=True)
    screen.print(f"Manifest {plain(out)}/manifest.json", soft_wrap=True)
    first = next(run.records(TABLES[stage][-1], ["row_id"]), None)
    if first is not None:
        shown = f"cai show {folder_word(out)} {row_word(first['row_id'])}"
        screen.print(f"One row  {plain(shown)}", soft_wrap=True)


def print_dataset(dataset: Dataset) -> None:
    """The summary after an export: rows by config and split, what was left out, what to know, how to load it."""
    screen, manifest, folder = console(), dataset.manifest, dataset.folder
    screen.rule("[bold]cai export[/]")
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("config", "offered", "left out", "train", "test"):
        rows.add_column(heading, justify="left" if heading == "config" else "right")
    for config, counts in manifest["counts"].items():
        splits = counts["written"]
        left_out = counts["left_out"]
        rows.add_row(
            config, str(counts["read"]), f"{sum(left_out.values())}{counted(left_out)}",
            str(splits.get("train", 0)), str(splits.get("test", 0)),
        )  # fmt: skip
    screen.print(rows)
    if manifest.get("version", {}).get("before"):
        told = [f"{config} {_changed(splits)}" for config, splits in manifest["version"]["counts"].items()]
        before = manifest["version"]["before"]["name"]
        screen.print(f"Version  {manifest['version']['name']}; since {before}: {', '.join(told)}", soft_wrap=True)
    screen.print(f"Card     {plain(folder)}/README.md", soft_wrap=True)
    for config, counts in manifest["counts"].items():
        if counts["written"].get("train"):
            named = escape(visible_json(str(folder)))  # a string of Python, whatever is in the name
            screen.print(f'Load     datasets.load_dataset({named}, "{config}")', soft_wrap=True)


def _changed(splits: Json) -> str:
    """The rows of a config that were added, and whatever else became of some."""
    sums = {change: sum(counts[change] for counts in splits.values()) for change in next(iter(splits.values()))}
    others = counted({change: number for change, number in sums.items() if number and change != "added"})
    return f"+{sums['added']}{others}"


def print_report(result: Json) -> None:
    """The report of `audit.report` as tables."""
    screen = console()
    for stage, entry in result.items():
        _print_stage(screen, stage, {"counts": entry, **entry})


def _print_stage(screen: Console, stage: str, entry: Json) -> None:
    counts, cost, models = entry["counts"], entry["cost"], entry["models"]
    state = "" if entry["finished"] else " [yellow](unfinished: finished shards only)[/]"
    screen.rule(f"[bold]cai {stage}[/]{state}")
    for role, model in models.items():
        screen.print(f"{role:<10} {plain(model)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("rows read", str(counts["read"]))
    if entry["unread"] is not None:
        table.add_row("not read", plain(entry["unread"]))
    table.add_row("kept", str(counts["kept"]))
    table.add_row("dropped", str(counts["dropped"]) + counted(counts["dropped_by_reason"]))
    if "decided" in counts:
        undecided = counted(counts["undecided_by_reason"])
        table.add_row("decided", f"{counts['decided']} ({share(counts['decided'], counts['kept'])} of kept){undecided}")
        for kind, winners in counts["won"].items():
            table.add_row(kind, "chosen: " + ", ".join(f"{name} {count}" for name, count in winners.items()))
        if counts["mean_position_gap"] is not None:
            table.add_row("position gap", f"{counts['mean_position_gap']:.3f} (mean distance of the two orders)")
        if (reviewed := counts["reviewed"])["n"]:
            kappa = reviewed["no_kappa"] if reviewed["kappa"] is None else f"{reviewed['kappa']:.2f}"
            same = f"{reviewed['same']['value']:.2f} as the judge"
            table.add_row("reviewed", f"{reviewed['n']} pairs, {same}, Cohen's kappa {kappa}")
    if "changed" in counts:
        table.add_row("changed", f"{counts['changed']} ({share(counts['changed'], counts['kept'])} of kept)")
    if counts.get("flags"):
        table.add_row("remarks", counted(counts["flags"]).strip(" ()"))
    if counts.get("failed_revisions"):
        table.add_row("failed revisions", counted(counts["failed_revisions"]).strip(" ()") + " (in kept rows)")
    if "texts" in counts:
        before, after = counts["texts"]["response"], counts["texts"]["final"]
        table.add_row("refusals", f"{before['refusals']} of the responses, {after['refusals']} of the final answers")
        table.add_row("mean length", f"{before['mean_words']} words before, {after['mean_words']} after")
    for ending, rows in islice(counts.get("boilerplate_endings", {}).items(), 3):
        table.add_row("many end with", f"{plain(ending)} ({rows} rows)")
    tokens = counts["tokens"]
    table.add_row(
        "tokens in the rows",
        f"{tokens['prompt_tokens']:,} prompt ({tokens['cached_tokens']:,} cached), "
        f"{tokens['completion_tokens']:,} generated",
    )
    table.add_row(
        "tokens asked for",
        f"{cost['prompt_tokens']:,} prompt ({cost['cached_tokens']:,} cached), {cost['completion_tokens']:,} generated"
        + _why_other(tokens, cost),
    )
    table.add_row(
        "calls asked", f"{cost['asked_calls']:,} ({cost['reused_calls']:,} reused), {cost['calls_per_second']} calls/s"
    )
    table.add_row("output speed", f"{cost['completion_tokens_per_second']} tokens/s")
    if cost["engine_restarts"]:
        times = "once" if cost["engine_restarts"] == 1 else f"{cost['engine_restarts']} times"
        table.add_row("engine", f"died and was started anew {times}; what was in flight was asked again")
    if cost["shortened_calls"]:
        table.add_row("too long", f"{cost['shortened_calls']:,} calls went without a conversation's oldest turns")
    table.add_row("wall time", f"{cost['seconds']} s, all sessions")
    screen.print(table)
    for title, key in (("round", "by_round"), ("principle", "by_principle")):
        if counts.get(key):
            screen.print(_rates(title, counts[key]))
    if counts.get("verdicts"):
        screen.print(_verdict_rates(counts["verdicts"]))
        for doubt in judge_doubts(counts):
            screen.print(f"[yellow]{plain(doubt)}[/]")


def _why_other(tokens: Json, cost: Json) -> str:
    """Why the rows tell of more or fewer tokens than were asked for."""
    if all(tokens[name] == cost[name] for name in tokens):
        return ""
    return " (a call that two rows share is asked once; reused calls and those of dropped rows differ too)"


def _verdict_rates(groups: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("principle", "verdicts", "unread", "with the label", "mean |P - 0.5|", "letter mass"):
        table.add_column(heading, justify="left" if heading == "principle" else "right")
    for name, group in groups.items():
        apart = group["mean_distance_from_half"]
        table.add_row(
            name, str(group["asked"]), str(group["unread"]), str(group["with_the_label"]),
            "-" if apart is None else f"{apart:.3f}", share_of_mass(group["mean_letter_mass"]),
        )  # fmt: skip
    return table


def _rates(title: str, groups: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (title, "chosen", "criticised", "changed", "mean gate P"):
        table.add_column(heading, justify="left" if heading == title else "right")
    for name, group in groups.items():
        mean = group["mean_violation_probability"]
        table.add_row(
            name,
            str(group["applied"]),
            str(group["found_broken"]),
            str(group["changed"]),
            "-" if mean is None else f"{mean:.2f}",
        )
    return table


def _before_after(number: int, row: Json) -> Panel:
    asked = row["prompt"][-1]["content"]
    body = Text.assemble(
        ("asked  ", "bold cyan"), _short(asked, 300), "\n", ("before ", "bold red"), _short(row["response"], 500), "\n"
    )
    if row["changed"]:
        body.append_text(Text.assemble(("after  ", "bold green"), _short(row["final"], 500)))
    else:
        body.append("after  ", style="bold green").append("(unchanged)")
    return Panel(body, title=f"example {number}: {plain(row['row_id'])}", title_align="left")


def _short(text: str, limit: int) -> str:
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."


def plain(text: str) -> str:
    """`text` as it stands, whatever brackets and control characters are in it."""
    return escape(visible(text))


def counted(reasons: dict[str, int]) -> str:
    """Reasons with their counts, in brackets; nothing if there are none."""
    return " (" + ", ".join(f"{name} {count}" for name, count in reasons.items()) + ")" if reasons else ""


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
