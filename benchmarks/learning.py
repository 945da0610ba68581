"""
Learning curves: a grid of games, variants and seeds, each run in a process of its own with one thread.

    python -m benchmarks.learning minatar_300k -j 2

makes the runs of ``benchmarks/grids/minatar_300k.yml`` that are not in ``benchmarks/results/minatar_300k.jsonl`` yet.
Ctrl-C or SIGTERM ends it in good order, and the same command goes on. Runs of PerDoubleDQN go on from a checkpoint, bit
for bit; those of SB3's DQN and of QRDQN, and of environments whose state cannot be read (LunarLander), begin anew.
A run that fails does so alone.

With ``--ray-address`` the runs are on the nodes of a Ray cluster (``local`` begins one on this machine).
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.cell import LOG, ROW, try_out
from benchmarks.grid import Cell, Grid, read_grid
from benchmarks.processes import Processes
from benchmarks.ray_runs import RayRuns
from benchmarks.rows import RESULTS, Row, add_row, key_of, read_rows
from sb3_per_dqn.checkpoint.run import EVERY


def run_cells(cells: Sequence[Cell], processes: Processes | RayRuns, results: Path) -> int:
    """
    :param cells: to run
    :param processes: to run them, on this machine or on a cluster
    :param results: the tidy file
    :return: exit status: 0, 1 if a run failed, or 128 and the signal that came
    """
    failed, done, started = [], 0, time.monotonic()
    for cell, status in processes.run(cells):
        folder = processes.working / cell.folder_name
        if status == 0:
            row = json.loads((folder / ROW).read_text())
            add_row(results, row)
            shutil.rmtree(folder)
            done += cell.settings["n_timesteps"]
            left = sum(each.settings["n_timesteps"] for each in cells) - done
            minutes = (time.monotonic() - started) / done * left / 60
            print(f"{_in_short(cell, row)}; all: {minutes:.0f} min left", flush=True)
        elif not processes.signum:
            failed.append(f"{cell}: failed with status {status}: {_last_line(folder / LOG)} ({folder / LOG})")
            print(failed[-1], flush=True)
    if processes.signum:
        print("Stopped; the same command goes on.")
    if failed:
        print("\n".join([f"{len(failed)} failed:", *failed]))
    return 128 + processes.signum if processes.signum else int(bool(failed))


def _in_short(cell: Cell, row: Row) -> str:
    last = "none" if row["last_100"] is None else f"{row['last_100']:.2f}"
    mean = sum(row["evaluation"]) / len(row["evaluation"])
    return f"{cell}: last 100 games {last}, evaluation {mean:.2f}, {row['seconds']:.0f} s"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no word")


def without_result(cells: Sequence[Cell], results: Path) -> list[Cell]:
    """
    :param cells: some
    :param results: the tidy file
    :return: those that it has no row of
    :raises ValueError: if a row was made with other settings
    """
    rows = {key_of(row): row for row in read_rows(results)}
    for cell in cells:
        if cell.key in rows and rows[cell.key]["settings"] != cell.settings:
            raise ValueError(
                f"{results} has {cell} with other settings: give the grid another name, or delete that line."
            )
    return [cell for cell in cells if cell.key not in rows]


def chosen_cells(grid: Grid, args: argparse.Namespace) -> list[Cell]:
    """
    :param grid: which
    :param args: of the command line
    :return: the cells to run
    :raises ValueError: in one line, for what is wrong with them
    """
    for flag, value in (("-j", args.processes), ("--every", args.every)):
        if value < 1:
            raise ValueError(f"{flag} {value} must be 1 or more.")
    cells = grid.chosen(game=args.games, variant=args.variants, seed=args.seeds)
    cells = without_result(cells, args.output / f"{grid.name}.jsonl")
    for cell in {cell.key[:2]: cell for cell in cells}.values():
        try_out(cell)
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: exit status
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="a file, or the name of one in benchmarks/grids")
    parser.add_argument("--games", nargs="+", help="only these")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("-j", "--processes", type=int, default=os.cpu_count(), help="runs at a time (default: cores)")
    parser.add_argument("--every", type=int, default=EVERY, help="steps from checkpoint to checkpoint")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--agents", type=Path, help="folder in which to keep the trained agents of PerDoubleDQN")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="run on this Ray cluster: auto, local or HOST:PORT")
    args = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the runs and their emulators
    try:
        grid = read_grid(args.grid)
        working = args.output / "working" / grid.name
        cells = chosen_cells(grid, args)
        working.mkdir(parents=True, exist_ok=True)
        lock = FileLock(working / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        parser.exit(2, f"benchmarks.learning: {working}: another command that is still alive runs this grid.\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"benchmarks.learning: {error}\n")
    given = working, args.processes, args.every, args.agents
    try:
        processes = Processes(*given) if args.ray_address is None else RayRuns(*given, address=args.ray_address)
    except ModuleNotFoundError:
        parser.exit(2, "benchmarks.learning: --ray-address needs Ray: pip install 'sb3-per-dqn[ray]'\n")
    except (ConnectionError, ValueError) as error:
        parser.exit(2, f"benchmarks.learning: --ray-address {args.ray_address}: {' '.join(str(error).split())}\n")
    with lock, ExitStack() as stack:
        for signum in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, signum, signal.signal(signum, processes.stop))
        print(f"{grid.name}: {len(cells)} runs, {args.processes} at a time", flush=True)
        return run_cells(cells, processes, args.output / f"{grid.name}.jsonl")


if __name__ == "__main__":
    sys.exit(main())
