"""What a run would take at scale: hours and GPU-hours, from the calls of a run that was made.

    python -m benchmarks.scale data/runs/mine --rows 182831

Calls and tokens per row are those of RUN (a finished `cai revise`, best with the settings that are meant); the rest is
arithmetic on the data sheets below:

- reading a prompt takes 2 x parameters floating point operations for each token that is not in the cache, at
  `PREFILL_SHARE` of the GPU's peak;
- writing goes in steps that give every call in flight one token; a step reads all weights and the cache of every call
  once, at `DECODE_SHARE` of the memory's bandwidth, or computes, whichever takes longer;
- so many calls are in flight as have room in the memory that weights leave, up to `MOST_CALLS`, each half done with its
  answer on average;
- reading and writing add up, and the pipeline takes `PIPELINE` times as long as the bare engine (benchmarks.replay).

It leaves out the start, failures and whatever else runs on the machine; expect a factor of 1.5 either way.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from cai import markdown
from cai.audit import report
from cai.errors import BadInput, CaiError
from cai.store import open_run

PREFILL_SHARE, DECODE_SHARE, MOST_CALLS, PIPELINE = 0.5, 0.6, 512, 1.05
KEPT_FREE = 0.9  # vLLM's share of the GPU's memory


@dataclass(frozen=True, slots=True)
class Model:
    """`parameters` and `weights` in 1e9 and GB; `cache` in bytes for each token of context."""

    parameters: float
    weights: float
    cache: float


@dataclass(frozen=True, slots=True)
class Gpus:
    """`count` GPUs with `memory` in GB, `bandwidth` in TB/s and `peak` in 1e12 operations/s each, for one model."""

    count: int
    memory: float
    bandwidth: float
    peak: float


# Layers x key-value heads x width of a head x 2 (keys and values) x 2 bytes.
LLAMA_8B = Model(8.0, 16.1, 32 * 8 * 128 * 2 * 2)
LLAMA_70B = Model(70.6, 141.1, 80 * 8 * 128 * 2 * 2)
LLAMA_70B_FP8 = Model(70.6, 70.6, 80 * 8 * 128 * 2 * 2)
CASES = {
    "8B in bf16 on one H100 (80 GB)": (LLAMA_8B, Gpus(1, 80, 3.35, 989)),
    "8B in bf16 on one A100 (80 GB)": (LLAMA_8B, Gpus(1, 80, 2.04, 312)),
    "70B in bf16 on four H100": (LLAMA_70B, Gpus(4, 80, 3.35, 989)),
    "70B with fp8 weights on two H100": (LLAMA_70B_FP8, Gpus(2, 80, 3.35, 989)),
}


@dataclass(frozen=True, slots=True)
class Row:
    """What a row takes, in the mean: its calls, and its tokens read, found in the cache, and written."""

    calls: float
    prompt: float
    cached: float
    written: float


def seconds(row: Row, model: Model, gpus: Gpus, reuse: bool = True) -> float:
    """The seconds of a row on one such set of GPUs that is kept full, the rows next to it counted off."""
    read = row.prompt - (row.cached if reuse else 0)
    operations, bandwidth = gpus.count * gpus.peak * 1e12, gpus.count * gpus.bandwidth * 1e12
    prefill = read * 2 * model.parameters * 1e9 / (PREFILL_SHARE * operations)
    length = row.prompt / row.calls + row.written / row.calls / 2
    room = gpus.count * gpus.memory * 1e9 * KEPT_FREE - model.weights * 1e9
    calls = min(MOST_CALLS, room / (length * model.cache))
    step = max(
        (model.weights * 1e9 + calls * length * model.cache) / (DECODE_SHARE * bandwidth),
        calls * 2 * model.parameters * 1e9 / (PREFILL_SHARE * operations),
    )
    return PIPELINE * (prefill + row.written * step / calls)


def row_of(run: str) -> Row:
    """The mean row of a `cai revise`. Raises BadInput if there is none, or if it asked for nothing itself."""
    entry: Any = report(open_run(run)).get("revise")
    if entry is None or not entry["finished"] or not entry["cost"]["asked_calls"]:
        raise BadInput(run, "no such run", "a finished cai revise that asked its calls itself", "Give another folder.")
    tokens, cost, rows = entry["tokens"], entry["cost"], entry["kept"]
    calls = cost["asked_calls"] / rows
    return Row(calls, *(tokens[name] / rows for name in ("prompt_tokens", "cached_tokens", "completion_tokens")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run of cai revise")
    parser.add_argument("--rows", type=int, default=182_831)
    options = parser.parse_args()
    try:
        row = row_of(options.run)
    except CaiError as error:
        sys.exit(f"{error}")
    print(
        f"A row: {row.calls:.1f} calls, {row.prompt:,.0f} prompt tokens, {row.cached:,.0f} of them cached, "
        f"{row.written:,.0f} written. {options.rows:,} rows:\n"
    )
    lines: list[list[str]] = []
    for name, (model, gpus) in CASES.items():
        hours, without = (options.rows * seconds(row, model, gpus, reuse) / 3600 for reuse in (True, False))
        pace = row.written / seconds(row, model, gpus)
        lines.append(
            [name, f"{pace:,.0f}", f"{hours:,.1f}", f"{hours * gpus.count:,.1f}", f"{without * gpus.count:,.1f}"]
        )
    heads = ["model", "output tokens/s", "hours", "GPU-hours", "GPU-hours without the prefix cache"]
    print("\n".join(markdown.table(heads, lines)).rstrip())


if __name__ == "__main__":
    main()
