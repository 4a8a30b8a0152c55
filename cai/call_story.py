"""One call of a model: what it was for, exactly what was sent, what came back, and what it took.

The answer is a line of the run's journal. The prompt is built anew from what the run keeps (`replay.py`), and shown
only if its content address is the call's key: then it is what was sent, and nothing else can be.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cai.audit import TABLES
from cai.constitution import WORDINGS, Constitution
from cai.engines import Request
from cai.errors import BadInput
from cai.ids import file_digest
from cai.inputs import Prompts
from cai.journal import JUDGING, Entry, entries_with
from cai.replay import TEMPLATE_OF, CannotRebuild, Rebuilt, Texts, kept_texts, rebuild
from cai.rows import Pair, Row, as_messages
from cai.seal import Json
from cai.store import Run
from cai.trace import segment_of, segments_of, uses_in

SHORTEST = 4  # characters of a key, so that its beginning is not a common word of the journal
_STAGES = {"responses": "generate", "trajectories": "revise"}


def call_story(run: Run, beginning: str) -> Json:
    """The story of the call whose key begins so.

    `request` is what was sent, or None, and then `why_not` says in a sentence why that cannot be shown. `used_by` are
    the rounds and verdicts that stand on the call. Raises BadInput if the run's journal has no such call or several.
    """
    notes: list[str] = []
    place, entry = _entry(run, beginning, notes)
    uses = list(_uses(run, entry["key"]))
    stage = uses[0]["stage"] if uses else _stage_of(run, entry)
    story: Json = {
        "run": str(run.folder),
        "key": entry["key"],
        "purpose": entry["purpose"],
        "stage": stage,
        "place": place,
        "row_id": entry["row_id"],
        "used_by": [{name: value for name, value in use.items() if name != "shard"} for use in uses],
        "model": entry["model"],
        "asked_at": entry.get("asked_at"),
        "seconds": entry["seconds"],
        "answer": {name: entry.get(name) for name in ("text", "finish", "choice_logprobs", "left_out", "token_ids")},
        "tokens": {name: entry[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        **_asked_with(run, stage, entry),
        **_sent(run, stage, entry, uses),
        "notes": notes,
    }
    return story


def _entry(run: Run, beginning: str, notes: list[str]) -> tuple[str, Entry]:
    """The one call whose key begins so, and its line in the journal."""
    key = beginning.strip().lower()
    place = f"--call {beginning}"
    if len(key) < SHORTEST or set(key) - set("0123456789abcdef"):
        raise BadInput(
            place, "no key", f"at least {SHORTEST} characters of one, 0-9 and a-f", "See cai show RUN ROW_ID."
        )
    found, damaged = dict[str, tuple[str, Entry]](), list[str]()
    for segment in segments_of(run):
        for where, entry in entries_with(segment, [key], damaged):
            if entry["key"].startswith(key):
                found.setdefault(entry["key"], (where, entry))
    notes += [f"{one} is damaged; the call that it held may be missing here." for one in damaged]
    if not found:
        remedy = "Keys stand beside what each call said in cai show RUN ROW_ID, and in the tables' columns of calls."
        said = f" ({len(damaged)} damaged lines were passed over)" if damaged else ""
        raise BadInput(place, f"no such call in {run.folder / 'journal'}{said}", "the key of a finished call", remedy)
    if len(found) > 1:
        some = ", ".join(one[: len(key) + 8] for one in sorted(found)[:3])
        raise BadInput(place, f"{len(found)} calls with keys that begin so ({some})", "one", "Give more of the key.")
    return next(iter(found.values()))


def _uses(run: Run, key: str) -> Iterator[Json]:
    """The rows, rounds and verdicts that name a call, with the stage and the shard of each."""
    for stage in run.settings():
        table = TABLES[stage][-1]
        named = "verdicts" if table == "labels" else table
        columns = {"responses": ["row_id", "call"], "trajectories": ["row_id", "response_call", "rounds"]}.get(named)
        for index in run.finished_shards(table):
            pairs: dict[str, Json] = {}
            for row in run.shard_records(named, index, columns):
                if named == "verdicts" and key in row["calls"]:
                    pairs = pairs or {one["pair_id"]: one for one in run.shard_records("pairs", index)}
                    row = {"pair": pairs[row["pair_id"]], "verdicts": [row]}
                elif named == "verdicts":
                    continue
                uses = (use for use in uses_in(table, row) if use["key"] == key)
                yield from ({"stage": stage, "shard": index, **use} for use in uses)


def _stage_of(run: Run, entry: Entry) -> str:
    """The stage that asked for a call that no row names: one that was dropped, or labels that were made anew."""
    judged = entry["purpose"] in JUDGING
    fitting = ("label", "calibrate") if judged else ("revise", "generate")
    return next((stage for stage in fitting if stage in run.settings()), fitting[0])


# What it was asked with


def _asked_with(run: Run, stage: str, entry: Entry) -> Json:
    """The session that asked a call, the kind of its engine and the versions of its libraries, as far as is known."""
    sessions = run.sessions(stage)
    session, why = _session(sessions, entry)
    versions = (session or {}).get("versions") or run.manifest().get(stage, {}).get("versions")
    roles = {role for role, model in run.settings().get(stage, {}).get("models", {}).items() if model == entry["model"]}
    kinds = {kind for role, kind in (session or {}).get("engines", {}).items() if role in roles}
    return {
        "engine": kinds.pop() if len(kinds) == 1 else None,
        "versions": versions,
        "session": {**session, "number": sessions.index(session) + 1, "of": len(sessions)} if session else None,
        "session_unknown": why,
    }


def _session(sessions: Sequence[Json], entry: Entry) -> tuple[Json | None, str | None]:
    if entry.get("taken_over"):
        return None, "it was taken over from another run (--reuse)"
    at = entry.get("asked_at")
    if at is None:
        if len(sessions) == 1 and not sessions[0]["reused_calls"]:
            return sessions[0], None
        return None, "the journal is of a version of cai that did not write down when a call was asked"
    asked = datetime.fromisoformat(at)
    for session in sessions:
        begun = datetime.fromisoformat(session["started"])
        if begun <= asked <= begun + timedelta(seconds=session["seconds"] + 1):  # both were cut to whole seconds
            return session, None
    if sessions and asked < datetime.fromisoformat(sessions[0]["started"]):
        return None, "it was asked before this run began: it was taken over from another run (--reuse)"
    return (
        None,
        "no session of this run says that it worked then (of one that was killed, the next one says it)",
    )


# What was sent


def _sent(run: Run, stage: str, entry: Entry, uses: Sequence[Json]) -> Json:
    """The request, proven by the key, or why there is none."""
    texts: Texts | None = None
    try:
        texts = kept_texts(run, stage)
        request = _request(run, texts, entry, uses)
        told = _texts_told(texts, entry, uses)
        told["wordings_sent"] = _wordings_sent(request, texts.constitution, told["principles"])
        return {"request": _told(request, entry["model"]), "why_not": None, **told}
    except (CannotRebuild, KeyError) as error:
        why = str(error) if isinstance(error, CannotRebuild) else f"The run says nothing of a stage {stage}."
        return {"request": None, "why_not": why, **(_texts_told(texts, entry, uses) if texts else {})}


def _request(run: Run, texts: Texts, entry: Entry, uses: Sequence[Json]) -> Request:
    key = entry["key"]
    if uses:
        item, principles, keys = _item(run, uses[0])
        segments = [segment_of(run, uses[0]["shard"])]
    else:
        item, principles, keys = _dropped(run, texts.stage, entry["row_id"]), None, {entry["row_id"]}
        segments = segments_of(run)
    known = {one["key"]: one for segment in segments for _, one in entries_with(segment, keys, [])}
    rebuilt = asyncio.run(rebuild(texts, item, known.get, principles))
    if key not in rebuilt.requests:
        raise CannotRebuild(_why_not(rebuilt, bool(uses)))
    return rebuilt.requests[key]


def _why_not(rebuilt: Rebuilt, used: bool) -> str:
    if rebuilt.whole and not used:
        return "No row of this run asks this call now: it belongs to a row or to labels that were made anew since."
    return (
        "What the run keeps does not lead to this call: a prompt built from it has another fingerprint. A table, "
        "the journal, or the version of cai is not what it was when the call was asked."
    )


def _item(run: Run, use: Json) -> tuple[Row | Pair, tuple[str, ...] | None, set[str]]:
    """The row or pair that asked a call, the principles that judged it, and the keys of all its calls."""
    stage, index = use["stage"], use["shard"]
    if stage in ("label", "calibrate"):
        (pair,) = (one for one in run.shard_records("pairs", index) if one["pair_id"] == use["pair_id"])
        (label,) = (one for one in run.shard_records("labels", index) if one["pair_id"] == use["pair_id"])
        verdicts = [one for one in run.shard_records("verdicts", index) if one["pair_id"] == use["pair_id"]]
        named: dict[str, Any] = {name: pair[name] for name in Pair.__dataclass_fields__}
        named["prompt"] = as_messages(pair["prompt"])
        return Pair(**named), tuple(label["principles"]), {key for one in verdicts for key in one["calls"]}
    table = TABLES[stage][-1]
    (row,) = (one for one in run.shard_records(table, index) if one["row_id"] == use["row_id"])
    told = (row["row_id"], row["prompt_id"], row["sample"], as_messages(row["prompt"]), row["source"], row["extra"])
    return Row(*told, position=0), None, {one["key"] for one in uses_in(table, row)}


def _dropped(run: Run, stage: str, row_id: str) -> Row:
    """A row that was dropped, read anew: the run does not keep its prompt."""
    if stage not in ("generate", "revise"):
        raise CannotRebuild("No verdict of this run names this call: its pair was dropped, or judged anew since.")
    table = TABLES[stage][-1]
    if not any(drop["row_id"] == row_id for drop in run.dropped(stage, table)):
        raise CannotRebuild(f"No row of this run names this call, and '{row_id}' was not dropped: it is not finished.")
    prompts = run.manifest().get(stage, {}).get("prompts", {})
    source = prompts.get("source")
    if source is None or not Path(source).is_file():
        raise CannotRebuild(
            f"The row was dropped, and of those the run does not keep the prompt; it was read from "
            f"{source or 'a source that the manifest does not name yet'}, which is not here."
        )
    samples = run.settings()[stage]["settings"].get("samples", 1)
    for chunk in Prompts(source, stage, prompts.get("limit"), samples, strict=False).chunks(1000):
        for item in chunk.items:
            if isinstance(item, Row) and item.row_id == row_id:
                return item
    raise CannotRebuild(f"The row was dropped, and its prompt is no longer in {source}.")


def _told(request: Request, model: str) -> Json:
    """The request as it was given to the engine, with the tokens of those turns that this very model had generated."""
    forced = request.choices is not None
    return {
        "messages": [
            {"role": one.role, "content": one.content}
            | (
                {"token_ids": list(one.token_ids), "token_ids_of": one.model}
                if one.token_ids and one.model == model
                else {}
            )
            | ({"may_be_left_out": True} if one.optional else {})
            for one in request.messages
        ],
        "choices": list(request.choices) if request.choices is not None else None,
        "sampling": None if forced else asdict(request.sampling),
        "seed": None if forced else request.seed,
    }


def _wordings_sent(request: Request, constitution: Constitution | None, principles: Json) -> Json:
    """Which texts of the constitution stand in what was sent: the names of the wordings of each principle that the call
    was made for, and the question over all principles. A template may leave any of them out."""
    sent = "\n".join(" ".join(one.content.split()) for one in request.messages)

    def stands(text: str | None) -> bool:
        return bool(text) and " ".join(str(text).split()) in sent

    return {
        "question": constitution.question if constitution and stands(constitution.question) else None,
        "principles": {name: [key for key in WORDINGS if stands(one[key])] for name, one in principles.items()},
    }


def _texts_told(texts: Texts, entry: Entry, uses: Sequence[Json]) -> Json:
    """The texts that the prompt was made with: the template of its last turn, the constitution, the principle."""
    name = TEMPLATE_OF.get(entry["purpose"], "")
    if entry["purpose"] == "verdict" and "judge_letter" in texts.templates.compiled:
        name = "judge_letter"
    path, constitution = texts.templates.paths.get(f"{name}.jinja"), texts.constitution
    template = {"name": name, "path": str(path), "sha256": file_digest(path)} if path is not None else None
    told: Json = {"template": template, "templates_sha": texts.templates.sha, "constitution": None, "principles": {}}
    if constitution is not None:
        told["constitution"] = {
            "name": constitution.name, "version": constitution.version,
            "path": str(constitution.path), "sha256": constitution.sha,
        }  # fmt: skip
        applied = {use.get("principle_id") for use in uses}
        told["principles"] = {
            one.id: one.model_dump(mode="json") for one in constitution.principles if one.id in applied
        }
    return told
