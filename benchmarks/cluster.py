"""
How fast do actors on a Ray cluster play, and what does each stage of it cost?

``python -m benchmarks.cluster cartpole``, ``minatar`` or ``atari`` (Breakout, both) trains with 1, 2 and 4 actors, and
prints one markdown table. Each run is first trained for ``--warm-up`` steps (in which networks, memory and processes
find their size), and then measured for ``--steps``. Of these:

- environment steps a second: of the whole run, gradient steps included, at the replay ratio of the task's settings in
  ``hyperparams/`` (``--ratio`` is another; 0 is playing without learning);
- in the actors, microseconds a step of one environment: the policy, the environments, TD errors and packing, and
  waiting, while the learner takes no more (this includes what Ray itself takes between two fragments);
- in the learner, likewise: waiting for fragments, getting them from Ray, unpacking them, storing transitions, and
  gradient steps;
- what an actor sends: bytes a step and a second (arrays; infos are not counted).

``--ray-address`` runs the actors on a cluster; without it, Ray is started on this machine.
"""

import argparse
import datetime
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import gymnasium as gym
import ray
from stable_baselines3.common.vec_env import VecFrameStack

from benchmarks.priorities import positive
from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.atari import AtariGameWrapper
from sb3_per_dqn.cluster import RemoteActors
from sb3_per_dqn.minatar import ChannelFirst, MinAtarPolicy, register_minatar

OF_ACTOR = ("acting", "environment", "packing", "waiting")
OF_LEARNER = ("waiting", "fetching", "unpacking", "storing", "gradient")


def minatar() -> gym.Env[Any, Any]:
    """
    :return: MinAtar's Breakout, as in ``hyperparams/minatar_300k.yml``
    """
    register_minatar()
    return ChannelFirst(gym.make("MinAtar/Breakout-v0"))


def atari() -> gym.Env[Any, Any]:
    """
    :return: Breakout's frames, one by one; they are stacked in the actors
    """
    return AtariGameWrapper(gym.make("BreakoutNoFrameskip-v4"))


CARTPOLE: dict[str, Any] = {
    "policy": "MlpPolicy",
    "policy_kwargs": {"net_arch": [256, 256]},
    "learning_rate": 1e-3,
    "batch_size": 128,
    "n_steps": 3,
    "target_update_interval": 200,
}
ATARI: dict[str, Any] = {"policy": "CnnPolicy", "learning_rate": 1e-4, "batch_size": 32}
MINATAR: dict[str, Any] = {
    "policy": MinAtarPolicy,
    "learning_rate": 2.5e-4,
    "batch_size": 32,
    "target_update_interval": 1000,
}
# how an environment is made, arguments of the model, gradient steps for an environment step
TASKS: dict[str, tuple[Callable[[], Any], dict[str, Any], float]] = {
    "cartpole": (partial(gym.make, "CartPole-v1"), CARTPOLE, 8 / 16),
    "minatar": (minatar, MINATAR, 2 / 8),
    "atari": (atari, ATARI, 1 / 4),
}


class Measured(PerDoubleDQN):
    """Knows how long it stores transitions and takes gradient steps."""

    seconds: Counter[str]

    def _store_transition(self, *args: Any, **kwargs: Any) -> None:
        begin = time.perf_counter()
        super()._store_transition(*args, **kwargs)
        self.seconds["storing"] += time.perf_counter() - begin  # type: ignore[assignment]

    def _train(self, *args: Any) -> None:
        begin = time.perf_counter()
        super()._train(*args)
        self.seconds["gradient"] += time.perf_counter() - begin  # type: ignore[assignment]


def measured(task: str, n_actors: int, options: argparse.Namespace) -> list[float]:
    """
    :param task: one of ``TASKS``
    :param n_actors: how many actors
    :param options: from the command line
    :return: the numbers of a row
    """
    make, arguments, ratio = TASKS[task]
    ratio = ratio if options.ratio is None else options.ratio
    stacks = partial(VecFrameStack, n_stack=4) if task == "atari" else None
    env = RemoteActors(
        make,
        n_actors,
        options.envs,
        fragment=options.fragment,
        vec_env_wrapper=stacks,
        num_cpus=options.num_cpus,
    )
    lanes = n_actors * options.envs
    model = Measured(
        env=env,
        buffer_size=100_000,
        learning_starts=options.warm_up // 2,
        train_freq=max(round(1 / (ratio * lanes)), 1) if ratio else 1,
        gradient_steps=max(round(ratio * lanes), 1) if ratio else 0,
        device=options.device,
        **arguments,
    )
    model.seconds = Counter()
    model.learn(options.warm_up, log_interval=None)  # a dump would begin the statistics anew
    env.statistics()
    model.seconds.clear()
    before, begin = model.num_timesteps, time.perf_counter()
    model.learn(options.steps, log_interval=None, reset_num_timesteps=False)
    seconds, steps = time.perf_counter() - begin, model.num_timesteps - before
    statistics = env.statistics()
    env.close()
    of_learner = {**{stage: statistics.get(f"learner_{stage}", 0.0) for stage in OF_LEARNER}, **model.seconds}
    played = statistics["steps_per_second"] * seconds  # of one actor
    return [
        n_actors,
        steps / seconds,
        *(1e6 * statistics[f"actor_{stage}"] / played for stage in OF_ACTOR),
        *(1e6 * of_learner[stage] / steps for stage in OF_LEARNER),
        1e6 * statistics["megabytes_per_second"] / statistics["steps_per_second"],
        1e6 * statistics["megabytes_per_second"],
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--actors", type=positive, nargs="+", default=[1, 2, 4])
    parser.add_argument("--envs", type=positive, default=8, help="environments of an actor")
    parser.add_argument("--fragment", type=positive, default=50)
    parser.add_argument("--steps", type=positive, default=50_000, help="environment steps that are measured")
    parser.add_argument("--warm-up", type=positive, default=10_000, help="environment steps before these")
    parser.add_argument("--ratio", type=float, help="gradient steps for an environment step; 0 for none")
    parser.add_argument("--num-cpus", type=float, default=1.0, help="processors that Ray reserves for an actor")
    parser.add_argument("--device", default="auto", help="of the learner")
    parser.add_argument("--ray-address", help="of a cluster")
    options = parser.parse_args()
    if options.ray_address:
        ray.init(address=options.ray_address)
    else:
        cpus = max(os.cpu_count() or 1, round(options.num_cpus * max(options.actors) + 0.5))  # Ray's count, not ours
        ray.init(address="local", num_cpus=cpus, include_dashboard=False)
    columns = [
        "actors",
        "steps/s",
        *(f"actor: {stage}, µs" for stage in OF_ACTOR),
        *(f"learner: {stage}, µs" for stage in OF_LEARNER),
        "bytes a step",
        "bytes/s of an actor",
    ]
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("ray", "torch", "stable-baselines3"))
    print(
        f"\n{options.task}, {datetime.date.today()}, {os.cpu_count()} {platform.machine()} cores, {versions};", end=" "
    )
    print(f"{options.envs} environments an actor, fragments of {options.fragment} steps\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for n_actors in options.actors:
        row = measured(options.task, n_actors, options)
        print(f"| {' | '.join(f'{number:,.0f}' for number in row)} |", flush=True)


if __name__ == "__main__":
    main()
