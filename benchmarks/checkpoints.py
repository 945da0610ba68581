"""
What do checkpoints cost?

    python -m benchmarks.checkpoints 100000 1000000

For each size of replay memory: a model that plays Breakout with eight games writes its first checkpoint with a full
memory, and another one after as many steps as lie between two by default; then a new model resumes from it. The frames
are real ones, of random play, repeated until the memory is full. Prints a markdown table: seconds and bytes written.

    python -m benchmarks.checkpoints --train 1

trains on Breakout, with the seed experiment's shape and 100,000 transitions, until so many checkpoints have been
written, and prints what share of the run's time they took.
"""

import argparse
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.priorities import positive
from sb3_per_dqn import PerDoubleDQN, make_atari_vec_env
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.checkpoint.files import CheckpointFolder
from sb3_per_dqn.checkpoint.run import EVERY, _captured_run, _restore_run

N_ENVS = 8
RECORDED = 2_000  # steps of all games


ROLLOUT = 32  # environment steps
SEED_SHAPE = {"learning_starts": 16_383, "train_freq": 4, "gradient_steps": 8, "learning_rate": 2.5e-4}


def make_model(transitions: int, **kwargs: Any) -> Any:
    """
    :param transitions: size of replay memory
    :param kwargs: further arguments of the model
    :return: a model with environments
    """
    env = make_atari_vec_env("BreakoutNoFrameskip-v4", N_ENVS, seed=0)
    return PerDoubleDQN("CnnPolicy", env, buffer_size=transitions, policy_kwargs={"net_arch": [256]}, seed=0, **kwargs)


def recorded(model: Any) -> list[tuple[Any, ...]]:
    """
    :param model: whose environments are played at random
    :return: the arguments of ``add`` for each step
    """
    steps, obs = [], model.env.reset()
    for _ in range(RECORDED):
        actions = np.array([model.action_space.sample() for _ in range(N_ENVS)])
        next_obs, rewards, dones, infos = model.env.step(actions)
        last = next_obs.copy()
        for i in np.flatnonzero(dones):
            last[i] = infos[i]["terminal_observation"]
        kept = [{"TimeLimit.truncated": info.get("TimeLimit.truncated", False)} for info in infos]
        steps.append((obs.copy(), last, actions, rewards, dones, kept))
        obs = next_obs
    return steps


def endless(steps: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """
    :param steps: arguments of ``add``
    :return: the same, again and again
    """
    while True:
        yield from steps


def timed(do: Callable[[], Any]) -> float:
    """
    :param do: what to do
    :return: seconds that it takes
    """
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def size_of(folder: Path) -> int:
    """
    :param folder: any
    :return: bytes of all files in it
    """
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(transitions: int, every: int) -> str:
    """
    :param transitions: size of replay memory
    :param every: steps between two checkpoints
    :return: a line of the table
    """
    model = make_model(transitions)
    model._setup_learn(1)
    model._last_obs = model.env.reset()
    model._setup_learn(transitions, reset_num_timesteps=False)
    steps = endless(recorded(model))
    with tempfile.TemporaryDirectory() as name:
        folder, files = Path(name), CheckpointFolder(name, keep=1)

        for _ in range(transitions // N_ENVS):
            model.replay_buffer.add(*next(steps))
        first = timed(lambda: files.write(1, _captured_run(model, restart=False)))
        there = size_of(folder)
        for _ in range(every // N_ENVS):
            model.replay_buffer.add(*next(steps))
        before = {path.name for path in folder.rglob("*.npy")}
        second = timed(lambda: files.write(2, _captured_run(model, restart=False)))
        new = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in before)
        model.env.close()
        model.replay_buffer = None
        other = make_model(transitions)
        back = timed(lambda: _restore_run(other, files.read()[1]))
        other.env.close()
    return f"| {transitions:,} | {first:.1f} | {there / 1e9:.2f} | {second:.1f} | {new / 1e9:.2f} | {back:.1f} |"


class TimedCheckpoints(RunCheckpoints):
    """Knows how long they took."""

    seconds = 0.0

    def _save(self) -> None:
        self.seconds += timed(super()._save)


def share(checkpoints: int, every: int) -> str:
    """
    :param checkpoints: to write
    :param every: steps between two
    :return: what they cost in a run
    """
    model = make_model(100_000, **SEED_SHAPE)
    with tempfile.TemporaryDirectory() as name:
        callback = TimedCheckpoints(name, every)
        # one is written before a rollout, after the gradient steps of the one before
        seconds = timed(lambda: model.learn(checkpoints * (every + ROLLOUT) + 1, callback=callback))
        written = len(callback.steps)
    model.env.close()
    assert written == min(checkpoints, callback.files.keep)
    steps = model.num_timesteps
    cost = f"{callback.seconds:.1f} s or {callback.seconds / seconds:.2%} for {checkpoints} checkpoint(s)"
    return f"{steps} steps, {seconds:.0f} s, of these {cost}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transitions", type=positive, nargs="*")
    parser.add_argument("--train", type=positive, metavar="N", help="N checkpoints in a run, and nothing else")
    parser.add_argument("--every", type=positive, default=EVERY, help="steps between two (default %(default)s)")
    args = parser.parse_args()
    if args.train is not None:
        print(share(args.train, args.every))
        return
    print(f"checkpoints every {args.every:,} steps; {datetime.date.today().isoformat()}\n")
    print("| transitions | first: s | GB | later ones: s | GB written | resume: s |\n|---:|---:|---:|---:|---:|---:|")
    for transitions in args.transitions:
        print(measure(transitions, args.every), flush=True)


if __name__ == "__main__":
    main()
