"""Signatures: made with keys as openssl and ssh-keygen make them, found wrong wherever they are; no key gets out."""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cai.cli import cai
from cai.errors import BadInput, CheckFailed
from cai.findings import Findings
from cai.settings import ExportSettings, PipelineSettings
from cai.settings_load import repeat
from cai.signing import PrivateKey, read_private_key, read_public_key, sign
from cai.stages import export_stage
from cai.store import Run
from cai.verify import check_signature, verify
from tests.conftest import Quiet
from tests.small import answer_by_script, before, label

PEM = (Encoding.PEM, PrivateFormat.PKCS8)
SSH = (Encoding.PEM, PrivateFormat.OpenSSH)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        return before("export", tmp_path_factory.mktemp("signing") / "finished")


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    answer_by_script(monkeypatch)
    return shutil.copytree(made_once, tmp_path / "finished")


def write_keys(folder: Path, name: str = "cai", form: Any = PEM) -> tuple[str, str]:
    """A private and a public key file."""
    key, kind = Ed25519PrivateKey.generate(), form[1]
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(*form, NoEncryption()))
    ssh = kind == PrivateFormat.OpenSSH
    forms = (Encoding.OpenSSH, PublicFormat.OpenSSH) if ssh else (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(key.public_key().public_bytes(*forms) + (b" somebody@somewhere\n" if ssh else b""))
    return str(private), str(public)


def export(folder: Path, **changes: Any) -> Path:
    settings = ExportSettings(run=str(folder / "run"), out=str(folder / "set"), **changes)
    asyncio.run(export_stage(settings, Quiet()))
    return folder / "set"


def told(folder: Path, public: str | None) -> str:
    key = read_public_key("--key", public) if public is not None else None
    return "\n".join(map(str, verify(folder, folder.parent / "run", key, Quiet()).differences))


@pytest.mark.parametrize("form", [PEM, SSH], ids=["PEM", "OpenSSH"])
def test_a_signed_dataset_is_known_by_the_public_key_and_by_no_other(finished: Path, tmp_path: Path, form: Any):
    private, public = write_keys(tmp_path, form=form)
    _, other = write_keys(tmp_path, "other")
    folder = export(finished, sign=private)
    found = verify(folder, finished / "run", read_public_key("--key", public), Quiet())
    assert found.differences == [] and found.looked["signatures"] == 1
    assert "manifest.json.sig: found a signature by the key" in told(folder, other)
    unchecked = verify(folder, finished / "run", None, Quiet())
    assert unchecked.differences == [] and "Give --key PUBLICKEY" in unchecked.notes[0]
    (folder / "manifest.json.sig").unlink()
    assert "manifest.json.sig: found no signature, expected one by the key" in told(folder, public)


def test_a_signature_without_the_manifest_that_it_was_given_for_is_found_also_without_a_key(
    finished: Path, tmp_path: Path
):
    private, public = write_keys(tmp_path)
    with Run(finished / "run"):
        sign(finished / "run", read_private_key("--key", private))
    (finished / "run" / "manifest.json").unlink()
    for key in (public, None):
        assert "manifest.json.sig: found a signature over no manifest" in told(finished / "run", key)


@pytest.mark.parametrize("tool", ["openssl", "ssh-keygen"])
def test_keys_as_the_usual_tools_make_them_are_taken(tmp_path: Path, tool: str):
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on this machine")
    private, public = tmp_path / "k", tmp_path / "k.pub"
    if tool == "openssl":
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    else:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private], check=True)
    assert read_private_key("--sign", str(private)).public() == read_public_key("--key", str(public))


def test_openssl_checks_a_signature_without_cai(finished: Path, tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    private, public = write_keys(tmp_path)
    folder = export(finished, sign=private)
    signature = json.loads((folder / "manifest.json.sig").read_text())["signature"]
    (tmp_path / "raw").write_bytes(base64.b64decode(signature))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    command += ["-in", str(folder / "manifest.json"), "-sigfile", str(tmp_path / "raw")]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_signature_of_which_any_byte_is_changed_is_found_without_a_key_too(finished: Path, tmp_path: Path):
    private, _ = write_keys(tmp_path)
    sign(finished / "run", read_private_key("--key", private))
    path = finished / "run" / "manifest.json.sig"
    data = path.read_bytes()
    assert wrong(path.parent) == []
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert len(wrong(path.parent)) == 1, at


def wrong(folder: Path) -> list[str]:
    """What is wrong with the signature alone."""
    findings = Findings(Quiet())
    check_signature(folder, None, findings)
    return list(map(str, findings.differences))


def test_somebody_who_changes_a_dataset_and_makes_every_digest_fit_is_found_by_the_key(finished: Path, tmp_path: Path):
    private, public = write_keys(tmp_path)
    signed = export(finished, sign=private)
    keep = (signed / "manifest.json.sig").read_bytes()
    forged = export(finished, licence="mine")
    (forged / "manifest.json.sig").write_bytes(keep)
    assert "found a signature that does not fit manifest.json" in told(forged, None)
    assert "found a signature that does not fit manifest.json" in told(forged, public)


def test_a_dataset_that_is_exported_anew_loses_its_signature_and_one_may_lie_there(finished: Path, tmp_path: Path):
    private, _ = write_keys(tmp_path)
    folder = export(finished, sign=private)
    assert (folder / "manifest.json.sig").is_file()
    assert export(finished) == folder and not (folder / "manifest.json.sig").exists()
    sign(folder, read_private_key("--key", private))
    export(finished)
    assert not (folder / "manifest.json.sig").exists()


def test_a_version_that_is_signed_keeps_its_signature_when_the_next_is_written(finished: Path, tmp_path: Path):
    private, public = write_keys(tmp_path)
    first = export(finished, sign=private, versions=True) / "v0001"
    assert (first / "manifest.json.sig").is_file()
    export(finished, sign=private, versions=True, licence="other")
    assert told(finished / "set", public) == "" and (first.parent / "v0002" / "manifest.json.sig").is_file()


def test_a_run_is_signed_when_it_is_finished_and_loses_the_signature_when_a_command_works_on_it(
    finished: Path, tmp_path: Path
):
    private, public = write_keys(tmp_path)
    runner = CliRunner()
    done = runner.invoke(cai, ["sign", str(finished / "run"), "--key", private])
    assert done.exit_code == 0 and "signed with the key" in done.output
    assert told(finished / "run", public) == ""
    with Run(finished / "run") as run:
        run.write_manifest("label", None)
    assert not (finished / "run" / "manifest.json.sig").exists()
    done = runner.invoke(cai, ["sign", str(finished / "run"), "--key", private])
    assert isinstance(done.exception, BadInput) and "a run whose cai label is not finished" in str(done.exception)
    done = runner.invoke(cai, ["sign", str(tmp_path), "--key", private])
    assert isinstance(done.exception, BadInput) and "found no run and no dataset" in str(done.exception)


def encrypted(path: Path) -> None:
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(*PEM, BestAvailableEncryption(b"secret")))


def encrypted_ssh(path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this machine")
    path.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-a", "1", "-f", path], check=True)


def another_kind(path: Path) -> None:
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(*PEM, NoEncryption()))


def broken(path: Path) -> None:
    key = Ed25519PrivateKey.generate().private_bytes(*PEM, NoEncryption())
    path.write_bytes(key[:40] + b"?" + key[41:])


def public_key(path: Path) -> None:
    shutil.copy(write_keys(path.parent, "p")[1], path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted": (encrypted, "found a private key with a password, expected one without"),
    "encrypted OpenSSH": (encrypted_ssh, "found a private key with a password, expected one without"),
    "another kind": (another_kind, "found a private key of another kind, expected an Ed25519 private key"),
    "broken": (broken, "found a private key that cannot be read, expected an Ed25519 private key"),
    "none": (lambda path: path.write_text("hello"), "found no key, expected an Ed25519 private key"),
    "public": (public_key, "found a public key, expected an Ed25519 private key"),
    "not there": (lambda path: path.unlink(), r"found a file that cannot be read \(No such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_key_that_cannot_sign_is_refused_in_one_sentence_before_anything_is_written(
    finished: Path, tmp_path: Path, kind: str
):
    make, words = BAD[kind]
    path = tmp_path / "bad.key"
    path.touch(mode=0o600)
    make(path)
    with pytest.raises(BadInput, match=rf"^--sign \S*bad\.key: {words}") as caught:
        export(finished, sign=str(path))
    assert "\n" not in str(caught.value) and not (finished / "set").exists()


def test_a_private_key_that_everyone_may_read_is_refused(finished: Path, tmp_path: Path):
    private, _ = write_keys(tmp_path)
    os.chmod(private, 0o644)
    with pytest.raises(BadInput, match=r"found a private key that everyone may read.*chmod 600"):
        export(finished, sign=private)
    assert not (finished / "set").exists()


def test_a_key_that_is_no_public_one_checks_nothing(tmp_path: Path):
    private, _ = write_keys(tmp_path)
    with pytest.raises(BadInput, match="found a private key, expected the public one"):
        read_public_key("--key", private)
    (tmp_path / "none").write_text("hello")
    with pytest.raises(BadInput, match="found no key, expected an Ed25519 public key"):
        read_public_key("--key", str(tmp_path / "none"))
    point = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "ec").write_bytes(point.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    with pytest.raises(BadInput, match="found a public key of another kind"):
        read_public_key("--key", str(tmp_path / "ec"))


def test_the_private_key_and_its_place_get_into_no_file_and_no_message(finished: Path, tmp_path: Path):
    private, _ = write_keys(tmp_path, "very-private")
    secret = base64.b64decode("".join(Path(private).read_text().splitlines()[1:-1]))[-32:]
    watch = Quiet()
    settings = ExportSettings(run=str(finished / "run"), out=str(finished / "set"), sign=private)
    asyncio.run(export_stage(settings, watch))
    key = read_private_key("--sign", private)
    texts = [path.read_bytes() for path in finished.rglob("*") if path.is_file()]
    texts += ["\n".join(watch.said).encode(), repr(key).encode(), repeat("cai export", settings).encode()]
    for told in texts:
        assert secret not in told and secret.hex().encode() not in told and b"very-private" not in told
        assert base64.b64encode(secret) not in told and b"PRIVATE KEY" not in told
    assert isinstance(key, PrivateKey)


def test_the_whole_pipeline_signs_its_dataset():
    settings = PipelineSettings(prompts="p", out="o", sign="cai.key")
    assert settings.exporting().sign == "cai.key"


def test_cai_verify_ends_with_one_where_the_signature_is_another_s(finished: Path, tmp_path: Path):
    private, _ = write_keys(tmp_path)
    _, other = write_keys(tmp_path, "other")
    folder = export(finished, sign=private)
    done = CliRunner().invoke(cai, ["verify", str(folder), "--key", other])
    assert isinstance(done.exception, CheckFailed) and "found a signature by the key" in done.output


def one_more_word(folder: Path) -> None:
    with (folder / "README.md").open("a") as file:
        file.write("x\n")


def fill_in_an_answer(folder: Path) -> None:
    text = (folder / "review.jsonl").read_text()
    (folder / "review.jsonl").write_text(text.replace('"answer": null', '"answer": "a"', 1))


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a changed file": ("set", one_more_word, r"other bytes, with the sha256 .*README\.md"),
    "one more file": ("set", lambda folder: (folder / "notes.txt").touch(), "a file that is none of this dataset's"),
    "a file that is gone": ("set", lambda folder: next(folder.glob("sft/*")).unlink(), "no such file"),
    "a broken seal": ("set", lambda folder: (folder / "manifest.json").write_text('{"kind": "cai export"}'), "no seal"),
    "a changed table": (
        "run", lambda folder: (folder / "labels/part-00000.parquet").write_bytes(b"PAR1"), "other bytes.*labels/part"
    ),
    "a changed journal": (
        "run", lambda folder: (folder / "journal/part-00000.jsonl").open("a").write("x\n"), "2 bytes more.*journal/"
    ),
    "a stray file": ("run", lambda folder: (folder / "notes.txt").touch(), "a file that is none of this run's"),
    "an answer that is filled in": ("run", fill_in_an_answer, "review.jsonl: 1 answers are filled in and not applied"),
    "what a killed command had begun": (
        "run", lambda folder: (folder / ".payload.tmp").touch(), r"\.payload\.tmp is what a killed command had begun"
    ),
    "a named pipe": ("run", lambda folder: os.mkfifo(folder / "journal/part-00007.jsonl"), "a named pipe.*journal/"),
    "a file beside the versions": (
        "sets", lambda folder: (folder / "notes.txt").touch(), "something that is no version .*notes"
    ),
    "the second of two versions": ("sets", lambda folder: one_more_word(folder / "v0002"), "other bytes.*v0002"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_folder_that_does_not_fit_its_manifest_is_not_signed(finished: Path, tmp_path: Path, kind: str):
    private, _ = write_keys(tmp_path)
    export(finished)
    for licence in ("a", "b"):
        settings = ExportSettings(run=str(finished / "run"), out=str(finished / "sets"), versions=True, licence=licence)
        asyncio.run(export_stage(settings, Quiet()))
    where, change, words = BROKEN[kind]
    words_of = ["sign", str(finished / where), "--key", private]
    assert CliRunner().invoke(cai, words_of).exit_code == 0
    for path in finished.rglob("manifest.json.sig"):
        path.unlink()
    change(finished / where)
    done = CliRunner().invoke(cai, words_of)
    assert isinstance(done.exception, BadInput) and done.exception.exit_code == 2
    assert re.search(f"found .*{words}", str(done.exception)) and "\n" not in str(done.exception), str(done.exception)
    assert not list(finished.rglob("manifest.json.sig"))


def test_a_run_in_which_a_kill_has_torn_a_line_is_signed_once_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    private, _ = write_keys(tmp_path)
    folder = before("label", tmp_path / "a")
    with (folder / "run/journal/part-00000.jsonl").open("ab") as journal:
        journal.write(journal_line(folder)[:40])
    label(folder)
    told = CliRunner().invoke(cai, ["verify", str(folder / "run")])
    assert told.exit_code == 0 and "a killed command has not finished it; it counts for nothing" in told.stdout
    assert CliRunner().invoke(cai, ["sign", str(folder / "run"), "--key", private]).exit_code == 0


def journal_line(folder: Path) -> bytes:
    return (folder / "run/journal/part-00000.jsonl").read_bytes().splitlines()[0]
