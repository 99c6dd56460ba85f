"""Maps refined along the image's self-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from xattn.maps.daam import to_grid
from xattn.maps.select import image_index
from xattn.records.run import Run


def refined(run: Run, tokens: torch.Tensor, image: int) -> torch.Tensor:
    """Spread maps along the image's self-attention: regions that look alike share their heat.

    Each cell becomes the mean of the map over the cells it attends to, weighted by the shares in
    ``Run.affinity``.

    Args:
        run: the recorded run.
        tokens: maps on the latent grid, (tokens, height, width).
        image: index of the image.

    Raises:
        ValueError: self-attention was not recorded.
    """
    if run.affinity is None:
        raise ValueError(
            "a refined map needs the image's self-attention: record with affinity=True "
            "(on the command line, --refined)"
        )
    shares = run.affinity[image_index(run, image)].float()  # (h, w, h, w)
    grid = (shares.shape[0], shares.shape[1])
    small = tokens
    if grid != run.latent:
        small = F.interpolate(tokens[:, None], grid, mode="area")[:, 0]
    flowed = torch.einsum("ijkl,nkl->nij", shares, small)
    return flowed if grid == run.latent else to_grid(flowed, run.latent)
