"""What the gate of a run was asked: about the principle that was chosen, or about all principles at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.constitution import Constitution
from cai.seal import Json
from cai.store import Run


@dataclass(frozen=True, slots=True)
class Gate:
    """How the answers of a run came to be criticised.

    `question` is the constitution's own, which was asked about all principles at once; None where the gate was asked
    about one principle at a time. `principles` says how those of a round were chosen, as the setting has it.
    """

    on: bool
    threshold: float | None
    question: str | None
    principles: str

    @property
    def meaning(self) -> str:
        """What it says of a principle that an answer was criticised by it, as a sentence."""
        if not self.on:
            return (
                "There was no gate: every answer was criticised by every principle that was chosen for it, whatever it "
                "said, so that an answer was criticised says nothing against it."
            )
        if self.question is not None:
            return (
                "That an answer was criticised by a principle means that a yes to the question about all principles "
                "was probable enough while that principle was the chosen one. It does not say that the answer breaks "
                "that very principle."
            )
        return "That an answer was criticised by a principle means that the gate found that very principle broken."


def gate_of(told: Json, constitutions: Sequence[Constitution], template: str | None = None) -> Gate:
    """The gate of the stage revise, by what `told` holds of it: its settings, and the digest of its constitution.

    `template` is the text by which it was asked, where that is known: one of somebody's own may leave the question out.
    """
    settings, sha = told.get("settings") or {}, (told.get("texts") or {}).get("constitution_sha")
    mine = next((one for one in constitutions if one.sha == sha), None)
    principles = settings.get("principles", "one")
    alone = mine is not None and (principles != "all" or len(mine.principles) == 1)
    left_out = template is not None and "question" not in template
    on = settings.get("gate", "on") == "on"
    question = mine.question if on and mine is not None and alone and not left_out else None
    return Gate(on, settings.get("gate_threshold"), question, principles)


def gate_of_run(run: Run, constitutions: Sequence[Constitution]) -> Gate:
    """The gate as a run's stage revise asked it."""
    copy = run.folder / "inputs" / "revise" / "gate.jinja"
    template = copy.read_text(encoding="utf-8", errors="replace") if copy.is_file() else None
    return gate_of(run.settings().get("revise", {}), constitutions, template)
