"""How good a judge is on gold pairs: its modes, one principle against all, both orders against one.

    python -m benchmarks.judges --gold gold.jsonl --constitution helpfulness --endpoint http://127.0.0.1:8000/v1 \\
        --limit 200 --out data/runs/judges

Each variant is a `cai calibrate` of its own in OUT, which takes over every call of those before it that is the same:
one principle asks nothing that all of them have not asked, and one order is read off the verdicts of both. The same
command again goes on where it stopped. Further settings of `cai calibrate` come from --config.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.runs import run_variants
from cai import markdown
from cai.calibrate import judge_figures, temperature_figures
from cai.constitution import load_constitution
from cai.gold import a_is_gold
from cai.label import label, log_odds, soft_label
from cai.progress import Progress
from cai.rows import Verdict
from cai.seal import Json
from cai.settings import CalibrateSettings
from cai.settings_load import load_settings
from cai.stages import calibrate_stage
from cai.store import open_run
from cai.temperature import gather

VARIANTS: dict[str, dict[str, Any]] = {
    f"{mode}, {principles}": {"judge_mode": mode, "judge_principles": 1 if principles == "one" else "all"}
    for mode in ("pointwise", "logprob", "reasoned")
    for principles in ("all", "one")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="settings of cai calibrate: a YAML file or a recipe")
    parser.add_argument("--gold", required=True, help="gold pairs")
    parser.add_argument("--constitution", default="harmlessness")
    parser.add_argument("--endpoint", action="append", default=[], help="server of the judge")
    parser.add_argument("--model", help="the judge, or 'embedded'")
    parser.add_argument("--limit", type=int, help="gold pairs to read")
    parser.add_argument("--out", required=True, help="folder for the verdicts of each variant")
    run_variants(parser, VARIANTS, _measure, table)


async def _measure(options: argparse.Namespace) -> dict[str, Json]:
    given = {name: getattr(options, name) for name in ("gold", "constitution", "endpoint", "model", "limit")}
    given = {name: value for name, value in given.items() if value}
    figures: dict[str, Json] = {}
    runs: list[str] = []
    for variant in options.variant or list(VARIANTS):
        out = str(Path(options.out) / variant.replace(", ", "-"))
        print(f"{variant}: {out}", file=sys.stderr)
        own = {**given, **VARIANTS[variant], "out": out, "reuse": tuple(runs)}
        settings = load_settings(CalibrateSettings, options.config, own)
        figures[variant] = (await calibrate_stage(settings, Progress())).figures
        run = open_run(out)
        figures[variant]["without_length"] = without_length(run.records("pairs"), run.records("labels"))
        if settings.judge_mode != "pointwise":
            figures[f"{variant}, one order"] = _one_order(settings, out)
        runs.append(out)
    return figures


def _one_order(settings: CalibrateSettings, folder: str) -> Json:
    """The figures if each pair had been asked about in the order "ab" only."""
    run, constitution = open_run(folder), load_constitution(settings.constitution)
    weights, rule = constitution.weights(), settings.judging().rule
    rows = [{**row, "order": "none"} for row in run.records("verdicts") if row["order"] == "ab"]
    half: dict[str, list[Verdict]] = {}
    for row in rows:
        half.setdefault(row["pair_id"], []).append(Verdict(**row))
    told = {pair_id: label(verdicts, weights, rule) for pair_id, verdicts in half.items()}
    labels = [
        {"pair_id": pair_id, "judged": one.chosen, "probability_a": one.probability_a, "reason": one.reason}
        for pair_id, one in told.items()
    ]
    pairs = list(run.records("pairs"))
    figures = judge_figures(pairs, rows, labels)
    figures["temperature"] = temperature_figures(gather(pairs, rows, labels, weights), soft_label)
    figures["without_length"] = without_length(pairs, labels)
    return figures


def without_length(pairs: Iterable[Json], labels: Iterable[Json]) -> Json:
    """The accuracy of all that was read once what length explains is taken out of the labels' log-odds: their least
    squares fit, through the origin, on the log of the ratio of the answers' words. And the correlation with it."""
    told = {label["pair_id"]: label["probability_a"] for label in labels if label["probability_a"] is not None}
    read = [pair for pair in pairs if pair["pair_id"] in told]
    odds = [log_odds(told[pair["pair_id"]]) for pair in read]
    ratios = [math.log((1 + len(pair["a"].split())) / (1 + len(pair["b"].split()))) for pair in read]
    shared, own = _dot(odds, ratios), _dot(ratios, ratios)
    slope = shared / own if own else 0.0
    gold = [1 if a_is_gold(pair) else -1 for pair in read]
    left = [(one - slope * ratio) * side for one, ratio, side in zip(odds, ratios, gold, strict=True)]
    both = math.sqrt(own * _dot(odds, odds))
    return {
        "accuracy": sum(1.0 if one > 0 else 0.5 if one == 0 else 0.0 for one in left) / len(left) if left else None,
        "correlation": shared / both if both else None,
    }


def _dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def table(figures: dict[str, Json]) -> str:
    """The figures as Markdown, a line for each variant."""
    rows = [[name, *(cell(one) for cell in _COLUMNS.values())] for name, one in figures.items()]
    return "\n".join(markdown.table(["judge", *_COLUMNS], rows)).rstrip()


def _rate(rate: Json) -> str:
    return "-" if rate["value"] is None else f"{rate['value']:.2f} ({rate['low']:.2f}-{rate['high']:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _fitted(one: Json) -> str:
    fit = one["temperature"]
    return "-" if fit is None else f"{_number(fit['ece_cross_fitted'])} at {fit['temperature']:g}"


_COLUMNS: dict[str, Any] = {
    "decided": lambda one: f"{one['decided']} of {one['n']}",
    "right, of the decided": lambda one: _rate(one["accuracy"]),
    "right, of all read": lambda one: _rate(one["accuracy_readable"]),
    "Brier": lambda one: _number(one["brier"]),
    "calibration error": lambda one: _number(one["calibration"]["ece"]),
    "with the temperature that fits": _fitted,
    "flips": lambda one: _number(one["flips"]),
    "sides with the longer (gold)": lambda one: "{} ({})".format(
        *(_number(one["longer"][who]["value"]) for who in ("judge", "gold"))
    ),
    "without length": lambda one: _number(one["without_length"]["accuracy"]),
    "length explains": lambda one: _number(one["without_length"]["correlation"]),
}


if __name__ == "__main__":
    main()
