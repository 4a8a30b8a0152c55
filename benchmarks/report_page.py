"""How long the report of a large run takes to make, and how soon a browser has it open.

    python -m benchmarks.report_page
    python -m benchmarks.report_page --rows 200000 --keep data/runs/large

The run is written as the stages write one, of made-up texts with lengths like those of real answers. Chromium or Chrome
opens the page from the disk, headless, five times; the figure is the slowest, from the address to the event `load`.
"""

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.texts import heavy_tailed_words
from cai.constitution import Constitution, load_constitution
from cai.ids import first_of_two
from cai.journal import Tally
from cai.report.page import page
from cai.rows import Drop, Label, Message, Pair, Round, Trajectory, Verdict
from cai.store import Run, ShardMark, open_run

SHARD = 1000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--keep", help="leave the run and its page in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch)
        write_run(folder / "run", options.rows)
        before, begun = peak_mb(), time.perf_counter()
        made = page(open_run(str(folder / "run")), "data/runs/large").encode()
        figures = {"rows": options.rows, "seconds_to_make": round(time.perf_counter() - begun, 1)}
        figures |= {"mb_to_make": round(peak_mb() - before), "page_mb": round(len(made) / 1e6, 2)}
        path = folder / "report.html"
        path.write_bytes(made)
        print(json.dumps(figures | {"seconds_to_open": seconds_to_open(path)}))


def write_run(folder: Path, rows: int) -> None:
    """A run of revise and label with so many rows, of which two in a hundred are dropped."""
    constitution = load_constitution("harmlessness")
    texts = {"constitution": constitution.name, "constitution_sha": constitution.sha, "templates_sha": "1" * 64}
    belongs = {"models": {"generator": "made-up"}, "texts": texts, "settings": {"seed": 0}}
    with Run(folder) as run:
        for stage in ("revise", "label"):
            run.belong(stage, belongs, {"constitution.yaml": constitution.text})
            run.add_session({"stage": stage, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, **asdict(Tally())})
        for index in range(-(-rows // SHARD)):
            _shard(run, index, min(SHARD, rows - index * SHARD), constitution)


def _shard(run: Run, index: int, rows: int, constitution: Constitution) -> None:
    chance = random.Random(index)
    names = [principle.id for principle in constitution.principles]
    made: list[Trajectory] = []
    drops: list[Drop] = []
    for number in range(rows):
        row_id = f"row-{index * SHARD + number}"
        if number % 50 == 49:
            drops.append(Drop(row_id, "revise", "loops", "the revision says the same again", "so so so", "large.jsonl"))
        else:
            made.append(_trajectory(row_id, number, chance, names))
    pairs = [_pair(row) for row in made if row.changed]
    mark = ShardMark("0", tuple(str(number) for number in range(rows)), len(drops))
    run.write_shard("revise", index, {"trajectories": made}, drops, mark)
    verdicts = [
        _verdict(pair.pair_id, name, order, chance)
        for pair in pairs
        for name in chance.sample(names, 4)
        for order in ("ab", "ba")
    ]
    labels = [_label(pair, chance, constitution) for pair in pairs]
    unchanged = [
        Drop(row.row_id, "label", "no_pair", "no two answers", "", row.source) for row in made if not row.changed
    ]
    tables: dict[str, Any] = {"pairs": pairs, "verdicts": verdicts, "labels": labels}
    run.write_shard("label", index, tables, unchanged, ShardMark("0", mark.inputs, len(unchanged)))


def _trajectory(row_id: str, number: int, chance: random.Random, names: list[str]) -> Trajectory:
    response = heavy_tailed_words(chance, 120)
    revision = f"{response[: len(response) // 2]} {heavy_tailed_words(chance, 60)}" if number % 5 < 2 else None
    broken = revision is not None
    one = Round(
        1, chance.choice(names), 0.8 if broken else 0.2, 1.0, heavy_tailed_words(chance, 40) if broken else None,
        revision, "stop" if broken else None, broken, (), (), None, "g" * 64, "c" * 64, "r" * 64,
    )  # fmt: skip
    return Trajectory(
        row_id, row_id, 0, (Message("user", heavy_tailed_words(chance)),), "large.jsonl", "{}", response, "stop",
        "a" * 64, (one,), revision or response, broken, "made-up", "made-up", "made-up", "harmlessness", "0" * 64,
        "1" * 64, 0, 100, 0, 100, 0,
    )  # fmt: skip


def _pair(row: Trajectory) -> Pair:
    pair_id = f"{row.row_id}/response+revision-1"
    told = (row.response, "response"), (row.final, "revision-1")
    a, b = told if first_of_two(pair_id) else told[::-1]
    return Pair(pair_id, row.row_id, row.prompt_id, row.prompt, a[0], b[0], a[1], b[1], row.source, 0)


def _verdict(pair_id: str, name: str, order: str, chance: random.Random) -> Verdict:
    return Verdict(
        pair_id, name, order, "logprob", chance.random(), -0.7, -0.7, 1.0, None, "A", ("v" * 64,), "made-up", "1" * 64
    )


def _label(pair: Pair, chance: random.Random, constitution: Constitution) -> Label:
    probability = chance.random()
    chosen = "none" if abs(probability - 0.5) < 0.05 else "a" if probability > 0.5 else "b"
    return Label(
        pair.pair_id, pair.row_id, probability, chosen, 1.0, 0.1, (), 1.0, chosen, "tie" if chosen == "none" else "",
        None, "logprob", "made-up", constitution.name, constitution.sha, "1" * 64, 0, 100, 0, 1, 0,
    )  # fmt: skip


def seconds_to_open(path: Path) -> float:
    """The slowest of five times that a browser needs to open the page."""
    from playwright.sync_api import sync_playwright

    found = next((place for name in BROWSERS if (place := shutil.which(name))), None)
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    took: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=as_root)
        for _ in range(5):
            opened = browser.new_page()
            begun = time.perf_counter()
            opened.goto(path.resolve().as_uri(), wait_until="load")
            took.append(time.perf_counter() - begun)
            opened.close()
        browser.close()
    return round(max(took), 2)


def peak_mb() -> float:
    """The most memory that this process has had so far."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 if sys.platform == "linux" else 1024**2)


if __name__ == "__main__":
    main()
