"""How sure a mean difference is: for other seeds, and for other images."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of the values, one for each seed, and half-width of its confidence interval (Student's t)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, float(t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def half_width_with_images(differences: np.ndarray, level: float = 0.95) -> float:
    """Half-width of the confidence interval of a mean difference for other seeds and other images.

    The difference on an image varies with the seed and with the image. The variance over the seeds' means and that over
    the images' means are added, which counts what varies with both twice and so errs on the wide side (Owen 2007, "The
    pigeonhole bootstrap"); degrees of freedom by Welch and Satterthwaite.

    Args:
        differences: Of each seed on each image [seeds, images], at least two of both.
        level: How often such intervals hold the truth.
    """
    from scipy.stats import t

    parts = [differences.mean(1 - axis).var(ddof=1) / differences.shape[axis] for axis in (0, 1)]
    if not sum(parts):
        return 0.
    by_freedom = sum(part ** 2 / (count - 1) for part, count in zip(parts, differences.shape, strict=True))
    freedom = sum(parts) ** 2 / by_freedom
    return float(t.ppf((1 + level) / 2, freedom) * sum(parts) ** 0.5)
