"""Gains over scratch and their intervals."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy.stats import t

from eval_suite.reporting.gains import CUT, NO_INTERVAL, PAIRED, WELCH, gain_over

SCRATCH = pd.Series({0: 50.0, 1: 52.0, 2: 54.0})


def test_the_same_seeds_are_paired_in_whatever_order() -> None:
    gain = gain_over(SCRATCH, pd.Series({2: 57.0, 0: 52.0, 1: 54.5}))
    differences = [2.0, 2.5, 3.0]  # mean 2.5, standard deviation 0.5; t of 2 degrees of freedom at 97.5 % is 4.3027
    assert gain.gain == pytest.approx(sum(differences) / 3)
    assert gain.gain_high - gain.gain == pytest.approx(4.30265 * 0.5 / math.sqrt(3), rel=1e-4)
    assert gain.gain - gain.gain_low == pytest.approx(gain.gain_high - gain.gain)
    assert gain.interval == PAIRED


@pytest.mark.parametrize("seeds", [[0, 1, 3], [0, 0, 1]])
def test_other_seeds_are_compared_by_welch(seeds: list[int]) -> None:
    values = pd.Series([60.0, 61.0, 63.0][: len(seeds)], index=seeds)
    gain = gain_over(SCRATCH, values)
    assert gain.interval == WELCH
    # Welch and Satterthwaite: the standard error and its degrees of freedom from both variances.
    sides = (SCRATCH, values)
    parts = [side.var() / len(side) for side in sides]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert (gain.gain_low, gain.gain_high) == pytest.approx((gain.gain - half, gain.gain + half))


def test_one_run_has_no_interval() -> None:
    gain = gain_over(SCRATCH, pd.Series({0: 60.0}))
    assert (gain.gain, gain.interval) == (8.0, NO_INTERVAL)
    assert math.isnan(gain.gain_low)


def test_of_two_runs_both_gains_are_told() -> None:
    paired = gain_over(SCRATCH[:2], pd.Series({1: 60.0, 0: 61.0}))
    assert (paired.gain, paired.each, paired.interval) == (9.5, (8.0, 11.0), NO_INTERVAL)
    assert math.isnan(paired.gain_low)
    assert gain_over(SCRATCH, pd.Series({0: 60.0, 1: 62.0})).each == (8.0, 10.0)  # over the mean: other seeds


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_intervals_are_cut_to_what_is_possible(higher_is_better: bool) -> None:
    low, wide = pd.Series([20.0, 22.0, 21.0]), pd.Series([97.0, 99.0, 50.0])
    if not higher_is_better:
        low, wide = 100 - low, 100 - wide
    gain = gain_over(low, wide, higher_is_better, most=100)
    assert gain.gain_high == pytest.approx(79)
    assert gain.interval == PAIRED + CUT
    assert gain_over(low, wide, higher_is_better).gain_high > 79  # nobody said what it can be
    loss = gain_over(wide, low, higher_is_better, most=100)
    assert loss.gain_low == pytest.approx(-82)


def test_without_scratch_there_is_no_gain() -> None:
    assert math.isnan(gain_over(SCRATCH[:0], SCRATCH).gain)


def test_a_fall_is_a_gain_where_lower_is_better() -> None:
    gain = gain_over(SCRATCH, SCRATCH - pd.Series({0: 9.0, 1: 10.0, 2: 11.0}), higher_is_better=False)
    assert gain.gain == 10
    assert gain.gain_low < 10 < gain.gain_high


def test_runs_that_do_not_vary_at_all_break_nothing() -> None:
    same = pd.Series({0: 50.0, 1: 50.0})
    for values in (same + 3, pd.Series({5: 53.0, 6: 53.0})):
        gain = gain_over(same, values)
        assert gain.gain == 3
        assert gain.interval == NO_INTERVAL


def test_differences_that_are_equal_by_chance_make_no_certainty() -> None:
    """A few validation images make such things happen; the interval would have no width."""
    gain = gain_over(SCRATCH, SCRATCH + 0.5)
    assert (gain.gain, gain.interval) == (0.5, NO_INTERVAL)
