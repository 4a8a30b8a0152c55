"""What `cai calibrate` shows in the terminal."""

import click
from rich.table import Table

from cai.screen import console, counted, plain, share
from cai.seal import Json
from cai.settings import GoldSettings
from cai.stages import Calibration, check_judge
from cai.texts import visible_json


def print_calibration_of(measured: Calibration, settings: GoldSettings, as_json: bool) -> None:
    """Print a judge's figures. Raises CheckFailed, after that, if it is under the bar of the settings."""
    folder = measured.outcome.folder
    if as_json:
        said = {"folder": folder, **measured.figures}
        click.echo(visible_json(said))
    else:
        print_calibration(measured.figures, folder)
    check_judge(measured.figures, settings)


def print_calibration(figures: Json, place: str) -> None:
    """The figures of `calibrate.judge_figures`; under "temperature" those of `temperature_figures`, if there."""
    screen = console()
    screen.rule(f"[bold]cai calibrate[/] {plain(place)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("gold pairs", str(figures["n"]))
    undecided = f"; not decided: {counted(figures['undecided']).strip(' ()')}" if figures["undecided"] else ""
    table.add_row("decided", f"{figures['decided']} ({share(figures['decided'], figures['n'])}){undecided}")
    table.add_row("accuracy", f"{_interval(figures['accuracy'])} of the decided pairs")
    table.add_row("", f"{_interval(figures['accuracy_readable'])} of all that could be read")
    table.add_row("Brier score", f"{_number(figures['brier'])} (always 1/2: 0.25)")
    table.add_row("calibration error", _number(figures["calibration"]["ece"]))
    if figures["flips"] is not None:
        table.add_row("flips on a swap", _percent(figures["flips"]))
    if figures["first_position"] is not None:
        table.add_row("sides with the first", f"{_percent(figures['first_position'])} (fair: 50 %)")
    by_judge, by_gold = (_percent(figures["longer"][who]["value"]) for who in ("judge", "gold"))
    table.add_row("sides with the longer", f"{by_judge} (gold: {by_gold})")
    verdicts = figures["verdicts"]
    mass = f"mean letter mass {_number(verdicts['mean_letter_mass'])}"
    table.add_row("verdicts", f"{verdicts['n']}, unread {_percent(verdicts['unread'])}, {mass}")
    fit = figures.get("temperature")
    if fit is not None:
        edge = " [yellow](the end of the search: too few pairs, or a useless judge)[/]" if fit["at_edge"] else ""
        table.add_row("temperature that fits", f"{fit['temperature']:g}{edge}")
        after = f"{_number(fit['ece_cross_fitted'])} with it, on pairs it was not fitted to"
        table.add_row("", f"calibration error {_number(fit['ece_before'])} at 1, {after}")
    screen.print(table)
    screen.print(_reliability(figures["calibration"]["bins"]))
    screen.print(_judging_principles(figures["by_principle"]))


def _reliability(bins: list[Json]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("confidence", "pairs", "accuracy"):
        table.add_column(heading, justify="left" if heading == "confidence" else "right")
    table.add_column("(| is what it would be if the judge were as often right as it is sure)")
    for one in bins:
        if one["accuracy"]["n"]:
            bar = list("█" * round(40 * one["accuracy"]["value"]))
            bar += " " * (41 - len(bar))
            bar[round(40 * one["confidence"])] = "|"
            right = f"{100 * one['accuracy']['value']:.0f} %"
            table.add_row(f"{one['from']:.2f} - {one['to']:.2f}", str(one["accuracy"]["n"]), right, "".join(bar))
    return table


def _judging_principles(groups: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("principle", "pairs", "accuracy", "flips", "unread"):
        table.add_column(heading, justify="left" if heading == "principle" else "right")
    for name, group in groups.items():
        flips, unread = _percent(group["flips"]), _percent(group["unread"])
        table.add_row(plain(name), str(group["accuracy"]["n"]), _interval(group["accuracy"]), flips, unread)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _interval(rate: Json) -> str:
    if rate["value"] is None:
        return "-"
    return f"{_percent(rate['value'])} ({100 * rate['low']:.0f}-{100 * rate['high']:.0f} %)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
