import random
from itertools import pairwise

from cai.word_diff import Piece, word_diff, words_changed


def test_a_word_that_was_replaced_is_one_piece_taken_away_and_one_added() -> None:
    assert word_diff("a lock can be picked", "a lock may be picked") == [
        Piece("same", "a lock "),
        Piece("removed", "can"),
        Piece("added", "may"),
        Piece("same", " be picked"),
    ]


def test_a_sentence_that_was_reworded_reads_as_one_change() -> None:
    assert word_diff("First: buy picks now. Then go.", "First: call a locksmith. Then go.") == [
        Piece("same", "First: "),
        Piece("removed", "buy picks now."),
        Piece("added", "call a locksmith."),
        Piece("same", " Then go."),
    ]


def test_equal_texts_are_one_piece_and_empty_ones_none() -> None:
    assert word_diff("as it was", "as it was") == [Piece("same", "as it was")]
    assert word_diff("", "") == []
    assert word_diff("", "new") == [Piece("added", "new")]
    assert word_diff("old", "") == [Piece("removed", "old")]


def test_both_texts_can_be_read_back_from_the_pieces() -> None:
    chance = random.Random(0)
    for _ in range(300):
        before, after = ("".join(chance.choices(["a", "b", "cd", " ", "  ", "\n"], k=12)) for _ in range(2))
        pieces = word_diff(before, after)
        assert "".join(piece.text for piece in pieces if piece.kind != "added") == before
        assert "".join(piece.text for piece in pieces if piece.kind != "removed") == after
        kinds = [piece.kind for piece in pieces]
        assert all(one != two for one, two in pairwise(kinds))


def test_words_that_only_moved_are_not_counted_as_changed() -> None:
    assert words_changed("call them now", "now call them") == (0, 0)
    assert words_changed("the the cat", "the dog sat") == (2, 2)
