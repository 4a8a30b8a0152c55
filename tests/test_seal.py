"""What a power cut leaves: of a shard that has its name, the sum that it was written with."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from cai.store import Run, ShardMark
from tests.runs import response


def test_the_sum_of_a_shard_is_on_the_disk_before_the_shard_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sums, real_sync, real_name = tmp_path / "run" / "shards.jsonl", os.fsync, os.replace
    on_disk: dict[str, Any] = {"lines": "", "name": False}
    named: list[str] = []

    def sync(file: int) -> None:
        real_sync(file)
        if sums.exists():
            on_disk["lines"] = sums.read_text() if is_at(file, sums) else on_disk["lines"]
            on_disk["name"] |= is_at(file, sums.parent)

    def is_at(file: int, path: Path) -> bool:
        return os.path.samestat(os.fstat(file), path.stat())

    def name(scratch: Path, path: Path) -> None:
        if path.suffix == ".parquet":
            assert hashlib.sha256(scratch.read_bytes()).hexdigest() in on_disk["lines"] and on_disk["name"], path
            named.append(path.name)
        real_name(scratch, path)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", name)
    with Run(tmp_path / "run") as run:
        run.belong("generate", {}, {})
        for index in (0, 1):
            run.write_shard("generate", index, {"responses": [response(f"r{index}")]}, [], ShardMark("s", ("i",), 0))
    assert named == ["part-00000.parquet", "part-00001.parquet"]
