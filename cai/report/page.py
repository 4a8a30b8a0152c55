"""`cai report RUN --html FILE`: a run as one page that needs nothing beside it.

The page is made by Jinja with autoescape on, so text from people and models is text in it; the only markup that is put
in as it stands is our own: the sheet, the script and the drawings. A strict policy in its head lets a browser run that
script and use that sheet, by their digests, and load nothing at all.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cai.audit import report
from cai.constitution import Constitution, load_constitution
from cai.errors import BadInput
from cai.pasted import folder_word, row_word
from cai.reliability import reliability
from cai.report import plots
from cai.report.doubts import doubts, gate_mass, letter_mass, share
from cai.report.exported import exports_of_run
from cai.report.figures import LENGTHS, Figures, count
from cai.report.frameworks import frameworks
from cai.report.gate import Gate, gate_of_run
from cai.report.rows import Shown, drop_samples, shown_rows
from cai.report.sample import Sample
from cai.seal import Json
from cai.store import Run
from cai.texts import visible
from cai.word_diff import word_diff

_HERE = Path(__file__).parent
LONGEST = 4000  # characters of a text that the page shows
STAGES = ("generate", "revise", "label", "calibrate")


def page(run: Run, name: str, calibration: str | None = None, datasets: Sequence[str] = ()) -> str:
    """The report of a run as HTML; `name` is what the commands in it call the run. Rows are marked by what became of
    them in the datasets that lie beside the run, and in the folders that `datasets` names.

    Equal runs with equal datasets make equal pages. Raises BadInput if a file is damaged, if `calibration` is not the
    folder of a calibrated judge, or if one of `datasets` was not made of this run.
    """
    sample = Sample()
    counts = report(run)
    figures = count(run, sample)
    exports = exports_of_run(run, datasets, sample)
    rows = shown_rows(run, sample.chosen(), exports)
    constitutions = constitutions_of(run)
    gate = gate_of_run(run, constitutions)
    style, script = (Markup((_HERE / file).read_text(encoding="utf-8")) for file in ("page.css", "page.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(_HERE),
    )  # fmt: skip
    filters: dict[str, Any] = environment.filters
    filters.update(text=_text, diff=_diff, percent=_percent, number=_number, mass=share)
    filters.update(command=folder_word, argument=row_word, why=_why)
    return environment.get_template("page.html.jinja").render(
        name=name,
        style=style,
        script=script,
        style_sha=_sha(style),
        script_sha=_sha(script),
        stages={stage: counts[stage] for stage in STAGES if stage in counts},
        made_with=_made_with(run),
        figures=figures,
        gate=gate,
        gate_mass=gate_mass(figures),
        letter_mass=letter_mass,
        doubts=doubts(counts, figures, gate, constitutions),
        principles=_principles(figures, constitutions),
        conflicts=_conflicts(figures),
        drops=_drops(run, counts, figures),
        frameworks=frameworks(constitutions, figures),
        constitutions=constitutions,
        rows=rows,
        exports=exports,
        filters=_filters(rows),
        sampled=sum(counts[stage]["read"] for stage in ("revise", "generate") if stage in counts),
        limit=sample.limit,
        calibration=_calibration(run, calibration),
        plots=_plots(figures, gate),
        longest=LONGEST,
    )


def constitutions_of(run: Run) -> list[Constitution]:
    """The constitutions as the run's stages used them, each once."""
    paths = [run.constitution(stage) for stage in STAGES]
    loaded = [load_constitution(str(path)) for path in paths if path is not None]
    return list({one.sha: one for one in loaded}.values())


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# What the template shows


@dataclass(frozen=True, slots=True)
class _Principle:
    id: str
    statement: str
    deeds: Any


def _principles(figures: Figures, constitutions: list[Constitution]) -> list[_Principle]:
    """In the order of the constitution, those that it does not have behind them."""
    known = {one.id: one.statement for constitution in constitutions for one in constitution.principles}
    names = [*known, *sorted(figures.deeds.keys() - known.keys())]
    return [_Principle(name, known.get(name, ""), figures.of(name)) for name in names]


def _conflicts(figures: Figures) -> list[Json]:
    """Pairs of principles that named different answers, most often first; a dozen at most."""
    found = [(-apart, both, one, other) for (one, other), (both, apart) in figures.conflicts.items() if apart]
    return [
        {"one": one, "other": other, "both": both, "apart": -apart} for apart, both, one, other in sorted(found)[:12]
    ]


def _drops(run: Run, counts: Json, figures: Figures) -> list[Json]:
    samples = drop_samples(run, figures.dropped)
    return [
        {"stage": stage, "reason": reason, "count": number, "samples": samples.get((stage, reason), [])}
        for stage in STAGES
        if stage in counts
        for reason, number in sorted(counts[stage]["dropped_by_reason"].items(), key=lambda one: (-one[1], one[0]))
    ]


def _filters(rows: list[Shown]) -> Mapping[str, list[str]]:
    """What the rows can be filtered by."""
    states = sorted({state for row in rows for state in row.states})
    return {"states": states, "principles": sorted({name for row in rows for name in row.principles})}


def _made_with(run: Run) -> dict[str, Json]:
    """By stage: models, digests, settings, versions, and when it was worked on."""
    manifest, told = run.manifest(), {}
    settings = run.settings()
    for stage in (stage for stage in STAGES if stage in settings):
        sessions = run.sessions(stage)
        told[stage] = {
            "models": settings[stage].get("models", {}),
            "texts": settings[stage].get("texts", {}),
            "settings": settings[stage].get("settings", {}),
            "versions": manifest.get(stage, {}).get("versions", {}),
            "prompts": manifest.get(stage, {}).get("prompts", {}),
            "sessions": len(sessions),
            "first": sessions[0].get("started", "") if sessions else "",
            "last": sessions[-1].get("started", "") if sessions else "",
        }
    return told


def _calibration(run: Run, folder: str | None) -> Json | None:
    """The figures of a calibrated judge, with a drawing: of the folder that is named, else of the run's own."""
    path = Path(folder) / "calibration.json" if folder is not None else run.folder / "calibration.json"
    if folder is None and not path.is_file():
        return None
    try:
        told: Json = json.loads(path.read_text(encoding="utf-8"))
        bins = told["calibration"]["bins"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"no figures of a judge ({error})"
        raise BadInput(str(path), found, "what cai calibrate leaves", "Name the folder of its verdicts.") from error
    return {**told, "folder": str(path.parent), "svg": Markup(reliability(bins).in_page("reliability"))}


def _plots(figures: Figures, gate: Gate) -> dict[str, Json]:
    """The drawings, each with the numbers that it shows."""
    told: dict[str, Json] = {}

    def add(
        name: str, title: str, along: str, up: str, places: list[str], series: dict[str, list[int]], **how: Any
    ) -> None:
        if any(any(values) for values in series.values()):
            said = "; ".join(f"{label}: " + ", ".join(map(str, values)) for label, values in series.items())
            picture = plots.bars(name, title, f"{along}: {', '.join(places)}. {said}", places, series, along, up, **how)
            told[name] = {"svg": Markup(picture), "title": title, "along": along, "places": places, "series": series}

    names = [name for name, deeds in figures.deeds.items() if deeds.applied]
    if names:
        names.sort(key=lambda name: (-figures.of(name).applied, name))
        series = {
            "chosen": [figures.of(name).applied for name in names],
            "answer criticised": [figures.of(name).criticised for name in names],
            "answer changed": [figures.of(name).changed for name in names],
        }
        title = "How often each principle was chosen, the answer criticised by it, and changed"
        said = "; ".join(
            f"{name}: chosen {figures.of(name).applied}, criticised {figures.of(name).criticised}, "
            f"changed {figures.of(name).changed}"
            for name in names
        )
        picture = plots.sideways("principles", title, said, names, series)
        told["use"] = {"svg": Markup(picture), "title": title, "along": "principle", "places": names, "series": series}
    tenths = [f"{n / 10:.1f}" for n in range(10)]
    title = "How likely the critic found it that an answer breaks its principle"
    along = "probability that it is broken (each column: from so much on)"
    if gate.question is not None:
        title = "How likely the critic found a yes to the question about all principles"
        along = "probability of yes (each column: from so much on)"
    add("gate", title, along, "times asked", tenths, {"times asked": figures.gate})
    words = [*(f"{low}-{high - 1}" for low, high in pairwise(LENGTHS)), f"{LENGTHS[-1]}+"]
    add("lengths", "Length of the answers before and after", "words", "rows", words, figures.lengths)
    sure = [f"{0.5 + n / 20:.2f}" for n in range(10)]
    title = "How sure the labels are, and which were left undecided"
    along = "probability of the likelier answer (each column: from so much on)"
    add("sure", title, along, "pairs", sure, figures.labels.sure, stacked=True)
    parts = [f"{n / 20:.2f}" for n in range(20)]
    title = "What the judge gave the revision, against the answer it revised"
    along = "probability of the revision (each column: from so much on)"
    add("preference", title, along, "pairs", parts, {"pairs": figures.labels.for_revision})
    return told


# Text


def _text(value: object) -> str:
    """What a person or a model wrote: unseen characters spelled out, and no more of it than a page can hold."""
    told = str(value)
    left = len(told) - LONGEST
    return visible(told[:LONGEST]) + (f" [... {left} more characters: see the row with cai show]" if left > 0 else "")


def _diff(before: str, after: str) -> list[Json]:
    return [{**asdict(piece), "text": visible(piece.text)} for piece in word_diff(before[:LONGEST], after[:LONGEST])]


def _percent(part: float | None, whole: float = 1) -> str:
    return "-" if part is None or not whole else f"{100 * part / whole:.0f} %"


def _number(value: float | None, places: int = 2) -> str:
    return "-" if value is None else f"{value:,.{places}f}" if isinstance(value, float) else f"{value:,}"


def _why(drop: Json) -> str:
    """What is said of a drop behind its id, which is the place in the source where the record has none."""
    return drop["detail"].removeprefix(f"{drop['row_id']}: ")
