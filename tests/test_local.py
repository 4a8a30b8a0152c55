"""Which model a name means: a folder, or an id of the hub, which is asked once whether it is there."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.engines import Spec, local, open_engine
from cai.engines.local import find_adapter, find_model
from cai.errors import BadInput


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("the hub was asked")


@pytest.mark.parametrize("name", ["/no/such/dir", "./no-such", "../no-such", "~/no-such", "~no-such-user/x"])
def test_a_missing_folder_is_refused_as_one_and_no_hub_is_asked(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    monkeypatch.setattr(local, "ask_hub", never)
    with pytest.raises(BadInput, match=r"^--model .*such.*: found no such folder, expected a folder"):
        find_model(name, False)
    with pytest.raises(BadInput, match=r"^--adapter .*such.*: found no such folder, expected a folder"):
        find_adapter(name)
    with pytest.raises(BadInput, match="found no such folder"):
        open_engine(Spec("transformers", name))


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(BadInput, match=r"model\.gguf: found a file, expected a folder"):
        find_model(str(tmp_path / "model.gguf"), False)


def test_a_folder_at_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    source, revision, name = find_model("~/mine", False)
    assert (source, revision) == (str(tmp_path / "mine"), None) and name.startswith("mine@")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_is_asked_no_more_and_what_was_fetched_before_is_used(
    monkeypatch: pytest.MonkeyPatch, offline: bool
):
    asked: list[dict[str, Any]] = []

    def ask() -> None:
        if offline:
            raise OSError("no hub")

    def config(name: str, **options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(_commit_hash="0123456789abcdef")

    monkeypatch.setattr(local, "ask_hub", ask)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", config)
    assert find_model("some/model", False) == ("some/model", "0123456789abcdef", "some/model@0123456789ab")
    assert [one["local_files_only"] for one in asked] == [offline]


def test_an_unknown_id_without_a_hub_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch):
    def ask() -> None:
        raise OSError("no hub")

    monkeypatch.setattr(local, "ask_hub", ask)
    pauses: list[float] = []  # before its client tries again
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=pauses.append, time=time.time))
    with pytest.raises(BadInput, match="the hub has none or does not answer"):
        find_model("no-such-team/no-such-model", False)
    assert not pauses


@pytest.mark.parametrize("config", ["{", "{}", "[]", '{"r": 0}', '{"r": "8"}', '{"r": 8, "rank_pattern": {"q": null}}'])
def test_a_folder_whose_settings_tell_of_no_adapter_is_refused(tmp_path: Path, config: str):
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"tells of no LoRA adapter"):
        find_adapter(str(tmp_path))


def test_an_adapter_without_weights_is_refused_and_one_with_them_tells_its_rank(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "rank_pattern": {"q": 24}}')
    with pytest.raises(BadInput, match="a folder without weights"):
        find_adapter(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    assert find_adapter(str(tmp_path)).rank == 24
