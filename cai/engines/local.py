"""Which model a name means, for engines that load it themselves: embedded, a local folder, or a Hugging Face id."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.engines.embedded import ask_hub, embedded_model
from cai.errors import BadInput, brief
from cai.ids import digest, file_digest


def find_model(model: str, trust_remote_code: bool, pickled: bool = False) -> tuple[str, str | None, str]:
    """Where to load a model from, which revision of it, and its name with revision as rows and call keys carry it.

    Raises BadInput if there is none, or unless `pickled` is fine, if a folder has no other weights.
    """
    if model == "embedded":
        folder, name = embedded_model()
        return str(folder), None, name
    model = os.path.expanduser(model)
    folder = Path(model)
    _refuse_missing("--model", model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadInput(
                f"--model {model}", "a folder without config.json", "a model saved by transformers", "Check the path."
            )
        if not pickled:
            _refuse_pickled(f"--model {model}", folder)
        return model, None, f"{folder.resolve().name}@{folder_fingerprint(folder)}"
    from transformers import AutoConfig

    try:
        ask_hub()
        offline = False
    except OSError:  # then only what was fetched before; its client would try again and again, and print that
        offline = True
    try:
        config: Any = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--model {model}",
            f"no local folder of that name, and the hub has none or does not answer ({brief(error)})",
            "a local folder, a Hugging Face id, or 'embedded'",
            "Check the spelling; for a gated model set HF_TOKEN.",
        ) from error
    revision: str | None = getattr(config, "_commit_hash", None)
    return model, revision, f"{model}@{(revision or digest(config.to_dict()))[:12]}"


# A weights file of up to so many bytes is read in full; of a larger one so many blocks, evenly spread, since hashing
# the whole of a large model would take minutes.
READ_IN_FULL, BLOCKS, BLOCK = 1 << 30, 512, 1 << 16


def folder_fingerprint(folder: Path) -> str:
    """Twelve hex digits that tell one local model folder from another.

    Settings, tokenizer and code count in full, weights files as READ_IN_FULL says. In a file of some gigabytes the
    blocks are about ten megabytes apart, so a training or a merge that changes a large tensor is seen; an edit of a few
    rows of one is not.
    """
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".txt", ".model", ".py"}:
            total.update(path.name.encode() + bytes.fromhex(file_digest(path)))
        elif path.suffix in {".safetensors", ".bin", ".gguf"}:
            total.update(f"{path.name} {path.stat().st_size}".encode() + bytes.fromhex(_weights_digest(path)))
    return total.hexdigest()[:12]


def _weights_digest(path: Path) -> str:
    size = path.stat().st_size
    if size <= READ_IN_FULL:
        return file_digest(path)
    seen = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(BLOCKS):
            file.seek((size - BLOCK) * number // (BLOCKS - 1))
            seen.update(file.read(BLOCK))
    return seen.hexdigest()


def _refuse_missing(option: str, name: str) -> None:
    """Raise BadInput for a name that can only be a folder's, and is none: no hub is asked for it."""
    if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
        found = "a file" if Path(name).exists() else "no such folder"
        raise BadInput(f"{option} {name}", found, "a folder", "Check the path.")


def _refuse_pickled(place: str, folder: Path) -> None:
    """Raise BadInput for a folder whose weights are all pickled: to read such a file is to run what is in it."""
    pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    if pickled and not any(folder.glob("*.safetensors")):
        remedy = "Load it where you trust it, and save it with save_pretrained, which writes safetensors."
        raise BadInput(place, f"pickled weights ({pickled[0]}), which can run code", "safetensors", remedy)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: its folder, its name with a fingerprint, and the highest rank of its matrices."""

    folder: str
    name: str
    rank: int


def find_adapter(adapter: str, pickled: bool = False) -> Adapter:
    """The LoRA adapter in a folder, or one of the hub, which is fetched. Raises BadInput as `find_model` does."""
    adapter = os.path.expanduser(adapter)
    folder, place = Path(adapter), f"--adapter {adapter}"
    _refuse_missing("--adapter", adapter)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(adapter))
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            found = f"no local folder of that name, and the hub has none or does not answer ({brief(error)})"
            raise BadInput(place, found, "a LoRA adapter", "Check the spelling.") from error
    expected, remedy = "a LoRA adapter saved by peft", "Check the path."
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise BadInput(place, "a folder without adapter_config.json", expected, remedy)
    try:
        told: Any = json.loads(config.read_bytes())
        ranks: list[Any] = [told["r"], *(told.get("rank_pattern") or {}).values()]
        if any(type(rank) is not int or rank < 1 for rank in ranks):
            raise TypeError("a rank that is no whole number from 1 on")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = f"an adapter_config.json that tells of no LoRA adapter ({brief(error)})"
        raise BadInput(place, found, expected, remedy) from error
    if not pickled:
        _refuse_pickled(place, folder)
        if not any(folder.glob("*.safetensors")):
            raise BadInput(place, "a folder without weights", expected, remedy)
    return Adapter(str(folder), f"{Path(adapter).name}@{folder_fingerprint(folder)}", max(ranks))
