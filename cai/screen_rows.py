"""One row's whole story in the terminal: conversation, response, rounds, pairs, verdicts."""

import difflib
import re

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from cai.screen import console, plain
from cai.store import Json
from cai.texts import visible


def print_row(found: Json) -> None:
    """One row's story: conversation, response, each round with its revision as a word diff, the calls' keys."""
    screen = console()
    for row in found.get("responses", []):
        screen.rule(f"response {plain(row['row_id'])}")
        _print_conversation(screen, row["prompt"])
        screen.print(Panel(Text(visible(row["response"])), title="response", title_align="left"))
        screen.print(
            f"model {plain(row['model'])}, call {row['call'][:16]}, {row['finish']}, from {plain(row['source'])}"
        )
    for row in found.get("trajectories", []):
        _print_trajectory(screen, row)
    for judged in found.get("pairs", []):
        _print_pair(screen, judged)
    for drop in found.get("drops", []):
        screen.rule(f"drop {plain(drop['row_id'])}")
        screen.print(f"dropped in {drop['stage']}: [bold]{plain(drop['reason'])}[/]. {plain(drop['detail'])}")
        screen.print(Panel(Text(visible(drop["raw"]) or "(nothing)"), title="what was there", title_align="left"))


def _print_trajectory(screen: Console, row: Json) -> None:
    screen.rule(f"trajectory {plain(row['row_id'])}")
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
        f"generator {plain(row['model'])}, critic {plain(row['critic'])}, reviser {plain(row['reviser'])}, "
        f"seed {row['seed']}\nconstitution {plain(row['constitution'])} {row['constitution_sha'][:16]}, "
        f"templates {row['templates_sha'][:16]}, from {plain(row['source'])}\n"
        f"{row['prompt_tokens']} prompt tokens ({row['cached_tokens']} cached), {row['completion_tokens']} generated"
        + (f", up to {row['left_out_turns']} oldest turns left out" if row.get("left_out_turns") else "")
    )


def _print_pair(screen: Console, judged: Json) -> None:
    """A pair, its verdicts and its label."""
    pair, label = judged["pair"], judged["label"]
    screen.rule(f"pair {plain(pair['pair_id'])}")
    for side in ("a", "b"):
        title = f"{side}: {pair[f'{side}_from']}" + (", chosen" if label["chosen"] == side else "")
        screen.print(Panel(Text(visible(pair[side])), title=escape(title), title_align="left"))
    for one in judged["verdicts"]:
        said = "unread" if one["probability_a"] is None else f"P(a) = {one['probability_a']:.3f}"
        mass = "" if one["letter_mass"] is None else f", mass {one['letter_mass']:.2f}"
        calls = ", ".join(call[:16] for call in one["calls"])
        screen.print(f"{plain(one['principle_id'])} ({one['order']}, {one['mode']}): {said}{mass}, calls {calls}")
        if one["reasoning"]:
            screen.print(Panel(Text(visible(one["reasoning"])), title="reasoning", title_align="left"))
    soft = "not known" if label["probability_a"] is None else f"{label['probability_a']:.3f}"
    why = f" ({label['reason']})" if label["reason"] else ""
    person = "" if label["reviewed"] is None else f"; a person says {label['reviewed']}"
    screen.print(f"[bold]label[/] P(a) = {soft}, chosen {label['chosen']}{why}{person}")
    screen.print(
        f"judge {plain(label['judge'])}, seed {label['seed']}, constitution {plain(label['constitution'])} "
        f"{label['constitution_sha'][:16]}, templates {label['templates_sha'][:16]}"
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
