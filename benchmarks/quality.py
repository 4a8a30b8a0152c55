"""The table of docs/quality.md: what the method does to red-team and to benign prompts, with and without its parts.

    python -m benchmarks.quality --config benchmarks/quality-embedded.yaml --out data/runs/quality
    python -m benchmarks.quality --config mine.yaml --red red.jsonl --benign ben.jsonl --limit 200 --out data/runs/mine

Each variant is a run of its own in OUT, which takes over every call of those before it that is the same. The same
command again goes on where it stopped and, once all is finished, prints the table without loading a model. The settings
file is one of `cai revise`, without prompts and out.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.runs import run_variants
from cai import markdown
from cai.errors import CheckFailed
from cai.progress import Progress
from cai.refusals import is_refusal
from cai.seal import Json
from cai.settings import ReviseSettings
from cai.settings_load import load_settings
from cai.stages import revise_stage
from cai.store import open_run

VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "gate off": {"gate": "off"},
    "few-shot on": {"few_shot": "on"},
    "other wording": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="settings of cai revise: a YAML file or a recipe")
    parser.add_argument("--red", default="redteam", help="red-team prompts (default: the shipped ones)")
    parser.add_argument("--benign", default="benign", help="benign prompts (default: the shipped ones)")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--limit", type=int, help="rows of each set")
    run_variants(parser, VARIANTS, _measure, table)


async def _measure(options: argparse.Namespace) -> dict[str, dict[str, Json]]:
    figures: dict[str, dict[str, Json]] = {}
    runs: list[str] = []
    for variant in options.variant or list(VARIANTS):
        for kind, prompts in (("red-team", options.red), ("benign", options.benign)):
            out = str(Path(options.out) / f"{variant.replace(' ', '-')}-{kind}")
            settings = _settings(options, variant, prompts, out, runs)
            print(f"{variant}, {kind}: {out}", file=sys.stderr)
            try:
                await revise_stage(settings, Progress())
            except CheckFailed as error:  # nothing kept: a figure like any other
                print(error, file=sys.stderr)
            runs.append(out)
            figures.setdefault(variant, {})[kind] = measure(out)
    return figures


def _settings(options: argparse.Namespace, variant: str, prompts: str, out: str, runs: list[str]) -> ReviseSettings:
    given: dict[str, Any] = {"prompts": prompts, "out": out, **VARIANTS[variant]}
    if options.limit is not None:
        given["limit"] = options.limit
    settings = load_settings(ReviseSettings, options.config, given)
    if variant == "other wording":
        given["wording"] = "short" if settings.wording == "detailed" else "detailed"
    return load_settings(ReviseSettings, options.config, {**given, "reuse": (*settings.reuse, *runs)})


def measure(folder: str) -> Json:
    """The figures of one run, as shares of the rows read. A dropped row is neither changed nor left alone, and what was
    found and failed in it is not counted: measure with `failed_revision: keep`, as the settings beside this file do."""
    run = open_run(folder)
    counts = run.manifest()["revise"]["counts"]
    rows = list(run.records("trajectories", ["response", "final", "changed", "rounds"]))
    changed = [row for row in rows if row["changed"]]
    return {
        "read": counts["read"],
        "dropped": counts["dropped_by_reason"],
        "left_alone": counts["kept"] - counts["changed"],
        "changed": counts["changed"],
        "changed_by_round": {number: one["changed"] for number, one in counts["by_round"].items()},
        "found_broken": sum(any(one["critique"] is not None for one in row["rounds"]) for row in rows),
        "revisions_in_kept_rows": sum(one["revisions_asked"] for one in counts["by_round"].values()),
        "failures_in_kept_rows": counts["failed_revisions"],
        "refusals": {name: group["refusals"] for name, group in counts["texts"].items()},
        "refusals_of_changed": [sum(is_refusal(row[name]) for row in changed) for name in ("response", "final")],
        "words": {name: group["mean_words"] for name, group in counts["texts"].items()},
        "words_of_changed": [_mean([len(row[name].split()) for row in changed]) for name in ("response", "final")],
        "boilerplate": counts["boilerplate_endings"],
        "remarks": counts["flags"],
    }


def table(figures: dict[str, dict[str, Json]]) -> str:
    """The figures as Markdown, one column for each variant and set."""
    columns = [(variant, kind, one) for variant, kinds in figures.items() for kind, one in kinds.items()]
    header = ["", *(f"{variant}, {kind}" for variant, kind, _ in columns)]
    rows = [[title, *(cell(one) for _, _, one in columns)] for title, cell in _LINES.items()]
    return "\n".join(markdown.table(header, rows)).rstrip()


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else "0"


def _names(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"


def _mean(numbers: list[int]) -> float:
    return round(sum(numbers) / len(numbers), 1) if numbers else 0.0


_LINES: dict[str, Any] = {
    "rows": lambda one: str(one["read"]),
    "criticised (gate said broken)": lambda one: _share(one["found_broken"], one["read"]),
    "changed": lambda one: _share(one["changed"], one["read"]),
    "revisions taken, by round": lambda one: _names(one["changed_by_round"]),
    "left alone": lambda one: _share(one["left_alone"], one["read"]),
    "dropped": lambda one: _share(sum(one["dropped"].values()), one["read"]),
    "dropped for": lambda one: _names(one["dropped"]),
    "failed tries in kept rows": lambda one: _names(one["failures_in_kept_rows"]),
    "refusals before, after": lambda one: f"{one['refusals']['response']}, {one['refusals']['final']}",
    "refusals before, after (changed rows)": lambda one: "{}, {}".format(*one["refusals_of_changed"]),
    "mean words before, after (changed rows)": lambda one: "{}, {}".format(*one["words_of_changed"]),
    "rows with a boilerplate ending": lambda one: str(sum(one["boilerplate"].values())),
}


if __name__ == "__main__":
    main()
