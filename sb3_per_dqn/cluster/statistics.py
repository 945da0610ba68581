"""What acting on a cluster tells of itself."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter

from sb3_per_dqn.cluster.fragment import Fragment

OF_ACTORS = ("loading", "acting", "environment", "packing", "waiting")
OF_LEARNER = ("waiting", "fetching", "unpacking")


class ActingStatistics:
    """
    Counts since the last summary before which a fragment came; what was lost, since the beginning.

    :param n_actors: how many actors
    """

    def __init__(self, n_actors: int) -> None:
        self._n_actors = n_actors
        self._lost_fragments = self._lost_steps = 0
        self._last: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._since = monotonic()
        self._fragments = self._steps = self._nbytes = 0
        self._age = self._age_updates = 0.0
        self._of_actors: defaultdict[str, float] = defaultdict(float)
        self._of_learner: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """
        :param stage: one of ``OF_LEARNER``
        """
        begin = perf_counter()
        try:
            yield
        finally:
            self._of_learner[stage] += perf_counter() - begin

    def record(self, fragment: Fragment, timesteps: int, updates: int) -> None:
        """
        :param fragment: that is about to be played back
        :param timesteps: of the learner
        :param updates: likewise
        """
        self._fragments += 1
        self._steps += fragment.actions.size
        self._nbytes += fragment.nbytes
        self._age += timesteps - fragment.version.timesteps
        self._age_updates += updates - fragment.version.updates
        for stage, seconds in fragment.seconds.items():
            self._of_actors[stage] += seconds

    def lose(self, steps: int) -> None:
        """
        :param steps: of a fragment that was asked for and does not come: so many at most were made
        """
        self._lost_fragments += 1
        self._lost_steps += steps

    def summary(self) -> dict[str, float]:
        """
        :return: since the last call before which a fragment came, ``weights_age`` in environment steps of the learner,
            and ``weights_age_updates``, means over fragments; ``steps_per_second`` and ``megabytes_per_second`` of an
            actor; seconds of each stage, ``actor_...`` as a mean over actors, and ``learner_...``. Since the beginning,
            ``lost_fragments``, and ``lost_steps`` at most
        """
        if self._fragments or not self._last:
            self._last = self._counted()
            self._begin()
        return {**self._last, "lost_fragments": self._lost_fragments, "lost_steps": self._lost_steps}

    def _counted(self) -> dict[str, float]:
        seconds, fragments = max(monotonic() - self._since, 1e-9), max(self._fragments, 1)
        return {
            "weights_age": self._age / fragments,
            "weights_age_updates": self._age_updates / fragments,
            "steps_per_second": self._steps / seconds / self._n_actors,
            "megabytes_per_second": self._nbytes / 1e6 / seconds / self._n_actors,
            **{f"actor_{stage}": self._of_actors[stage] / self._n_actors for stage in OF_ACTORS},
            **{f"learner_{stage}": self._of_learner[stage] for stage in OF_LEARNER},
        }
