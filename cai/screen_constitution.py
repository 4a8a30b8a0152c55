"""What the constitution commands show in the terminal. Wordings are text, never markup."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cai.constitution import WORDINGS, Constitution
from cai.constitution_calls import KINDS, Asked
from cai.constitution_diff import Change, Difference, Principled, is_same_version
from cai.constitution_import import Imported
from cai.constitution_lint import RULES, Finding
from cai.pasted import folder_word
from cai.screen import console, plain
from cai.texts import visible


def print_constitution(constitution: Constitution, screen: Console | None = None) -> None:
    """A constitution to be read from top to bottom."""
    screen = screen or console()
    screen.rule(f"[bold]{plain(constitution.name)}[/] {plain(constitution.version)}")
    screen.print(Text(visible(constitution.description)))
    if constitution.question is not None:
        screen.print(Text(f"Asked about every answer: {visible(constitution.question)}"))
    if constitution.source is not None:
        source = constitution.source
        screen.print(
            Text(f"Imported from {visible(source.name)} (form {visible(source.form)}, sha256 {source.sha256})")
        )
        for left_out in source.left_out:
            screen.print(Text(f"Not imported: {visible(left_out)}"))
    screen.print(f"{plain(str(constitution.path))}, sha256 {constitution.sha}\n")
    for number, principle in enumerate(constitution.principles, start=1):
        tags = visible(", ".join(principle.tags))
        screen.print(Text.assemble((f"{number}. {principle.id}", "bold"), f"  weight {principle.weight:g}  {tags}"))
        for name in WORDINGS:
            screen.print(_named(name, getattr(principle, name)))
        for example in principle.examples:
            for name in ("prompt", "better", "worse"):
                screen.print(_named(f"e.g. {name}", getattr(example, name)))
        for reference in principle.references:
            screen.print(_named("see", f"{reference.framework}, {reference.clause}"))
        if principle.filled_in:
            screen.print(_named("made up", f"by cai, not in the source: {', '.join(principle.filled_in)}"))
        screen.print()


def _named(name: str, text: str) -> Text:
    return Text.assemble((f"   {name:<12}", "cyan"), visible(" ".join(text.split())))


def print_findings(path: Path, findings: list[Finding]) -> None:
    """The findings of lint, each with its place and rule, and then why these rules matter."""
    screen = console()
    for one in findings:
        who = f" '{one.principle}'" if one.principle else ""
        colour = {"error": "red", "remark": "yellow", "note": "cyan"}[one.severity]
        line = Text.assemble(f"{path}:{one.line}: ", (one.severity, colour), f" {one.rule}{who}: {visible(one.found)}")
        screen.print(line, soft_wrap=True)
    errors, remarks = (sum(one.severity == kind for one in findings) for kind in ("error", "remark"))
    said = f"{errors} error(s), {remarks} remark(s)" if findings else "fine"
    screen.print(Text(visible(f"{path}: {said}")), soft_wrap=True)


def print_reasons(findings: list[Finding]) -> None:
    """Why the rules that found something are rules."""
    rules = [rule for rule in RULES if any(one.rule == rule for one in findings)]
    screen = console()
    for rule in rules:
        screen.print(Text.assemble((f"{rule}: ", "bold"), RULES[rule][1]))


def print_difference(difference: Difference, a: Constitution, b: Constitution, run: str | None) -> None:
    """What became of each principle, with the words that changed: [-taken out-] and {+put in+}."""
    screen = console()
    for side, one in (("from", a), ("to", b)):
        screen.print(f"{side:<5}{plain(str(one.path))}, version {plain(one.version)}, sha256 {one.sha}", soft_wrap=True)
    for stage, side in (difference.made_with or {}).items():
        another = f"another text: {Path(run or '') / 'inputs' / stage / 'constitution.yaml'}"
        used = {"a": "the text at 'from'", "b": "the text at 'to'", "both": "this text"}.get(side, another)
        screen.print(f"run  {plain(run or '')}: cai {stage} used {plain(used)}", soft_wrap=True)
    if is_same_version(a, b):
        screen.print(
            f"Both say that they are {plain(a.name)} {plain(a.version)}, and their texts differ: raise the version."
        )
    screen.print()
    for change in difference.file:
        _print_change(screen, change, "")
    for one in difference.principles:
        screen.print(Text(_fate(one), "bold"))
        _print_asked(screen, one.asked, "  ")
        for change in one.changes:
            _print_change(screen, change, "  ")
    if not difference.file and not difference.principles:
        screen.print("Nothing changed.")
    elif difference.unchanged:
        screen.print(Text(f"unchanged: {', '.join(difference.unchanged)}"))
    _print_whole(screen, difference)


def _fate(one: Principled) -> str:
    return f"{one.id}: renamed from {one.was}" if one.fate == "renamed" else f"{one.id}: {one.fate}"


def _print_change(screen: Console, change: Change, margin: str) -> None:
    screen.print(Text.assemble(margin, (visible(change.field), "cyan"), f": {visible(change.said)}"))
    if change.pieces:
        words = Text(margin + "  ")
        for piece in change.pieces:
            before, style, after = _MARKS[piece.kind]
            words.append(f"{before}{visible(piece.text)}{after}", style=style)
        screen.print(words)
    _print_asked(screen, change.asked, margin + "  ")


_MARKS = {"same": ("", "", ""), "removed": ("[-", "red", "-]"), "added": ("{+", "green", "+}")}


def _print_asked(screen: Console, asked: Asked | None, margin: str) -> None:
    if asked is None:
        return
    parts = [
        f"asks anew for certain: {_calls(asked.certain)}" if asked.certain else "",
        f"and, if the answers before come out as they did: {_calls(asked.expected)}" if asked.expected else "",
        f"asks no more: {_calls(asked.gone)}" if asked.gone else "",
        f"moves {asked.labels} label(s) without asking anything" if asked.labels else "",
    ]
    said = "; ".join(part for part in parts if part)
    rows = f" (in {len(asked.rows)} row(s))" if asked.rows else ""
    screen.print(Text(f"{margin}{said or 'changes no prompt of the run and no label'}{rows}", "dim"))


def _calls(calls: Mapping[str, int]) -> str:
    order = list(dict.fromkeys(KINDS.values()))
    named = sorted(calls.items(), key=lambda one: order.index(one[0]))
    return ", ".join(f"{count} {kind if count == 1 else kind + 's'}" for kind, count in named)


def _print_whole(screen: Console, difference: Difference) -> None:
    asked, counted = difference.asked, difference.counted
    if asked is not None and counted is not None:
        screen.print(Text(f"\nAll changes together, of {_calls(counted.calls) or 'no call'} of the run:"))
        _print_asked(screen, asked, "  ")
        if asked.following:
            screen.print(
                Text(
                    f"  That is a lower bound. {_calls(asked.following)} come later in the same rows: each is asked "
                    "anew too where an answer before it comes out otherwise."
                )
            )
        if asked.open_rows:
            said = (
                f"In {asked.open_rows} row(s) a call is asked whose like the run never asked; what comes after is open."
            )
            screen.print(Text(f"  {said}"))
        if "verdict" in counted.calls and asked.certain.keys() - {"verdict", "reasoning"}:
            said = "Verdicts are counted on the answers as they are; one that comes out otherwise makes another pair."
            screen.print(Text(f"  {said}"))
    for sentence in difference.not_counted:
        screen.print(Text(visible(sentence)), soft_wrap=True)


def print_imported(imported: Imported, out: str) -> None:
    """What was imported, what was missing, what was left out, and what to do next."""
    screen = console()
    screen.print(f"{plain(out)}: {imported.principles} principles, read as {imported.form}", soft_wrap=True)
    if imported.filled_in:
        screen.print(f"made up by cai where the source has none: {', '.join(imported.filled_in)}")
    for left_out in imported.left_out:
        screen.print(Text(f"not imported: {visible(left_out)}"))
    screen.print(f"what is missing: cai constitution lint {plain(folder_word(out))}", soft_wrap=True)
