"""Why a try of a call was not answered, read from what the openai client raises."""

import math
import time
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai

from cai.engines.connection import ELSEWHERE
from cai.engines.replies import BadAnswer, short

Kind = Literal["gone", "away", "silent", "failing", "busy"]


class Fault(Exception):
    """Why one try of a call was not answered.

    - `gone`: a look at the endpoint found that it is not there, or serves another model.
    - `away`: the connection was refused or broke, or a gateway says that nobody is behind it.
    - `silent`: no answer in the time for one try.
    - `failing`: an error of the server's own, or an answer that cannot be read.
    - `busy`: it asks for fewer calls.
    """

    def __init__(self, kind: Kind, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.kind: Kind = kind
        self.why, self.retry_after = why, retry_after


def fault_of(error: openai.APIError | BadAnswer) -> Fault | None:
    """What an error of a call says about the server; None if it says what is wrong with the call."""
    retry_after = retry_after_of(error)
    match error:
        case openai.APIConnectionError():
            return Fault("away", cause_of(error))
        case openai.RateLimitError():
            return Fault("busy", said(error), retry_after)
        # A gateway with no server behind it, or a server that is still loading its model.
        case openai.InternalServerError(status_code=502 | 503 | 504):
            return Fault("away", said(error), retry_after)
        case openai.InternalServerError() | openai.ConflictError():
            return Fault("failing", said(error), retry_after)
        # Whoever answers so has not looked at the call: a gateway, or one that wants to be paid first.
        case openai.APIStatusError(status_code=402 | 405 | 407 | 408):
            return Fault("failing", said(error), retry_after)
        case openai.APIStatusError() if error.status_code < 400:
            return Fault("failing", said(error), retry_after)
        case openai.APIStatusError():
            return None
        case _:
            return Fault("failing", short(str(error)))


def said(error: BaseException) -> str:
    """The status and message of a server's error, with what it says about waiting."""
    if not isinstance(error, openai.APIStatusError):
        return short(str(error))
    told: Any = error.body
    message: Any = told.get("message") if isinstance(told, dict) else told
    wait = retry_after_of(error)
    words = message if isinstance(message, str) and message else error.response.reason_phrase
    return f"{error.status_code}: {short(words)}" + (f", with Retry-After {wait:g} s" if wait else "")


def elsewhere(error: BaseException) -> str | None:
    """The address that a server sends its callers on to, if it is another one's."""
    return error.response.extensions.get(ELSEWHERE) if isinstance(error, openai.APIStatusError) else None


def cause_of(error: BaseException) -> str:
    """What made a connection fail; a server's error in its own words."""
    if isinstance(error, openai.APIStatusError):
        return said(error)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no answer in time"
    cause = error.__cause__ or error
    return short(str(cause)) or type(cause).__name__


def retry_after_of(error: BaseException) -> float | None:
    """The seconds that a server asks to wait, told in milliseconds, in seconds or as a date; None if it does not."""
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
