"""Scores over several games, as in "Deep RL at the Edge of the Statistical Precipice" (Agarwal et al., 2021)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, trim_mean

CONFIDENCE = 0.95
RESAMPLES = 50_000  # as rliable, the paper's library, which does not import beside pandas 3

Scores = Sequence[npt.NDArray[np.float64]]


def interquartile_mean(*games: npt.NDArray[np.float64], axis: int = -1) -> npt.NDArray[np.float64]:
    """
    :param games: for each game, scores of its runs along ``axis``
    :param axis: of the runs
    :return: mean of the middle half of all runs of all games (section 4.3)
    """
    middle: npt.NDArray[np.float64] = trim_mean(np.concatenate(games, axis=axis), 0.25, axis=axis)
    return middle


def interval(games: Scores, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """
    The percentile interval of a stratified bootstrap (section 4.1): in each resample, each game has as many runs as
    before, drawn from its own.

    :param games: for each game, scores of its runs, shape (runs,)
    :param resamples: how many
    :param seed: of the draws
    :return: limits of the 95% interval of the interquartile mean; NaN where a game has but one run
    """
    if min(map(len, games)) < 2:
        return float("nan"), float("nan")
    result = bootstrap(  # of several samples, each is resampled by itself
        games,
        interquartile_mean,
        n_resamples=resamples,
        batch=1_000,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)
