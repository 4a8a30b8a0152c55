"""Is an exported dataset what `cai export` wrote? Every file against its manifest, then the numbers against the rows.

manifest.json   its own seal, and byte by byte as cai writes it
other files     sha256, size and rows, as the manifest has them
the rows        schema, counts, splits that share no prompt, `reward` that says what `preference` says
README.md       the numbers in its tables
the rest        what manifest and card say, made once more: see `verify_contents`
versions        each after the one before, and changes.parquet
the run         see `verify_trace`
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cai.dataset import CONFIGS, DATASET_SCHEMAS, KIND, SPLITS, json_text, rows_of
from cai.errors import BadInput
from cai.findings import Findings
from cai.folder import begun_for
from cai.hygiene import prompt_key
from cai.ids import digest, file_digest
from cai.rows import as_messages
from cai.seal import SIGNATURE, Json, unsealed
from cai.verify_contents import check_contents
from cai.verify_folder import empty_folders, files_below
from cai.verify_trace import trace
from cai.versions import number_of

_NOT_CONTENT = ("README.md", "changes.parquet")


def is_dataset(folder: Path) -> bool:
    """Whether a folder calls itself an exported dataset, or has what only one has."""
    path = folder / "manifest.json"
    if (folder / "settings.json").exists() or not path.is_file():
        return False
    return (folder / "README.md").is_file() or KIND.encode() in path.read_bytes()


def versions_in(folder: Path) -> list[Path]:
    """The versions in a folder of them, in their order; none if it is something else."""
    if (folder / "manifest.json").exists() or (folder / "settings.json").exists() or not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if number_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: number_of(path) or 0) if any(map(is_dataset, found)) else []


def verify_versions(folder: Path, run: Path | None, findings: Findings, beside: Sequence[Path] = ()) -> None:
    """Name every difference in all versions of a dataset."""
    versions = versions_in(folder)
    numbers = [number_of(path) or 0 for path in versions]
    for missing in sorted(set(range(1, max(numbers) + 1)) - set(numbers)):
        findings.differ(folder / f"v{missing:04d}", "no such version", "every version up to the last")
    check_strays(folder, findings)
    for path in versions:
        verify_dataset(path, run, findings, beside)


def begun_in(folder: Path) -> list[Path]:
    """The versions that an export has begun to write in a folder, and has not finished."""
    return [path for path in sorted(folder.iterdir()) if (to_be := begun_for(path)) and number_of(to_be) is not None]


def check_strays(folder: Path, findings: Findings) -> None:
    """Name whatever lies in a folder of versions and is none."""
    versions, begun = versions_in(folder), begun_in(folder)
    for path in begun:
        findings.note(
            f"{path} is what an export that is at work or was killed has begun to write; it counts for nothing."
        )
    for path in folder.iterdir():
        if path not in versions and path not in begun:
            findings.differ(path, "something that is no version", "nothing here")


def verify_dataset(folder: Path, run: Path | None, findings: Findings, beside: Sequence[Path] = ()) -> None:
    """Name every difference in a dataset, or in one version of it; `run` is where its run is now, if it has moved, and
    `beside` are runs that may be it."""
    findings.step(f"{folder}: comparing the files with the manifest.")
    manifest = _manifest(folder, findings)
    if manifest is None:
        findings.note(f"{folder}: nothing else was looked at, since all else is held against the manifest.")
        return
    sound = _check_files(folder, manifest, findings)
    found = digest([[one["path"], one["sha256"]] for one in manifest["files"] if one["path"] not in _NOT_CONTENT])
    where = f"{folder}/manifest.json"
    findings.same(where, found, manifest["content_sha"], "files whose list has the digest")
    if not sound:
        findings.note(f"{folder}: the rows were not looked at, since not all of its files are what was written.")
        return
    findings.step(f"{folder}: counting and comparing the rows.")
    _check_rows(folder, manifest, findings)
    _check_card(folder, manifest, findings)
    _check_version(folder, manifest, findings)
    made_of = trace(folder, manifest, run, findings, beside)
    try:
        check_contents(folder, manifest, made_of, findings)
    except BadInput as error:
        findings.refused(error)


def check_dataset_files(folder: Path, findings: Findings) -> None:
    """Name every file of a dataset, or of all its versions, that is not what the manifest has, and no more."""
    versions = versions_in(folder)
    if versions:
        check_strays(folder, findings)
    for one in versions or [folder]:
        manifest = _manifest(one, findings)
        if manifest is not None:
            _check_files(one, manifest, findings)


def _manifest(folder: Path, findings: Findings) -> Json | None:
    path = folder / "manifest.json"
    findings.looked["files"] += 1
    try:
        data = path.read_bytes()
        value: Any = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        findings.differ(path, f"a file that cannot be read ({str(error)[:100]})", "the manifest of a dataset")
        return None
    record = unsealed(value, frozenset(), KIND)
    if record is None or record.get("kind") != KIND:
        findings.differ(path, "no seal, or one that it does not fit", "the manifest as cai export wrote it")
        return None
    if json_text(value).encode() != data:
        findings.differ(path, "other white space or another order than cai writes", "the bytes that cai wrote")
    return record


def _check_files(folder: Path, manifest: Json, findings: Findings) -> bool:
    """Whether every file is there as it was, and nothing else."""
    before = len(findings.differences)
    listed: dict[str, Json] = {one["path"]: one for one in manifest["files"]}
    for name, one in listed.items():
        path = folder / name
        if not path.is_file():
            findings.differ(path, "no such file", "the one that the manifest has")
            continue
        findings.looked["files"] += 1
        found = file_digest(path)
        if found != one["sha256"]:
            findings.differ(path, f"other bytes, with the sha256 {found[:12]}", f"the sha256 {one['sha256'][:12]}")
            continue
        findings.same(path, path.stat().st_size, one["bytes"], "so many bytes:")
        if path.suffix == ".parquet":
            _check_table(path, name, one["rows"], findings)
        elif path.suffix == ".jsonl":
            with path.open("rb") as file:
                findings.same(path, sum(1 for _ in file), one["rows"], "so many rows:")
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            findings.differ(path, "a link", "a file of the dataset, or nothing")
        elif name not in listed and name not in ("manifest.json", SIGNATURE):
            findings.differ(path, "a file that is none of this dataset's", "nothing here")
    for path in empty_folders(folder):
        findings.differ(path, "an empty folder that is none of this dataset's", "nothing here")
    return len(findings.differences) == before


def _check_table(path: Path, name: str, rows: int, findings: Findings) -> None:
    try:
        findings.same(path, pq.read_metadata(path).num_rows, rows, "so many rows:")
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        findings.differ(path, "no Parquet file", "a table")
        return
    config: Any = name.partition("/")[0]
    if config in DATASET_SCHEMAS:
        findings.same(path, list(schema.names), list(DATASET_SCHEMAS[config].names), "the columns")


# Rows


def _check_rows(folder: Path, manifest: Json, findings: Findings) -> None:
    answers, principles = Counter[str](), {"sft": Counter[str](), "preference": Counter[str]()}
    sure: Counter[str] = Counter()
    prompts: dict[str, dict[str, set[str]]] = {"sft": {}, "preference": {}}
    for config in CONFIGS:
        counts, written = manifest["counts"][config], Counter[str]()
        for split in SPLITS:
            for row in rows_of(folder, config, split):
                written[split] += 1
                if config in principles:
                    turns = row["messages"][:-1] if config == "sft" else row["prompt"]
                    prompts[config].setdefault(prompt_key(as_messages(turns)), set()).add(split)
                    principles[config].update(row["principle_ids"])
                if config == "sft":
                    answers[row["answer_from"]] += 1
                if config == "preference":
                    sure.update(bound for bound in manifest["sure_pairs"] if row["chosen_probability"] >= float(bound))
        where = f"{folder}/manifest.json, counts of {config}"
        findings.same(where, {split: written[split] for split in SPLITS}, counts["written"], "tables with the rows")
        left_out = sum(counts["left_out"].values())
        findings.same(where, written.total() + left_out, counts["read"], "written and left out together are")
        findings.looked["rows"] += written.total()
    where = f"{folder}/manifest.json"
    findings.same(where, dict(sorted(answers.items())), manifest["answers"], "in sft, by where answers come from,")
    for config, used in principles.items():
        findings.same(where, dict(sorted(used.items())), manifest["principles"][config], f"in {config}, by principle,")
        findings.same(where, len(prompts[config]), manifest["distinct_prompts"][config], f"in {config}, prompts:")
        for split in (splits for splits in prompts[config].values() if len(splits) > 1):
            findings.differ(f"{folder}/{config}", f"a prompt in {' and '.join(sorted(split))}", "it in one split only")
    findings.same(where, {bound: sure[bound] for bound in manifest["sure_pairs"]}, manifest["sure_pairs"], "sure pairs")
    for split in SPLITS:
        _check_twins(folder, split, findings)


def _check_twins(folder: Path, split: str, findings: Findings) -> None:
    """`reward` is `preference` with the margin."""
    names = DATASET_SCHEMAS["preference"].names
    pairs, rewards = rows_of(folder, "preference", split), rows_of(folder, "reward", split, names)
    for number, pair in enumerate(pairs, start=1):
        if pair != next(rewards, None):
            where = f"{folder}/reward, {split}, row {number}"
            findings.differ(where, "another row than in preference", f"that of the pair '{pair['pair_id']}'")
            return


# The card


def _check_card(folder: Path, manifest: Json, findings: Findings) -> None:
    """The numbers in the card's tables of configs and of what was left out."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    wanted: set[tuple[str, ...]] = set()
    for config, entry in manifest["counts"].items():
        written = entry["written"]
        if sum(written.values()):
            wanted.add((f"`{config}`", str(written["train"]), str(written["test"])))
        wanted.add((f"`{config}`", str(entry["read"]), str(sum(written.values()))))
    cells = {
        tuple(cell.strip() for cell in line.strip("|").split("|"))[:3] for line in card.splitlines() if "|" in line
    }
    for one in sorted(wanted - cells):
        found = f"no line of a table with {one[0]}, {one[1]} and {one[2]}"
        findings.differ(f"{folder}/README.md", found, "the numbers that the manifest has")
    sha = manifest["content_sha"][:16]
    if f"content {sha}" not in card:
        findings.differ(f"{folder}/README.md", "another content", f"'content {sha}', as in the manifest")


# Versions


def _check_version(folder: Path, manifest: Json, findings: Findings) -> None:
    version = manifest.get("version")
    if version is None:
        return
    where = f"{folder}/manifest.json, version"
    findings.same(where, version["name"], folder.name, "the name")
    before, number = version["before"], number_of(folder)
    if number is not None:
        last = f"v{number - 1:04d}" if number > 1 else None
        findings.same(where, before["name"] if before is not None else None, last, "the version before is")
    if before is not None:
        _check_before(folder, before, findings)
        counted: Counter[tuple[str, str, str]] = Counter()
        with pq.ParquetFile(folder / "changes.parquet") as file:
            for batch in file.iter_batches(columns=["config", "split", "change"]):
                counted.update((row["config"], row["split"], row["change"]) for row in batch.to_pylist())
        told = {
            (config, split, change): count
            for config, splits in version["counts"].items()
            for split, counts in splits.items()
            for change, count in counts.items()
            if count
        }
        findings.same(where, dict(counted), told, "changes")


def _check_before(folder: Path, before: Json, findings: Findings) -> None:
    path = folder.parent / before["name"] / "manifest.json"
    try:
        value: Any = json.loads(path.read_bytes())
        sha = value["content_sha"]
    except (OSError, ValueError, KeyError, TypeError):
        findings.note(
            f"{folder}: the version before, {before['name']}, is not beside it, so nothing was held against it."
        )
        return
    findings.same(f"{path}, content_sha", sha, before["content_sha"], f"another content than {folder.name} came after:")
