"""Content addresses, derived seeds and the derived choice of principle. Nothing here draws a random number.

Everything that looks like chance is a hash of (run seed, row id, round, ...): the same inputs give the same run on
every machine, and a change of one input moves only what depends on it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: object) -> str:
    """The sha256, in hex, of `value` (JSON types only) in one canonical spelling.

    Non-ASCII is escaped, so that even a lone surrogate, which UTF-8 cannot hold, has an address.
    """
    return hashlib.sha256(_CANONICAL.encode(value).encode("ascii")).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes: what `sha256sum` prints, so that an auditor needs no tool of ours."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(run_seed: int, row_id: str, round_number: int, purpose: str, principle_id: str = "") -> int:
    """A sampling seed in [0, 2**31) for one call of one row."""
    return int(digest([run_seed, row_id, round_number, purpose, principle_id])[:8], 16) & 0x7FFFFFFF


def sample_row_id(prompt_id: str, sample: int) -> str:
    """The id of the row that is the prompt's sample 0, 1, ...: "q7", "q7~1"."""
    return f"{prompt_id}~{sample}" if sample else prompt_id


def first_of_two(pair_id: str) -> bool:
    """Whether a is the first-named of a pair's two answers: in half of the pairs, so that no origin has a place."""
    return int(digest(["a", pair_id])[:8], 16) % 2 == 0


def choose(run_seed: int, row_id: str, round_number: int, weights: Mapping[str, float]) -> str:
    """The principle of a row's round: the id with the highest weighted hash (rendezvous hashing).

    Bai et al. 2022, section 3.1, draw one of 16 principles at random for each revision. Here the draw is derived, so
    that it can be repeated, and so that adding a principle to n moves only about 1/(n+1) of the choices (with equal
    weights) and never moves a row from one old principle to another. An id is chosen in proportion to its weight.
    """
    return max(weights, key=lambda principle_id: _score(run_seed, row_id, round_number, principle_id, weights))


def choose_several(run_seed: int, row_id: str, round_number: int, weights: Mapping[str, float], count: int) -> set[str]:
    """The `count` ids with the highest weighted hashes; with one, the one that `choose` gives."""
    ranked = sorted(weights, key=lambda name: _score(run_seed, row_id, round_number, name, weights), reverse=True)
    return set(ranked[:count])


def _score(run_seed: int, row_id: str, round_number: int, principle_id: str, weights: Mapping[str, float]) -> float:
    # 52 bits and the half keep the uniform number strictly inside (0, 1), where its logarithm is finite and not zero.
    uniform = (int(digest([run_seed, row_id, round_number, principle_id])[:13], 16) + 0.5) / 2**52
    return -weights[principle_id] / math.log(uniform)
