"""What prioritization does to a run: how uneven the draws are, how old, and how much of the buffer they reach."""

from collections import deque

import numpy as np
import numpy.typing as npt

QUANTILES = (0.1, 0.5, 0.9)
BATCHES = 1000  # kept at most
LEAVES = 10_000  # priorities read at most


class DrawStatistics:
    """Weights and ages of the batches drawn since they were last summarized, of the last thousand at most."""

    def __init__(self) -> None:
        self._batches: deque[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = deque(maxlen=BATCHES)

    def record(self, weights: npt.NDArray[np.float32], ages: npt.NDArray[np.int64]) -> None:
        """
        :param weights: importance-sampling weights of a batch, shape (batch,)
        :param ages: transitions that were added after each of the drawn ones, shape (batch,)
        """
        self._batches.append((weights, ages))

    def summary(self) -> dict[str, float]:
        """
        Means over these batches, and the largest weight. Begins anew.

        :return: ``effective_sample_size``: (Σw)² / Σw² of a batch as a share of its size, in (0, 1], 1 for equal
            weights (Kong, 1992); ``max_weight``, in (0, 1]; ``age``, in transitions. Nothing if no batch was drawn
        """
        if not self._batches:
            return {}
        sizes = [
            float(w.sum(dtype=np.float64) ** 2 / np.square(w, dtype=np.float64).sum() / w.size)
            for w, _ in self._batches
        ]
        result = {
            "effective_sample_size": float(np.mean(sizes)),
            "max_weight": float(max(weights.max() for weights, _ in self._batches)),
            "age": float(np.mean([ages.mean() for _, ages in self._batches])),
        }
        self._batches.clear()
        return result


def priority_statistics(
    priorities: npt.NDArray[np.float64], learned_priorities: npt.NDArray[np.float64]
) -> dict[str, float]:
    """
    :param priorities: p_i^alpha of every slot, 0 where it cannot be drawn
    :param learned_priorities: the same, 0 also where nothing was learned from the transition
    :return: ``replayed``: share of the transitions that were learned from; ``priority_q10``, ``_q50``, ``_q90``:
        quantiles of the priorities, from 10,000 slots at random if there are more
    """
    # Not evenly spaced ones, which could all belong to one environment
    chosen = (
        np.random.default_rng(0).integers(priorities.size, size=LEAVES) if priorities.size > LEAVES else slice(None)
    )
    some = priorities[chosen]
    some = some[some > 0]
    quantiles = np.quantile(some, QUANTILES) if some.size else np.zeros(len(QUANTILES))
    drawable = np.count_nonzero(priorities)
    return {
        "replayed": np.count_nonzero(learned_priorities) / drawable if drawable else 0.0,
        **{f"priority_q{100 * q:.0f}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }
