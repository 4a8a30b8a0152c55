"""The prompts that travel with cai: enough of them, each once, all of a documented kind, all readable."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from cai.inputs import Prompts
from cai.rows import Row
from cai.texts import phrases

FOLDER = Path(__file__).parent.parent / "data/prompts"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SETS: dict[str, list[dict[str, Any]]] = {
    name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("redteam", "benign")
}


def turns(record: dict[str, Any]) -> list[str]:
    prompt = record["prompt"]
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def test_there_are_enough_of_each_kind():
    assert all(len(records) >= 200 for records in SETS.values())
    assert sum(len(turns(record)) > 1 for record in SETS["redteam"]) >= 40
    assert sum(bool(record["twin_of"]) for record in SETS["benign"]) >= 80


def test_no_prompt_is_there_twice_or_nearly_twice():
    records = [record for kept in SETS.values() for record in kept]
    texts = [" ".join(turns(record)) for record in records]
    words = [" ".join(re.findall(r"\w+", text.casefold())) for text in texts]
    assert [text for text, count in Counter(words).items() if count > 1] == []
    assert len({record["id"] for record in records}) == len(records)
    runs = [phrases(text, 4) for text in texts]
    near = [
        (records[a]["id"], records[b]["id"])
        for a, b in combinations(range(len(records)), 2)
        if len(runs[a] & runs[b]) > 0.3 * min(len(runs[a]), len(runs[b])) > 0
    ]
    assert near == []


@pytest.mark.parametrize("name", SETS)
def test_every_category_is_documented_and_has_an_origin(name: str):
    counts = Counter(record["category"] for record in SETS[name])
    assert {category for category in counts if f"| `{category}` |" not in README} == set()
    assert min(counts.values()) >= 8
    assert {record["origin"] for record in SETS[name]} == {"cai"}
    for category, told in re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", README, re.MULTILINE):
        assert counts.get(category, int(told)) == int(told), f"the README miscounts {category}"


def test_twins_and_only_twins_name_what_they_resemble():
    assert all(bool(one["twin_of"]) == one["category"].startswith("twin-") for one in SETS["benign"])


@pytest.mark.parametrize("name", SETS)
def test_each_is_read_as_a_row_that_ends_with_the_user(name: str):
    items = [item for chunk in Prompts(name, "revise", None, 1, True).chunks(1000) for item in chunk.items]
    assert len(items) == len(SETS[name])
    for item in items:
        assert isinstance(item, Row)
        roles = [message.role for message in item.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert not any(re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message.content) for message in item.prompt)
