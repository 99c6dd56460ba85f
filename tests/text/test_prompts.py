from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from tests import tiny
from xattn.text.align import refine_mapping, replace_mapping
from xattn.text.pairs import leading
from xattn.text.prompt import Prompt, Token, Word, WordError
from xattn.text.tokenize import Template, tokenize, tokenize_all

TOKENIZER = tiny.tokenizer()
NO_SELECTORS = dict.fromkeys(map(ord, "\ufe0e\ufe0f"))
FAMILY = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"


def read(text: str, **options: Any) -> Prompt:
    return tokenize(TOKENIZER, text, **options)


def axis(prompt: Prompt) -> list[int]:
    """Return the token ids that the pipeline hands to the text encoder."""
    return TOKENIZER(
        prompt.text, padding="max_length", max_length=prompt.length, truncation=True
    ).input_ids


# Tokens and words


def test_tokens_stand_where_the_text_encoder_sees_them() -> None:
    prompt = read("a Red zebra")
    assert prompt.tokens[:3] == (
        Token(1, axis(prompt)[1], "a", 0, 1),
        Token(2, axis(prompt)[2], "Red", 2, 5),
        Token(3, axis(prompt)[3], "z", 6, 7),
    )
    assert (prompt.length, prompt.end, prompt.lost) == (77, 8, "")
    assert prompt.end is not None
    assert axis(prompt)[prompt.end] == TOKENIZER.eos_token_id


def test_words_list_their_positions() -> None:
    assert read("a zebra, red!").words == (
        Word("a", 0, 1, (1,)),
        Word("zebra", 2, 7, (2, 3, 4, 5, 6)),
        Word("red", 9, 12, (8,)),
    )


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_prompt_has_an_end_and_no_words(text: str) -> None:
    prompt = read(text)
    assert (prompt.tokens, prompt.words, prompt.end) == ((), (), 1)
    with pytest.raises(WordError, match="it has no words"):
        prompt.find("red")
    with pytest.raises(WordError, match="tokens are at: none"):
        prompt.find(1)


def test_several_byte_tokens_share_a_character() -> None:
    prompt = read("赤 car")
    assert [(t.text, t.start, t.end) for t in prompt.tokens[:3]] == [("赤", 0, 1)] * 3
    assert prompt.find("赤") == ((1, 2, 3),)


def test_marks_that_the_tokenizer_composes_belong_to_their_token() -> None:
    text = unicodedata.normalize("NFD", "é car")
    prompt = read(text)
    assert [t.text for t in prompt.tokens] == [text[:2], text[:2], "car"]
    assert prompt.find("é") == ((1, 2),)


def test_the_end_token_in_the_text_is_a_word_of_the_prompt() -> None:
    prompt = read("a <|endoftext|> car")
    assert prompt.end == 4
    assert prompt.find("<|endoftext|>") == ((2,),)


def test_what_is_not_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="one prompt, a str, not list"):
        tokenize(TOKENIZER, ["a", "b"])


# Find


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a red car and a red boat", "red", ((2,), (6,))),
        ("a red car", "Red  Car", ((2, 3),)),
        ("a bored red", "red", ((4,),)),
        ("the car's car", "car's", ((2, 3, 4),)),
        ("the car's car", "car", ((2,), (5,))),
        ("a t-shirt", "t-shirt", ((2, 3, 4, 5, 6, 7, 8),)),
        ("rock'n'roll", "rock'n'roll", (tuple(range(1, 10)),)),
        ("a 42 b", "42", ((2, 3),)),
        (f"a {FAMILY} cat", FAMILY, (tuple(range(2, 13)),)),
        ("a red car", 2, ((2,),)),
        ("a red car", [2, 3], ((2, 3),)),
        ("a red car", torch.tensor(2), ((2,),)),
    ],
)
def test_find(text: str, word: Any, expected: tuple[tuple[int, ...], ...]) -> None:
    assert read(text).find(word) == expected


def test_positions_are_those_of_all_occurrences_or_the_chosen_one() -> None:
    prompt = read("a red car and a red boat")
    assert prompt.positions("red") == (2, 6)
    assert prompt.positions("red", 1) == (6,)
    assert prompt.positions([3, 2]) == (2, 3)
    assert prompt.find("red", 0) == ((2,),)


@pytest.mark.parametrize(
    ("word", "occurrence", "message"),
    [
        ("blu", None, "word 'blu' is not in the prompt 'a blue car'; its words are: a, blue, car"),
        ("", None, "word '' is empty; its words are: a, blue, car"),
        (" \t", None, "is empty"),
        ((), None, "is empty: pass at least one token position"),
        ("car", 1, "occurrence=1 of 'car': it occurs once in the prompt"),
        ("car", -1, "counted from 0"),
        (3, 1, "occurrence=1 of 3: it occurs once"),
        (
            0,
            None,
            "token position 0 is outside the prompt 'a blue car'; its own tokens are at: 1 to 3",
        ),
        (4, None, "outside"),
        (-1, None, "outside"),
        (["blue", "car"], None, "must be a string or token positions"),
        (True, None, "must be a string or token positions"),
        (1.5, None, "must be a string or token positions"),
        (None, None, "must be a string or token positions"),
    ],
)
def test_what_can_not_be_found_says_what_can(
    word: Any, occurrence: int | None, message: str
) -> None:
    with pytest.raises(WordError) as error:
        read("a blue car").find(word, occurrence)
    assert message in str(error.value)


def test_a_part_of_a_token_is_not_a_word() -> None:
    text = "cat ?! ?"
    whole = Token(2, 7, "?!", 4, 6)  # as CLIP's own vocabulary has it
    prompt = Prompt(text, (Token(1, 5, "cat", 0, 3), whole, Token(3, 9, "?", 7, 8)), 77, 4)
    with pytest.raises(WordError, match=r"'\?' covers only part of the token '\?!'"):
        prompt.find("?")
    assert prompt.find("?", 1) == ((3,),)
    assert prompt.find("?!") == ((2,),)


def test_a_word_without_a_token_is_an_error() -> None:
    prompt = Prompt("a \u200b", (Token(1, 5, "a", 0, 1),), 77, 2)
    with pytest.raises(WordError, match="no token of its own"):
        prompt.find("\u200b")


# Truncation


def test_words_cut_off_are_named_as_such() -> None:
    prompt = read("a red car " * 30 + "zebra lawn")
    assert (prompt.end, len(prompt.tokens)) == (76, 75)
    assert prompt.lost == "a red car " * 5 + "zebra lawn"
    assert [t.id for t in prompt.tokens] == axis(prompt)[1:76]
    assert len(prompt.find("red")) == 25
    with pytest.raises(WordError, match=r"cut off at 77 tokens.*left are: a, red, car$"):
        prompt.find("lawn")
    with pytest.raises(WordError, match="occurs 25 times"):
        prompt.find("red", 25)
    with pytest.raises(WordError, match="is not in the prompt"):
        prompt.find("blue")


def test_a_word_that_is_cut_in_two_is_cut_off() -> None:
    prompt = read("a red zebra", max_length=6)
    assert [t.text for t in prompt.tokens] == ["a", "red", "z", "e"]
    assert prompt.lost == "bra"
    assert [word.text for word in prompt.words] == ["a", "red"]
    with pytest.raises(WordError, match="cut off at 6 tokens"):
        prompt.find("zebra")


def test_a_character_that_is_cut_in_two_is_cut_off() -> None:
    prompt = read("a 赤", max_length=4)
    assert (len(prompt.tokens), prompt.lost) == (2, "赤")
    with pytest.raises(WordError, match="cut off"):
        prompt.find("赤")


# Embeddings only


def test_an_anonymous_prompt_is_addressed_by_position() -> None:
    prompt = Prompt.anonymous(77)
    assert prompt.is_anonymous
    assert prompt.find(0) == ((0,),)
    assert prompt.positions([3, 76]) == (3, 76)
    with pytest.raises(WordError, match="outside"):
        prompt.find(77)
    with pytest.raises(WordError, match=r"record\(pipe, prompt=...\)"):
        prompt.find("red")
    with pytest.raises(WordError, match="cannot be aligned"):
        refine_mapping(prompt, read("a"))
    with pytest.raises(WordError, match="cannot be aligned"):
        replace_mapping(read("a"), prompt)


# Texts that can't be read


def test_a_lone_surrogate_is_refused_before_the_tokenizer_meets_it() -> None:
    with pytest.raises(ValueError, match=r"the prompt is .*: character 2 is a lone surrogate"):
        tokenize(TOKENIZER, "a \ud800 car")


def test_a_lone_control_character_is_not_listed_as_a_word() -> None:
    prompt = tokenize(TOKENIZER, "a \x01 car")
    assert [word.text for word in prompt.words] == ["a", "car"]


# Textual inversion, other tokenizers


def test_all_vectors_of_an_inversion_have_its_name() -> None:
    pipe = tiny.sd1()
    tiny.add_inversion(pipe, "<toy>", 3)
    prompt = tokenize(pipe.tokenizer, "a <toy>, <toy> car", convert=pipe.maybe_convert_prompt)
    assert prompt.text == "a <toy>, <toy> car"
    assert prompt.find("<toy>") == ((2, 3, 4), (6, 7, 8))
    assert prompt.find("<toy> car") == ((6, 7, 8, 9),)
    assert [word.text for word in prompt.words] == ["a", "<toy>", "<toy>", "car"]
    alone = tokenize(pipe.tokenizer, "a car", convert=pipe.maybe_convert_prompt)
    assert alone == tokenize(pipe.tokenizer, "a car")


def test_a_conversion_that_rewrites_the_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be traced"):
        read("a red car", convert=lambda text, tokenizer: text.replace("red", "crimson"))
    with pytest.raises(ValueError, match="cannot be traced"):
        read("a red car", convert=lambda text, tokenizer: text + ", best quality")


def test_lower_case_and_stripped_white_space_are_traced() -> None:
    prompt = read("  A Red \u0130 CAR\n", convert=lambda text, tokenizer: text.lower().strip())
    assert [(w.text, w.start) for w in prompt.words] == [
        ("A", 2), ("Red", 4), ("\u0130", 8), ("CAR", 10)
    ]  # fmt: skip
    assert prompt.find("car") == read(prompt.text.lower()).find("car")


@pytest.mark.parametrize("dropped", [0, 3])
def test_words_in_a_template_stand_where_the_pipeline_leaves_them(dropped: int) -> None:
    template = Template("the old dog: ", " on a lawn", dropped)
    prompt = read("a red car", template=template, max_length=20)
    whole = read("the old dog: a red car on a lawn")
    assert prompt.positions("a") == (whole.find("a")[0][0] - dropped,)
    assert prompt.positions("red car") == tuple(p - dropped for p in whole.positions("red car"))
    assert [word.text for word in prompt.words] == ["a", "red", "car"]
    with pytest.raises(WordError, match="is not in the prompt"):
        prompt.find("lawn")


def test_a_template_can_push_words_off_the_axis() -> None:
    prompt = read("a red car", template=Template("the old dog: "), max_length=8)
    assert (prompt.lost, [w.text for w in prompt.words]) == ("car", ["a", "red"])
    assert read("", template=Template("the old dog: ")).words == ()


def test_two_tokenizers_that_agree_give_one_prompt() -> None:
    second = tiny.tokenizer(pad_token="!")
    assert tokenize_all([TOKENIZER, second], "a red car!") == read("a red car!")


def test_two_tokenizers_that_differ_are_refused() -> None:
    second = tiny.tokenizer()
    second.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="1 divide the prompt 'a zebra' differently: 'z' against"):
        tokenize_all([TOKENIZER, second], "a zebra")
    with pytest.raises(ValueError, match="at least one"):
        tokenize_all([], "a")


def t5() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁car", ",", "▁", "b", "lue"]
    return T5Tokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], extra_ids=0)


def test_sentencepiece_tokens_leave_the_space_before_them() -> None:
    prompt = tokenize(t5(), "a  red car, blue", max_length=16)
    assert prompt.tokens[0].position == 0
    assert prompt.find("red") == ((1,),)
    assert prompt.find("car") == ((2,),)
    assert [word.text for word in prompt.words] == ["a", "red", "car", "blue"]
    assert prompt.end == len(t5()("a  red car, blue").input_ids) - 1
    assert tokenize(t5(), "", max_length=16).end == 0


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Plain:
        is_fast = False
        model_max_length = 77

    with pytest.raises(ValueError, match="Plain does not provide character offsets"):
        tokenize(Plain(), "a")


def test_a_tokenizer_without_a_length_asks_for_one() -> None:
    with pytest.raises(ValueError, match="pass max_length="):
        tokenize(tiny.tokenizer(model_max_length=10**30), "a")


# JSON


def test_a_prompt_comes_back_from_json() -> None:
    for prompt in (read("a red 赤, " * 12), read(""), Prompt.anonymous(77)):
        assert Prompt.from_json(json.loads(json.dumps(prompt.to_json()))) == prompt


@pytest.mark.parametrize(
    "change",
    [
        {"text": 3},
        {"lost": "car"},
        {"lost": None},
        {"length": 0},
        {"length": "77"},
        {"length": 2},
        {"end": 2},
        {"end": 3.0},
        {"end": True},
        {"end": None},
        {"end": 78},
        {"tokens": None},
        {"tokens": [1, 2]},
        {"tokens": [[1, 5, 0]]},
        {"tokens": [[1, 5, 0, 9], [2, 6, 2, 5]]},
        {"tokens": [[1, 5, 0, 1], [3, 6, 2, 5]]},
        {"tokens": [[1, 5, -5, 1], [2, 6, 2, 5]]},
        {"tokens": [["1", 5, 0, 1], [2, 6, 2, 5]]},
        {"tokens": [[1, 5, 1, 0], [2, 6, 2, 5]]},
        {"tokens": [[1, 5, "0", 1], [2, 6, 2, 5]]},
    ],
)
def test_json_that_is_no_prompt_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a prompt"):
        Prompt.from_json(read("a red").to_json() | change)


@pytest.mark.parametrize("data", [None, 3, [], "text", {}, {"text": "a"}])
def test_json_that_lacks_parts_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="not a prompt"):
        Prompt.from_json(data)


# Replace


def nonzero(mapping: torch.Tensor) -> dict[tuple[int, int], float]:
    return {(w, n): mapping[w, n].item() for w, n in mapping.nonzero().tolist()}


def diagonal(begin: int, stop: int, shift: int = 0) -> dict[tuple[int, int], float]:
    return {(w, w + shift): 1.0 for w in range(begin, stop)}


def test_words_of_as_many_tokens_map_one_to_one() -> None:
    mapping, own = replace_mapping(read("a red car"), read("a blue boat"))
    assert torch.equal(mapping, torch.eye(77))
    assert not own.any()


@pytest.mark.parametrize("aligner", ["exact", "reference"])
def test_replacing_a_word_by_itself_is_the_identity(aligner: Any) -> None:
    prompt = read("a red zebra, car")
    mapping, own = replace_mapping(prompt, prompt, aligner)
    assert torch.equal(mapping, torch.eye(77))
    assert not own.any()


def test_a_word_of_five_tokens_onto_one() -> None:
    # a 1, zebra 2..6, car 7, end 8      a 1, cat 2, car 3, end 4
    mapping, own = replace_mapping(read("a zebra car"), read("a cat car"))
    assert nonzero(mapping) == {
        **diagonal(0, 2),
        **{(w, 2): 1.0 for w in range(2, 7)},
        **diagonal(7, 77, shift=-4),
    }
    assert own.nonzero().flatten().tolist() == [73, 74, 75, 76]


def test_a_word_of_one_token_onto_five() -> None:
    mapping, own = replace_mapping(read("a cat car"), read("a zebra car"))
    assert nonzero(mapping) == {
        **diagonal(0, 2),
        **{(2, n): pytest.approx(0.2) for n in range(2, 7)},
        **diagonal(3, 73, shift=4),
    }
    assert not own.any()


def test_two_swaps_shift_what_is_between_and_behind_them() -> None:
    # cup 1, red 2, on 3, zebra 4..8, car 9, end 10
    # zebra 1..5, red 6, on 7, cat 8, car 9, end 10
    mapping, own = replace_mapping(read("cup red on zebra car"), read("zebra red on cat car"))
    assert nonzero(mapping) == {
        (0, 0): 1.0,
        **{(1, n): pytest.approx(0.2) for n in range(1, 6)},
        (2, 6): 1.0,
        (3, 7): 1.0,
        **{(w, 8): 1.0 for w in range(4, 9)},
        **diagonal(9, 77),
    }
    assert not own.any()


def test_the_reference_shifts_what_is_behind_the_last_swap() -> None:
    mapping, own = replace_mapping(read("a zebra car"), read("a cat car"), "reference")
    assert nonzero(mapping) == {
        **diagonal(0, 2),
        **{(w, 2): 1.0 for w in range(2, 7)},
        **diagonal(3, 73),  # car takes position 3 of zebra; 73..76 nothing
    }
    assert not own.any()
    back, _ = replace_mapping(read("a cat car"), read("a zebra car"), "reference")
    assert nonzero(back) == {
        **diagonal(0, 2),
        **{(2, n): pytest.approx(0.2) for n in range(2, 7)},
        **diagonal(7, 77),
    }


def test_the_reference_agrees_where_token_counts_do() -> None:
    source, target = read("a red cat on a lawn"), read("a blue dog on a beach")
    exact, _ = replace_mapping(source, target)
    reference, _ = replace_mapping(source, target, "reference")
    assert torch.equal(exact, reference)


def test_a_word_with_punctuation_is_one_word() -> None:
    # red, 2..3 end 4       blue 2 end 3
    mapping, _ = replace_mapping(read("a red,"), read("a blue"))
    assert nonzero(mapping) == {**diagonal(0, 3), (3, 2): 1.0, **diagonal(4, 77, shift=-1)}


def test_replace_names_the_words_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match=r"'a red car' has 3, 'a dark red car' has 4.*Refine"):
        replace_mapping(read("a red car"), read("a dark red car"))
    with pytest.raises(ValueError, match="'the end' against 'car' on"):
        replace_mapping(read("a red"), read("a red car"))
    with pytest.raises(ValueError, match="aligner must be"):
        replace_mapping(read("a"), read("a"), "other")


def test_replace_maps_what_truncation_left() -> None:
    source, target = read("red " * 80), read("zebra " + "red " * 79)
    mapping, own = replace_mapping(source, target)
    assert nonzero(mapping) == {
        (0, 0): 1.0,
        **{(1, n): pytest.approx(0.2) for n in range(1, 6)},
        **diagonal(2, 72, shift=4),
        (76, 76): 1.0,
    }
    assert not own.any()


# Refine


def test_refine_finds_the_partners_of_an_extended_prompt() -> None:
    # a 1 red 2 car 3 end 4      a 1 big 2 red 3 car 4 at 5 night 6 end 7
    partner, has = refine_mapping(read("a red car"), read("a big red car at night"))
    assert partner[:8].tolist() == [0, 1, 0, 2, 3, 0, 0, 4]
    assert has[:8].tolist() == [True, True, False, True, True, False, False, True]
    assert partner[8:].tolist() == list(range(8, 77))
    assert has[8:].all()


def test_refine_pairs_a_swapped_word_with_none() -> None:
    partner, has = refine_mapping(read("a red car"), read("a blue car"))
    assert has.nonzero().flatten().tolist() == [0, 1, *range(3, 77)]
    assert partner[3:].tolist() == list(range(3, 77))


def test_refine_of_a_shorter_prompt_pairs_padding_with_padding_only() -> None:
    # a 1 big 2 red 3 car 4 end 5      a 1 car 2 end 3
    partner, has = refine_mapping(read("a big red car"), read("a car"))
    assert partner[:4].tolist() == [0, 1, 4, 5]
    assert has.tolist() == [True] * 4 + [False] * 2 + [True] * 71
    assert partner[6:].tolist() == list(range(6, 77))


def test_refine_breaks_ties_as_the_reference_does() -> None:
    # Traced from the end, the target's surplus goes first: of two "red", the first is the partner.
    _, has = refine_mapping(read("red"), read("red red"))
    assert has[:4].tolist() == [True, True, False, True]
    partner, _ = refine_mapping(read("red red"), read("red"))
    assert partner[:3].tolist() == [0, 1, 3]


def test_refine_of_the_same_prompt_is_the_identity() -> None:
    partner, has = refine_mapping(read("a red zebra"), read("A RED zebra"))
    assert partner.tolist() == list(range(77))
    assert has.all()


# Properties

ALPHABET = (
    "aeirdRD .,'-!?\n\t019éÉß赤車のア고양สีİ_<>ﬁ"
    "\N{COMBINING ACUTE ACCENT}\N{ZERO WIDTH JOINER}👍🏽\ufe0f"
)
TEXTS = st.one_of(
    st.text(ALPHABET, max_size=40),
    st.lists(
        st.sampled_from(
            [
                "a",
                "red",
                "car",
                "zebra",
                "café",
                "赤い車",
                "👍🏽",
                "don't",
                "t-shirt",
                "(cat)",
                "42",
            ]
        ),
        max_size=40,
    ).map(" ".join),
    st.text(max_size=30),
)


@given(TEXTS, st.sampled_from([6, 20, 77]))
def test_every_listed_word_is_found_where_it_stands(text: str, length: int) -> None:
    prompt = read(text, max_length=length)
    for word in prompt.words:
        assert text[word.start : word.end] == word.text
        assert word.positions in prompt.find(word.text)
        tokens = [t for t in prompt.tokens if t.position in word.positions]
        covered = {i for t in tokens for i in range(t.start, t.end)}
        assert covered == set(range(word.start, word.end))


@given(TEXTS, st.data())
def test_what_is_found_lies_on_the_axis_and_holds_the_word(text: str, data: st.DataObject) -> None:
    prompt = read(text)
    start = data.draw(st.integers(0, len(text)))
    needle = text[start : data.draw(st.integers(start, len(text)))]
    try:
        found = prompt.find(needle)
    except WordError:
        assume(False)
        return
    own = {t.position: t for t in prompt.tokens}
    for positions in found:
        assert positions
        assert list(positions) == list(range(positions[0], positions[-1] + 1))
        slices = [own[p] for p in positions]
        begin, end = min(t.start for t in slices), max(t.end for t in slices)
        # a form selector belongs to its character, and is not asked for: "\u2764\ufe0f" is "\u2764"
        held, asked = (each.translate(NO_SELECTORS) for each in (text[begin:end], needle))
        assert held.casefold().split() == asked.casefold().split() or (
            unicodedata.normalize("NFKC", held).casefold().split()
            == unicodedata.normalize("NFKC", asked).casefold().split()
        )


def test_a_character_is_found_with_its_form_selector() -> None:
    assert read("a \u2764\ufe0f").find("\u2764") == read("a \u2764\ufe0f").find("\u2764\ufe0f")


@given(TEXTS, st.integers(3, 77))
def test_tokens_and_what_was_lost_make_up_the_text(text: str, length: int) -> None:
    prompt = read(text, max_length=length)
    ids = [t.id for t in prompt.tokens]
    assert ids == TOKENIZER(text, truncation=True, max_length=length).input_ids[1:-1]
    seen = {i for t in prompt.tokens for i in range(t.start, t.end)}
    seen |= set(range(len(text) - len(prompt.lost), len(text)))
    blank = {i for i, c in enumerate(text) if c.isspace() and not "\x1c" <= c <= "\x1f"}
    assert seen | blank == set(range(len(text)))
    assert Prompt.from_json(prompt.to_json()) == prompt


SIMPLE = st.lists(st.sampled_from(["a", "red", "car", "zebra", "cat,", "lawn", "42"]), max_size=30)


@given(SIMPLE, st.data())
def test_replace_keeps_the_sum_of_attention(source: list[str], data: st.DataObject) -> None:
    size = len(source)
    target = data.draw(
        st.lists(st.sampled_from(["a", "blue", "dog", "elephant"]), min_size=size, max_size=size)
    )
    one, two = read(" ".join(source)), read(" ".join(target))
    mapping, own = replace_mapping(one, two)
    assert own.equal(mapping.sum(0) == 0)
    rows = mapping.sum(1)
    assert rows.max() <= 1 + 1e-6
    if not one.lost and not two.lost:
        assert one.end is not None
        assert torch.allclose(rows[: one.end + 1], torch.ones(one.end + 1))


@given(SIMPLE, SIMPLE)
def test_refine_pairs_equal_tokens_in_order(source: list[str], target: list[str]) -> None:
    one, two = read(" ".join(source)), read(" ".join(target))
    partner, has = refine_mapping(one, two)
    places = partner[has].tolist()
    assert places == sorted(set(places))
    old, new = axis(one), axis(two)
    assert all(old[partner[n]] == new[n] for n in has.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a red car on a green lawn", "car"),
        ("a photograph of a mug beside an elephant", "mug"),
        ("a painting", "painting"),
        ("the two of the", "the"),
        ("running quickly, magnificently", "quickly"),
    ],
)
def test_the_leading_word_is_the_first_thing(text: str, word: str) -> None:
    found = leading(read(text))
    assert found is not None
    assert found.text == word


def test_a_text_without_words_has_no_leading_word() -> None:
    assert leading(read("")) is None
