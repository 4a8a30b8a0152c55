"""cai: a Constitutional AI data pipeline. Start reading at `cai/revise.py`, beside Bai et al. 2022."""

from importlib.metadata import version

__version__ = version("cai")
