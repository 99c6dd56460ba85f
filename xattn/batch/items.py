"""The items of a batch: one line of JSON each, checked strictly before anything is drawn."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from xattn.api.invert import inversion_cost
from xattn.api.photos import photos
from xattn.batch.goals import Boxes, Lists, Pairs, goals_of
from xattn.batch.lines import ItemError, decoded, lines_of
from xattn.edits.codec import from_json, texts_of
from xattn.edits.kinds import Edit, LocalBlend, Refine, Replace, Reweight, composed
from xattn.edits.plan import make_plan
from xattn.edits.timing import is_number
from xattn.guidance.goal import Goal
from xattn.maps.select import kept_positions
from xattn.models.sizes import size_factor
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize_all
from xattn.units import LARGEST, size_of

_NAME = re.compile(r"([\w-]+/)*[\w-][\w.-]*")
_SEEDS, _SIDES = 2**63, 8192
_LATER = ("image", "present", "bind", "place", "apart")  # not in older batches' digests
_STRENGTH = f"a number from {-LARGEST:g} to {LARGEST:g}"


@dataclass(frozen=True)
class Item:
    """One image to draw and record with its edited siblings, or a picture to probe.

    Attributes:
        prompt: the text.
        seed: of the noise, which is drawn on the CPU: the same on every device.
        negative_prompt: what to keep away from; the pipeline's own default where it is absent.
        words: the words or phrases whose maps are kept; every token's by default.
        edits: edited siblings to draw beside the image, each an edit or a list that composes.
        steps: of the schedule; the pipeline's default where it is absent.
        size: (height, width) in pixels, or a text, "768x512" (width x height) or "512", as the
            command line's ``--size``; the pipeline's default where it is absent.
        guidance_scale: the pipeline's default where it is absent.
        name: of the image's file, without its ending and relative to the folder of images; the
            item's number by default.
        image: the path of a picture that the prompt describes: to edit as a photograph where there
            are edits, else to probe; nothing is drawn then.
        present: a word or several that should be there: steered by ``Present``.
        bind: attribute -> noun: steered by ``Bind``.
        place: word -> a side's name or a box (left, top, right, bottom): steered by ``Place``.
        apart: words that should be in different places: steered by ``Apart``.

    Raises:
        ItemError: something has the wrong type or is out of its range.
    """

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None
    words: tuple[str, ...] | None = None
    edits: tuple[tuple[Edit, ...], ...] = ()
    steps: int | None = None
    size: tuple[int, int] | None = None
    guidance_scale: float | None = None
    name: str | None = None
    image: str | None = None
    present: Lists | None = None
    bind: Pairs | None = None
    place: Boxes | None = None
    apart: Lists | None = None

    def __post_init__(self) -> None:
        _need(isinstance(self.prompt, str), "prompt", "a text", self.prompt)
        for field in ("negative_prompt", "name", "image"):
            value = getattr(self, field)
            _need(value is None or isinstance(value, str), field, "a text", value)
        for field in ("prompt", "negative_prompt"):
            _check_characters(field, getattr(self, field) or "")
        _need_number("seed", self.seed, 0, _SEEDS - 1)
        _need_number("steps", self.steps, 1, 10_000)
        scale = self.guidance_scale
        number = is_number(scale) and not isinstance(scale, bool)
        right = scale is None or (number and abs(scale) <= LARGEST)  # a NaN is not
        _need(right, "guidance_scale", _STRENGTH, scale)
        object.__setattr__(self, "words", _words(self.words))
        object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "edits", _edits(self.edits))
        if self.name is not None:
            _check_name(self.name)
        _ = self.goals  # they check themselves
        if self.image is not None:
            self._check_given()

    def _check_given(self) -> None:
        """Raise ItemError if a field is about drawing, where a picture is only looked at."""
        for field in ("negative_prompt", "steps", "guidance_scale"):
            if getattr(self, field) is not None and not self.edits:
                raise ItemError(f"{field} is of no use with image and no edits: leave it out")
        if self.goals:
            raise ItemError("a picture given as image cannot be steered: leave the goals out")

    @classmethod
    def from_json(cls, data: Any) -> Item:
        """Return the item of a JSON object.

        An edit is an object with one of "replace", "refine", "reweight", "blend" and the options
        of that edit, or a list of such objects; "edits" is a list of those.

        >>> Item.from_json({"prompt": "a red car", "edits": [{"replace": {"red": "blue"}}]})
        """
        _need(isinstance(data, Mapping), "an item", "an object", data)
        known = [f.name for f in fields(cls)]
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            raise ItemError(f"an item has no field {unknown[0]!r}; it has {', '.join(known)}")
        if "prompt" not in data:
            raise ItemError("prompt is missing")
        return cls(**{**data, "edits": _parse_edits(data.get("edits") or ())})

    @property
    def digest(self) -> str:
        """Hash of every field, by which a resumed batch knows the item."""
        said = ", ".join(
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None or field.name not in _LATER
        )
        said = f"Item({said})"
        return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()

    @property
    def goals(self) -> tuple[Goal, ...]:
        """What it is steered towards.

        Raises:
            ItemError: a field is not of its form.
        """
        return goals_of(self.present, self.bind, self.place, self.apart)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Settings that the items of one call of the pipeline share."""
        drawn = (self.steps, self.size, self.guidance_scale, self.negative_prompt is None)
        return (*drawn, self.image is None, *map(repr, self.goals))


@dataclass(frozen=True)
class Numbered:
    """An item with the number of its line, from 1."""

    line: int
    item: Item

    @property
    def name(self) -> str:
        """The name of its image."""
        return self.item.name or f"{self.line:06d}"


@dataclass(frozen=True)
class Failure:
    """A line and why it failed; line 0 stands for the batch as a whole."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


Items = str | os.PathLike[str] | Iterable[Item | Mapping[str, Any] | bytes]


def read_items(items: Items) -> tuple[list[Numbered], list[Failure]]:
    """Read items from a JSON Lines file or from such lines, or check those that are given.

    Empty lines are skipped. An item without a seed gets the one of its line, from 0.

    Returns:
        The items that can be drawn, and a failure for each of the others.
    """
    found: list[Numbered] = []
    failures: list[Failure] = []
    names: dict[str, int] = {}
    given = lines_of(Path(items)) if isinstance(items, str | os.PathLike) else items
    for line, data in enumerate(given, start=1):
        if isinstance(data, bytes) and not data.strip():
            continue
        try:
            raw = decoded(data) if isinstance(data, bytes) else data
            item = raw if isinstance(raw, Item) else Item.from_json(raw)
            if item.seed is None:
                item = replace(item, seed=line - 1)
            one = Numbered(line, item)
            first = names.setdefault(one.name.casefold(), line)
            if first != line:
                raise ItemError(f"name {one.name!r} is taken by line {first}")
            found.append(one)
        except Exception as error:
            failures.append(Failure(line, reason(error)))
    return found, failures


def reason(error: Exception) -> str:
    """Return an error in one line, with its type unless it is a ValueError."""
    text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_item(item: Item, pipe: Any) -> None:
    """Check that a pipeline can draw an item: its words, edits, size and steps.

    Raises:
        ValueError: it can't, and why.
    """
    factor = size_factor(pipe)
    if item.size is not None and any(side % factor for side in item.size):
        raise ItemError(f"size {list(item.size)}: height and width must be multiples of {factor}")
    most = int(pipe.scheduler.config.num_train_timesteps)
    if item.steps is not None and item.steps > most:
        raise ItemError(f"steps {item.steps}: the schedule has {most}")
    if item.image is not None:
        if Path(item.image).is_dir():
            raise ItemError(f"image {item.image!r} is a folder; give a line for each picture")
        photos(item.image)
        if item.edits:
            inversion_cost(pipe)  # refuses what has no inversion
    positions_of(item, pipe)


def positions_of(item: Item, pipe: Any) -> tuple[int, ...]:
    """Return the token positions that are kept of an item, in any of its prompts.

    Raises:
        ValueError: a word isn't in the prompt, or an edit doesn't fit it.
    """
    tokenizers = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2")]
    convert = getattr(pipe, "maybe_convert_prompt", None)

    def tokenize(text: str) -> Prompt:
        read = [t for t in tokenizers if t is not None]
        return tokenize_all(read, text, convert=convert)

    source = tokenize(item.prompt)
    asked = make_plan(source, item.edits, tokenize).prompts if item.edits else (source,)
    for goal in item.goals:
        kept_positions(asked, [word for word in goal.words if isinstance(word, str)])
    return kept_positions(asked, item.words)


# -- checking


def _need(right: bool, field: str, what: str, value: Any) -> None:
    if not right:
        raise ItemError(f"{field} must be {what}, got {_short(value)}")


def _need_number(field: str, value: Any, least: int, most: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    right = value is None or (whole and least <= value <= most)
    _need(right, field, f"a whole number from {least} to {most}", value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_characters(field: str, text: str) -> None:
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise ItemError(
            f"{field} has half a character, {half[0]!r}, at place {half.start()}: write the whole "
            "character, or leave it out"
        )


def _words(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    right = isinstance(given, list | tuple) and all(isinstance(w, str) for w in given) and given
    _need(bool(right), "words", "a list of words", given)
    for word in given:
        _check_characters("words", word)
    return tuple(given)


def _size(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = size_of(given)
        except ValueError as error:
            raise ItemError(f"size: {error}") from None
    what = '[height, width], or a text such as "768x512", width x height,'
    right = isinstance(given, list | tuple) and len(given) == 2
    _need(right, "size", what, given)
    for side in given:
        _need(side is not None, "size", what, given)
        _need_number("a side of size", side, 8, _SIDES)
    return given[0], given[1]


def _check_name(name: str) -> None:
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or name[1:2] == ":":
        raise ItemError(f"name {_short(name)} leaves the folder")
    if not _NAME.fullmatch(name) or len(name.encode()) > 200:
        raise ItemError(
            f"name {_short(name)} must be letters, digits, '_', '-' and '.' (not first, and not in "
            "folders, which '/' ends), 200 bytes at most"
        )


def _parse_edits(given: Any) -> tuple[tuple[Edit, ...], ...]:
    _need(isinstance(given, list | tuple), "edits", "a list", given)
    return tuple(
        tuple(_parse_edit(part) for part in (one if isinstance(one, list | tuple) else [one]))
        for one in given
    )


def _parse_edit(data: Any) -> Edit:
    """Return an edit, made of JSON unless it is one."""
    return data if isinstance(data, Replace | Refine | Reweight | LocalBlend) else from_json(data)


def _edits(given: Any) -> tuple[tuple[Edit, ...], ...]:
    found = tuple(composed(one) for one in given)
    for part in (part for one in found for part in one):
        if isinstance(part, LocalBlend) and part.mask is not None:
            raise ItemError("a LocalBlend in a batch takes words, not a mask")
        for word, weight in part.items.items() if isinstance(part, Reweight) else ():
            _need(abs(weight) <= LARGEST, f"the weight of {word!r}", _STRENGTH, weight)
        for text in texts_of(part):
            _check_characters("an edit", text)
    return found
