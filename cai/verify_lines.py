"""Files to which lines are only ever added: is everything there that was, and is each line what was written?

How far the file had come when the manifest was written, and what it held, stands there: no line of that part can be
changed, added or taken out. What came later is held against each line's own seal, and a line that a killed command has
not finished is no difference.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from cai.findings import Findings
from cai.journal import read_entry
from cai.listing import hash_of
from cai.seal import Json, is_sealed_line
from cai.store import OLDER_SESSION


def check_growing(folder: Path, name: str, listed: Json | None, is_over: bool, findings: Findings) -> None:
    """Compare a file with what the manifest says of it, if it does, and each of its lines with its own seal.

    `is_over` says that nothing may have been added since the manifest was written.
    """
    told = _compared(folder / name, listed, is_over) if listed is not None else None
    unsound = list(_unsound(folder / name, name, findings))
    if told is not None:
        lines = ", ".join(str(number) for number, _ in unsound[:5])
        where = f" (see line {lines})" if unsound else ""
        findings.differ(name, told[0] + where, told[1])
        return
    for number, torn in unsound:
        place = f"{name}, line {number}"
        if torn:
            findings.note(f"{place}: a killed command has not finished it; it counts for nothing.")
        else:
            findings.differ(place, "a line that does not fit its own checksum", "a line as cai wrote it")


def _compared(path: Path, listed: Json, is_over: bool) -> tuple[str, str] | None:
    """What was found and what was expected, if the file is not what the manifest says."""
    size, expected = path.stat().st_size, f"{listed['bytes']} bytes with the sha256 {listed['sha256'][:12]}"
    if size < listed["bytes"]:
        return f"{size} bytes, so something was taken out", expected
    with path.open("rb") as file:
        sha256 = hash_of(file, listed["bytes"])[0].hexdigest()
    if sha256 != listed["sha256"]:
        return f"other bytes, with the sha256 {sha256[:12]}", expected
    if is_over and size > listed["bytes"]:
        return f"{size - listed['bytes']} bytes more", f"{expected}, and nothing behind them"
    return None


def _unsound(path: Path, name: str, findings: Findings) -> Iterator[tuple[int, bool]]:
    """The number of each line that is not sound, and whether that may be the work of a kill."""
    journal, older = name.startswith("journal/"), OLDER_SESSION if name == "sessions.jsonl" else frozenset[str]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removesuffix(b"\n")
            if text == b"" and not journal:
                continue
            if read_entry(text) is not None if journal else is_sealed_line(text, older):
                findings.looked["calls in the journal" if journal else "lines of other records"] += 1
            else:
                yield number, _is_torn(text.partition(b" ")[2] if journal else text, journal)


def _is_torn(text: bytes, journal: bool) -> bool:
    """Whether it may be the beginning of a line: what a command that was killed leaves."""
    if not text:
        return journal
    try:
        json.JSONDecoder().raw_decode(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 1
    except (ValueError, RecursionError):
        return False
    return False
