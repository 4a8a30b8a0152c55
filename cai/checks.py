"""How a revision can fail. Each way has a countable name, written to the round's `flags`.

A revision with one of NOT_TAKEN does not replace the answer: the row keeps the text it had. The others are remarks.
"""

from cai.templates import phrases

NOT_TAKEN = frozenset({"empty_revision", "cut_off_revision", "copied_critique", "copied_example", "unchanged"})

# The model gave no probability for the gate; its word was read instead, or could not be read and the round went on.
GATE_FROM_TEXT, GATE_UNREAD = "gate_from_text", "gate_unread"


def revision_flags(
    previous: str, critique: str, critique_finish: str, revision: str, revision_finish: str, shown: frozenset[str]
) -> tuple[str, ...]:
    """The names of what is wrong with a revision of `previous`, in a fixed order; empty if nothing is.

    `shown` are the phrases of the worked examples that the model was shown (`Templates.shown`): small models copy them.
    """
    found = {
        "empty_critique": not critique.strip(),
        "cut_off_critique": critique_finish == "length",
        "empty_revision": not revision.strip(),
        "cut_off_revision": revision_finish == "length",
        "unchanged": revision.strip() == previous.strip(),
        "copied_example": bool(shown & phrases(revision)),
        "copied_critique": bool(revision.strip()) and revision.strip() == critique.strip(),
    }
    return tuple(name for name, holds in found.items() if holds)
