"""
A picture and a table of runs that ``benchmarks.learning`` has written.

    python -m benchmarks.curves BreakoutNoFrameskip-v4
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sb3_per_dqn.plots import RUNNING_MEAN, running_mean

NAMES = {"dqn": "SB3's DQN", "per_ddqn": "PerDoubleDQN"}
GRID_POINTS = 500


def name_of(algo: str) -> str:
    """
    :param algo: as in the file of a run: a name, and what was set
    :return: for readers
    """
    name, *changes = algo.split(", ")
    return ", ".join([NAMES[name], *changes])


def load_runs(folder: Path, env_id: str) -> dict[str, list[dict[str, Any]]]:
    runs = defaultdict(list)
    for path in sorted(folder.glob(f"{env_id.replace('/', '-')}_*.json")):
        run = json.loads(path.read_text())
        runs[run["algo"]].append(run)
    return runs


def curve(run: dict[str, Any], grid: np.ndarray) -> np.ndarray:
    """Mean return of the last games before each point of the grid, NaN before the first."""
    steps, returns = np.array(run["episodes"], dtype=float).T
    ended = np.searchsorted(steps, grid, side="right")
    return np.concatenate([[np.nan], running_mean(returns)])[ended]


def draw(runs: dict[str, list[dict[str, Any]]], env_id: str, path: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    for algo, seeds in runs.items():
        grid = np.linspace(0, max(run["n_timesteps"] for run in seeds), GRID_POINTS)
        curves = np.stack([curve(run, grid) for run in seeds])
        label = f"{name_of(algo)} ({len(seeds)} seed{'s' * (len(seeds) > 1)})"
        (line,) = ax.plot(grid, curves.mean(axis=0), label=label)
        ax.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_title(env_id)
    ax.set_xlabel("environment steps")
    ax.set_ylabel(f"return, mean of the last {RUNNING_MEAN} games")
    ax.set_xlim(left=0)
    ax.legend()
    figure.savefig(path, dpi=100)


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"| | seeds | last {RUNNING_MEAN} games | evaluation | seconds |",
        "|---|---|---|---|---|",
    ]
    for algo, seeds in runs.items():
        last = [np.mean([r for _, r in run["episodes"][-RUNNING_MEAN:]]) for run in seeds]
        evaluation = [np.mean(run["evaluation"]) for run in seeds]
        seconds = [run["seconds"] for run in seeds]
        cells = [_spread(last), _spread(evaluation), f"{min(seconds):.0f}–{max(seconds):.0f}"]
        lines.append(f"| {name_of(algo)} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[Any]) -> str:
    numbers = ", ".join(f"{value:.2f}" for value in values)
    return f"{np.mean(values):.2f} ± {np.std(values):.2f} ({numbers})" if len(values) > 1 else numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("-i", "--input", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    runs = load_runs(args.input, args.env)
    if not runs:
        parser.error(f"no runs of {args.env} in {args.input}: see python -m benchmarks.learning --help")
    path = args.input / f"{args.env.replace('/', '-')}.png"
    draw(runs, args.env, path)
    print(f"{table(runs)}\n\n{path}")


if __name__ == "__main__":
    main()
