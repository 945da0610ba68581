"""
How fast does it train? Environment steps a second of whole runs, and what each part of them takes.

``python -m benchmarks.speed breakout`` (eight emulator processes, the seed experiment's shape) or ``cartpole``
(rl-zoo3's settings) prints two markdown tables. The contestants are processes of their own that are all kept waiting,
and take turns in random order, so a machine that slows down for a while slows all of them down; ratios are medians of
ratios within one round. The floor is the gradient step of the same network on one batch that is already in place,
without environments or replay; a share of it says how near a whole run, environments included, comes to that.

Libraries other than Stable-Baselines3 stand in ``benchmarks/speed_peers.py``; ``--python torchrl=PATH`` names the
interpreter beside which one is installed, and adds it. Eight games and a learner for each contestant take memory, some
15 GB for all; ``--only`` picks. Each of the speedups alone is measured only if it is picked (``"ours, fused"``, ...),
and replay memory on the device, without a GPU, likewise. With a GPU, a gradient step that is one CUDA graph counts as
"forward and loss", all of it.
"""

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks.priorities import positive
from benchmarks.speed_contestants import CONTESTANTS, FLOORS, TASKS
from sb3_per_dqn.speedups import NAMES

REFERENCE = "SB3's DQN"
NATIVE = [f"ours, {speed}, while stepping, native" for speed in ("safe", "max", "max, device")]
# what happens once for each step of the vectorized environment, and what once for each gradient step
ACTING = ("act", "step", "add")
LEARNING = ("sample", "copy to device", "forward and loss", "backward", "optimizer", "priorities")
HERE = Path(__file__).parent


class Contestant:
    """
    A process that trains when it is told to.

    :param command: what starts it
    """

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turns: list[dict[str, Any]] = []
        if not self._read().startswith("ready"):
            raise RuntimeError(f"{command} did not get ready (status {self.process.wait()}).")

    def take_turn(self, request: str) -> dict[str, Any]:
        """
        :param request: ``N`` or ``parts N``, environment steps
        :return: what it says that it took
        """
        assert self.process.stdin is not None
        print(request, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def commands(task: str, pythons: dict[str, str]) -> dict[str, list[str]]:
    """
    :param task: name in ``TASKS``
    :param pythons: interpreters of other libraries
    :return: what starts each contestant
    """
    names = [*CONTESTANTS, *(NATIVE if task == "breakout" else []), *FLOORS]
    own = {name: [sys.executable, "-m", "benchmarks.speed_contestants", task, name] for name in names}
    return own | {name: [path, str(HERE / "speed_peers.py"), name] for name, path in pythons.items()}


def measure(contestants: dict[str, Contestant], env_steps: int, rounds: int) -> None:
    """
    :param contestants: by name; their ``turns`` get one more for each round
    :param env_steps: of a turn
    :param rounds: how many
    """
    for round_ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            contestants[name].turns.append(contestants[name].take_turn(str(env_steps)))
        print(f"round {round_ + 1} of {rounds} done", file=sys.stderr, flush=True)


def whole_runs(contestants: dict[str, Contestant]) -> str:
    """
    :param contestants: by name, with their turns
    :return: a markdown table
    """

    def per_second(name: str, what: str) -> np.ndarray:
        return np.array([turn[what] / turn["seconds"] for turn in contestants[name].turns])

    lines = [
        "| | environment steps/s | gradient steps/s | times SB3's DQN | share of the floor |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in contestants:
        learned = per_second(name, "gradient_steps")
        stepped = "–" if name in FLOORS else f"{np.median(per_second(name, 'env_steps')):.0f}"
        times = np.median(learned / per_second(REFERENCE, "gradient_steps"))
        floor = floor_of(name)
        share = "–"
        if floor in contestants:
            share = f"{np.median(learned / per_second(floor, 'gradient_steps')):.2f}"
        lines.append(f"| {name} | {stepped} | {np.median(learned):.1f} | {times:.2f} | {share} |")
    return "\n".join(lines)


def floor_of(name: str) -> str:
    """
    :param name: of a contestant
    :return: name in ``FLOORS`` of the same arithmetic on the same network, or of none
    """
    _, *options = name.split(", ")
    kept = [option for option in options if option not in ("while stepping", "native")]
    return ", ".join(["floor", *kept]) if name.startswith("ours") else ""


def parts(contestants: dict[str, Contestant], env_steps: int, rounds: int, n_envs: int) -> str:
    """
    :param contestants: by name
    :param env_steps: of a turn
    :param rounds: how many
    :param n_envs: environments that step at the same time
    :return: a markdown table
    """
    timed = [name for name in contestants if name in CONTESTANTS or name in NATIVE]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name in random.sample(timed, len(timed)):
            answers[name].append(contestants[name].take_turn(f"parts {env_steps}"))
    lines = [
        f"| ms | {' | '.join(ACTING)} | {' | '.join(LEARNING)} | gradient step | times SB3's DQN |",
        "|---|" + "---:|" * (len(ACTING) + len(LEARNING) + 2),
    ]

    def milliseconds(name: str, part: str) -> np.ndarray:
        of_turns = [
            answer["parts"].get(part, 0.0)
            / (answer["env_steps"] / n_envs if part in ACTING else answer["gradient_steps"])
            for answer in answers[name]
        ]
        return 1e3 * np.array(of_turns)

    def gradient_step(name: str) -> np.ndarray:
        return np.sum([milliseconds(name, part) for part in LEARNING], axis=0)

    for name in timed:
        cells = [f"{np.median(milliseconds(name, part)):.2f}" for part in (*ACTING, *LEARNING)]
        times = np.median(gradient_step(REFERENCE) / gradient_step(name))
        lines.append(f"| {name} | {' | '.join(cells)} | {np.median(gradient_step(name)):.2f} | {times:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--rounds", type=positive, default=7, help="turns of each (default %(default)s)")
    parser.add_argument("--steps", type=positive, default=768, help="environment steps of a turn (default %(default)s)")
    parser.add_argument("--only", nargs="*", help="these contestants, beside the reference")
    parser.add_argument("--python", nargs="*", default=[], metavar="NAME=PATH", help="libraries installed elsewhere")
    args = parser.parse_args()

    if args.python and args.task != "breakout":
        parser.error(f"--python {' '.join(args.python)}: these libraries play breakout alone")
    if not all("=" in pair for pair in args.python):
        parser.error(f"--python {' '.join(args.python)}: give NAME=PATH")
    if args.task == "breakout" and args.steps % 32:
        parser.error(f"--steps {args.steps}: give a multiple of 32, whole rollouts")
    all_commands = commands(args.task, dict(pair.split("=", 1) for pair in args.python))
    unknown = set(args.only or []) - (all_commands.keys() - {REFERENCE})
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: known are {', '.join(all_commands.keys() - {REFERENCE})}")
    extra = {f"ours, {name}" for name in NAMES}
    if not th.cuda.is_available():
        extra |= {name for name in all_commands if ", device" in name}
    wanted = [name for name in all_commands if name not in extra] if args.only is None else [REFERENCE, *args.only]
    contestants: dict[str, Contestant] = {}
    try:
        for name in wanted:
            contestants[name] = Contestant(all_commands[name])
            print(f"{name} is ready", file=sys.stderr, flush=True)
        measure(contestants, args.steps, args.rounds)
        packages = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "ale-py")
        versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
        chip = th.cuda.get_device_name() if th.cuda.is_available() else f"{os.cpu_count()} cores, no GPU"
        print(
            f"{args.task}, {args.rounds} turns of {args.steps} environment steps; {datetime.date.today().isoformat()},"
        )
        print(f"{platform.machine()}, {chip}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads; {versions}\n")
        print(whole_runs(contestants), "\n")
        print(parts(contestants, args.steps, args.rounds, n_envs=8 if args.task == "breakout" else 1))
    finally:
        for contestant in contestants.values():
            contestant.close()


if __name__ == "__main__":
    main()
