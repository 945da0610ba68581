"""
Environment steps a second of Atari games in worker processes and on ALE's native emulators, preprocessed alike.

Both are what ``make_atari_vec_env`` makes, take the same random actions, and take turns in one run, in random order.
The processor time is that of this process and the workers; on a busy machine it tells more than the speed.

    OMP_NUM_THREADS=1 python -m benchmarks.emulators
    python -m benchmarks.emulators PongNoFrameskip-v4 --n-envs 16 --turns 20
"""

import argparse
import datetime
import os
import time
from contextlib import closing
from importlib import metadata

import numpy as np
import psutil
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.priorities import machine, positive
from sb3_per_dqn import make_atari_vec_env

KINDS = ("processes", "native")


def cpu_seconds() -> float:
    """Processor time used so far by this process, its threads, and the workers."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def play(env: VecEnv, actions: np.ndarray) -> tuple[float, float]:
    """
    :param env: games that were reset
    :param actions: shape (steps, n_envs)
    :return: steps of single games a second, and milliseconds of processor time for each of them
    """
    cpu_start, start = cpu_seconds(), time.perf_counter()
    for row in actions:
        env.step(row)
    elapsed, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    return actions.size / elapsed, 1000 * cpu / actions.size


def measure(env_id: str, n_envs: int, steps: int, turns: int) -> dict[str, np.ndarray]:
    """
    :return: for each kind what :func:`play` returned, shape (turns, 2)
    """
    rng = np.random.default_rng(0)
    results: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    first, second = (make_atari_vec_env(env_id, n_envs, seed=0, emulators=kind) for kind in KINDS)
    with closing(first), closing(second):
        envs = dict(zip(KINDS, (first, second), strict=True))
        for env in envs.values():
            env.reset()
        for turn in range(-1, turns):  # the first one warms up
            actions = rng.integers(first.action_space.n, size=(steps, n_envs))  # type: ignore[attr-defined]
            for kind in rng.permutation(KINDS):
                result = play(envs[kind], actions)
                if turn >= 0:
                    results[kind].append(result)
    return {kind: np.array(values) for kind, values in results.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["BreakoutNoFrameskip-v4", "MsPacmanNoFrameskip-v4", "ALE/Breakout-v5"]
    parser.add_argument("env_ids", nargs="*", default=default, help=f"Atari ids (default {' '.join(default)})")
    parser.add_argument("--n-envs", type=positive, default=8, help="games at a time (default %(default)s)")
    parser.add_argument("--steps", type=positive, default=50, help="steps in a turn (default %(default)s)")
    parser.add_argument("--turns", type=positive, default=15, help="turns of each (default %(default)s)")
    args = parser.parse_args()

    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{args.n_envs} games, {args.turns} turns of {args.steps} steps each, in random order; load before: {load};")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ale-py", "stable-baselines3", "numpy"))
    print(f"{datetime.date.today().isoformat()}, {machine()}; {versions}\n")
    print(
        "| game | emulators | steps/s, median | quartiles | times processes | processor ms a step | times processes |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for env_id in args.env_ids:
        results = measure(env_id, args.n_envs, args.steps, args.turns)
        speed, cost = np.median(results["processes"], axis=0)
        for kind, values in results.items():
            low, middle, high = np.percentile(values[:, 0], [25, 50, 75])
            cpu = np.median(values[:, 1])
            print(
                f"| {env_id} | {kind} | {middle:.0f} | {low:.0f} to {high:.0f} | {middle / speed:.2f} "
                f"| {cpu:.2f} | {cpu / cost:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
