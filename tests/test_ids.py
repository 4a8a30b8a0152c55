from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cai.ids import choose, derived_seed, digest

IDS = [f"principle-{n}" for n in range(8)]
GOLDEN_CHOICES = ["principle-2", "principle-0", "principle-2", "principle-0"]
GOLDEN_SEED = 1165639301


def test_a_digest_does_not_depend_on_the_order_of_keys_and_holds_lone_surrogates():
    assert digest({"a": 1, "b": "\ud800"}) == digest({"b": "\ud800", "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_choices_and_seeds_are_the_same_on_every_machine_and_in_every_version():
    weights = dict.fromkeys(IDS, 1.0)
    assert [choose(0, f"row-{n}", 1, weights) for n in range(4)] == GOLDEN_CHOICES
    assert derived_seed(0, "row-0", 1, "critique", "privacy") == GOLDEN_SEED


def test_adding_a_principle_moves_only_its_own_share_of_the_choices():
    old, new = dict.fromkeys(IDS, 1.0), dict.fromkeys([*IDS, "new"], 1.0)
    rows = [f"row-{n}" for n in range(4000)]
    moved = [(choose(0, row, 1, old), choose(0, row, 1, new)) for row in rows]
    arrived = [now for before, now in moved if before != now]
    assert set(arrived) == {"new"}
    assert 0.8 / 9 < len(arrived) / len(rows) < 1.2 / 9


def test_a_principle_is_chosen_in_proportion_to_its_weight():
    counts = Counter(choose(0, f"row-{n}", 1, {"light": 1.0, "heavy": 3.0}) for n in range(4000))
    assert 2.6 < counts["heavy"] / counts["light"] < 3.4


def test_rounds_rows_and_run_seeds_choose_independently():
    weights = dict.fromkeys(IDS, 1.0)
    by_round = [
        [choose(seed, f"row-{n}", number, weights) for n in range(50)] for seed, number in ((0, 1), (0, 2), (1, 1))
    ]
    assert by_round[0] != by_round[1] != by_round[2] != by_round[0]


@given(st.integers(0, 2**63), st.text(), st.integers(0, 8), st.text())
def test_a_seed_fits_every_engine(run_seed: int, row_id: str, number: int, purpose: str):
    assert 0 <= derived_seed(run_seed, row_id, number, purpose) < 2**31
