"""How sure a mean difference is: for other seeds, and for other images."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the values, one for each seed, and half-width of its 95 % confidence interval (Student's t)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def half_width_with_images(differences: np.ndarray) -> float:
    """Half-width of the 95 % confidence interval of a mean difference for other seeds and other images.

    The difference on an image varies with the seed and with the image. The variance over the seeds' means and that over
    the images' means are added, which counts what varies with both twice and so errs on the wide side (Owen 2007, "The
    pigeonhole bootstrap"); degrees of freedom by Welch and Satterthwaite.

    Args:
        differences: Of each seed on each image [seeds, images], at least two of both.
    """
    from scipy.stats import t

    parts = [differences.mean(1 - axis).var(ddof=1) / differences.shape[axis] for axis in (0, 1)]
    if not sum(parts):
        return 0.
    by_freedom = sum(part ** 2 / (count - 1) for part, count in zip(parts, differences.shape, strict=True))
    freedom = sum(parts) ** 2 / by_freedom
    return float(t.ppf(0.975, freedom) * sum(parts) ** 0.5)
