"""
One algorithm of Stable-Baselines3's kind, run in turns by ``benchmarks.speed``.

``python -m benchmarks.speed_contestants TASK NAME`` prints ``ready`` when it is warm. Then for each line ``N`` that it
reads, it makes N environment steps, with the gradient steps that go with them, and prints what that took as JSON:
``seconds``, ``env_steps``, ``gradient_steps``. For a line ``parts N`` it adds ``parts``, the seconds of each part.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch as th
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN, make_atari_vec_env
from sb3_per_dqn.speedups import NAMES

# The seed experiment's shape: 8 games x 4 steps, then 8 gradient steps of 32, and its buffer; learning starts at once
BREAKOUT: dict[str, Any] = {
    "policy": "CnnPolicy",
    "learning_rate": 2.5e-4,
    "buffer_size": 2**14,
    "learning_starts": 500,
    "batch_size": 32,
    "train_freq": 4,
    "gradient_steps": 8,
    "target_update_interval": 8_000,
    "max_grad_norm": 0.5,
    "exploration_initial_eps": 0.1,
    "exploration_final_eps": 0.1,
    "policy_kwargs": {"net_arch": [256]},
}
# rl-zoo3's settings
CARTPOLE: dict[str, Any] = {
    "policy": "MlpPolicy",
    "learning_rate": 2.3e-3,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "batch_size": 64,
    "train_freq": 256,
    "gradient_steps": 128,
    "target_update_interval": 10,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}
TASKS = {"breakout": BREAKOUT, "cartpole": CARTPOLE}
ALL_OFF = {"double_q": False, "prioritized_replay": False, "per_env_exploration": False}
ON_DEVICE = {"replay_buffer_class": DeviceReplayBuffer}
WARM_STEPS = {"breakout": 768, "cartpole": 4_096}

CONTESTANTS: dict[str, tuple[type[OffPolicyAlgorithm], dict[str, Any]]] = {
    "SB3's DQN": (DQN, {}),
    "sb3-contrib's QRDQN": (QRDQN, {}),
    "ours, all off, none": (PerDoubleDQN, {**ALL_OFF, "dueling": False, "speedups": "none"}),
    "ours, all off, safe": (PerDoubleDQN, {**ALL_OFF, "dueling": False}),
    "ours, all off, max": (PerDoubleDQN, {**ALL_OFF, "dueling": False, "speedups": "max"}),
    "ours, not dueling, safe": (PerDoubleDQN, {"dueling": False}),
    "ours, not dueling, max": (PerDoubleDQN, {"dueling": False, "speedups": "max"}),
    "ours, none": (PerDoubleDQN, {"speedups": "none"}),
    "ours, safe": (PerDoubleDQN, {}),
    "ours, max": (PerDoubleDQN, {"speedups": "max"}),
    "ours, safe, while stepping": (PerDoubleDQN, {"train_while_stepping": True}),
    "ours, max, while stepping": (PerDoubleDQN, {"speedups": "max", "train_while_stepping": True}),
    "ours, safe, device": (PerDoubleDQN, {**ON_DEVICE}),
    "ours, max, device": (PerDoubleDQN, {**ON_DEVICE, "speedups": "max"}),  # on CUDA with a graph
    "ours, max, device, while stepping": (
        PerDoubleDQN,
        {**ON_DEVICE, "speedups": "max", "train_while_stepping": True},
    ),
}
CONTESTANTS |= {f"ours, {name}": (PerDoubleDQN, {"speedups": name}) for name in NAMES}
# The same network on one batch that is already in place: no environments, no replay
FLOORS = {"floor, none": "none", "floor, safe": "safe", "floor, max": "max", "floor, max, device": "max"}


class Stopwatch:
    """The time of each watched part, without that of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.parts = ["rest"]
        self.since = time.perf_counter()

    def turn(self) -> None:
        """Count the time since the last turn for the present part."""
        if th.cuda.is_available():
            th.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self.parts[-1]] += now - self.since
        self.since = now

    @contextmanager
    def watching(self, owner: Any, method: str, part: str) -> Iterator[None]:
        """
        :param owner: object, class or module
        :param method: name of its function
        :param part: what its time is counted as
        """
        original = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self.parts.append(part)
            try:
                return original(*args, **kwargs)
            finally:
                self.turn()
                self.parts.pop()

        setattr(owner, method, watched)
        yield
        setattr(owner, method, original)


def watched_parts(model: Any) -> list[tuple[Any, str, str]]:
    """
    :param model: an off-policy algorithm
    :return: object, name of a method, and the part that it belongs to
    """
    buffer = model.replay_buffer
    parts = [
        (model, "_sample_action", "act"),
        (model.env, "step_async", "step"),
        (model.env, "step_wait", "step"),
        (buffer, "add", "add"),
        (buffer, "sample", "sample"),
        (buffer, "to_torch", "copy to device"),
        (model, "train", "forward and loss"),
        (model, "_train", "forward and loss"),
        (th.Tensor, "backward", "backward"),
        (th.nn.utils, "clip_grad_norm_", "optimizer"),
        (th.nn.utils, "get_total_norm", "optimizer"),  # ours on a CPU
        (th.nn.utils, "clip_grads_with_norm_", "optimizer"),
        (model.policy.optimizer, "step", "optimizer"),
        (buffer, "update_priorities", "priorities"),
    ]
    return [part for part in parts if hasattr(part[0], part[1])]


def learner(task: str, name: str, native: bool) -> tuple[Any, Callable[[int], None]]:
    """
    :param task: name in ``TASKS``
    :param name: name in ``CONTESTANTS``
    :param native: ALE's own vector of emulators
    :return: the model, and what makes so many environment steps
    """
    algorithm, extra = CONTESTANTS[name]
    settings = {**TASKS[task], **extra}
    if "dueling" in settings:
        settings["policy_kwargs"] = {**settings["policy_kwargs"], "dueling": settings.pop("dueling")}
    model: Any = algorithm(env=make_env(task, native), seed=0, **settings)

    def learn(env_steps: int) -> None:
        model.learn(env_steps, log_interval=None, reset_num_timesteps=False)

    learn(WARM_STEPS[task])
    return model, learn


def make_env(task: str, native: bool) -> VecEnv:
    """
    :param task: name in ``TASKS``
    :param native: ALE's own vector of emulators
    :return: eight games of Breakout, or one pole
    """
    if task == "cartpole":
        return make_vec_env("CartPole-v1", seed=0)
    emulators: Any = "native" if native else "processes"
    return make_atari_vec_env("BreakoutNoFrameskip-v4", n_envs=8, seed=0, emulators=emulators)


def floor(task: str, name: str) -> tuple[Any, Callable[[int], None]]:
    """
    :param task: name in ``TASKS``
    :param name: name in ``FLOORS``
    :return: the model, and what makes the gradient steps that go with so many environment steps
    """
    settings = {**TASKS[task], "speedups": FLOORS[name], "learning_starts": 10**6}
    settings |= ON_DEVICE if name.endswith("device") else {"prioritized_replay": False}
    model: Any = PerDoubleDQN(env=make_env(task, native=False), seed=0, **settings)
    model.learn(256)
    model.env.close()  # its processes would only take memory from the other contestants
    batch = model.replay_buffer.sample(settings["batch_size"])
    model.replay_buffer.sample = lambda *args, **kwargs: batch
    model.replay_buffer.update_priorities = lambda *args: None
    per_env_step = settings["gradient_steps"] / (settings["train_freq"] * model.n_envs)

    def learn(env_steps: int) -> None:
        model.train(int(env_steps * per_env_step), settings["batch_size"])

    learn(WARM_STEPS[task])
    return model, learn


def main() -> None:
    """Take turns."""
    task, name = sys.argv[1:3]
    native = name.endswith(", native")
    name = name.removesuffix(", native")
    model, learn = floor(task, name) if name in FLOORS else learner(task, name, native)
    print("ready", flush=True)
    for line in sys.stdin:
        with_parts, env_steps = "parts" in line, int(line.split()[-1])
        updates, timesteps, start = model._n_updates, model.num_timesteps, time.perf_counter()
        if with_parts:
            answer: dict[str, Any] = {"parts": timed_parts(model, learn, env_steps)}
        else:
            learn(env_steps)
            answer = {}
        seconds = time.perf_counter() - start
        made = env_steps if name in FLOORS else model.num_timesteps - timesteps
        answer |= {"seconds": seconds, "env_steps": made, "gradient_steps": model._n_updates - updates}
        print(json.dumps(answer), flush=True)
    if name not in FLOORS:
        model.env.close()


def timed_parts(model: Any, learn: Callable[[int], None], env_steps: int) -> dict[str, float]:
    """
    :param model: an off-policy algorithm
    :param learn: makes so many environment steps
    :param env_steps: how many
    :return: seconds of each part
    """
    stopwatch = Stopwatch()
    with ExitStack() as watching:
        for owner, method, part in watched_parts(model):
            watching.enter_context(stopwatch.watching(owner, method, part))
        learn(env_steps)
        stopwatch.turn()
    return dict(stopwatch.seconds)


if __name__ == "__main__":
    main()
