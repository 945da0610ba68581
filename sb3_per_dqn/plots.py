"""The learning curves of one run, drawn from the files that the run wrote."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Columns = dict[str, np.ndarray]

RUNNING_MEAN = 100
# Title of a panel, and the columns of progress.csv drawn in it
PANELS = {
    "loss": ("train/loss",),
    "TD error": ("train/td_error",),
    "mean Q": ("train/q_value", "train/target_q_value"),
    "epsilon": ("rollout/exploration_rate",),
    "beta": ("train/beta",),
}


def draw_learning_curves(run_folder: str | Path) -> Path:
    """
    Draw return, loss, TD error, mean Q, epsilon and beta against environment steps.

    :param run_folder: folder with a run's ``episodes.csv`` (one line per episode: ``timesteps``, ``r``, ``l``)
        and ``progress.csv`` (SB3's logger)
    :return: path of the picture, ``learning_curves.png`` in that folder
    :raises OSError: if a file cannot be read or written
    """
    folder = Path(run_folder)
    episodes = read_columns(folder / "episodes.csv")
    progress = read_columns(folder / "progress.csv")
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    figure.suptitle(folder.name)
    _draw_returns(axes.flat[0], episodes, progress)
    for ax, (title, names) in zip(axes.flat[1:], PANELS.items(), strict=True):
        _draw_logged(ax, title, names, progress)
    for ax in axes[-1]:
        ax.set_xlabel("environment steps")
        ax.set_xlim(left=0)
    path = folder / "learning_curves.png"
    figure.savefig(path, dpi=100)
    return path


def read_columns(path: Path) -> Columns:
    """
    :param path: a CSV file with a header; empty fields are allowed
    :return: each column as float64, shape (rows,), NaN where a field is empty; no columns for an empty file
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() if rows else ()
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


def running_mean(values: np.ndarray, window: int = RUNNING_MEAN) -> np.ndarray:
    """
    :param values: shape (n,), finite
    :param window: number of values averaged
    :return: shape (n,): the mean of each value and the ``window - 1`` before it (fewer at the start)
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _draw_returns(ax: Axes, episodes: Columns, progress: Columns) -> None:
    ax.set_title("return")
    if episodes:
        steps, returns = episodes["timesteps"], episodes["r"]
        ax.plot(steps, returns, ".", markersize=4, alpha=0.5, label="one episode")
        ax.plot(steps, running_mean(returns), label=f"mean of {RUNNING_MEAN}")
    _draw_column(ax, "eval/mean_reward", progress, marker="o")
    _legend_or_nothing(ax)


def _draw_logged(ax: Axes, title: str, names: tuple[str, ...], progress: Columns) -> None:
    ax.set_title(title)
    for name in names:
        _draw_column(ax, name, progress)
    _legend_or_nothing(ax)


def _draw_column(ax: Axes, name: str, progress: Columns, marker: str = "") -> None:
    if name in progress:
        logged = ~np.isnan(progress[name])
        ax.plot(progress["time/total_timesteps"][logged], progress[name][logged], marker=marker, label=name)


def _legend_or_nothing(ax: Axes) -> None:
    if ax.lines:
        ax.legend()
    else:
        ax.text(0.5, 0.5, "nothing logged", ha="center", va="center", transform=ax.transAxes)
