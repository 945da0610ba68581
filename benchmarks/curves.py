"""
Pictures and tables of a grid's results, which ``benchmarks.learning`` has made.

    python -m benchmarks.curves minatar_300k
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.aggregate import interquartile_mean, interval
from benchmarks.grid import Grid, read_grid
from benchmarks.rows import CURVE_POINTS, RESULTS, Row, read_rows
from sb3_per_dqn.plots import RUNNING_MEAN

PANELS_A_LINE = 3
# The usual ten, then paler ones: grids have more variants than ten
COLOURS = [to_hex(colormaps["tab20"](i)) for i in (*range(0, 20, 2), *range(1, 20, 2))]
LAST = f"last {RUNNING_MEAN} games"
SCORES = {LAST: lambda row: row["last_100"], "evaluation": lambda row: float(np.mean(row["evaluation"]))}
Array = npt.NDArray[np.float64]


def runs_of(rows: Sequence[Row], grid: Grid, game: str) -> dict[str, list[Row]]:
    """
    :param rows: of a grid
    :param grid: the grid
    :param game: of it
    :return: for each variant that has runs of that game, in the grid's order, these runs by seed
    """
    runs: dict[str, list[Row]] = {variant: [] for variant in grid.labels}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        if row["game"] == game and row["variant"] in runs:
            runs[row["variant"]].append(row)
    return {variant: of_variant for variant, of_variant in runs.items() if of_variant}


def games_of(rows: Sequence[Row], grid: Grid) -> list[str]:
    """
    :param rows: of a grid
    :param grid: the grid
    :return: games that have runs, in the grid's order
    """
    there = {row["game"] for row in rows}
    return [game for game in dict.fromkeys(cell.game for cell in grid.cells) if game in there]


def draw_curves(rows: Sequence[Row], grid: Grid, path: Path) -> None:
    """
    :param rows: of a grid
    :param grid: the grid
    :param path: of the picture: for each game the mean over seeds, and a band from the lowest to the highest
    """
    games = games_of(rows, grid)
    wide = min(len(games), PANELS_A_LINE)
    high = -(-len(games) // PANELS_A_LINE)
    figure = Figure(figsize=(8, 5.5) if len(games) == 1 else (5 * wide, 3.6 * high + 0.8), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False).flat
    lines = {}
    for ax, game in zip(axes, games, strict=False):
        lines |= _draw_game(ax, game, runs_of(rows, grid, game), grid)
    for ax in axes[len(games) :]:
        ax.axis("off")
    _draw_legend(figure, lines, 2 * wide)
    figure.savefig(path, dpi=100)


def _draw_legend(figure: Figure, lines: dict[str, Line2D], columns: int) -> None:
    """
    :param columns: the legend has as many as the figure has room for, up to this number
    """
    title = "mean over seeds; band: lowest to highest"
    for ncols in range(columns, 0, -1):
        legend = figure.legend(lines.values(), lines, loc="outside lower center", ncols=ncols, title=title)
        if ncols == 1 or legend.get_window_extent().width < figure.bbox.width:
            return
        legend.remove()


def _colour(grid: Grid, variant: str) -> str:
    return COLOURS[list(grid.labels).index(variant) % len(COLOURS)]


def _draw_game(ax: Axes, game: str, variants: dict[str, list[Row]], grid: Grid) -> dict[str, Line2D]:
    lines = {}
    for variant, runs in variants.items():
        steps = np.arange(1, CURVE_POINTS + 1) * max(row["steps"] for row in runs) / CURVE_POINTS
        curves = np.array([row["curve"] for row in runs], dtype=float)  # None becomes NaN
        colour = _colour(grid, variant)
        (lines[grid.labels[variant]],) = ax.plot(steps, curves.mean(axis=0), color=colour)
        ax.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    seeds = sorted({len(runs) for runs in variants.values()})
    ax.set_title(f"{game} ({'–'.join(map(str, seeds))} seed{'s' * (seeds != [1])})")
    ax.set_xlabel("environment steps")
    ax.set_ylabel(f"return, mean of the {LAST}")
    ax.set_xlim(left=0)
    return lines


def table(rows: Sequence[Row], grid: Grid, game: str) -> str:
    """
    :param rows: of a grid
    :param grid: the grid
    :param game: of it
    :return: in Markdown
    """
    lines = [f"| {game} | seeds | {' | '.join(SCORES)} | seconds |", "|---|---|---|---|---|"]
    for variant, runs in runs_of(rows, grid, game).items():
        seconds = [row["seconds"] for row in runs]
        cells = [_spread([score(row) for row in runs]) for score in SCORES.values()]
        if len(runs) == 1:
            cells[-1] = _mean_and_deviation(runs[0]["evaluation"])
        lines.append(
            f"| {grid.labels[variant]} | {len(runs)} | {' | '.join(cells)} | {min(seconds):.0f}–{max(seconds):.0f} |"
        )
    return "\n".join(lines)


def _spread(values: list[Any]) -> str:
    numbers = ", ".join(f"{value:.2f}" for value in values)
    return f"{_mean_and_deviation(values)} ({numbers})" if len(values) > 1 else numbers


def _mean_and_deviation(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"


def normalized(rows: Sequence[Row], grid: Grid, score: str) -> dict[str, list[Array]]:
    """
    :param rows: of a grid
    :param grid: the grid, with references
    :param score: key of ``SCORES``
    :return: of each variant, for each game the scores of the seeds that all its games have; none without such seeds
    """
    scores = {}
    for variant in grid.labels:
        of_game: list[dict[int, float]] = []
        for game, (low, high) in grid.references.items():
            runs = runs_of(rows, grid, game).get(variant, [])
            of_game.append({row["seed"]: (SCORES[score](row) - low) / (high - low) for row in runs})
        seeds = set.intersection(*map(set, of_game))
        if seeds:
            scores[variant] = [np.array([runs[seed] for seed in sorted(seeds)]) for runs in of_game]
    return scores


Intervals = dict[str, dict[str, tuple[float, float, float, int]]]


def aggregate(rows: Sequence[Row], grid: Grid) -> Intervals:
    """
    :param rows: of a grid
    :param grid: the grid, with references
    :return: for each kind of score and each variant: interquartile mean, its 95% interval, and how many seeds
    """
    return {
        score: {
            variant: (float(interquartile_mean(*games)), *interval(games), len(games[0]))
            for variant, games in normalized(rows, grid, score).items()
        }
        for score in SCORES
    }


def aggregate_table(intervals: Intervals, grid: Grid) -> str:
    """
    :param intervals: of ``aggregate``
    :param grid: the grid
    :return: in Markdown
    """
    lines = [f"| IQM of {len(grid.references)} games | seeds | {' | '.join(intervals)} |", "|---|---|---|---|"]
    for variant, (*_, seeds) in intervals[LAST].items():
        values = [of_score[variant] for of_score in intervals.values()]
        cells = [f"{iqm:.2f}" + (f" ({low:.2f} to {high:.2f})" if seeds > 1 else "") for iqm, low, high, _ in values]
        lines.append(f"| {grid.labels[variant]} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_aggregate(intervals: Intervals, grid: Grid, path: Path) -> None:
    """
    :param intervals: of ``aggregate``
    :param grid: the grid
    :param path: of the picture
    """
    variants = list(intervals[LAST])
    figure = Figure(figsize=(10, 1.2 + 0.45 * len(variants)), layout="constrained")
    axes = figure.subplots(1, len(intervals), sharey=True)
    for ax, (score, of_score) in zip(axes, intervals.items(), strict=True):
        for row, variant in enumerate(variants):
            iqm, low, high, _ = of_score[variant]
            colour = _colour(grid, variant)
            ax.plot([low, high], [row, row], color=colour, linewidth=8, alpha=0.4, solid_capstyle="butt")
            ax.plot(iqm, row, "|", color=colour, markersize=14, markeredgewidth=3)
        ax.set_title(score)
        ax.set_xlabel("normalized score: IQM and 95% interval")
        ax.grid(axis="x", alpha=0.4)
    axes[0].set_yticks(range(len(variants)), [grid.labels[variant] for variant in variants])
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: exit status
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="a file, or the name of one in benchmarks/grids")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results, and of the pictures")
    args = parser.parse_args(arguments)
    try:
        grid = read_grid(args.grid)
        rows = read_rows(args.output / f"{grid.name}.jsonl")
        if not games_of(rows, grid):
            raise ValueError(f"no results in {args.output} of {grid.name}: python -m benchmarks.learning {args.grid}")
    except (OSError, ValueError) as error:
        parser.exit(2, f"benchmarks.curves: {error}\n")
    pictures = [args.output / f"{grid.name}.png"]
    draw_curves(rows, grid, pictures[0])
    for game in games_of(rows, grid):
        print(table(rows, grid, game), end="\n\n")
    print("±: standard deviation over seeds; of one seed, over the games of its evaluation.\n")
    intervals = aggregate(rows, grid) if grid.references else {}
    if intervals and intervals[LAST]:
        pictures.append(args.output / f"{grid.name}_aggregate.png")
        draw_aggregate(intervals, grid, pictures[1])
        print(aggregate_table(intervals, grid), end="\n\n")
    print(*pictures, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
