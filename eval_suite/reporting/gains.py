"""How much an initialisation gains over another, with a confidence interval over the seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
NO_SPREAD = 1e-9  # standard deviations that are but rounding
PAIRED, WELCH, NO_INTERVAL = "paired", "Welch", ""
CUT = ", cut"  # behind the name of an interval
FEW = 2  # runs, which are told instead of an interval
MOST_OF_UNIT = {"%": 100.0, "AP (0-100)": 100.0}  # what a metric can be at most, from 0 on


def most_of(unit: str) -> float:
    """Return the most that a metric of a unit can be."""
    return MOST_OF_UNIT.get(unit, math.inf)


@dataclass(frozen=True)
class Gain:
    """A difference of two means, and the interval that holds the true one with CONFIDENCE.

    Attributes:
        gain: positive if the initialisation helps.
        gain_low: lower end; NaN where there is no interval.
        gain_high: upper end.
        interval: how it was computed: PAIRED, WELCH or NO_INTERVAL, with CUT behind it if an end is cut.
        each: the gains of the two runs, where two are all there are: they are told instead of an interval.
    """

    gain: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    interval: str = NO_INTERVAL
    each: tuple[float, ...] = ()


def gain_over(
    scratch: pd.Series, values: pd.Series, higher_is_better: bool = True, most: float = math.inf,
) -> Gain:
    """Compare runs with those from scratch, or from another baseline; both are metrics by seed.

    If both have the same seeds, once each, runs of a seed share the order of images and all that is drawn, and the
    differences within seeds are what varies: the interval is the paired one. Else it is Welch's, which takes neither
    equal numbers nor equal variances for granted. A single run has no spread, and so no interval; of two, Student's t
    makes one of 12.7 standard errors, which tells nothing: the two gains are told instead. An interval ends where what
    is possible ends: the baseline leaves room for so much gain or loss.

    Args:
        scratch: of the baseline, by seed.
        values: by seed.
        higher_is_better: of the metric.
        most: that the metric can be, from 0 on; infinite where nobody knows what it can be.
    """
    sign = 1.0 if higher_is_better else -1.0
    scratch, values = sign * scratch, sign * values
    if scratch.empty or values.empty:
        return Gain()
    difference = float(values.mean() - scratch.mean())
    if min(len(scratch), len(values)) < 2:
        return Gain(difference)
    paired = _same_seeds(scratch, values)
    if len(values) == FEW:
        each = values - (scratch.reindex(values.index) if paired else scratch.mean())
        return Gain(difference, each=tuple(map(float, each)))
    apart = [values - scratch.reindex(values.index)] if paired else [values, scratch]
    if all(side.std() <= NO_SPREAD for side in apart):  # what does not vary at all tells nothing of its spread
        return Gain(difference)
    test = stats.ttest_rel(values, scratch.reindex(values.index)) if paired else (
        stats.ttest_ind(values, scratch, equal_var=False))
    low, high = test.confidence_interval(CONFIDENCE)
    lowest, highest = _possible(float(scratch.mean()), higher_is_better, most)
    cut = CUT if low < lowest or high > highest else ""
    return Gain(difference, max(float(low), lowest), min(float(high), highest), (PAIRED if paired else WELCH) + cut)


def _possible(start: float, higher_is_better: bool, most: float) -> tuple[float, float]:
    """Return the lowest and the highest gain over a (signed) metric that lies in [0, most]."""
    if math.isinf(most):
        return -math.inf, math.inf
    return (-start, most - start) if higher_is_better else (-most - start, -start)


def _same_seeds(a: pd.Series, b: pd.Series) -> bool:
    return a.index.is_unique and b.index.is_unique and set(a.index) == set(b.index)
