"""Means and covariances of the stages' features, gathered batch by batch."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


class Moments:
    """Gathers pairs of features: x [stages, batch, d] of the stages, and y [batch, e] that all are compared with.

    `sums` holds plain sums over the images, in double precision: those of several processes may be added.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = defaultdict(float)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch."""
        if x.device.type == "mps":  # which has no double precision
            x, y = x.cpu(), y.cpu()
        x, y = x.double(), y.double()
        for name, term in (("count", torch.tensor(len(y), dtype=torch.double)), ("x", x.sum(1)), ("y", y.sum(0)),
                           ("xx", x.mT @ x), ("xy", x.mT @ y), ("yy", y.t() @ y)):
            self.sums[name] = self.sums[name] + term.cpu()

    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x [stages, d] and of y [e]."""
        return self.sums["x"] / self.sums["count"], self.sums["y"] / self.sums["count"]

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of x [stages, d, d], of x with y [stages, d, e], and of y [e, e]; divided by the count."""
        count, (x, y) = self.sums["count"], self.means()
        return (self.sums["xx"] / count - x[:, :, None] * x[:, None, :],
                self.sums["xy"] / count - x[:, :, None] * y, self.sums["yy"] / count - torch.outer(y, y))

    def linear_cka(self) -> list[float]:
        """Per stage, linear CKA of x and y: ‖Cov(x, y)‖² / (‖Cov(x)‖ ‖Cov(y)‖), Frobenius norms (Kornblith et al.,
        ICML 2019); 1 where x is y up to rotation, scale and shift, 0 where they do not vary together."""
        xx, xy, yy = (table.flatten(-2).norm(dim=-1) for table in self.covariances())
        scale = xx * yy
        return (xy.square() / scale.where(scale > 0, 1.0)).tolist()
