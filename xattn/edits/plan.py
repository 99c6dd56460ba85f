"""The plan of a set of edits: a prompt, a token mapping, schedules and weights per sibling.

With A the source's probabilities and B the sibling's own, (..., queries, tokens), an edited step is
(Hertz et al. 2022, section 3)

    B'' = A · (M c e) + B · (1 - c) e

with the token mapping M, the schedule c in {0, 1} and the weights e along the sibling's tokens.
``EditPlan.cross`` returns the two factors, ``mix`` and ``own``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from xattn.edits.kinds import Edit, Edits, LocalBlend, Refine, Replace, Reweight, agreed, composed
from xattn.edits.table import table_of
from xattn.edits.timing import SEPARATE, Shares, inside, window
from xattn.edits.tokens import HeadWeight, Places
from xattn.text.align import mapping_of
from xattn.text.prompt import Prompt, WordError

Window = tuple[float, float]
Tokenize = Callable[[str], Prompt]

NEVER: Window = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Sibling:
    """One edited image: how its attention follows the source's.

    Attributes:
        edits: the edits it was made from.
        prompt: its prompt.
        mapping: M, float32 (source tokens, tokens).
        follows: the tokens with a source, bool (tokens,).
        windows: for each token, when it follows the source, as shares of the run.
        weights: e, float32 (tokens,).
        self_window: when self-attention follows the source.
        blend: its LocalBlend.
        places: the tokens the LocalBlend looks at; None without one.
        heads: weights that act in single heads; they are not in ``weights``.
    """

    edits: tuple[Edit, ...]
    prompt: Prompt
    mapping: Tensor
    follows: Tensor
    windows: tuple[Window, ...]
    weights: Tensor
    self_window: Window
    blend: LocalBlend | None = None
    places: Places | None = None
    heads: tuple[HeadWeight, ...] = ()

    def schedule(self, step: int, steps: int) -> Tensor:
        """Return c, the tokens following the source at a step, bool (tokens,)."""
        now = {span: inside(step, steps, span) for span in set(self.windows)}
        return self.follows & torch.tensor([now[span] for span in self.windows])

    @property
    def is_neutral(self) -> bool:
        """Whether it is a plain run of its own prompt at every step."""
        cross = any(b > a for a, b in self.windows) and bool(self.follows.any())
        own = self.self_window[1] > self.self_window[0]
        plain = bool((self.weights == 1).all()) and not self.heads
        return not cross and not own and plain


@dataclass(frozen=True, eq=False)
class EditPlan:
    """A source and its siblings; ``print(plan)`` shows which token follows which.

    Attributes:
        source: the source's prompt.
        siblings: the edited images, in the order of the edits.
        shares: when attention follows where an edit sets no share, and in which kind of attention.
    """

    source: Prompt
    siblings: tuple[Sibling, ...]
    shares: Shares = SEPARATE

    @property
    def length(self) -> int:
        """Number of positions of the token axis."""
        return len(self.siblings[0].mapping) if self.siblings else self.source.extent

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The source's prompt and each sibling's, in batch order."""
        return (self.source, *(s.prompt for s in self.siblings))

    @property
    def texts(self) -> list[str]:
        """The prompts as text, the source's first."""
        return [prompt.text for prompt in self.prompts]

    def cross(self, step: int, steps: int) -> tuple[Tensor, Tensor, tuple[bool, ...]]:
        """Return the factors of a step.

        Returns:
            mix, float32 (siblings, source tokens, tokens); own, float32 (siblings, tokens); and
            for each sibling whether the step changes the model's own call.
        """
        mixes, owns, active = [], [], []
        for sibling in self.siblings:
            c, e = sibling.schedule(step, steps), sibling.weights
            mixes.append(sibling.mapping * (c * e))
            owns.append(~c * e)
            active.append(bool(c.any()) or bool((e != 1).any()))
        return torch.stack(mixes), torch.stack(owns), tuple(active)

    def columns(self, step: int, steps: int) -> tuple[Tensor, Tensor, Tensor, tuple[bool, ...]]:
        """Return the factors of a step of joint attention, whose rows sum to one before weights.

        Returns:
            M c, float32 (siblings, source tokens, tokens); 1 - c, float32 (siblings, tokens); e,
            float32 (siblings, tokens); and for each sibling whether the step changes its call.
        """
        now = [sibling.schedule(step, steps) for sibling in self.siblings]
        both = list(zip(self.siblings, now, strict=True))
        mapping = torch.stack([sibling.mapping * c for sibling, c in both])
        weights = torch.stack([sibling.weights for sibling in self.siblings])
        active = (bool(c.any()) or bool((s.weights != 1).any()) for s, c in both)
        return mapping, (~torch.stack(now)).float(), weights, tuple(active)

    def phase(self, step: int, steps: int) -> tuple[tuple[bool, ...], ...]:
        """Return the key of a step's factors: steps with equal phases have equal factors."""
        return tuple(
            tuple(inside(step, steps, span) for span in dict.fromkeys(s.windows))
            for s in self.siblings
        )

    def self_(self, step: int, steps: int) -> tuple[bool, ...]:
        """Return for each sibling whether its self-attention follows the source at a step."""
        return tuple(inside(step, steps, s.self_window) for s in self.siblings)

    def __str__(self) -> str:
        parts = [f"source: {self.source.text}"]
        tables = (table_of(s, self.source, joint=self.shares.joint) for s in self.siblings)
        parts += [f"{i}. {table}" for i, table in enumerate(tables, start=1)]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(str(self))}</pre>"


def make_plan(
    source: Prompt,
    edits: Sequence[Edits],
    tokenize: Tokenize,
    *,
    alone: bool = False,
    length: int | None = None,
    shares: Shares = SEPARATE,
) -> EditPlan:
    """Return the plan of a source's edits, one sibling per edit.

    Args:
        source: the prompt to edit.
        edits: one per sibling: an edit, or a list of edits to compose.
        tokenize: a function from a text to its prompt, tokenized like the source.
        alone: whether a source without siblings is allowed.
        length: number of positions of the token axis; by default as many as the prompts have.
        shares: the shares of the run in which attention follows, where an edit sets none.

    Raises:
        TypeError: an element is not an edit.
        ValueError: there is nothing to edit, or an edit does not fit the prompt.
    """
    if not edits and not alone:
        raise ValueError('nothing to edit: pass edits, such as xattn.Replace("red", "blue")')
    siblings = (_sibling(source, composed(e), tokenize, length, shares) for e in edits)
    return EditPlan(source, tuple(siblings), shares)


def _sibling(
    source: Prompt,
    edits: tuple[Edit, ...],
    tokenize: Tokenize,
    length: int | None,
    shares: Shares,
) -> Sibling:
    prompt, mapping = source, torch.eye(length or source.extent)
    follows = torch.ones(len(mapping), dtype=torch.bool)
    for edit in edits:
        if isinstance(edit, Replace | Refine):
            after, more, own = _step(prompt, edit, tokenize, length)
            # mixing in a column without a source leaves a column without a source
            follows = ~own & ~((more != 0) & ~follows[:, None]).any(0)
            prompt, mapping = after, mapping @ more
    weights, heads = _weights(prompt, edits, mapping.shape[1])
    blend = next((e for e in edits if isinstance(e, LocalBlend)), None)
    if edits == (blend,):
        raise ValueError(
            'LocalBlend alone edits nothing: compose it, as in [Replace("red", "blue"), '
            'LocalBlend("car")]'
        )
    cross, self_window = (agreed(edits, f"{kind}_steps", shares) for kind in ("cross", "self"))
    windows = [cross] * mapping.shape[1]
    for edit in edits:
        for word, share in getattr(edit, "word_steps", {}).items():
            for position in prompt.positions(word):
                windows[position] = window(share, "word_steps")
    if prompt.text == source.text and bool((weights == 1).all()) and not heads:
        windows, self_window = [NEVER] * mapping.shape[1], NEVER
    places = None
    if blend is not None and blend.mask is None:
        places = _places(blend, source, prompt, mapping * follows)
    elif blend is not None:
        less = [_both(word, source, prompt, mapping * follows) for word in blend.subtract]
        places = Places((), (), _union(a for a, _ in less), _union(b for _, b in less))
    return Sibling(
        edits, prompt, mapping, follows, tuple(windows), weights, self_window, blend, places, heads
    )


def _step(
    prompt: Prompt, edit: Replace | Refine, tokenize: Tokenize, length: int | None
) -> tuple[Prompt, Tensor, Tensor]:
    """Return the prompt after an edit, its mapping, and the columns without a source."""
    if isinstance(edit, Refine):
        after = tokenize(edit.prompt)
        return after, *mapping_of(prompt, after, length=length)
    after = tokenize(_replaced(prompt, edit))
    try:
        mapping, own = mapping_of(prompt, after, edit.aligner, length=length)
    except ValueError as error:
        if isinstance(error, WordError) or len(prompt.words) == len(after.words):
            raise
        pairs = ", ".join(
            f"{old!r} ({len(old.split())}) by {new!r} ({len(new.split())})"
            for old, new in edit.swaps.items() if len(old.split()) != len(new.split())
        )  # fmt: skip
        raise ValueError(
            f"Replace needs equally many old and new words, but replaces {pairs}: "
            f"use Refine({after.text!r}), which aligns prompts of any length"
        ) from error
    return after, mapping, own


def _replaced(prompt: Prompt, edit: Replace) -> str:
    """Return the text with all its words replaced at once."""
    tokens, spans = prompt.placed, []
    for old, new in edit.swaps.items():
        for group in prompt.find(old, edit.occurrence):
            start = min(tokens[p].start for p in group)
            spans.append((start, max(tokens[p].end for p in group), new.strip()))
    spans.sort()
    for (_, end, _), (start, _, _) in pairwise(spans):
        if start < end:
            raise ValueError(
                f"{edit}: the words overlap in the prompt {prompt.text!r}; replace each word once"
            )
    text = prompt.text
    for start, end, new in reversed(spans):
        text = text[:start] + new + text[end:]
    return text


def _weights(
    prompt: Prompt, edits: Sequence[Edit], length: int
) -> tuple[Tensor, tuple[HeadWeight, ...]]:
    """Return each token's weight, and the weights that act in single heads."""
    weights, taken, heads = torch.ones(length), set[int](), list[HeadWeight]()
    for edit in edits:
        if isinstance(edit, Reweight):
            for word, weight in edit.items.items():
                positions = prompt.positions(word, edit.occurrence)
                if taken.intersection(positions):
                    raise ValueError(
                        f"{word!r} overlaps another word that is weighted in the same edit"
                    )
                taken.update(positions)
                if edit.heads is None:
                    weights[list(positions)] = float(weight)
                elif weight != 1:
                    heads.append(HeadWeight(positions, float(weight), edit.heads))
    return weights, tuple(heads)


def _places(blend: LocalBlend, source: Prompt, target: Prompt, mapping: Tensor) -> Places:
    both = [_both(word, source, target, mapping) for word in blend.words]
    less = [_both(word, source, target, mapping) for word in blend.subtract]
    alone = [source.positions(word) for word in blend.source_words]
    others = [target.positions(word) for word in blend.target_words]
    return Places(
        _union([*(a for a, _ in both), *alone]),
        _union([*(b for _, b in both), *others]),
        _union(a for a, _ in less),
        _union(b for _, b in less),
    )


def _both(
    word: str, source: Prompt, target: Prompt, mapping: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a word's positions in both prompts, mapped over if one prompt lacks the word."""
    here, there = _positions(source, word), _positions(target, word)
    if here is None and there is None:
        try:
            source.positions(word)
        except WordError as error:
            raise WordError(f"LocalBlend: {error} (nor in {target.text!r})") from None
    if here is None:
        here = tuple(mapping[:, list(there or ())].any(1).nonzero().flatten().tolist())
    if there is None:
        there = tuple(mapping[list(here)].any(0).nonzero().flatten().tolist())
    return here, there


def _positions(prompt: Prompt, word: str) -> tuple[int, ...] | None:
    try:
        return prompt.positions(word)
    except WordError:
        return None


def _union(groups: object) -> tuple[int, ...]:
    return tuple(sorted({p for group in groups for p in group}))  # type: ignore[attr-defined]
