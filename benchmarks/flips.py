"""Change single bytes of a run and of its dataset: does `cai verify` find every one, and none in an untouched copy?

    python -m benchmarks.flips --changes 500 --seed 0

A run of every stage with a scripted engine (a review that is applied, a calibration, a dataset in versions, another
one that is signed) is made, and then, so many times, one byte of one file is changed, `cai verify` is asked, and the
byte is put back. Each file is drawn at least once, then files by their size; the byte and what it becomes are drawn
too, and a third of the changes go to white space, what stands beside it, the first byte or the last. A file without
bytes gets one. `missed` names the changes that were not found, `false_alarms` what is found in the untouched
copy before and after. The last line is one JSON object; the exit code is 1 if anything was missed.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.runs import Silent, write_prompts
from cai.settings import CalibrateSettings, ExportSettings, LabelSettings, ReviseSettings
from cai.stages import calibrate_stage, export_stage, label_stage, revise_stage
from cai.verify import verify

KINDS = ("run", "gold", "sets", "signed")


@dataclass(slots=True)
class Tally:
    """What became of the changes, by what they were made in."""

    changes: int = 0
    files: int = 0
    found: int = 0
    missed: list[str] = field(default_factory=list[str])
    false_alarms: list[str] = field(default_factory=list[str])

    def good(self) -> bool:
        return self.found == self.changes and not self.missed and not self.false_alarms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.rows, options.seed)
        tally = flips(Path(folder), options.changes, options.seed, lambda said: print(said, file=sys.stderr))
    print("\n".join([*tally.missed, *tally.false_alarms]), file=sys.stderr)
    figures = {name: getattr(tally, name) for name in ("changes", "files", "found")}
    lists = {"missed": len(tally.missed), "false_alarms": len(tally.false_alarms)}
    print(json.dumps({**figures, **lists, "seconds": round(time.monotonic() - begun, 1)}))
    sys.exit(0 if tally.good() else 1)


def make(folder: Path, rows: int, seed: int) -> None:
    """A run with a review, a calibration, two versions of a dataset, and a dataset that is signed."""
    prompts = write_prompts(folder, rows, seed)
    run = str(folder / "run")

    def revise(limit: int) -> None:
        settings = ReviseSettings(
            prompts=str(prompts), out=run, engine="scripted", shard_rows=8, limit=limit, history="off", few_shot="on",
            gate_threshold=0.4,
        )  # fmt: skip
        asyncio.run(revise_stage(settings, Silent()))
        labelling = LabelSettings(run=run, engine="scripted", judge_principles=2, review_share=1, history="off")
        asyncio.run(label_stage(labelling, Silent()))

    def export(out: str, **more: Any) -> None:
        settings = ExportSettings(run=run, out=str(folder / out), test_share=0.3, trainer="llama-factory", **more)
        asyncio.run(export_stage(settings, Silent()))

    revise(max(2, rows - 4))
    export("sets", versions=True)
    revise(rows)
    review = folder / "run" / "review.jsonl"
    answers = [json.loads(line) for line in review.read_text().splitlines()]
    filled = [{**one, "answer": "none" if number == 0 else None} for number, one in enumerate(answers)]
    (folder / "filled.jsonl").write_text("".join(json.dumps(one) + "\n" for one in filled))
    applying = LabelSettings(run=run, apply_review=str(folder / "filled.jsonl"), review_share=1, history="off")
    asyncio.run(label_stage(applying, Silent()))
    export("sets", versions=True)
    key = Ed25519PrivateKey.generate()
    (folder / "cai.key").touch(mode=0o600)
    (folder / "cai.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    export("signed", sign=str(folder / "cai.key"))
    pairs = ({"id": f"g{n}", "prompt": f"q {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(6))
    (folder / "gold.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    gold = CalibrateSettings(gold=str(folder / "gold.jsonl"), out=str(folder / "gold"), engine="scripted")
    asyncio.run(calibrate_stage(gold, Silent()))


def flips(folder: Path, changes: int, seed: int, say: Callable[[str], None], kinds: Sequence[str] = KINDS) -> Tally:
    """Change so many bytes, one after another, in these folders below `folder`."""
    chance, tally = random.Random(seed), Tally()
    tally.false_alarms += _found(folder, kinds)
    places = [(kind, path) for kind in kinds for path in sorted((folder / kind).rglob("*")) if path.is_file()]
    tally.files = len(places)
    for kind, path in _drawn(places, changes, chance):
        data = path.read_bytes()
        at, byte = _change(data, chance)
        path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
        try:
            told = _found(folder, [kind])
        finally:
            path.write_bytes(data)
        tally.changes += 1
        if told:
            tally.found += 1
        else:
            was = f"{data[at]:#04x}" if data else "nothing"
            tally.missed.append(f"{path.relative_to(folder)}, byte {at} of {len(data)}: {was} to {byte:#04x}")
        if tally.changes % 50 == 0:
            say(f"{tally.changes} changes, {tally.found} found")
    tally.false_alarms += _found(folder, kinds)
    return tally


def _drawn(places: list[tuple[str, Path]], changes: int, chance: random.Random) -> Iterator[tuple[str, Path]]:
    """Each place once, then places in proportion to their sizes, but none so small that it is never drawn."""
    yield from places[:changes]
    sizes = [path.stat().st_size + 500 for _, path in places]
    yield from chance.choices(places, sizes, k=max(0, changes - len(places)))


def _change(data: bytes, chance: random.Random) -> tuple[int, int]:
    """Which byte, and what it becomes: in an empty file, one that is added."""
    if not data:
        return 0, chance.randrange(256)
    at = chance.randrange(len(data))
    if chance.random() < 1 / 3:
        spaces = [place for place, byte in enumerate(data) if byte in b" \n\r\t"]
        near = [place for space in spaces for place in (space - 1, space + 1) if 0 <= place < len(data)]
        at = chance.choice([0, len(data) - 1, *chance.choices(spaces + near, k=2)] if spaces else [0, len(data) - 1])
    byte = chance.choice([data[at] ^ 1 << chance.randrange(8), chance.choice(b" \n\t0"), chance.randrange(256)])
    return at, byte if byte != data[at] else data[at] ^ 1


def _found(folder: Path, kinds: Sequence[str]) -> list[str]:
    return [str(one) for kind in kinds for one in verify(folder / kind, folder / "run", None, Silent()).differences]


if __name__ == "__main__":
    main()
