"""The constitution that a stage of a run used, from the run's own copy."""

from functools import lru_cache

from cai.constitution import Constitution, load_constitution
from cai.ids import file_digest
from cai.store import Run


def kept_constitution(run: Run, stage: str) -> Constitution | None:
    """The constitution as a stage used it; None where the run has no copy. Raises BadInput if somebody changed it."""
    path = run.constitution(stage)
    return _loaded(str(path), file_digest(path)) if path is not None else None


@lru_cache(maxsize=8)  # a long one takes a quarter of a second, and its stages and rows all have the same
def _loaded(path: str, sha: str) -> Constitution:
    return load_constitution(path)
