"""Text as a tokenizer reads it: tokens with their spans in the text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from xattn.text.matching import Span, check_text, is_space
from xattn.text.prompt import Prompt, Token

Convert = Callable[[str, Any], str]
"""A pipeline's change to a prompt before tokenizing: ``pipe.maybe_convert_prompt``."""


@dataclass(frozen=True)
class Template:
    """What a pipeline writes around a prompt before tokenizing, and what it drops of the result.

    Attributes:
        before: the text before the prompt.
        after: the text behind it.
        dropped: how many positions farther left the prompt's tokens stand in the denoiser's text
            than in the tokenizer's, whose first ones are cut off.
        left: whether padding stands in front of the text.
    """

    before: str = ""
    after: str = ""
    dropped: int = 0
    left: bool = False


PLAIN = Template()


def chat_template(tokenizer: Any, **options: Any) -> Template:
    """Return what a tokenizer's chat template writes around a user's message."""
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    message = [{"role": "user", "content": mark}]
    whole = tokenizer.apply_chat_template(message, tokenize=False, **options)
    before, _, after = whole.partition(mark)
    return Template(before, after)


def tokenize(
    tokenizer: Any,
    text: str,
    *,
    max_length: int | None = None,
    convert: Convert | None = None,
    template: Template = PLAIN,
) -> Prompt:
    """Tokenize a prompt and locate each token in the text.

    Args:
        tokenizer: a transformers tokenizer with character offsets (CLIP, T5 ...).
        text: one prompt.
        max_length: the length of the token axis; the tokenizer's own by default.
        convert: the pipeline's change to the text, ``pipe.maybe_convert_prompt``: it adds the
            further vectors of a textual inversion. All of them get the span of its name.
        template: what the pipeline writes around the text.

    Raises:
        ValueError: the tokenizer has no length of its own, or the conversion cannot be traced.

    Example:
        >>> tokenize(pipe.tokenizer, "a red car").tokens[1]
        Token(position=2, id=736, text='red', start=2, end=5)
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be one prompt, a str, not {type(text).__name__}")
    length = tokenizer.model_max_length if max_length is None else max_length
    if length > 100_000:  # transformers' marker for an unlimited length
        raise ValueError("the tokenizer has no maximum length: pass max_length=")
    check_text(text, "the prompt")
    converted = text if convert is None else convert(text, tokenizer)
    origin = _origin(text, converted, getattr(tokenizer, "added_tokens_encoder", {}))
    ids, spans, first, last = _encoded(_with_offsets(tokenizer), converted, template, length)
    spans = _closed(converted, spans)
    spans = [(origin[s][0], origin[e - 1][1]) if e > s else (origin[s][0],) * 2 for s, e in spans]
    room = max(0, length - last - first)
    tokens = tuple(
        Token(first + n, ids[n], text[start:end], start, end)
        for n, (start, end) in enumerate(spans[:room])
    )
    lost = text[min(start for start, _ in spans[room:]) :] if spans[room:] else ""
    return Prompt(text, tokens, length, min(first + len(tokens), length), lost)


def _encoded(
    tokenizer: Any, text: str, template: Template, length: int
) -> tuple[list[int], list[Span], int, int]:
    """Return a text's own token ids, their spans in it, the first's position, and the end's length.

    The end is what truncation never cuts off: the end token.
    """
    encoded = tokenizer(
        template.before + text + template.after,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # no warning about the length: truncation happens later
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    special = encoded["special_tokens_mask"]
    if template == PLAIN:
        own = [i for i, is_special in enumerate(special) if not is_special]
        # of an empty text start and end token are left
        first = own[0] if own else max(0, len(special) - 1)
        last = len(special) - len(own) - first if own else 1
        return [ids[i] for i in own], [offsets[i] for i in own], first, last
    shift, size = len(template.before), len(text)
    first, stop = _inside(offsets, special, shift, shift + size)
    spans = [
        (min(max(start - shift, 0), size), min(max(end - shift, 0), size))
        for start, end in offsets[first:stop]
    ]
    padding = max(0, length - len(ids) + template.dropped) if template.left else 0
    return ids[first:stop], spans, first - template.dropped + padding, _trailing(special)


def _inside(
    offsets: Sequence[Span], special: Sequence[int], start: int, end: int
) -> tuple[int, int]:
    """Return the first token with a character between start and end, and one after the last."""
    found = [i for i, (s, e) in enumerate(offsets) if s < end and e > start and e > s]
    if found:
        return found[0], found[-1] + 1
    before = [i for i, (_, e) in enumerate(offsets) if e <= start]
    first = min(before[-1] + 1 if before else 0, len(special) - _trailing(special))
    return first, first


def _trailing(special: Sequence[int]) -> int:
    """Return how many special tokens end a text."""
    count = 0
    while count < len(special) and special[len(special) - 1 - count]:
        count += 1
    return count


def tokenize_all(
    tokenizers: Sequence[Any],
    text: str,
    *,
    max_length: int | None = None,
    convert: Convert | None = None,
    template: Template = PLAIN,
) -> Prompt:
    """Return the prompt if all tokenizers divide it alike, as SDXL's two must.

    Token ids are those of the first tokenizer.

    Raises:
        ValueError: they divide the text differently, so one axis would have two meanings.
    """
    given: dict[str, Any] = {"max_length": max_length, "convert": convert, "template": template}
    read = [tokenize(t, text, **given) for t in tokenizers]
    if not read:
        raise ValueError("tokenizers must hold at least one tokenizer")
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
    template: Template = PLAIN,
) -> Prompt:
    """Return the prompt up to the first word that the tokenizers divide differently.

    CLIP's vocabulary has "!!!" as one token, but SDXL's second tokenizer, which pads with "!",
    divides it: the text after it has two positions on one axis.
    """
    given: dict[str, Any] = {"max_length": max_length, "convert": convert, "template": template}
    read = [tokenize(t, text, **given) for t in tokenizers]
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


def _with_offsets(tokenizer: Any) -> Any:
    """Return a tokenizer with character offsets and the same vocabulary."""
    if getattr(tokenizer, "is_fast", True):
        return tokenizer
    import transformers  # before transformers 5, pipelines carry CLIP's slow tokenizer

    fast = getattr(transformers, f"{type(tokenizer).__name__}Fast", None)
    if fast is None:
        raise ValueError(f"{type(tokenizer).__name__} does not provide character offsets")
    twin = fast(__slow_tokenizer=tokenizer)
    twin.add_tokens([token for _, token in sorted(tokenizer.added_tokens_decoder.items())])
    return twin


def _origin(text: str, converted: str, added: Collection[str]) -> list[Span]:
    """Return the span in the original prompt for each character of a converted one.

    diffusers writes a "<cat>" of three vectors as "<cat> <cat>_1 <cat>_2".
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
        elif alike := _alike(text[at], converted[here:]):
            origin += [(at, at + 1)] * alike
            at += 1
        elif is_space(text[at]) and (not here or is_space(converted[here - 1])):
            at += 1  # white space was stripped, or several made one
        else:
            break
    if not text[at:].strip().strip(".") and len(origin) == len(converted):
        at = len(text)  # white space or dots at the end were stripped
    if at < len(text) or len(origin) != len(converted):
        raise ValueError(
            f"convert made {converted!r} of the prompt {text!r}: this change cannot be "
            "traced; only lower case, less white space, dots left out at the end and the further "
            "vectors of a textual inversion can be (clean_caption=False leaves a prompt as it is)"
        )
    return [*origin, (len(text), len(text))]


def _alike(char: str, converted: str) -> int:
    """Return how many characters at the start are one character, as it is or in lower case."""
    if is_space(char) and converted and is_space(converted[0]):
        return 1
    lower = char.lower()
    if converted[:1] != char and converted.startswith(lower):
        return len(lower)
    return int(converted[:1].casefold() == char.casefold())


def _expanded(text: str, at: int, added: Collection[str]) -> list[tuple[str, str]]:
    """Return the added multi-vector tokens at a place, longest first."""
    found = []
    for name in sorted((a for a in added if text.startswith(a, at)), key=len, reverse=True):
        vectors = [name]
        while f"{name}_{len(vectors)}" in added:
            vectors.append(f"{name}_{len(vectors)}")
        if len(vectors) > 1:
            found.append((name, " ".join(vectors)))
    return found


def _closed(text: str, spans: Sequence[Span]) -> list[Span]:
    """Return spans that cover the whole text, without surrounding white space.

    Where a tokenizer composes characters, its offsets cover only the first: an e with an accent
    in two characters has the span of the e. Text outside all tokens joins the token before it.
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
    reach = list(range(len(text) + 1))  # end of the extended span, for each end
    for place in reversed(range(len(text))):
        if not covered[place]:
            reach[place] = reach[place + 1]
    return [(start, reach[end] if end > start else end) for start, end in trimmed]
