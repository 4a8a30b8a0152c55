"""`cai verify` and `cai sign`: that nothing was changed, and who says so."""

from pathlib import Path

import click

from cai.errors import BadInput, CheckFailed
from cai.findings import Findings
from cai.pasted import folder_word
from cai.progress import Progress
from cai.signing import fingerprint, read_private_key, read_public_key
from cai.signing import sign as sign_manifest
from cai.store import Run
from cai.texts import visible, visible_json
from cai.verify import is_run, none_of_ours, verify_files
from cai.verify import verify as verify_path
from cai.verify_dataset import is_dataset, versions_in


@click.command(short_help="Prove that nothing of a run or a dataset was changed.")
@click.argument("paths", nargs=-1, required=True)
@click.option("--run", "moved", help="Where the run of a dataset lies now, if it has moved.")
@click.option("--key", help="File with the public key that must have signed it (PEM or OpenSSH).")
@click.option("--alone", is_flag=True, help="A dataset whose run is not here is fine: look at the dataset alone.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(paths: tuple[str, ...], moved: str | None, key: str | None, alone: bool, as_json: bool) -> None:
    """Compare every file of PATHS with the digests that were written down when it was made, and the tables, texts,
    answers and counts with each other. A path is a run, a dataset, or a folder of a dataset's versions.

    A row of a dataset is followed back into its run: that one of PATHS whose manifest has the digest that the dataset
    names, or else the one that is found where it was. Nothing is written. Exit code 1 if anything differs, with a
    sentence for each difference, or if a dataset's run is not there (unless --alone is given), 2 if a path is none of
    these; docs/verifying.md says what this proves.

    \b
    Example:
      cai verify data/runs/first data/runs/first-dataset
      cai verify data/sets/first --run elsewhere/runs/first --key cai.pub
    """
    public = read_public_key(f"--key {key}", key) if key is not None else None
    run = Path(moved) if moved is not None else None
    if run is not None and not is_run(run):
        raise BadInput(
            f"--run {run}", "no run", "the folder of the run that the dataset was made of", "Check the path."
        )
    beside = [Path(path) for path in paths if is_run(Path(path))]
    found = {path: verify_path(Path(path), run, public, Progress(), beside) for path in paths}
    if as_json:
        told = {path: _told(findings) for path, findings in found.items()}
        click.echo(visible_json(told))
    else:
        for path, findings in found.items():
            _print(path, findings)
    count = sum(len(findings.differences) for findings in found.values())
    if count:
        where = ", ".join(path for path in paths if found[path].differences)
        raise CheckFailed(f"{_several(count, 'difference')} from what was written, in {where}")
    unchecked = [folder for findings in found.values() for folder in findings.unchecked]
    if unchecked and not alone:
        raise CheckFailed(
            f"{', '.join(unchecked)}: nothing differs, but it was not held against its run. Give the folder of that "
            "run, or --alone if it is not there any more"
        )


def _told(findings: Findings) -> dict[str, object]:
    return {
        "differences": [
            {"place": one.place, "found": one.found, "expected": one.expected} for one in findings.differences
        ],
        "notes": findings.notes,
        "looked_at": dict(findings.looked),
        "unfinished": findings.unfinished,
        "held_against": sorted(set(findings.held_against)),
        "not_held_against_its_run": findings.unchecked,
    }


def _print(path: str, findings: Findings) -> None:
    for one in findings.differences:
        click.echo(_line(str(one)))
    for note in findings.notes:
        click.echo(_line(note))
    looked = ", ".join(f"{count} {what}" for what, count in findings.looked.items() if count)
    state = "as it was written"
    if findings.differences:
        state = f"differs in {_several(len(findings.differences), 'place')}"
    elif findings.unfinished:
        state = "not finished; what is there is as it was written"
    if findings.held_against:
        state += f", held against {', '.join(dict.fromkeys(findings.held_against))}"
    if findings.unchecked:
        which = "" if [path] == findings.unchecked else f" ({', '.join(findings.unchecked)})"
        state += f", and NOT held against its run{which}"
    click.echo(_line(f"{path}: {state}. Looked at: {looked or 'nothing more'}."))


def _line(sentence: str) -> str:
    """One line, so that the name of a file cannot pass for what cai says of another."""
    return visible(sentence).replace("\n", "\\n")


@click.command(short_help="Sign a run or a dataset.")
@click.argument("path")
@click.option("--key", required=True, help="File with an Ed25519 private key without a password (PEM or OpenSSH).")
def sign(path: str, key: str) -> None:
    """Sign the manifest of the finished run, the dataset, or all versions of the dataset in PATH.

    The signature goes into manifest.json.sig beside it. The manifest holds the sha256 of every other file, so a change
    in any of them is one that the signature does not cover. Whatever writes the manifest anew removes the signature.
    A folder of which a file is not what the manifest has is not signed: exit code 2.

    \b
    Example:
      cai sign data/runs/first --key cai.key
      cai verify data/runs/first --key cai.pub
    """
    private = read_private_key(f"--key {key}", key)
    folder = Path(path)
    if is_run(folder):
        with Run(folder) as run:
            _refuse_unfinished(run)
            _refuse_changed(folder)
            signed = [sign_manifest(folder, private)]
    else:
        folders = versions_in(folder) or ([folder] if is_dataset(folder) else [])
        if not folders:
            raise none_of_ours(folder)
        _refuse_changed(folder)
        signed = [sign_manifest(one, private) for one in folders]
    for file in signed:
        click.echo(visible(f"{file}: signed with the key {fingerprint(private.public())}."))


def _refuse_unfinished(run: Run) -> None:
    """Raise BadInput if the manifest does not answer for the whole run."""
    missing = sorted(run.settings().keys() - run.manifest().keys())
    if missing or run.other_files() is None:
        found = f"a run whose cai {missing[0]} is not finished" if missing else "a run of an earlier version"
        raise BadInput(str(run.folder), found, "a finished one", "Give its commands to their end, then sign it.")


def _refuse_changed(folder: Path) -> None:
    """Raise BadInput if a file is not what the manifest has: the signature would vouch for what is not there."""
    found = verify_files(folder, Progress())
    for one in found.differences[:1]:
        remedy = f"Restore it, or make it anew; cai verify {folder_word(folder)} names every difference."
        raise BadInput(str(folder), f"{one.found} ({one.place})", one.expected, remedy)
    for note in found.uncovered[:1]:
        remedy = "Apply the answers, or remove what was begun, then sign it."
        raise BadInput(str(folder), f"what no signature would cover ({note.rstrip('.')})", "nothing of that", remedy)


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
