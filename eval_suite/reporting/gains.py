"""How much an initialisation gains over another, with a confidence interval over the seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
NO_SPREAD = 1e-9  # standard deviations that are but rounding
PAIRED, WELCH, NO_INTERVAL = "paired", "Welch", ""


@dataclass(frozen=True)
class Gain:
    """A difference of two means, and the interval that holds the true one with CONFIDENCE.

    Attributes:
        gain: positive if the initialisation helps.
        gain_low: lower end; NaN where there is no interval.
        gain_high: upper end.
        interval: how it was computed: PAIRED, WELCH or NO_INTERVAL.
    """

    gain: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    interval: str = NO_INTERVAL


def gain_over(scratch: pd.Series, values: pd.Series, higher_is_better: bool = True) -> Gain:
    """Compare runs with those from scratch, or from another baseline; both are metrics by seed.

    If both have the same seeds, once each, runs of a seed share the order of images and all that is drawn, and the
    differences within seeds are what varies: the interval is the paired one. Else it is Welch's, which takes neither
    equal numbers nor equal variances for granted. A single run has no spread, and so no interval.
    """
    sign = 1.0 if higher_is_better else -1.0
    scratch, values = sign * scratch, sign * values
    if scratch.empty or values.empty:
        return Gain()
    difference = float(values.mean() - scratch.mean())
    if min(len(scratch), len(values)) < 2:
        return Gain(difference)
    paired = _same_seeds(scratch, values)
    apart = [values - scratch.reindex(values.index)] if paired else [values, scratch]
    if all(side.std() <= NO_SPREAD for side in apart):  # what does not vary at all tells nothing of its spread
        return Gain(difference)
    test = stats.ttest_rel(values, scratch.reindex(values.index)) if paired else (
        stats.ttest_ind(values, scratch, equal_var=False))
    low, high = test.confidence_interval(CONFIDENCE)
    return Gain(difference, float(low), float(high), PAIRED if paired else WELCH)


def _same_seeds(a: pd.Series, b: pd.Series) -> bool:
    return a.index.is_unique and b.index.is_unique and set(a.index) == set(b.index)
