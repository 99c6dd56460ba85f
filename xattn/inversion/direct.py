"""Direct inversion: the source is set to its pivots (Ju et al. 2024, "PnP Inversion")."""

from __future__ import annotations

from xattn.inversion.method import Method


class Direct(Method):
    """Invert by DDIM (a flow by Euler); in edits set the source to its pivot after each step.

    The edited images are left alone: they read attention of a source that is exact at any guidance
    scale (section 4: "the source branch is rectified, the target branch untouched").
    """

    name = "direct"
    pinned = True
