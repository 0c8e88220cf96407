"""Whether what was measured at growing sizes stays flat or grows, and how surely. Arithmetic only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAT_SHARE = 0.10
"""What rises by less than this share from the smallest to the largest size is flat, if not less than the noise."""

MISFIT_SHARE = 0.25
"""A line that misses no measurement by more than this share of it is a line."""


class Fit(NamedTuple):
    """cost = fixed + slope x size, by least squares of shares: a small cost counts as much as a large one.

    A curve that falls before it rises is judged from its lowest point on.
    """

    kind: str
    """'flat', 'falling', 'linear', 'slower than linear' or 'faster than linear'."""
    fixed: float
    slope: float
    """Per unit of size."""
    rise: float
    """The last measurement over the lowest."""
    misfit: float
    """The largest miss of the line, as a share of what was measured."""


def fit(sizes: Sequence[float], costs: Sequence[float], noise_share: float = 0.0) -> Fit:
    """Judge one curve. `sizes` ascend; `noise_share`: by how much repeated measurements of one size differ.

    Raises ValueError with fewer than two sizes, or a cost that is not over 0.
    """
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    if len(x) < 2 or len(x) != len(y) or np.any(np.diff(x) <= 0) or np.any(y <= 0):
        raise ValueError("a fit takes two ascending sizes and their costs, all over 0")
    allowed = max(FLAT_SHARE, 2 * noise_share)
    lowest = int(np.argmin(y))
    falls = bool(y[0] > (1 + allowed) * y[lowest])
    rises = bool(y[-1] > (1 + allowed) * y[lowest])  # a bump on the way is not growth
    if falls and rises:
        x, y = x[lowest:], y[lowest:]
    design = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
    misses = (fixed + slope * x) / y - 1
    misfit = float(np.max(np.abs(misses)))
    if not rises:
        kind = "falling" if falls else "flat"
    elif misfit <= max(MISFIT_SHARE, 2 * noise_share):
        kind = "linear"
    else:
        # A straight line through a curve that bends upwards lies below it at its end.
        kind = "faster than linear" if misses[-1] < 0 else "slower than linear"
    return Fit(kind, float(fixed), float(slope), float(y[-1] / np.min(y)), misfit)


class Slope(NamedTuple):
    """A regression of values on steps, with the noise of the slope: two standard errors."""

    slope: float
    noise: float

    @property
    def is_zero(self) -> bool:
        """Whether no slope is as good an explanation."""
        return abs(self.slope) <= self.noise


def slope(steps: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares. Neighbours that err alike count for fewer: memory comes in steps, which are kept.

    The count of independent values is n (1 - r) / (1 + r), r being the correlation of neighbouring residuals; a
    series with less than three of them has no slope to speak of, and its noise is endless.
    Source: Bayley and Hammersley, 1946, "The effective number of independent observations in an autocorrelated time
    series". Raises ValueError with fewer than four values.
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) < 4 or len(x) != len(y):
        raise ValueError("a slope takes four values and more")
    x -= x.mean()
    spread = float(x @ x)
    found = float(x @ y) / spread
    residuals = y - y.mean() - found * x
    square = float(residuals @ residuals)
    if square <= 1e-18 * max(1.0, float(y @ y)):
        return Slope(found, 0.0)
    alike = min(max(float(residuals[1:] @ residuals[:-1]) / square, 0.0), 0.99)
    count = len(x) * (1 - alike) / (1 + alike)
    if count <= 3:
        return Slope(found, math.inf)
    return Slope(found, 2 * math.sqrt(square / (count - 2) / spread))


def tenths(latencies: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of pieces in their order: the first and the last tenth of all values."""
    whole = np.concatenate(latencies)
    count = max(1, len(whole) // 10)
    return whole[:count], whole[-count:]


def drift(latencies: Sequence[np.ndarray], percentile: float = 99) -> tuple[float, float]:
    """(percentile of the last tenth over that of the first, its noise).

    The noise is two standard errors of that quotient, from how the percentile differs between the pieces in a tenth.
    """
    first, last = tenths(latencies)
    ratio = float(np.percentile(last, percentile) / np.percentile(first, percentile))
    each = np.array([np.percentile(piece, percentile) for piece in latencies if len(piece)])
    if len(each) < 10:
        return ratio, math.inf
    # Neighbours differ by chance, the trend is taken out: of differences the variance is twice that of the values.
    share = float(np.std(np.diff(np.log(each)), ddof=1)) / math.sqrt(2)
    return ratio, 2 * ratio * share * math.sqrt(2 / max(1.0, len(each) / 10))
