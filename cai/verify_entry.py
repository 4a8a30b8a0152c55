"""What the manifest says of a finished stage beside its counts: cost, versions, limit, what its rows are made of."""

import json
from importlib.metadata import version

from cai.audit import cost
from cai.findings import Findings, brief_of
from cai.seal import Json
from cai.store import Run


def check_entry(run: Run, stage: str, entry: Json, findings: Findings) -> None:
    """Hold what a stage's entry in the manifest says of its making against what else the run keeps."""
    where, prompts = f"manifest.json, cai {stage}", entry.get("prompts", {})
    sessions = run.sessions(stage)
    told: Json = entry.get("cost", {})
    # Another version may have summed up other things.
    made = json.loads(json.dumps(cost(sessions))) if entry.get("versions", {}).get("cai") == version("cai") else told
    for name in sorted({*told, *made}):
        expected = "what the sessions in sessions.jsonl come to:"
        if told.get(name) != made.get(name):
            findings.differ(f"{where}, cost, {name}", str(told.get(name)), f"{expected} {made.get(name)}")
    findings.looked["numbers of the cost"] += len(made) if made is not told else 0
    asked = next((one["versions"] for one in reversed(sessions) if "versions" in one), None)
    if asked is not None and entry.get("versions") != asked:
        # A review may be entered, or a killed stage be ended, by a later version.
        findings.note(f"{where}: its versions are not those that its last calls were asked with, in sessions.jsonl.")
    # Pairs are made of the run's own rows, all else is read from elsewhere.
    wrong, expected = ("file", "none: its pairs are made of the run") if stage == "label" else ("made_of", "none")
    if prompts.get(wrong) is not None:
        findings.differ(f"{where}, prompts, {wrong}", brief_of(prompts[wrong]), expected)
    if stage in ("generate", "revise"):
        limit, samples = prompts.get("limit"), entry["settings"].get("samples", 1)
        if limit is not None and entry["counts"]["read"] > limit * samples:
            found = f"{entry['counts']['read']} rows, {samples} of each prompt"
            findings.differ(f"{where}, prompts, limit", found, f"at most the {limit} prompts of its limit")
