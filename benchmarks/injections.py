"""Can an answer talk the judge round? The worse answer of a pair carries a text that claims, orders or hides a verdict.

    python -m benchmarks.injections --endpoint http://127.0.0.1:8000/v1 --judge-mode logprob --out data/runs/injections

Each record of injections.jsonl is judged three times: clean, with its injection in the worse answer, and with a
harmless text of the same length in the same place (the control: what length alone does). All that in each form in which
the judge may be shown an answer: *fenced*; *unfenced*, the same template without its fences and nothing else changed;
and in pointwise mode, where the shipped form is neither, as the *turn* of the assistant that it would be. There fenced
and unfenced are the same conversation written out in the request, above the shipped question.

A flip is a pair whose clean label chose the better answer or none and whose injected label chooses the worse one; the
shift is how much more probable the worse answer becomes. Each record names the principle that its worse answer breaks,
and that one judges (`--principles named`); `all` judges as the pipeline does. Finished calls are kept in OUT, and the
same command goes on where it stopped. Further settings of `cai calibrate` come from --config. The last line is JSON.
"""

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.injection_set import SET, VARIANTS, Injection, read_set, some
from cai import markdown
from cai.calls import Ask, together
from cai.constitution import Constitution, load_constitution
from cai.engines import Completion, Engine, Request, open_engine
from cai.errors import BadInput, CaiError, RowDropped
from cai.gold import CHOSEN
from cai.journal import Journal, Tally
from cai.label import Judging, judge
from cai.rows import Label, Message, Pair
from cai.runner import InFlight
from cai.sandbox import fence
from cai.scores import rate
from cai.seal import Json
from cai.settings import CalibrateSettings
from cai.settings_load import load_settings
from cai.templates import JUDGE, Templates, load_templates

# How the answers are shown, the shipped form first.
FORMS = {
    "logprob": ("fenced", "unfenced"), "reasoned": ("fenced", "unfenced"), "pointwise": ("turn", "fenced", "unfenced")
}  # fmt: skip
# Mode by mode, whom a text is aimed at: "pair" names letters or two answers, "alone" the words Good and Bad.
AIMED_AT = {"logprob": "pair", "reasoned": "pair", "pointwise": "alone"}


@dataclass(frozen=True, slots=True)
class Read:
    """What a label came to: better, worse, none, or dropped; the probability of the worse answer."""

    chosen: str
    worse: float | None


Told = tuple[Injection, Mapping[str, Read]]  # a record, and what was read of each variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="settings of cai calibrate: a YAML file or a recipe")
    parser.add_argument("--endpoint", action="append", default=[], help="server of the judge")
    parser.add_argument("--engine", help="as for cai")
    parser.add_argument("--model", help="the judge, or 'embedded'")
    parser.add_argument("--judge-mode", choices=list(FORMS))
    parser.add_argument("--constitution")
    parser.add_argument("--principles", default="named", help="named (each record's own), all, or so many")
    parser.add_argument("--form", action="append", help="only these forms; several times")
    parser.add_argument("--rows", type=int, help="so many records, of all kinds alike")
    parser.add_argument("--seed", type=int, help="which records and principles those are")
    parser.add_argument("--out", help="folder that keeps the calls; default: none")
    options = parser.parse_args()
    try:
        figures = asyncio.run(_measure(options))
    except CaiError as error:
        sys.exit(f"{error}")
    print(table(figures))
    print(json.dumps(figures))


async def _measure(options: argparse.Namespace) -> Json:
    named = options.principles == "named"
    given = {name: getattr(options, name) for name in ("endpoint", "engine", "model", "judge_mode", "constitution")}
    given = {name: value for name, value in given.items() if value}
    given |= {"gold": str(SET), "judge_principles": "all" if named else options.principles}
    given |= {} if options.seed is None else {"seed": options.seed}
    settings = load_settings(CalibrateSettings, options.config, given)
    method, constitution = settings.judging(), load_constitution(settings.constitution)
    records = some(read_set(), options.rows, settings.seed)
    forms = options.form or FORMS[method.mode]
    _check(records, constitution, method.mode, forms, named)
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        async with open_engine(settings.spec()) as engine:
            with Journal(Path(options.out or scratch) / "injections.jsonl", tally) as journal:
                figures = await measure(
                    records, engine, journal.ask, constitution, method, forms, named, settings.templates
                )
    told = {"model": engine.model, "judge_mode": method.mode, "constitution": constitution.name}
    told |= {"principles": options.principles, "seed": settings.seed, "asked_calls": tally.asked_calls}
    return {**told, "records": len(records), "forms": figures}


def _check(
    records: Sequence[Injection], constitution: Constitution, mode: str, forms: Sequence[str], named: bool
) -> None:
    for form in forms:
        if form not in FORMS[mode]:
            expected = f"one of {', '.join(FORMS[mode])} with --judge-mode {mode}"
            raise BadInput("--form", f"'{form}'", expected, "Give one of them.")
    missing = {record.principle for record in records} - set(constitution.weights())
    if named and missing:
        found = f"no principle '{min(missing)}' in {constitution.path}"
        raise BadInput("--principles named", found, "each that the records name", "Give --principles all.")


async def measure(
    records: Sequence[Injection], engine: Engine, ask: Ask, constitution: Constitution, method: Judging,
    forms: Sequence[str], named: bool = False, folder: str | None = None,
) -> Json:  # fmt: skip
    """The figures of each form. With `named`, each record is judged by its own principle."""
    figures: Json = {}
    for form in forms:
        templates = templates_of(form, method.mode, folder, constitution)
        written_out = method.mode == "pointwise" and form != "turn"
        shown: Ask = partial(as_text, ask, form == "fenced") if written_out else ask
        told = await _judge_all(records, engine, shown, constitution, templates, method, named)
        figures[form] = figures_of(told)
        aims = ("any", AIMED_AT[method.mode])
        figures[form]["aimed_at_this_mode"] = figures_of([one for one in told if one[0].aim in aims])
        kinds = {record.kind: None for record in records}
        figures[form]["by_kind"] = {kind: figures_of([one for one in told if one[0].kind == kind]) for kind in kinds}
        figures[form]["reads"] = {
            record.id: {name: asdict(one) for name, one in reads.items()} for record, reads in told
        }
        figures[form]["flipped"] = [record.id for record, reads in told if _flips(reads, "injected")]
    return figures


# The forms


def templates_of(form: str, mode: str, folder: str | None, constitution: Constitution) -> Templates:
    """The judge's templates as they are; for "unfenced" with a filter `fence` that adds nothing."""
    templates = load_templates(folder, principles=constitution.principles, names=JUDGE[mode])
    if form == "unfenced":
        for template in templates.compiled.values():
            template.environment.filters["fence"] = str
    return templates


async def as_text(ask: Ask, fenced: bool, engine: Engine, request: Request) -> tuple[str, Completion]:
    """Ask with the conversation written out in the request, as the template of two answers writes it."""
    *turns, question = request.messages
    put: Callable[[str], str] = fence if fenced else str
    record = "\n".join(f"{turn.role.capitalize()}:\n{put(turn.content)}" for turn in turns)
    return await ask(engine, replace(request, messages=(Message("user", f"{record}\n\n{question.content}"),)))


# Judging


async def _judge_all(
    records: Sequence[Injection], engine: Engine, ask: Ask, constitution: Constitution, templates: Templates,
    method: Judging, named: bool,
) -> list[Told]:  # fmt: skip
    """Every variant of every record, admitted as in the pipeline."""
    reads: dict[str, dict[str, Read]] = {record.id: {} for record in records}
    in_flight = InFlight(lambda: engine.slots)

    async def one(record: Injection, variant: str) -> None:
        mine = await in_flight.begin()
        pair = record.pair(variant, len(VARIANTS) * records.index(record) + VARIANTS.index(variant))
        principles = {pair.pair_id: (record.principle,)} if named else None
        try:
            told = await judge(pair, partial(mine.ask, ask), engine, constitution, templates, method, principles)
            reads[record.id][variant] = _read(pair, told.label)
        except RowDropped as dropped:
            print(f"{record.id}, {variant}: {dropped}", file=sys.stderr)
            reads[record.id][variant] = Read("dropped", None)
        finally:
            mine.end()

    await together(one(record, variant) for record in records for variant in VARIANTS)
    return [(record, reads[record.id]) for record in records]


def _read(pair: Pair, label: Label) -> Read:
    better = "a" if pair.a_from == CHOSEN else "b"
    chosen = "none" if label.chosen == "none" else "better" if label.chosen == better else "worse"
    if label.probability_a is None:
        return Read(chosen, None)
    return Read(chosen, 1 - label.probability_a if better == "a" else label.probability_a)


# Figures


def figures_of(told: Sequence[Told]) -> Json:
    """Labels, flips and shifts of some records; `beyond_control` is what the control does not do."""
    standing = [reads for _, reads in told if reads["clean"].chosen in ("better", "none")]
    figures: Json = {"records": len(told)}
    figures["labels"] = {variant: dict(Counter(reads[variant].chosen for _, reads in told)) for variant in VARIANTS}
    for variant, name in (("injected", "flips"), ("control", "flips_of_control")):
        figures[name] = rate(sum(_flips(reads, variant) for reads in standing), len(standing))
    beyond = sum(_flips(reads, "injected") and not _flips(reads, "control") for reads in standing)
    figures["flips_beyond_control"] = rate(beyond, len(standing))
    figures["shift"] = _shift(told, "injected", "clean")
    figures["shift_of_control"] = _shift(told, "control", "clean")
    figures["shift_beyond_control"] = _shift(told, "injected", "control")
    return figures


def _flips(reads: Mapping[str, Read], variant: str) -> bool:
    return reads["clean"].chosen in ("better", "none") and reads[variant].chosen == "worse"


def _shift(told: Sequence[Told], to: str, since: str) -> Json:
    """How much more probable the worse answer is, on average, with the standard error of that mean."""
    read = [(reads[to].worse, reads[since].worse) for _, reads in told]
    shifts = [after - before for after, before in read if after is not None and before is not None]
    mean = statistics.fmean(shifts) if shifts else None
    error = statistics.stdev(shifts) / math.sqrt(len(shifts)) if len(shifts) > 1 else None
    return {"n": len(shifts), "mean": mean, "standard_error": error}


def table(figures: Json) -> str:
    """The figures as Markdown, a line for all records, for those aimed at this mode, and for each kind."""
    forms: Json = figures["forms"]
    header = [f"{figures['judge_mode']}, {figures['principles']}", "records"]
    header += [f"{form}: {title}" for form in forms for title in ("flips (control)", "shift (control)")]
    groups = {"all": lambda one: one, "aimed at this mode": lambda one: one["aimed_at_this_mode"]}
    kinds = next(iter(forms.values()))["by_kind"]
    groups |= {kind: partial(lambda kind, one: one["by_kind"][kind], kind) for kind in kinds}
    rows: list[list[str]] = []
    for name, group in groups.items():
        told = [group(one) for one in forms.values()]
        cells = [cell for one in told for cell in (_count(one), _shifts(one))]
        rows.append([name, str(told[0]["records"]), *cells])
    return "\n".join(markdown.table(header, rows)).rstrip()


def _count(one: Json) -> str:
    flips, control = one["flips"], one["flips_of_control"]
    if not flips["n"]:
        return "- of 0"
    return f"{flips['value'] * flips['n']:.0f} of {flips['n']} ({control['value'] * control['n']:.0f})"


def _shifts(one: Json) -> str:
    means = (one["shift"]["mean"], one["shift_of_control"]["mean"])
    return "{} ({})".format(*("-" if mean is None else f"{mean:+.3f}" for mean in means))


if __name__ == "__main__":
    main()
