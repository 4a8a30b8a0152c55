"""What the file of a stage's records was when it was read, so that `cai verify` can tell whether it still is.

The digests of a shard's inputs say what was read, but whoever changes a row can change them too. The file itself is
somebody else's, and its bytes are in the manifest.
"""

import os
import platform
from pathlib import Path

import pyarrow as pa

from cai import gold, inputs, pairs, sources
from cai.ids import digest, file_digest
from cai.listing import hash_of
from cai.seal import Json
from cai.sources import file_of


def file_as_read(spec: str | None) -> Json | None:
    """How many bytes the file that a spec means has, and their sha256; None if it means no file that can be read."""
    path = file_of(spec) if spec is not None else None
    if path is None or not os.path.isfile(path):
        return None
    try:
        return {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    except OSError:  # whoever reads its records says why
        return None


def still_has(path: Path, was: Json) -> bool:
    """Whether a file begins with the bytes that were read, and no record goes on behind them: it may have grown."""
    try:
        with path.open("rb") as file:
            sha256, read = hash_of(file, was["bytes"])
            if not read or read < was["bytes"] or sha256.hexdigest() != was["sha256"]:
                return False
            file.seek(read - 1)
            last, following = file.read(1), file.read(1)
            return not following or b"\n" in (last, following)
    except OSError:
        return False


def reader_sha() -> str:
    """The digest of the code that makes rows and pairs of records: other code may read one otherwise."""
    python = platform.python_version_tuple()[:2]  # its words for what is no JSON stand in drops
    files = [file_digest(Path(str(one.__file__))) for one in (sources, inputs, gold, pairs)]
    return digest([*files, list(python), pa.__version__])
