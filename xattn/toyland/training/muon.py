"""Muon: the momentum of a weight matrix, brought to singular values of about one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

COEFFICIENTS: Final = (3.4445, -4.775, 2.0315)
"""Of the quintic iteration, which takes singular values in (0, 1] to about one."""
ITERATIONS: Final = 5
RATE_SCALE: Final = 0.2
"""An update's root mean square is the rate times this, as AdamW's is (Liu et al. 2025, 2.2)."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), all matrices of a shape at once.

    The same as :class:`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, which takes one
    matrix at a time: slower, on a CPU, where they are many and small.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix against its orthogonalised momentum."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in shapes.items():
                updates = self._momentum(matrices, group["momentum"])
                made = orthogonalise(torch.stack(updates).to(self.dtype)).to(updates[0].dtype)
                rate = group["lr"] * RATE_SCALE * math.sqrt(max(shape))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, made.unbind(), alpha=-rate)

    def _momentum(self, matrices: list[Tensor], share: float) -> list[Tensor]:
        """Take the gradients into the momenta, and look one step ahead (Nesterov)."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum" not in self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - share)
        return list(torch._foreach_lerp(gradients, momenta, share))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of `(count, rows, columns)` to about one, by Newton-Schulz."""
    tall = matrices.shape[1] > matrices.shape[2]
    made = matrices.mT if tall else matrices
    made = made / made.float().norm(dim=(1, 2), keepdim=True).clamp(min=1e-7).to(made.dtype)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = made @ made.mT
        update = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        made = torch.baddbmm(made, update, made, beta=first)
    return made.mT if tall else made
