"""Words and phrases <-> positions on the token axis, and the alignment of two prompts.

Character offsets refer to the prompt as it was written, whatever the tokenizer did to it on the
way: lower case, Unicode composition, the vectors of a textual inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import index
from typing import Any, Literal

import torch

from xattn.text import Span, check_text, chunks, is_space, matches, words

Words = str | int | Sequence[int]
"""What a word can be given as: its text, or the positions of its tokens."""

Convert = Callable[[str, Any], str]
"""What a pipeline does to a prompt before it tokenizes it: ``pipe.maybe_convert_prompt``."""


class WordError(ValueError):
    """A word that can't be found, was cut off, or doesn't stand on token borders."""


@dataclass(frozen=True)
class Token:
    """One of a prompt's own tokens.

    Attributes:
        position: its index on the model's token axis.
        id: its number in the tokenizer's vocabulary.
        text: the slice of the prompt that it stands for. Several byte tokens can share one
            character, and all vectors of a textual inversion share its name.
        start: where the slice begins in the prompt, in characters.
        end: where the slice ends.
    """

    position: int
    id: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Word:
    """A word of a prompt: a stretch without white space, less the punctuation around it."""

    text: str
    start: int
    end: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        text: the prompt as it was written.
        tokens: its own tokens in order, without start, end and padding.
        length: the length of the token axis, 77 for CLIP.
        end: the position of the end token, behind the prompt's own; padding follows it. None
            where only the embeddings are known.
        lost: the text that truncation cut off, "" where nothing was.
        clash: why the lost words have no place of their own on the axis, where it isn't that the
            model's tokens ran out; "" elsewhere.

    Raises:
        ValueError: the parts contradict each other.
    """

    text: str
    tokens: tuple[Token, ...]
    length: int
    end: int | None
    lost: str = ""
    clash: str = ""

    def __post_init__(self) -> None:
        problem = _contradiction(self)
        if problem:
            raise ValueError(f"not a prompt: {problem}")

    @classmethod
    def anonymous(cls, length: int) -> Prompt:
        """Gives a prompt known only by its embeddings: its words are token positions."""
        return cls(text="", tokens=(), length=length, end=None)

    @classmethod
    def clashing(cls, text: str, length: int, reason: str) -> Prompt:
        """Gives a prompt none of whose words has a place of its own on the token axis."""
        return cls(text=text, tokens=(), length=length, end=1, lost=text, clash=reason)

    @property
    def is_anonymous(self) -> bool:
        """Whether only the embeddings are known, so that words have no text."""
        return self.end is None

    @property
    def words(self) -> tuple[Word, ...]:
        """The words that the model sees whole, in order; those cut off are left out."""
        found = []
        for start, end in words(self.text):
            inside = self._touched(start, end)
            # A token can hold the punctuation too ("!?" and a smiley): then so does the word.
            start = min([start, *(t.start for t in inside)])
            end = max([end, *(t.end for t in inside)])
            if inside and end <= self._cut:
                places = tuple(t.position for t in self._touched(start, end))
                found.append(Word(self.text[start:end], start, end, places))
        return tuple(found)

    def find(self, word: Words, occurrence: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Gives the token positions of each occurrence of a word or phrase.

        Words are matched whole, without regard to case, the kind of white space and Unicode
        composition; punctuation can stand around them or belong to them. Scripts without spaces
        (Chinese, Japanese, Thai ...) match anywhere. Occurrences that truncation cut off don't
        count: the model never saw them.

        Args:
            word: the text; or a token's position, or several that belong together.
            occurrence: which of the occurrences, counted from 0; all of them by default.

        Raises:
            WordError: there is no such word, or it covers only a part of a token. The error
                lists the words there are.

        Example:
            >>> tokenize(pipe.tokenizer, "a red car and a red boat").find("red")
            ((2,), (6,))
        """
        if not isinstance(word, str):
            return self._chosen(word, [self._own(word)], occurrence)
        spans = self._chosen(word, self._spans(word), occurrence)
        return tuple(self._covered(word, span) for span in spans)

    def positions(self, word: Words, occurrence: int | None = None) -> tuple[int, ...]:
        """Gives the token positions of a word, ascending; of all its occurrences by default.

        Raises:
            WordError: as in :meth:`find`.
        """
        return tuple(sorted({place for group in self.find(word, occurrence) for place in group}))

    def on_axis(self, word: Words) -> tuple[int, ...]:
        """Gives token positions as ``positions`` does, and takes start, end and padding by number.

        Raises:
            WordError: the word isn't there, or a number lies outside the token axis.
        """
        if isinstance(word, str):
            return self.positions(word)
        return self._within(word, range(self.length))

    def to_json(self) -> dict[str, Any]:
        """Gives the prompt as plain JSON values; a token is [position, id, start, end]."""
        return {
            "text": self.text,
            "tokens": [[t.position, t.id, t.start, t.end] for t in self.tokens],
            "length": self.length,
            "end": self.end,
            "lost": self.lost,
            "clash": self.clash,
        }

    @classmethod
    def from_json(cls, data: Any) -> Prompt:
        """Gives the prompt that :meth:`to_json` wrote.

        Raises:
            ValueError: the data aren't a prompt.
        """
        try:
            names = ("text", "length", "end", "lost", "clash")
            text, length, end, lost, clash = (data[key] for key in names)
            tokens = tuple(
                Token(position, number, text[start:stop], start, stop)
                for position, number, start, stop in data["tokens"]
            )
        except KeyError as missing:
            raise ValueError(f"not a prompt: {missing} is missing") from None
        except (TypeError, ValueError) as wrong:
            raise ValueError(f"not a prompt: {wrong}") from None
        return cls(text, tokens, length, end, lost, clash)

    @property
    def _cut(self) -> int:
        """Where the text that the model sees ends."""
        return len(self.text) - len(self.lost)

    @property
    def _first(self) -> int:
        """The position of the first own token (1 behind CLIP's start token)."""
        if self.tokens:
            return self.tokens[0].position
        return self.end or 0

    def _touched(self, start: int, end: int) -> list[Token]:
        return [t for t in self.tokens if t.start < end and t.end > start]

    def _spans(self, word: str) -> list[Span]:
        """Gives where a word stands, without what was cut off; at least one place."""
        if self.is_anonymous:
            raise WordError(
                f"word {word!r} can't be found: the prompt is known only by its embeddings; give "
                "token positions (0, 1, ...) for words, or record(pipe, prompt=...)"
            )
        if not word.strip():
            raise WordError(f"word {word!r} is empty; {self._inventory()}")
        spans = list(matches(self.text, word))
        kept = [span for span in spans if span[1] <= self._cut]
        if kept:
            return kept
        if spans and self.clash:
            raise WordError(
                f"word {word!r} has no place of its own: {self.clash}; {self._inventory()}; give "
                "token positions (1, 2, ...) to look all the same"
            )
        if spans:
            raise WordError(
                f"word {word!r} was cut off at {self.length} tokens: the model reads only "
                f"up to {self.text[: self._cut][-30:]!r}; {self._inventory()}"
            )
        raise WordError(f"word {word!r} is not in the prompt {self.text!r}; {self._inventory()}")

    def _inventory(self) -> str:
        there = dict.fromkeys(word.text for word in self.words)
        if not there:
            return "it has no words"
        return f"{'the words left' if self.lost else 'its words'} are: {', '.join(there)}"

    def _covered(self, word: str, span: Span) -> tuple[int, ...]:
        inside = self._touched(*span)
        for token in inside:
            if token.start < span[0] or token.end > span[1]:
                raise WordError(
                    f"word {word!r} covers only a part of the token {token.text!r} in the prompt "
                    f"{self.text!r}; a token can't be divided: ask for {token.text!r}"
                )
        if not inside:
            raise WordError(f"word {word!r} has no token of its own in the prompt {self.text!r}")
        return tuple(t.position for t in inside)

    def _own(self, word: int | Sequence[int]) -> tuple[int, ...]:
        """Gives token positions that were given as such, checked."""
        if self.is_anonymous:
            return self._within(word, range(self.length))
        return self._within(word, range(self._first, self._first + len(self.tokens)))

    def _within(self, word: int | Sequence[int], there: range) -> tuple[int, ...]:
        given = word if isinstance(word, Sequence) else [word]
        if not all(hasattr(place, "__index__") and not isinstance(place, bool) for place in given):
            raise WordError(f"word {word!r} must be a text or token positions")
        places = tuple(dict.fromkeys(index(place) for place in given))
        if not places:
            raise WordError("word () is empty: give at least one token position")
        for place in places:
            if place not in there:
                extent = f"{there[0]} to {there[-1]}" if there else "none"
                raise WordError(
                    f"token position {place} is outside the prompt {self.text!r}; "
                    f"its own tokens are at: {extent}"
                )
        return places

    def _chosen(self, word: Words, found: Sequence[Any], occurrence: int | None) -> tuple[Any, ...]:
        if occurrence is None:
            return tuple(found)
        if isinstance(occurrence, bool) or not 0 <= occurrence < len(found):
            count = "once" if len(found) == 1 else f"{len(found)} times"
            raise WordError(
                f"occurrence={occurrence} of {word!r}: it stands {count} in the prompt "
                f"{self.text!r}; occurrences are counted from 0"
            )
        return (found[occurrence],)


def tokenize(
    tokenizer: Any, text: str, *, max_length: int | None = None, convert: Convert | None = None
) -> Prompt:
    """Gives the prompt that a model with this tokenizer reads.

    Args:
        tokenizer: any of transformers' tokenizers that knows character offsets (CLIP, T5 ...).
        text: one prompt.
        max_length: the length of the token axis; the tokenizer's own by default.
        convert: what the pipeline does to the text first, ``pipe.maybe_convert_prompt``: it
            writes a textual inversion's further vectors. All of them get the span of its name.

    Raises:
        ValueError: the tokenizer has no length of its own, or the conversion can't be followed.

    Example:
        >>> tokenize(pipe.tokenizer, "a red car").tokens[1]
        Token(position=2, id=736, text='red', start=2, end=5)
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be one prompt, a str, not {type(text).__name__}")
    length = tokenizer.model_max_length if max_length is None else max_length
    if length > 100_000:  # transformers' way of saying that there is none
        raise ValueError("the tokenizer doesn't say how long its axis is: give max_length=")
    check_text(text, "the prompt")
    converted = text if convert is None else convert(text, tokenizer)
    origin = _origin(text, converted, getattr(tokenizer, "added_tokens_encoder", {}))
    encoded = _with_offsets(tokenizer)(
        converted,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # no warning about the length: truncation is done below
    )
    special = encoded["special_tokens_mask"]
    first = special.index(0) if 0 in special else max(0, len(special) - 1)  # the end token is last
    own = [i for i, is_special in enumerate(special) if not is_special]
    spans = _closed(converted, [encoded["offset_mapping"][i] for i in own])
    spans = [(origin[s][0], origin[e - 1][1]) if e > s else (origin[s][0],) * 2 for s, e in spans]
    room = max(0, length - (len(special) - len(own)))
    tokens = tuple(
        Token(first + n, encoded["input_ids"][own[n]], text[start:end], start, end)
        for n, (start, end) in enumerate(spans[:room])
    )
    lost = text[min(start for start, _ in spans[room:]) :] if spans[room:] else ""
    return Prompt(text, tokens, length, first + len(tokens), lost)


def tokenize_all(
    tokenizers: Sequence[Any],
    text: str,
    *,
    max_length: int | None = None,
    convert: Convert | None = None,
) -> Prompt:
    """Gives the one prompt that several tokenizers agree on, as SDXL's two do.

    Ids are the first tokenizer's.

    Raises:
        ValueError: they divide the text differently, so that one axis has two meanings.
    """
    read = [tokenize(t, text, max_length=max_length, convert=convert) for t in tokenizers]
    if not read:
        raise ValueError("tokenizers must name at least one tokenizer")
    plain = [replace(p, tokens=tuple(replace(t, id=0) for t in p.tokens)) for p in read]
    for number, other in enumerate(plain[1:], start=1):
        if other != plain[0]:
            pairs = zip_longest(plain[0].tokens, other.tokens)
            one, two = next((a, b) for a, b in pairs if a != b)
            raise ValueError(
                f"tokenizers 0 and {number} divide the prompt {text!r} differently: "
                f"{one.text if one else 'nothing'!r} against {two.text if two else 'nothing'!r}"
            )
    return read[0]


def tokenize_common(
    tokenizers: Sequence[Any],
    text: str,
    *,
    max_length: int | None = None,
    convert: Convert | None = None,
) -> Prompt:
    """Gives what several tokenizers agree on: words up to the first that they divide differently.

    CLIP's vocabulary has "!!!" as one token, which SDXL's second tokenizer, padding with "!",
    divides: what stands behind it lies at two places of one axis.
    """
    read = [tokenize(t, text, max_length=max_length, convert=convert) for t in tokenizers]
    first, number = read[0], 0
    for row in zip(*(p.tokens for p in read), strict=False):
        if len({replace(t, id=0) for t in row}) > 1:
            break
        number += 1
    if all(len(p.tokens) == number and p.lost == first.lost for p in read):
        return first
    tokens = first.tokens[:number]
    cut = tokens[-1].end if tokens else 0
    start = first.end - len(first.tokens) if first.end is not None else 0
    reason = f"the model's tokenizers divide {text[cut:].strip()!r} differently"
    return Prompt(text, tokens, first.length, start + number, text[cut:], reason)


def replace_mapping(
    source: Prompt, target: Prompt, aligner: Literal["exact", "reference"] = "exact"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives the token mapping of two prompts with as many words (Hertz et al. 2022, Replace).

    Words are the stretches between white space. A word maps onto the word in its place: token by
    token where both have as many, else each of its tokens onto each of the target's t tokens by
    1/t, so that the word's attention is spread evenly and its sum kept. The end token maps onto
    the end token, padding follows in order.

    Args:
        source: the prompt whose attention is taken.
        target: the prompt that takes it.
        aligner: "reference" does as the paper's code does: behind the last replaced word,
            position j maps onto position j, so that words are shifted where token counts differ
            and the last columns can be left with no attention at all.

    Returns:
        The mapping M, float32 (source tokens, target tokens), and for each target token whether
        it has no source, bool (target tokens,). With "reference" none has: all follow M.

    Raises:
        ValueError: the prompts don't have as many words as each other.
    """
    pairs = _word_pairs(source, target)
    mapping = torch.zeros(source.length, target.length)
    if aligner == "reference":
        _map_as_reference(mapping, [(s, t) for same, s, t in pairs if not same and s and t])
        return mapping, torch.zeros(target.length, dtype=torch.bool)
    if aligner != "exact":
        raise ValueError(f"aligner must be 'exact' or 'reference', not {aligner!r}")
    for place in range(min(source._first, target._first)):
        mapping[place, place] = 1.0
    for _, from_places, to_places in pairs:
        _map_word(mapping, from_places, to_places)
    source_end, target_end = _ends(source, target)
    for k in range(min(source.length - source_end, target.length - target_end)):
        mapping[source_end + k, target_end + k] = 1.0
    return mapping, ~mapping.any(dim=0)


def refine_mapping(source: Prompt, target: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives each target token's partner in the source (Hertz et al. 2022, Refine).

    Global alignment of the token ids (Needleman and Wunsch: match 1, mismatch -1, gap 0). Ties
    go as in the paper's code: traced from the end, a target token without partner comes before
    a source token without one, that before a pair. Padding has the padding at its own position
    for a partner; where the source still has words there, none.

    Returns:
        For each target token the position of its partner, long (target tokens,), 0 where it has
        none; and whether it has one, bool (target tokens,).
    """
    source_end, target_end = _ends(source, target)
    partner = torch.zeros(target.length, dtype=torch.long)
    has_partner = torch.zeros(target.length, dtype=torch.bool)
    for from_place, to_place in _aligned(_ids(source), _ids(target)):
        partner[to_place], has_partner[to_place] = from_place, True
    for place in range(max(source_end, target_end) + 1, min(source.length, target.length)):
        partner[place], has_partner[place] = place, True
    return partner, has_partner


def _contradiction(prompt: Prompt) -> str | None:
    """Says what is wrong with a prompt's parts; the parts may come from a file."""
    text: Any = prompt.text
    lost: Any = prompt.lost
    length, end = prompt.length, prompt.end
    numbers = [n for t in prompt.tokens for n in (t.position, t.id, t.start, t.end)]
    if not all(isinstance(part, str) for part in (text, lost, prompt.clash)):
        return "text, lost and clash must be strings"
    if any(type(n) is not int for n in [*numbers, length, *([] if end is None else [end])]):
        return "positions, ids, offsets, length and end must be whole numbers"
    if length < 1:
        return f"length={length} must be at least 1"
    if end is None:
        named = text or prompt.tokens or lost
        return "a prompt without end has no text and no tokens" if named else None
    if not 0 <= end <= length:
        return f"end={end} is not on an axis of {length} tokens"
    first = end - len(prompt.tokens)
    if first < 0 or [t.position for t in prompt.tokens] != list(range(first, end)):
        return f"its tokens must stand one after the other, the last before end={end}"
    if not text.endswith(lost):
        return "lost must be the end of text"
    for t in prompt.tokens:
        if not 0 <= t.start <= t.end <= len(text) or t.text != text[t.start : t.end]:
            return f"the token at {t.position} is not text[{t.start}:{t.end}]"
    return None


def _with_offsets(tokenizer: Any) -> Any:
    """Gives a tokenizer that knows character offsets, with the same vocabulary."""
    if getattr(tokenizer, "is_fast", True):
        return tokenizer
    import transformers  # before 5, pipelines carry CLIP's slow tokenizer

    fast = getattr(transformers, f"{type(tokenizer).__name__}Fast", None)
    if fast is None:
        raise ValueError(f"{type(tokenizer).__name__} knows no character offsets")
    twin = fast(__slow_tokenizer=tokenizer)
    twin.add_tokens([token for _, token in sorted(tokenizer.added_tokens_decoder.items())])
    return twin


def _origin(text: str, converted: str, added: Collection[str]) -> list[Span]:
    """Gives for each character of a converted prompt the span that it comes from.

    diffusers writes "<cat>" of three vectors as "<cat> <cat>_1 <cat>_2".
    """
    origin: list[Span] = []
    at = 0
    while at < len(text):
        here = len(origin)
        written = next(
            (n for n in _expanded(text, at, added) if converted.startswith(n[1], here)), None
        )
        if written:
            name, vectors = written
            origin += [(at, at + len(name))] * len(vectors)
            at += len(name)
        elif converted[here : here + 1] == text[at]:
            origin.append((at, at + 1))
            at += 1
        else:
            break
    if at < len(text) or len(origin) != len(converted):
        raise ValueError(
            f"convert made {converted!r} of the prompt {text!r}: that can't be followed; only a "
            "textual inversion's further vectors may be added"
        )
    return [*origin, (len(text), len(text))]


def _expanded(text: str, at: int, added: Collection[str]) -> list[tuple[str, str]]:
    """Gives the added tokens of several vectors that stand at a place, longest first."""
    found = []
    for name in sorted((a for a in added if text.startswith(a, at)), key=len, reverse=True):
        vectors = [name]
        while f"{name}_{len(vectors)}" in added:
            vectors.append(f"{name}_{len(vectors)}")
        if len(vectors) > 1:
            found.append((name, " ".join(vectors)))
    return found


def _closed(text: str, spans: Sequence[Span]) -> list[Span]:
    """Gives spans without white space around them that cover all else in the text.

    Where a tokenizer composed characters, its offsets name the first alone: an e with an accent
    in two characters has the span of the e. What no token covers belongs to the token before it.
    """
    covered = [is_space(char) for char in text]
    trimmed = []
    for start, end in spans:
        while start < end and is_space(text[start]):
            start += 1
        while end > start and is_space(text[end - 1]):
            end -= 1
        covered[start:end] = [True] * (end - start)
        trimmed.append((start, end))
    reach = list(range(len(text) + 1))  # how far a span that ends here goes on
    for place in reversed(range(len(text))):
        if not covered[place]:
            reach[place] = reach[place + 1]
    return [(start, reach[end] if end > start else end) for start, end in trimmed]


def _ends(source: Prompt, target: Prompt) -> tuple[int, int]:
    if source.end is None or target.end is None:
        raise WordError("prompts known only by their embeddings can't be aligned: give their text")
    return source.end, target.end


def _word_pairs(
    source: Prompt, target: Prompt
) -> list[tuple[bool, tuple[int, ...], tuple[int, ...]]]:
    """Gives for each word whether it is the same in both, and its positions in both."""
    _ends(source, target)
    ours, theirs = ([(c[0].start, c[-1].end) for c in chunks(p.text)] for p in (source, target))
    old = [source.text[start:end] for start, end in ours]
    new = [target.text[start:end] for start, end in theirs]
    if len(old) != len(new):
        at = next(i for i, (a, b) in enumerate(zip_longest(old, new)) if a != b)
        raise ValueError(
            f"Replace needs as many words in both prompts: {source.text!r} has {len(old)}, "
            f"{target.text!r} has {len(new)}; they differ from {' '.join(old[at:]) or 'the end'!r} "
            f"against {' '.join(new[at:]) or 'the end'!r} on. Refine takes prompts of different "
            "lengths"
        )
    return [
        (a == b, _places(source, one), _places(target, two))
        for a, b, one, two in zip(old, new, ours, theirs, strict=True)
    ]


def _places(prompt: Prompt, span: Span) -> tuple[int, ...]:
    return tuple(t.position for t in prompt._touched(*span))


def _map_word(mapping: torch.Tensor, source: Sequence[int], target: Sequence[int]) -> None:
    if len(source) == len(target):
        for from_place, to_place in zip(source, target, strict=True):
            mapping[from_place, to_place] = 1.0
        return
    for from_place in source:
        for to_place in target:
            mapping[from_place, to_place] = 1.0 / len(target)


def _map_as_reference(
    mapping: torch.Tensor, swaps: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    """Writes the mapping of the paper's code, given the words that were swapped, in order."""
    from_place = to_place = 0
    for source, target in swaps:
        for k in range(source[0] - from_place):
            mapping[from_place + k, to_place + k] = 1.0
        _map_word(mapping, source, target)
        from_place, to_place = source[-1] + 1, target[-1] + 1
    rest = min(mapping.shape[0] - from_place, mapping.shape[1] - to_place)
    for place in range(to_place, to_place + rest):
        mapping[place, place] = 1.0


def _ids(prompt: Prompt) -> list[int]:
    """Gives the ids from the axis' begin to the end token; start and end match their like."""
    end = [] if prompt.end == prompt.length else [-2]
    return [-1] * prompt._first + [t.id for t in prompt.tokens] + end


def _aligned(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Gives the pairs of a global alignment, from the end to the begin."""
    # best[i][j]: the score of the first i of the source with the first j of the target.
    best = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, old in enumerate(source, start=1):
        for j, new in enumerate(target, start=1):
            pair = best[i - 1][j - 1] + (1 if old == new else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], pair)
    pairs = []
    i, j = len(source), len(target)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs
