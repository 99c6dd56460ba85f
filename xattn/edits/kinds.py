"""The edits: Replace, Refine, Reweight, LocalBlend.

Frozen, checked data, after Hertz et al. 2022, "Prompt-to-Prompt Image Editing with Cross Attention
Control". ``xattn.edits.plan`` turns them into tensors. Shares of a run are in [0, 1]: step i of n
is inside the window (a, b) if a·n <= i < b·n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from xattn.edits.checks import check_heads, check_occurrence, check_texts
from xattn.edits.timing import SEPARATE, Share, Shares, fits_float32, is_number, window

if TYPE_CHECKING:  # torch itself only where a mask is given: the command line reads this module
    from torch import Tensor

Aligner: TypeAlias = Literal["exact", "reference"]


@dataclass(frozen=True, kw_only=True)
class _Scheduled:
    """The schedule shared by edits: when attention follows the source.

    Attributes:
        cross_steps: share of the run in which cross-attention follows the source; 0.8 unless
            another edit of the composition sets it. In joint attention these are the text's
            columns, and ``xattn.edits.timing.JOINT`` has the default.
        self_steps: share of the run in which self-attention follows the source; 0.4 by default. In
            joint attention these are the image's queries and keys.
        word_steps: shares for single words of the target, overriding ``cross_steps``.
    """

    cross_steps: Share | None = None
    self_steps: Share | None = None
    word_steps: Mapping[str, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("cross_steps", "self_steps"):
            if getattr(self, name) is not None:
                window(getattr(self, name), name)
        if not isinstance(self.word_steps, Mapping):
            raise ValueError(
                "word_steps must be a mapping of words to shares of the run, such as "
                f'{{"blue": 0.5}}, got {self.word_steps!r}'
            )
        for word, share in self.word_steps.items():
            check_texts("a word of word_steps", [word])
            window(share, f"word_steps[{word!r}]")


@dataclass(frozen=True)
class Replace(_Scheduled):
    """Put other words in the place of some, and keep the layout (section 3.2, "word swap").

    ``Replace("red", "blue")``, or several at once: ``Replace({"red": "blue", "car": "boat"})``. A
    phrase must become a phrase with equally many words; their token counts may differ.

    Attributes:
        old: the word or phrase of the source, or a mapping from old words to new ones.
        new: its replacement.
        occurrence: which occurrence of a repeated word, from 0; all by default.
        aligner: "reference" repeats the paper's code, which shifts the words after a swap of
            words with different token counts; use it to reproduce published results.

    Raises:
        ValueError: nothing to replace, or a schedule outside [0, 1].
    """

    old: str | Mapping[str, str]
    new: str | None = None
    occurrence: int | None = field(default=None, kw_only=True)
    aligner: Aligner = field(default="exact", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_occurrence(self.occurrence)
        single = isinstance(self.old, str)
        if single == (self.new is None) or not (single or isinstance(self.old, Mapping)):
            raise ValueError(
                'Replace takes a word and its successor, or {"red": "blue", ...}, got '
                f"old={self.old!r}, new={self.new!r}"
            )
        pairs = self.swaps
        check_texts("a word that Replace takes away", pairs)
        check_texts("a word that Replace puts in", pairs.values())
        if not pairs or any(not old.strip() or not new.strip() for old, new in pairs.items()):
            raise ValueError(
                f"Replace({dict(pairs)!r}) has an empty word; to remove a word's effect "
                "use Reweight with weight 0"
            )
        if self.aligner not in ("exact", "reference"):
            raise ValueError(f"aligner must be 'exact' or 'reference', got {self.aligner!r}")

    @property
    def swaps(self) -> Mapping[str, str]:
        """Mapping from the old words to their replacements."""
        return {self.old: self.new or ""} if isinstance(self.old, str) else dict(self.old)

    def __str__(self) -> str:
        return "Replace " + ", ".join(f"{a} -> {b}" for a, b in self.swaps.items())


@dataclass(frozen=True)
class Refine(_Scheduled):
    """Add words: what the prompts share stays where it was (section 3.2, "adding a phrase").

    Attributes:
        prompt: the complete new prompt.

    Raises:
        ValueError: the prompt is empty, or a schedule is outside [0, 1].
    """

    prompt: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"Refine takes the complete new prompt, got {self.prompt!r}")

    def __str__(self) -> str:
        return f"Refine {self.prompt!r}"


@dataclass(frozen=True)
class Reweight(_Scheduled):
    """Make words act stronger or weaker (section 3.2, "attention re-weighting").

    ``Reweight({"red": 3.0})`` or ``Reweight("red", 3.0)``. Above 1 amplifies, below 1 weakens, 0
    removes, a negative weight pushes away. The words are those of the target prompt.

    Attributes:
        weights: a word or phrase, or a mapping from words to weights.
        weight: the weight of a single word.
        occurrence: which occurrence of a repeated word, from 0; all by default.
        heads: heads of each layer, by its name, where the weight acts; everywhere by default.

    Raises:
        ValueError: a weight is missing, or outside the range of float32; or heads names none.
    """

    weights: str | Mapping[str, float]
    weight: float | None = None
    occurrence: int | None = field(default=None, kw_only=True)
    heads: Mapping[str, Sequence[int]] | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.heads is None:  # as before there was such a thing: batches know items by it
            del shown["heads"]
        return f"Reweight({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_occurrence(self.occurrence)
        check_heads(self.heads)
        single = isinstance(self.weights, str)
        if single == (self.weight is None) or not (single or isinstance(self.weights, Mapping)):
            raise ValueError(
                'Reweight takes a word and its weight, or {"red": 3.0, ...}, got '
                f"weights={self.weights!r}, weight={self.weight!r}"
            )
        check_texts("a word of Reweight", self.items)
        if not self.items:
            raise ValueError('Reweight({}) has no words; pass some, as in Reweight({"red": 3.0})')
        for word, value in self.items.items():
            if not fits_float32(value):
                raise ValueError(
                    f"the weight of {word!r} must be a number in the range of float32, at most "
                    f"3.4e+38 either way, got {value!r}; pass one such as 3.0"
                )

    @property
    def items(self) -> Mapping[str, float]:
        """Mapping from words to weights."""
        if isinstance(self.weights, str):
            return {self.weights: 1.0 if self.weight is None else self.weight}
        return dict(self.weights)

    def __str__(self) -> str:
        return "Reweight " + ", ".join(f"{word} x {w:g}" for word, w in self.items.items())


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Keep an edit to the places of some words, or to a mask (section 4, "localized editing").

    A replaced word and its replacement stand for each other. The mask is the union of the places
    where the words act in the source and in the target.

    Attributes:
        words: words or phrases of the source or the target.
        source_words: words for the source only, overriding ``words``.
        target_words: words for the target only, overriding ``words``.
        subtract: words whose places are excluded.
        mask: where the edit may act, instead of words: (height, width) of the image or of its
            latents; bool, numbers in [0, 1], or a picture.
        threshold: share of the maps' maximum above which a cell counts, in [0, 1).
        start: share of the run at which blending starts.
        changed: share of the largest change of the latents below which a cell of the words' mask
            is left out at the last step, in [0, 1); cells beside one that changed more stay in.
            None is 0, as in the paper, and 0.3 for photographs.

    Raises:
        ValueError: neither words nor a mask, or both; a number out of its range.
    """

    words: str | Sequence[str] = ()
    source_words: str | Sequence[str] = field(default=(), kw_only=True)
    target_words: str | Sequence[str] = field(default=(), kw_only=True)
    subtract: str | Sequence[str] = field(default=(), kw_only=True)
    mask: Any = field(default=None, kw_only=True)
    threshold: float = field(default=0.3, kw_only=True)
    start: float = field(default=0.2, kw_only=True)
    changed: float | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.changed is None:  # as before there was such a thing: batches know items by it
            del shown["changed"]
        return f"LocalBlend({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __post_init__(self) -> None:
        for name in ("words", "source_words", "target_words", "subtract"):
            given = getattr(self, name)
            words = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else given
            object.__setattr__(self, name, tuple(words))
            check_texts(f"a word of LocalBlend's {name}", getattr(self, name))
        named = bool(self.words or self.source_words or self.target_words)
        if named == (self.mask is not None):
            raise ValueError(
                "LocalBlend takes either words or mask=: LocalBlend('car'), or "
                "LocalBlend(mask=array)"
            )
        if not is_number(self.threshold) or not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold!r} must be a number in [0, 1)")
        if not is_number(self.start) or not 0 <= self.start <= 1:
            raise ValueError(
                f"start={self.start!r} must be one number in [0, 1]: the share of the run at "
                "which LocalBlend starts"
            )
        share = 0 if self.changed is None else self.changed
        if not is_number(share) or not 0 <= share < 1:
            raise ValueError(f"changed={share!r} must be a number in [0, 1), or None")
        if self.mask is not None:
            object.__setattr__(self, "mask", _mask(self.mask))

    def __str__(self) -> str:
        names = dict.fromkeys([*self.words, *self.source_words, *self.target_words])
        where = "a mask" if self.mask is not None else ", ".join(names)
        less = f" less {', '.join(self.subtract)}" if self.subtract else ""
        return f"LocalBlend {where}{less}"


Edit: TypeAlias = Replace | Refine | Reweight | LocalBlend


Edits: TypeAlias = Edit | Sequence[Edit]
"""The edit of one sibling, or several edits composed into one."""


def composed(edits: Edits) -> tuple[Edit, ...]:
    """Return the edits of one sibling, checked to fit together.

    Raises:
        TypeError: an element is not an edit.
        ValueError: two LocalBlends, conflicting schedules, or a word weighted twice.
    """
    single = isinstance(edits, Replace | Refine | Reweight | LocalBlend)
    parts: tuple[Any, ...] = (edits,) if single else tuple(_sequence(edits))
    for part in parts:
        if not isinstance(part, Replace | Refine | Reweight | LocalBlend):
            raise TypeError(
                f"{part!r} is not an edit; there are Replace, Refine, Reweight, LocalBlend, and "
                "lists of them"
            )
    if sum(isinstance(part, LocalBlend) for part in parts) > 1:
        raise ValueError("two LocalBlends in one edit: use one with several words")
    weighted = [
        (word, part.occurrence) for part in parts if isinstance(part, Reweight)
        for word in part.items
    ]  # fmt: skip
    twice = [word for word, which in weighted if weighted.count((word, which)) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is weighted twice in one edit: use one weight")
    for name in ("cross_steps", "self_steps"):
        agreed(parts, name)
    return parts


def agreed(parts: Iterable[Edit], name: str, shares: Shares = SEPARATE) -> tuple[float, float]:
    """Return the window that the edits of one sibling agree on, by default that of ``shares``.

    Raises:
        ValueError: they set different ones.
    """
    said = {
        window(getattr(part, name), name) for part in parts
        if getattr(part, name, None) is not None
    }  # fmt: skip
    if len(said) > 1:
        raise ValueError(
            f"the edits of one list set different {name}: {sorted(said)}; set it once, and use "
            "word_steps for single words"
        )
    default = shares.cross if name == "cross_steps" else shares.self_
    return said.pop() if said else window(default, name)


def _sequence(edits: Any) -> Iterable[Any]:
    if isinstance(edits, str) or not isinstance(edits, Iterable):
        raise TypeError(
            f"{edits!r} is not an edit; there are Replace, Refine, Reweight, LocalBlend, and "
            "lists of them"
        )
    return edits


def _mask(given: Any) -> Tensor:
    """Return a mask as (height, width), bool or float32 in [0, 1]."""
    import torch

    if hasattr(given, "convert"):  # a picture: its brightness
        import numpy as np

        mask = torch.from_numpy(np.array(given.convert("L"))).float() / 255
    else:
        mask = torch.as_tensor(given).detach().cpu()
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(
            f"mask must have the shape (height, width) of the image or of its latents, got "
            f"{tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        mask = mask.float()
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError("mask must be bool, or numbers in [0, 1]")
        if bool(((mask == 0) | (mask == 1)).all()):
            mask = mask.bool()
    return mask
