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

from tests.dense import Dense, Partners, Sibling, by_alignment, inside
from xattn.text.prompt import Prompt


@dataclass
class Layout:
    """Where text and image stand among the positions of a joint call."""

    text: slice
    image: slice


def softmax(query: Tensor, key: Tensor, scale: float) -> Tensor:
    weights = (query @ key.transpose(-1, -2) * scale).double()
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
    step: int, steps: int, scale: float,
) -> Tensor:  # fmt: skip
    """An edited row's probabilities, (heads, queries, keys); weights are applied."""
    text, image = layout.text, layout.image
    q, k = query[row].clone(), key[row].clone()
    if inside(step, steps, sibling.self_):
        q[:, image], k[:, image] = query[source][:, image], key[source][:, image]
    own = softmax(q, k, scale)
    windows = [sibling.word_windows.get(n, sibling.cross) for n in range(len(sibling.partners))]
    weighted = any(weight != 1 for weight in sibling.weights.values())
    if not weighted and not any(inside(step, steps, window) for window in windows):
        return own
    taken = softmax(query[source], key[source], scale)[:, image, text]
    words = columns(taken, own[:, image, text], sibling, step, steps)
    mass = words.sum(-1, keepdim=True)
    words = torch.where(mass > 1, words / mass, words)
    rest = own[:, image, image]
    rest = rest / rest.sum(-1, keepdim=True) * (1 - mass).clamp(min=0)
    for n, weight in sibling.weights.items():
        words[..., n] *= weight
    own[:, image, text], own[:, image, image] = words, rest
    return own


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

    def output(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One attention call's output, edited where it is joint."""
        scale, heads = query.shape[-1] ** -0.5, []
        positions = self.layout.text.stop - self.layout.text.start
        positions += self.layout.image.stop - self.layout.image.start
        rows = (len(self.siblings) + 1) * self.images
        first, step = rows if self.guided else 0, self.step_of_call(self.call)
        joint = key.shape[2] == positions
        for row in range(len(query)):
            j, i = divmod(row - first, self.images)
            probs = softmax(query[row], key[row], scale)
            if joint and j > 0 and not self.passed and self.acts(self.number):
                probs = probabilities(
                    query, key, first + i, row, self.layout, self.siblings[j - 1],
                    step, self.steps, scale,
                )  # fmt: skip
            heads.append(probs)
        probs = torch.stack(heads)
        if joint and not self.passed:
            maps = probs[first : first + rows, :, self.layout.image, self.layout.text].mean(1)
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
                tensors["latents"] = packed(whole) if given.ndim == 3 else whole
            return tensors

        hooks = [
            pipe.transformer.register_forward_pre_hook(self._begin, with_kwargs=True),
            pipe.transformer.register_forward_hook(self._end),
        ]
        try:
            with Explicitly(self):
                result = pipe(
                    list(prompts), callback_on_step_end=callback, output_type="latent", **options
                ).images
        finally:
            for hook in hooks:
                hook.remove()
        assert isinstance(result, Tensor)
        return result

    def _begin(self, _: Any, args: Any, given: dict[str, Any]) -> None:
        """A second call at the same timestep is guidance's pass, for negative prompts."""
        now = float(given["timestep"].flatten()[0])
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
        return self.dense.output(*given)


def unpacked(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """FLUX's packed latents on their grid: each position holds the 2 x 2 of every channel."""
    if latents.ndim == 4:
        return latents
    height, width = size
    out = latents.new_zeros(len(latents), latents.shape[-1] // 4, height, width)
    for n in range(latents.shape[1]):
        y, x = divmod(n, width // 2)
        square = latents[:, n].reshape(len(latents), -1, 2, 2)
        out[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = square
    return out


def packed(latents: Tensor) -> Tensor:
    rows, _, height, width = latents.shape
    squares = [
        latents[:, :, y : y + 2, x : x + 2].reshape(rows, -1)
        for y in range(0, height, 2)
        for x in range(0, width, 2)
    ]
    return torch.stack(squares, 1)
