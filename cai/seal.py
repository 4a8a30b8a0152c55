"""Records of our own that no flipped byte may change unseen: each carries a digest of what it says.

`settings.json` and `manifest.json` hold one record for each stage, `sessions.jsonl` and `shards.jsonl` one a line.
"""

import json
import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from cai.errors import BadInput
from cai.files import no_link, sync_folder, write_atomically, writing
from cai.ids import digest

Json = dict[str, Any]
SEAL = "sealed"
SIGNATURE = "manifest.json.sig"  # beside the manifest of a run or a dataset that somebody has signed


def sealed(record: Json, about: str = "") -> Json:
    """The record with its seal. `about` is what else must not change: the name that it stands under."""
    return {**record, SEAL: _seal(record, about)}


def unsealed(value: object, older: Set[str], about: str = "") -> Json | None:
    """The record without its seal; None if it is none, or not as it was sealed.

    Earlier versions wrote no seal, and no names but those in `older`: with others, it is the seal that is damaged.
    """
    if not isinstance(value, dict):
        return None
    record: Json = dict(value)
    seal = record.pop(SEAL, None)
    if seal is None:
        return record if record.keys() <= older else None
    try:
        return record if seal == _seal(record, about) else None
    except ValueError:  # a number that JSON has none for
        return None


def read_stages(path: Path, older: Set[str], remedy: str) -> dict[str, Json]:
    """The records of a file by stage; none without the file. Raises BadInput, with `remedy`, if it is damaged."""
    if not path.exists():
        return {}
    try:
        value: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(str(path), f"a damaged file ({error})", "what cai wrote", remedy) from error
    stages = (
        {name: unsealed(one, older, name) for name, one in value.items()} if isinstance(value, dict) else {"": None}
    )
    for name, record in stages.items():
        if record is None:
            found = f"a damaged file (what it says of '{name}' is not what was written)" if name else "a damaged file"
            raise BadInput(str(path), found, "what cai wrote", remedy)
    return {name: record for name, record in stages.items() if record is not None}


def write_stages(path: Path, stages: Mapping[str, Json]) -> None:
    """Write one sealed record for each stage."""
    write_atomically(path, stages_text({name: sealed(record, name) for name, record in stages.items()}))


def stages_text(value: Json) -> bytes:
    """Sealed records as they are written to a file."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def add_line(path: Path, record: Json) -> None:
    """Add a sealed record to a file of lines; then a power cut does not take it away. Raises CannotWrite."""
    with writing(path), open(path, "ab", buffering=0, opener=no_link) as file:
        is_new = file.tell() == 0
        # A line of its own, also behind one that a killed process has torn.
        line = b"\n" + _line(sealed(record)) + b"\n"
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)


def sealed_lines(path: Path, older: Set[str], damaged: list[str]) -> Iterator[Json]:
    """The sound records of a file of lines, if it is there; the places of the others are added to `damaged`."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = unsealed(json.loads(line), older)
        except (ValueError, RecursionError):
            record = None
        if record is not None:
            yield record
        else:
            damaged.append(f"{path}:{number}")


def is_sealed_line(line: bytes, older: Set[str]) -> bool:
    """Whether a line is, byte by byte, one that `add_line` writes, or that an earlier version wrote."""
    try:
        value: Any = json.loads(line)
        return isinstance(value, dict) and _line(value) == line and unsealed(value, older) is not None
    except (ValueError, RecursionError):
        return False


def _line(record: Json) -> bytes:
    return json.dumps(record).encode()


def _seal(record: Json, about: str) -> str:
    return digest([about, record])[:16]
