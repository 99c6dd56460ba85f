"""Edits as JSON, as options of the command line and as Python source.

The one place that spells an edit out for others: batches read and write the JSON form, the command
line reads the options, the app's script prints the source. An edit in JSON is an object with one of
the keys "replace", "refine", "reweight", "blend", and the options of that edit:

>>> to_json(Replace("red", "blue", self_steps=(0.1, 0.5)))
{'replace': {'red': 'blue'}, 'self_steps': [0.1, 0.5]}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from numbers import Integral, Real
from typing import Any

from xattn.edits.kinds import Edit, LocalBlend, Refine, Replace, Reweight
from xattn.edits.timing import Share
from xattn.units import number_of

MASK = "mask"  # pixels, which neither JSON nor source text should hold


@dataclass(frozen=True)
class Kind:
    """How one kind of edit is written.

    Attributes:
        edit: the class.
        value: what the key of the JSON object holds, taken from an edit.
        fits: whether a JSON value can be that.
        wanted: what it should be, for an error.
        example: the text of the command line's option.
    """

    edit: type[Replace] | type[Refine] | type[Reweight] | type[LocalBlend]
    value: Callable[[Any], Any]
    fits: Callable[[Any], bool]
    wanted: str
    example: str

    @property
    def options(self) -> dict[str, Field[Any]]:
        """The options that an edit of this kind has in JSON, by name."""
        return {f.name: f for f in fields(self.edit) if f.kw_only and f.name != MASK}


def _is_text(given: Any) -> bool:
    return isinstance(given, str)


def _are_texts(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(one, str) for one in given)


KINDS: dict[str, Kind] = {
    "replace": Kind(
        Replace,
        lambda edit: edit.swaps,
        lambda given: isinstance(given, Mapping) and _are_texts(list(given.values())),
        'an object of words and what takes their places, such as {"red": "blue"}',
        "red=blue",
    ),
    "refine": Kind(
        Refine, lambda edit: edit.prompt, _is_text, "a text", "a red car on a lawn at night"
    ),
    "reweight": Kind(
        Reweight,
        lambda edit: edit.items,
        lambda given: isinstance(given, Mapping),
        'an object of words and their weights, such as {"red": 3.0}',
        "red=3",
    ),
    "blend": Kind(
        LocalBlend,
        lambda edit: edit.words,
        lambda given: _is_text(given) or _are_texts(given),
        "a word or a list of words",
        "car",
    ),
}
"""Each kind of edit by its key in JSON, which is also its option on the command line."""


def texts_of(edit: Edit) -> Iterator[str]:
    """Yield every word, phrase and prompt that an edit names."""
    yield from _texts([getattr(edit, f.name) for f in fields(edit) if f.name != MASK])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


# -- JSON


def to_json(edit: Edit) -> dict[str, Any]:
    """Return an edit as plain JSON values; options at their defaults are left out.

    Raises:
        ValueError: it is a LocalBlend with a mask.
    """
    key, kind = _kind_of(edit)
    return {key: _plain(kind.value(edit))} | {n: _plain(v) for n, v in _changed(edit, kind)}


def from_json(data: Any) -> Edit:
    """Return the edit of a JSON object.

    >>> from_json({"blend": ["car"], "threshold": 0.5})
    LocalBlend(words=('car',), source_words=(), target_words=(), subtract=(), mask=None, threshold=0.5, start=0.2)

    Raises:
        ValueError: the object has no edit or several, an option that the edit lacks, or a value of
            the wrong type or out of its range.
    """  # noqa: E501
    _need(isinstance(data, Mapping), "an edit", "an object", data)
    named = [key for key in data if key in KINDS]
    if len(named) != 1:
        raise ValueError(f"an edit has one of {', '.join(KINDS)}, got {_short(dict(data))}")
    key, kind = named[0], KINDS[named[0]]
    _need(kind.fits(data[key]), key, kind.wanted, data[key])
    options = {name: _tuples(value) for name, value in data.items() if name != key}
    unknown = sorted(str(name) for name in options if name not in kind.options)
    if unknown:
        raise ValueError(f"{key} has no {unknown[0]!r}; it has {', '.join(sorted(kind.options))}")
    return kind.edit(_tuples(data[key]), **options)


def _plain(value: Any, sequence: type = list) -> Any:
    """Return Python's own numbers in place of numpy's, and one type for every list or tuple."""
    if isinstance(value, Mapping):
        return {key: _plain(each, sequence) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return sequence(_plain(each, sequence) for each in value)
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


# -- source text


def to_python(edit: Edit) -> str:
    """Return the source text of an edit, to be read where ``xattn`` is imported.

    >>> to_python(Reweight({"red": 3.0}, occurrence=1))
    "xattn.Reweight({'red': 3.0}, occurrence=1)"

    Raises:
        ValueError: it is a LocalBlend with a mask.
    """
    _, kind = _kind_of(edit)
    positional = (getattr(edit, f.name) for f in fields(edit) if not f.kw_only)
    parts = [repr(_plain(value, tuple)) for value in positional if value is not None]
    parts += [f"{name}={_plain(value, tuple)!r}" for name, value in _changed(edit, kind)]
    return f"xattn.{kind.edit.__name__}({', '.join(parts)})"


# -- the command line


def from_option(key: str, text: str, **options: Any) -> Edit:
    """Return the edit that an option of the command line asks for.

    >>> from_option("replace", "red=blue", cross_steps=0.5)
    Replace(cross_steps=0.5, self_steps=None, word_steps={}, old='red', new='blue', occurrence=None, aligner='exact')

    Args:
        key: the option, without its hyphens.
        text: what follows it: OLD=NEW, WORD=NUMBER, a prompt, or a word.
        options: of the edit, such as ``self_steps``.

    Raises:
        ValueError: the text can't be read, or makes no sense as that edit.
    """  # noqa: E501
    if key == "replace":
        old, new = _pair(key, text)
        return Replace(old, new, **options)
    if key == "reweight":
        word, weight = _pair(key, text)
        try:
            number = number_of(weight)
        except ValueError as error:
            raise ValueError(f"--{key} {text!r}: {error}; write it as {_example(key)}") from None
        return Reweight({word: number}, **options)
    return KINDS[key].edit(text, **options)


def share_of(text: str) -> Share:
    """Read a share of the run: "0.8" is its first 0.8, "0.2:0.8" the window between the two.

    Raises:
        ValueError: it is neither.
    """
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 <= n <= 1 for n in numbers):
        raise ValueError(f"{text!r} is not a share of the run: give 0.8, or 0.2:0.8")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _pair(key: str, text: str) -> tuple[str, str]:
    left, equals, right = text.rpartition("=")
    if not (equals and left.strip() and right.strip()):
        raise ValueError(f"--{key} {text!r}: write it as {_example(key)}")
    return left.strip(), right.strip()


def _example(key: str) -> str:
    return KINDS[key].example


# -- shared


def _kind_of(edit: Edit) -> tuple[str, Kind]:
    if isinstance(edit, LocalBlend) and edit.mask is not None:
        raise ValueError("a LocalBlend with a mask can't be written as text: give words instead")
    return next((key, kind) for key, kind in KINDS.items() if isinstance(edit, kind.edit))


def _changed(edit: Edit, kind: Kind) -> Iterator[tuple[str, Any]]:
    """Yield the options of an edit that differ from their defaults."""
    for name, option in kind.options.items():
        factory = option.default_factory
        default = option.default if factory is MISSING else factory()
        value = getattr(edit, name)
        if value != default:
            yield name, value


def _need(right: bool, name: str, what: str, value: Any) -> None:
    if not right:
        raise ValueError(f"{name} must be {what}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
