"""cai: a Constitutional AI data pipeline. Start reading at `cai/revise.py`, beside Bai et al. 2022."""

import os

if os.environ.get("VLLM_LOGGING_LEVEL") == "ERROR":
    # vLLM's own processes import this before vLLM, which warns of this before it has read what it may say.
    import logging

    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)


def __getattr__(name: str) -> str:
    # Looked up only when it is asked for: finding it takes longer than all that is loaded before Ctrl-C is heeded.
    if name == "__version__":
        from importlib.metadata import version

        return version("cai")
    raise AttributeError(name)
