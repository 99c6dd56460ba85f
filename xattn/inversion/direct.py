"""Direct inversion: the source is set to its pivots (Ju et al. 2024, "PnP Inversion")."""

from __future__ import annotations

from xattn.inversion.method import Method


class Direct(Method):
    """Invert by DDIM (a flow by Euler); in edits set the source to its pivot after each step.

    The edited images are left alone: they read attention of a source that is exact at any guidance
    scale. The authors' code adds the pivot's difference to the source's latents after each step,
    which is the same.
    """

    name = "direct"
    pinned = True
