from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.text.matching import check_text, chunks, clusters, matches, words

NFD_CAFE = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("text", "word", "spans"),
    [
        ("a red car, bored", "red", [(2, 5)]),
        ("Red red RED", "rEd", [(0, 3), (4, 7), (8, 11)]),
        ("a red \n car", "red car", [(2, 11)]),
        ("a red car", "  red\tcar ", [(2, 9)]),
        ("the car's 'red' (car)", "car", [(4, 7), (17, 20)]),
        ("the car's", "car's", [(4, 9)]),
        ("rock'n'roll t-shirt", "t-shirt", [(12, 19)]),
        ("rock'n'roll t-shirt", "rock'n'roll", [(0, 11)]),
        ("42cats 4 42", "42", [(9, 11)]),
        ("café", NFD_CAFE, [(0, 4)]),
        (NFD_CAFE, "café", [(0, 5)]),
        (NFD_CAFE, "cafe", []),
        ("café", "cafe", []),
        ("赤い車と車", "車", [(2, 3), (4, 5)]),
        ("red車", "red", [(0, 3)]),
        ("고양이가 있다", "고양이", [(0, 3)]),
        ("ﬁsh straße", "fish", [(0, 3)]),
        ("ﬁsh straße", "STRASSE", [(4, 10)]),
        ("straße", "stras", []),
        ("👍🏽👍", "👍", [(0, 1), (2, 3)]),
        ("❤️red", "❤", [(0, 2)]),
        ("❤️red", "red", [(2, 5)]),
        ("aaa aa", "aa", [(4, 6)]),
        ("哈哈哈哈", "哈哈", [(0, 2), (2, 4)]),
        ("a b", "", []),
        ("", "a", []),
    ],
)
def test_words_are_matched_whole(text: str, word: str, spans: list[tuple[int, int]]) -> None:
    assert list(matches(text, word)) == spans


def test_words_leave_the_punctuation_around_them() -> None:
    text = "(a red) car's, ... <toy> ¿qué?"
    assert [text[s:e] for s, e in words(text)] == ["a", "red", "car's", "<toy>", "qué"]


@pytest.mark.parametrize("lone", ["\x00", "\x01", "\x7f", "\x1c", "\u200b", "\x01!", "\u2060\x02"])
def test_control_and_format_characters_alone_are_not_a_word(lone: str) -> None:
    text = f"a {lone} car"
    assert [text[s:e] for s, e in words(text)] == ["a", "car"]


def test_controls_around_a_word_are_left_out_and_those_inside_belong_to_it() -> None:
    text = "\x01red\x02 ca\x03r, \N{WAVING BLACK FLAG}\U000e0067\U000e007f"
    found = [text[s:e] for s, e in words(text)]
    assert found == ["red", "ca\x03r", "\N{WAVING BLACK FLAG}\U000e0067\U000e007f"]


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    assert check_text("a red \N{CAT FACE}") == "a red \N{CAT FACE}"
    with pytest.raises(ValueError, match=r"the label is .*: character 2 is a lone surrogate"):
        check_text("a \ud800", "the label")


@given(st.text())
def test_clusters_cover_the_text_and_chunks_all_but_white_space(text: str) -> None:
    units = clusters(text)
    assert "".join(text[u.start : u.end] for u in units) == text
    inner = "".join(text[u.start : u.end] for chunk in chunks(text) for u in chunk)
    assert inner == "".join(text[u.start : u.end] for u in units if u.folded != " " or u.base == "")
