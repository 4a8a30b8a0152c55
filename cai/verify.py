"""Prove that nothing of a run or a dataset was changed since it was made. What this proves is in docs/verifying.md."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from cai.errors import BadInput, brief
from cai.findings import Findings
from cai.runner import Watch
from cai.seal import SIGNATURE
from cai.signing import fingerprint, is_signed, read_signature
from cai.verify_dataset import (
    begun_in,
    check_dataset_files,
    is_dataset,
    verify_dataset,
    verify_versions,
    versions_in,
)
from cai.verify_run import check_run_files, verify_run

# What reading or comparing can raise where a value is not of the kind, or not in the place, that cai gives it.
_UNREADABLE = (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def verify(
    path: Path, run: Path | None, public_key: bytes | None, watch: Watch, beside: Sequence[Path] = ()
) -> Findings:
    """Look at a run, a dataset, or a folder of a dataset's versions; which of them it is, it says itself.

    `run` is where a dataset's run lies now, if not where it was; `beside` are runs of which one may be it, which come
    before any other place. With a public key there must be a signature that was made with the private key that belongs
    to it. Raises BadInput if `path` is none of these.
    """
    findings, versions = Findings(watch), versions_in(path)
    if is_run(path):
        look = partial(verify_run, path, findings)
    elif versions:
        look = partial(verify_versions, path, run, findings, beside)
    elif is_dataset(path):
        look = partial(verify_dataset, path, run, findings, beside)
    else:
        raise none_of_ours(path)
    _look(look, path, findings)
    for folder in versions or [path]:
        check_signature(folder, public_key, findings)
    return findings


def none_of_ours(path: Path) -> BadInput:
    """What is wrong with a path that is neither a run, nor a dataset, nor a folder of versions."""
    expected = "the folder of a run (it has settings.json), of a dataset, or of its versions"
    if path.is_dir() and begun_in(path):
        found = "no version yet, only what an export that is at work or was killed has begun to write"
        return BadInput(str(path), found, expected, "Wait for it, or give the command again.")
    found = "no such folder" if not path.exists() else "no run and no dataset"
    return BadInput(str(path), found, expected, "Check the path.")


def verify_files(folder: Path, watch: Watch) -> Findings:
    """Look whether each file of a finished run, or of a dataset or all its versions, is what the manifest has, and at
    nothing else."""
    findings = Findings(watch)
    check = check_run_files if is_run(folder) else check_dataset_files
    _look(partial(check, folder, findings), folder, findings)
    return findings


def _look(look: Callable[[], None], path: Path, findings: Findings) -> None:
    try:
        look()
    except BadInput as error:
        findings.refused(error)
    except _UNREADABLE as error:  # every digest fits, so somebody has made files that cai never writes
        findings.differ(path, f"something that cannot be read ({brief(error)})", "what cai wrote")


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "settings.json").is_file()


def check_signature(folder: Path, public_key: bytes | None, findings: Findings) -> None:
    """A signature that is there must be right, also where nobody has given a key."""
    path = folder / SIGNATURE
    if not path.is_file():
        if public_key is not None:
            findings.differ(path, "no signature", f"one by the key {fingerprint(public_key)}")
        return
    if not (folder / "manifest.json").is_file():  # whatever removes a manifest removes its signature first
        findings.differ(path, "a signature over no manifest", "the manifest.json that it was given for")
        return
    findings.looked["files"] += 1
    signature = read_signature(path.read_bytes())
    if signature is None:
        findings.differ(path, "no signature as cai writes it", "one over manifest.json")
        return
    data = (folder / "manifest.json").read_bytes()
    named = fingerprint(signature.public_key)
    if hashlib.sha256(data).hexdigest() != signature.sha256 or not is_signed(data, signature, signature.public_key):
        findings.differ(path, "a signature that does not fit manifest.json", f"one by the key {named} that it names")
    elif public_key is None:
        findings.note(
            f"{path}: signed with the key {named}. Give --key PUBLICKEY to see whether that is the one you know."
        )
    elif not is_signed(data, signature, public_key):
        findings.differ(path, f"a signature by the key {named}", f"one by the key {fingerprint(public_key)}")
    else:
        findings.looked["signatures"] += 1
