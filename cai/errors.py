"""The ways a run ends early. Each carries the exit code that the command line returns for it."""

import errno
from typing import Any


class CaiError(Exception):
    """An end that a person can act on: the message is one sentence and names what mends it."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # Python would make it anew from its message alone, which is not what the constructors take.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[CaiError], args: tuple[Any, ...], known: dict[str, Any]) -> CaiError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(known)
    return error


class BadInput(CaiError):
    """Input or settings that cannot be used: where, what was found, what was expected, what mends it."""

    def __init__(self, place: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{place}: found {found}, expected {expected}. {remedy}")
        self.place, self.found, self.expected, self.remedy = place, found, expected, remedy


class CannotWrite(CaiError):
    """A file or folder that could not be written: which, why, and what mends it. What was finished before is kept."""

    def __init__(self, place: str, error: OSError) -> None:
        found, expected, remedy = _UNWRITABLE.get(error.errno or 0, (str(error.strerror or error), *_ANY_DISK))
        then = "then give the same command again: it goes on from what is finished."
        super().__init__(f"{place}: found {found}, expected {expected}. {remedy}, {then}")
        self.place = place


_ANY_DISK = ("a disk that takes what is written", "See to the disk")
_FULL = ("room to write", "Make room there")
_CLOSED = ("one that may be", "Let it be written")
_UNWRITABLE = {
    errno.ENOSPC: ("no space left on the disk", *_FULL),
    errno.EDQUOT: ("a disk quota that is used up", *_FULL),
    errno.EFBIG: ("a file that may not grow any more", "no limit on the size of files", "Raise the limit (ulimit -f)"),
    errno.EACCES: ("a place that may not be written (permission denied)", *_CLOSED),
    errno.EPERM: ("a place that may not be written (not permitted)", *_CLOSED),
    errno.EROFS: ("a disk that may not be written (read-only)", *_CLOSED),
    errno.ENOENT: ("no such folder any more", "the one that was there", "Leave it alone while a command works there"),
    errno.ENOTDIR: ("a file where a folder belongs", "the folder", "Move the file away"),
    errno.EEXIST: ("a file where a folder belongs", "the folder", "Move the file away"),
    errno.ELOOP: ("a link where a file belongs", "the file", "Move the link away"),
    errno.EISDIR: ("a folder where a file belongs", "the file", "Move the folder away"),
}


class CheckFailed(CaiError):
    """A check that the user asked for did not hold."""

    exit_code = 1


class EngineGaveUp(CaiError):
    """The engine is gone for the whole run. What was finished is kept; the same command goes on from there."""

    exit_code = 3


class RequestRefused(Exception):
    """The engine will not serve this one call, however often it is asked (too long, malformed for its template)."""


class RowDropped(Exception):
    """This row cannot be used.

    `reason` is a countable word, `detail` a sentence, `raw` what the model said if it said anything.
    """

    def __init__(self, reason: str, detail: str, raw: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.raw = reason, detail, raw


def brief(error: BaseException) -> str:
    """The first line of what a library says, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def brief_value(value: object) -> str:
    """A value that somebody gave, as it is written in a sentence of ours.

    What other values lie in is only named by its kind: who gives an object where a word is expected, such as an address
    with its key, means to be understood and not to be quoted.
    """
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, bytes):
        return "binary data"
    try:
        return repr(value)[:200]
    except ValueError:  # Python writes out no number of more than 4300 digits
        return "a number of thousands of digits"
