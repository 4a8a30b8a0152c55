"""The ways a run ends early. Each carries the exit code that the command line returns for it."""


class CaiError(Exception):
    """An end that a person can act on: the message is one sentence and names what mends it."""

    exit_code = 2


class BadInput(CaiError):
    """Input or settings that cannot be used: where, what was found, what was expected, what mends it."""

    def __init__(self, place: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{place}: found {found}, expected {expected}. {remedy}")
        self.place, self.found, self.expected, self.remedy = place, found, expected, remedy


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
    """A value that somebody gave, as it is written in a sentence of ours."""
    try:
        return repr(value)[:200]
    except ValueError:  # Python writes out no number of more than 4300 digits
        return "a number of thousands of digits"
