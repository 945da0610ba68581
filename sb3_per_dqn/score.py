"""The score of a trained model, and its file in a run's folder."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sb3_per_dqn.whole_files import replacing

SCORE_FILE = "score.json"


@dataclass(frozen=True)
class Score:
    """
    :param mean: return of a game
    :param std: standard deviation over the games
    :param games: how many were played
    :param deterministic: whether the model's actions were greedy
    :param steps: environment steps that the model had been trained for
    """

    mean: float
    std: float
    games: int
    deterministic: bool
    steps: int

    @classmethod
    def of(cls, returns: Sequence[float], deterministic: bool, steps: int) -> "Score":
        """
        :param returns: of the games
        :param deterministic: as above
        :param steps: as above
        :return: their score
        """
        return cls(float(np.mean(returns)), float(np.std(returns)), len(returns), deterministic, steps)

    def __str__(self) -> str:
        return f"{self.mean:.2f} +/- {self.std:.2f} over {self.games} full game{'s' if self.games > 1 else ''}"

    def write(self, run_folder: str | Path) -> None:
        """
        :param run_folder: where to leave ``score.json``
        :raises OSError: if that fails
        """
        with replacing(Path(run_folder) / SCORE_FILE) as beside:
            beside.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, run_folder: str | Path) -> "Score | None":
        """
        :param run_folder: folder of a run
        :return: what ``score.json`` there says; ``None`` if there is none, as in runs that were interrupted
        :raises ValueError: if it is damaged
        """
        file = Path(run_folder) / SCORE_FILE
        if not file.exists():
            return None
        try:
            score = cls(**json.loads(file.read_text()))
            if not (math.isfinite(score.mean) and math.isfinite(score.std) and score.games >= 1):
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"{file} is damaged: delete it, and the model will be scored anew.") from None
        return score
