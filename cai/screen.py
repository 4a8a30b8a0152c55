"""What a person sees in the terminal: progress, summaries, one row's story. Model text is text, never markup."""

import difflib
import re
from itertools import islice

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cai.audit import TABLES, examples
from cai.constitution import Constitution
from cai.stages import Outcome
from cai.store import Json, open_run


def console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def visible(text: str) -> str:
    """`text` with its control characters spelled out: what a model or a prompt says must not drive the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def print_outcome(outcome: Outcome, stage: str, out: str) -> None:
    """The summary after a run: counts, calls, three examples, where the files are."""
    screen, run = console(), open_run(out)
    _print_stage(screen, stage, outcome.entry | {"finished": True})
    session = outcome.session
    screen.print(
        f"This time: [bold]{session.asked_calls}[/] calls asked, [bold]{session.reused_calls}[/] reused from the "
        f"journal, in {outcome.seconds:.1f} s."
    )
    if stage == "revise":
        for number, row in enumerate(islice(examples(run), 3), start=1):
            screen.print(_before_after(number, row))
    screen.print(
        f"Tables   {_plain(out)}/{TABLES[stage]}/*.parquet"
        + (f", {_plain(out)}/drops/*.parquet" if outcome.entry["counts"]["dropped"] else ""),
        soft_wrap=True,
    )
    screen.print(f"Manifest {_plain(out)}/manifest.json", soft_wrap=True)
    first = next(run.records(TABLES[stage], ["row_id"]), None)
    if first is not None:
        screen.print(f"One row  cai show {_plain(out)} {_plain(first['row_id'])}", soft_wrap=True)


def print_report(result: Json, run: str) -> None:
    """The report of `audit.report` as tables."""
    screen = console()
    for stage, entry in result.items():
        _print_stage(screen, stage, {"counts": entry, **entry})


def _print_stage(screen: Console, stage: str, entry: Json) -> None:
    counts, cost, models = entry["counts"], entry["cost"], entry["models"]
    state = "" if entry["finished"] else " [yellow](unfinished: finished shards only)[/]"
    screen.rule(f"[bold]cai {stage}[/]{state}")
    for role, model in models.items():
        screen.print(f"{role:<10} {_plain(model)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("rows read", str(counts["read"]))
    table.add_row("kept", str(counts["kept"]))
    table.add_row("dropped", str(counts["dropped"]) + _reasons(counts["dropped_by_reason"]))
    if "changed" in counts:
        table.add_row("changed", f"{counts['changed']} ({_share(counts['changed'], counts['kept'])} of kept)")
    if counts.get("flags"):
        table.add_row("remarks", _reasons(counts["flags"]).strip(" ()"))
    if counts.get("failed_revisions"):
        table.add_row("failed revisions", _reasons(counts["failed_revisions"]).strip(" ()") + " (in kept rows)")
    if "texts" in counts:
        before, after = counts["texts"]["response"], counts["texts"]["final"]
        table.add_row("refusals", f"{before['refusals']} of the responses, {after['refusals']} of the final answers")
        table.add_row("mean length", f"{before['mean_words']} words before, {after['mean_words']} after")
    for ending, rows in islice(counts.get("boilerplate_endings", {}).items(), 3):
        table.add_row("many end with", f"{_plain(ending)} ({rows} rows)")
    tokens = counts["tokens"]
    table.add_row(
        "tokens in the rows",
        f"{tokens['prompt_tokens']:,} prompt ({tokens['cached_tokens']:,} cached), "
        f"{tokens['completion_tokens']:,} generated",
    )
    table.add_row(
        "calls asked", f"{cost['asked_calls']:,} ({cost['reused_calls']:,} reused), {cost['calls_per_second']} calls/s"
    )
    table.add_row("output speed", f"{cost['completion_tokens_per_second']} tokens/s")
    table.add_row("wall time", f"{cost['seconds']} s, all sessions")
    screen.print(table)
    for title, key in (("round", "by_round"), ("principle", "by_principle")):
        if counts.get(key):
            screen.print(_rates(title, counts[key]))


def _rates(title: str, groups: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (title, "applied", "found broken", "changed", "mean P(broken)"):
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


def print_row(found: Json) -> None:
    """One row's story: conversation, response, each round with its revision as a word diff, the calls' keys."""
    screen = console()
    for row in found.get("responses", []):
        screen.rule(f"response {_plain(row['row_id'])}")
        _print_conversation(screen, row["prompt"])
        screen.print(Panel(Text(visible(row["response"])), title="response", title_align="left"))
        screen.print(
            f"model {_plain(row['model'])}, call {row['call'][:16]}, {row['finish']}, from {_plain(row['source'])}"
        )
    for row in found.get("trajectories", []):
        _print_trajectory(screen, row)
    for drop in found.get("drops", []):
        screen.rule(f"drop {_plain(drop['row_id'])}")
        screen.print(f"dropped in {drop['stage']}: [bold]{_plain(drop['reason'])}[/]. {_plain(drop['detail'])}")
        screen.print(Panel(Text(visible(drop["raw"]) or "(nothing)"), title="what was there", title_align="left"))


def _print_trajectory(screen: Console, row: Json) -> None:
    screen.rule(f"trajectory {_plain(row['row_id'])}")
    _print_conversation(screen, row["prompt"])
    screen.print(
        Panel(
            Text(visible(row["response"])),
            title=f"response ({row['response_finish']}), call {row['response_call'][:16]}",
            title_align="left",
        )
    )
    answer = row["response"]
    for one in row["rounds"]:
        probability = one["violation_probability"]
        gate = (
            "gate not asked"
            if one["gate_call"] is None
            else "P(broken) not known"
            if probability is None
            else f"P(broken) = {probability:.3f}"
        )
        flags = f" [{', '.join(one['flags'])}]" if one["flags"] else ""
        screen.print(Text(f"Round {one['round']}: principle {one['principle_id']}, {gate}{flags}", style="bold"))
        calls = [f"{name} {one[f'{name}_call'][:16]}" for name in ("choice", "gate") if one[f"{name}_call"]]
        if calls:
            screen.print(f"  calls: {', '.join(calls)}")
        if one["critique"] is None:
            screen.print("  no critique was asked for; nothing changed")
            continue
        screen.print(
            Panel(
                Text(visible(one["critique"])), title=f"critique, call {one['critique_call'][:16]}", title_align="left"
            )
        )
        if one["revision"] is None:
            screen.print("  the critique found nothing; nothing changed")
            continue
        for failed in one["failed_tries"]:
            screen.print(
                Panel(
                    Text(visible(failed["revision"]) or "(nothing)"),
                    title=f"failed try ({', '.join(failed['flags'])}), call {failed['call'][:16]}",
                    title_align="left",
                )
            )
        screen.print(
            Panel(
                word_diff(visible(answer), visible(one["revision"])),
                title=f"revision ({one['finish']}), call {one['revision_call'][:16]}",
                title_align="left",
            )
        )
        if one["taken"]:
            answer = one["revision"]
        else:
            screen.print("  not taken; the answer stays as it was")
    screen.print(
        Panel(
            Text(visible(row["final"])),
            title="final, changed" if row["changed"] else "final, unchanged",
            title_align="left",
        )
    )
    screen.print(
        f"generator {_plain(row['model'])}, critic {_plain(row['critic'])}, reviser {_plain(row['reviser'])}, "
        f"seed {row['seed']}\nconstitution {_plain(row['constitution'])} {row['constitution_sha'][:16]}, "
        f"templates {row['templates_sha'][:16]}, from {_plain(row['source'])}\n"
        f"{row['prompt_tokens']} prompt tokens ({row['cached_tokens']} cached), {row['completion_tokens']} generated"
    )


def _print_conversation(screen: Console, prompt: list[Json]) -> None:
    for message in prompt:
        screen.print(Text.assemble((f"{message['role']}: ", "bold cyan"), visible(message["content"])))


def word_diff(before: str, after: str) -> Text:
    """`after` with what was taken out struck through and what was put in underlined, word by word."""
    old, new = re.findall(r"\S+\s*", before), re.findall(r"\S+\s*", after)
    text = Text()
    for kind, a, b, c, d in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if kind == "equal":
            text.append("".join(new[c:d]))
            continue
        text.append("".join(old[a:b]), style="red strike")
        text.append("".join(new[c:d]), style="green underline")
    return text


def print_constitution(constitution: Constitution) -> None:
    """A constitution to be read from top to bottom."""
    screen = console()
    screen.rule(f"[bold]{_plain(constitution.name)}[/] {_plain(constitution.version)}")
    screen.print(Text(constitution.description))
    screen.print(f"{_plain(str(constitution.path))}, sha256 {constitution.sha}\n")
    for number, principle in enumerate(constitution.principles, start=1):
        screen.print(
            Text.assemble(
                (f"{number}. {principle.id}", "bold"), f"  weight {principle.weight:g}  {', '.join(principle.tags)}"
            )
        )
        for name in ("statement", "rationale", "critique", "revision", "comparison"):
            screen.print(Text.assemble((f"   {name:<11}", "cyan"), " ".join(getattr(principle, name).split())))
        for example in principle.examples:
            for name in ("prompt", "better", "worse"):
                screen.print(
                    Text.assemble((f"   {'e.g. ' + name:<11}", "cyan"), " ".join(getattr(example, name).split()))
                )
        for reference in principle.references:
            screen.print(Text.assemble((f"   {'see':<11}", "cyan"), f"{reference.framework}, {reference.clause}"))
        screen.print()


def _before_after(number: int, row: Json) -> Panel:
    asked = row["prompt"][-1]["content"]
    body = Text.assemble(
        ("asked  ", "bold cyan"), _short(asked, 300), "\n", ("before ", "bold red"), _short(row["response"], 500), "\n"
    )
    if row["changed"]:
        body.append_text(Text.assemble(("after  ", "bold green"), _short(row["final"], 500)))
    else:
        body.append("after  ", style="bold green").append("(unchanged)")
    return Panel(body, title=f"example {number}: {_plain(row['row_id'])}", title_align="left")


def _short(text: str, limit: int) -> str:
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."


def _plain(text: str) -> str:
    return escape(visible(text))


def _reasons(reasons: dict[str, int]) -> str:
    return " (" + ", ".join(f"{name} {count}" for name, count in reasons.items()) + ")" if reasons else ""


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
