"""The tidy file of a grid's results: JSON Lines, one row a run."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_per_dqn.plots import RUNNING_MEAN, running_mean
from sb3_per_dqn.whole_files import sync_folder, write_file

RESULTS = Path(__file__).parent / "results"
CURVE_POINTS = 100
Row = dict[str, Any]


def key_of(row: Row) -> tuple[str, str, int]:
    """
    :param row: of a run
    :return: which of its grid's runs it is: game, variant, seed
    """
    return row["game"], row["variant"], row["seed"]


def read_rows(path: Path) -> list[Row]:
    """
    :param path: of the tidy file; none is one without rows
    :return: its rows
    :raises ValueError: if one is damaged
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            key_of(row)
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}, line {number}, is no result of a run: delete it, and the run is made anew."
            ) from None
        rows.append(row)
    return rows


def add_row(path: Path, row: Row) -> None:
    """
    :param path: of the tidy file, which has the row wholly or not at all, whatever happens. One process writes
    :param row: to add
    """
    before = path.read_bytes() if path.exists() else b""
    write_whole(path, before + json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def write_whole(path: Path, data: bytes) -> None:
    """
    :param path: of a file that is there wholly, as before or as now, whatever happens
    :param data: its new content
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write_file(beside, data)
    beside.replace(path)
    sync_folder(path.parent)


def of_games(steps: npt.NDArray[Any], returns: npt.NDArray[Any], n_timesteps: int) -> Row:
    """
    :param steps: at which each game ended, ascending, shape (games,)
    :param returns: of the games, shape (games,)
    :param n_timesteps: length of the run
    :return: the part of a row that is about training. ``curve``: mean return of the last 100 games at equal distances
        of steps, the end of the run last; ``None`` before the first game
    """
    points = np.arange(1, CURVE_POINTS + 1) * n_timesteps / CURVE_POINTS
    ended = np.searchsorted(steps, points, side="right")
    means = np.concatenate([[np.nan], running_mean(returns)])[ended]
    return {
        "games": len(returns),
        "last_100": float(np.mean(returns[-RUNNING_MEAN:])) if len(returns) else None,
        "curve": [None if np.isnan(mean) else round(float(mean), 4) for mean in means],
    }
