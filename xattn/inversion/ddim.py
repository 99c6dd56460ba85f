"""DDIM inversion: the deterministic step backwards (Song et al. 2021; Dhariwal & Nichol 2021)."""

from __future__ import annotations

from xattn.inversion.method import DIFFUSION, FLOW, Method


class DDIM(Method):
    """Take each step backwards with the prediction at its wrong end; nothing corrects the drift.

    z[t] = sqrt(a[t]) x + sqrt(1 - a[t]) e, with x and e of the prediction at z[t - 1]: exact in
    the limit of small steps, at guidance 1.
    """

    name = "ddim"
    kinds = frozenset((DIFFUSION,))


class Euler(Method):
    """Take each Euler step of a flow backwards, as DDIM does for diffusion.

    z[s'] = z[s] + (s' - s) v(z[s], s), from s = 0 up.
    """

    name = "euler"
    kinds = frozenset((FLOW,))
