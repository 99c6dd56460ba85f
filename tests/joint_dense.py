"""Prompt-to-prompt on joint attention with every probability written out, row by row.

Written from the definitions alone, slow and plain; it shares no code with ``xattn``. For an image
query of an edited row, A its source's probabilities and B its own, over all keys of text and image:

- inside the self schedule B is of the source's image queries and image keys, with the row's own
  text keys; the text's queries see those image keys too;
- a text column is A's through the mapping where its token follows the source, else B's; the image's
  columns are B's, scaled to the share that is left; then text columns are weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.dense import Dense, Partners, Sibling, by_alignment, by_words, inside
from xattn.text.prompt import Prompt


@dataclass
class Layout:
    """Where text and image stand among the positions of a joint call.

    Attributes:
        text: the text's.
        image: the image's keys.
        queries: the queries of its grid, if there are more keys than that.
    """

    text: slice
    image: slice
    queries: slice | None = None

    @property
    def own(self) -> slice:
        return self.queries or self.image


def softmax(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    weights = (query @ key.transpose(-1, -2) * scale).double()
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        weights = weights + mask.double()
    weights = (weights - weights.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def joined(*stretches: Partners, length: int) -> Partners:
    """The partners of encoders one behind another; positions behind them follow their like."""
    partners: Partners = []
    for stretch in stretches:
        offset = len(partners)
        for column in stretch:
            moved = None if column is None else {w + offset: x for w, x in column.items()}
            partners.append(moved)
    return [*partners, *({n: 1.0} for n in range(len(partners), length))]


def placed(rule: Callable[..., Partners], source: Prompt, target: Prompt) -> Partners:
    """Partners of texts within a template.

    What it writes in front follows its like, counted back from the text: padding may come first.
    Behind both ends positions follow their like: in order word by word, at their place aligned.
    """
    assert source.end is not None
    assert target.end is not None
    one, two = source.tokens[0].position, target.tokens[0].position
    inner = rule(source.moved(1 - one), target.moved(1 - two))[1 : target.end - two + 2]
    front: Partners = [{one - two + n: 1.0} if n >= two - one else None for n in range(two)]
    found = [None if c is None else {w - 1 + one: x for w, x in c.items()} for c in inner]
    shift = source.end - target.end if rule is by_words else 0
    behind: Partners = [
        {n + shift: 1.0} if source.end < n + shift < source.length else None
        for n in range(target.end + 1, target.length)
    ]
    return front + found + behind


def aligned(source: Prompt, target: Prompt) -> Partners:
    """``by_alignment``, for an encoder that writes no start token, too."""
    if source.tokens[0].position:
        return by_alignment(source, target)
    found = by_alignment(source.moved(1), target.moved(1))[1:]
    return [None if column is None else {w - 1: x for w, x in column.items()} for column in found]


def columns(taken: Tensor, own: Tensor, sibling: Sibling, step: int, steps: int) -> Tensor:
    """Text columns before weights, (heads, queries, tokens)."""
    length = own.shape[-1]
    mapping, follows = own.new_zeros(taken.shape[-1], length), own.new_zeros(length)
    for n, partners in enumerate(sibling.partners):
        window = sibling.word_windows.get(n, sibling.cross)
        follows[n] = partners is not None and inside(step, steps, window)
        for w, share in (partners or {}).items():
            mapping[w, n] = share
    return follows * (taken @ mapping) + (1 - follows) * own


def probabilities(
    query: Tensor, key: Tensor, source: int, row: int, layout: Layout, sibling: Sibling,
    step: int, steps: int, scale: float, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """An edited row's probabilities, (heads, queries, keys); weights are applied."""
    text, image, grid = layout.text, layout.image, layout.own
    q, k = query[row].clone(), key[row].clone()
    if inside(step, steps, sibling.self_):
        q[:, grid], k[:, image] = query[source][:, grid], key[source][:, image]
    ours, theirs = mask_of(mask, row), mask_of(mask, source)
    own = softmax(q, k, scale, ours)
    windows = [sibling.word_windows.get(n, sibling.cross) for n in range(len(sibling.partners))]
    weighted = any(weight != 1 for weight in sibling.weights.values())
    if not weighted and not any(inside(step, steps, window) for window in windows):
        return own
    taken = softmax(query[source], key[source], scale, theirs)[:, grid, text]
    words = columns(taken, own[:, grid, text], sibling, step, steps)
    mass = words.sum(-1, keepdim=True)
    words = torch.where(mass > 1, words / mass, words)
    rest = own[:, grid, image]
    rest = rest / rest.sum(-1, keepdim=True) * (1 - mass).clamp(min=0)
    for n, weight in sibling.weights.items():
        words[..., n] *= weight
    own[:, grid, text], own[:, grid, image] = words, rest
    return own


def mask_of(mask: Tensor | None, row: int) -> Tensor | None:
    """A row's part of a mask."""
    return mask if mask is None or mask.ndim < 4 else mask[row if len(mask) > 1 else 0]


@dataclass
class JointDense(Dense):
    """Runs a pipeline of joint attention with explicit probabilities; rows are prompt-major.

    Attributes:
        layout: where text and image stand, of the joint calls.
        grid: height and width of the image's positions.
        acts: whether a joint call edits, by its number in the denoiser call.
    """

    layout: Layout = None  # type: ignore[assignment]
    acts: Callable[[int], bool] = lambda number: True
    inside_model: bool = False
    passed: bool = False
    number: int = 0
    _now: float = -1.0

    def output(
        self, query: Tensor, key: Tensor, value: Tensor,
        mask: Tensor | None = None, scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        """One attention call's output, edited where it is joint."""
        scale, heads = scale or query.shape[-1] ** -0.5, []
        positions = max(self.layout.text.stop, self.layout.image.stop)
        rows = (len(self.siblings) + 1) * self.images
        first, step = rows if self.guided else 0, self.step_of_call(self.call)
        joint = key.shape[2] == positions
        for row in range(len(query)):
            j, i = divmod(row - first, self.images)
            probs = softmax(query[row], key[row], scale, mask_of(mask, row))
            if joint and j > 0 and not self.passed and self.acts(self.number):
                probs = probabilities(
                    query, key, first + i, row, self.layout, self.siblings[j - 1],
                    step, self.steps, scale, mask,
                )  # fmt: skip
            heads.append(probs)
        probs = torch.stack(heads)
        if joint and not self.passed:
            maps = probs[first : first + rows, :, self.layout.own, self.layout.text].mean(1)
            layers = self.maps.setdefault(step, {}).setdefault(maps.shape[1], [])
            layers.append(maps.float() / self.calls_of_step(step))
        self.number += joint
        return (probs @ value.double()).to(query.dtype)

    def latents(self, pipe: Any, prompts: Sequence[str], **options: Any) -> Tensor:
        """The latents of the source and its siblings, packed where the pipeline packs them."""
        self.call = -1

        def callback(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if any(s.blend for s in self.siblings):
                given = tensors["latents"]
                whole = self.blend(unpacked(given, self.latent), self.step_of_call(index))
                tensors["latents"] = packed(whole, given.shape[1]) if given.ndim == 3 else whole
            return tensors

        hooks = [
            pipe.transformer.register_forward_pre_hook(self._begin, with_kwargs=True),
            pipe.transformer.register_forward_hook(self._end),
        ]
        if any(s.blend for s in self.siblings):
            options["callback_on_step_end"] = callback
        try:
            with Explicitly(self):
                output = pipe(prompt=list(prompts), output_type="latent", **options)
        finally:
            for hook in hooks:
                hook.remove()
        result = output.images if hasattr(output, "images") else output.image
        assert isinstance(result, Tensor)
        return result

    def _begin(self, _: Any, args: Any, given: dict[str, Any]) -> None:
        """A second call at the same timestep is guidance's pass, for negative prompts."""
        given = {**dict(zip(("sample", "timestep"), args, strict=False)), **given}
        now = float(given.get("timestep", given.get("timesteps")).flatten()[0])
        self.passed = self.call >= 0 and now == self._now
        self.call += not self.passed
        self._now, self.inside_model, self.number = now, True, 0

    def _end(self, *_: Any) -> None:
        self.inside_model = False


class Explicitly(TorchFunctionMode):
    """Compute the transformer's attention by the dense reference."""

    def __init__(self, dense: JointDense) -> None:
        super().__init__()
        self.dense = dense

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.dense.inside_model:
            return func(*args, **kwargs)
        names = ("query", "key", "value")
        given = [*args[:3], *(kwargs[name] for name in names[len(args[:3]) :])]
        return self.dense.output(*given, kwargs.get("attn_mask"), kwargs.get("scale"))


def unpacked(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Packed latents on their grid: each position holds a square of every channel, FLUX's 2 x 2."""
    if latents.ndim == 4:
        return latents
    height, width = size
    side = 2 if latents.shape[1] * 4 == height * width else 1
    out = latents.new_zeros(len(latents), latents.shape[-1] // side**2, height, width)
    for n in range(latents.shape[1]):
        y, x = (side * at for at in divmod(n, width // side))
        square = latents[:, n].reshape(len(latents), -1, side, side)
        out[:, :, y : y + side, x : x + side] = square
    return out


def packed(latents: Tensor, positions: int) -> Tensor:
    rows, _, height, width = latents.shape
    side = 2 if positions * 4 == height * width else 1
    squares = [
        latents[:, :, y : y + side, x : x + side].reshape(rows, -1)
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    return torch.stack(squares, 1)


@dataclass
class CrossDense(JointDense):
    """Runs a pipeline whose transformer reads the text in layers of its own."""

    def output(
        self, query: Tensor, key: Tensor, value: Tensor,
        mask: Tensor | None = None, scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        """One attention call's output, edited by the definitions of cross- and self-attention."""
        scale = scale or query.shape[-1] ** -0.5
        rows = range(len(query))
        probs = torch.stack([softmax(query[n], key[n], scale, mask_of(mask, n)) for n in rows])
        crossed = key.shape[2] != query.shape[2]
        image = query.shape[2] * 4 == self.latent[0] * self.latent[1]  # or the text's own
        if not self.passed and (crossed or image):
            probs = self.attend(probs, crossed)
        return (probs @ value.double()).to(query.dtype)
