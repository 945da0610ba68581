"""Worker processes that end, hang or raise, and numbers that are none: what is said, and that nothing is left."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.workers import WorkerError, WorkerVecEnv


class Faulty(gym.Env[Any, int]):
    """Does something at the fifth step."""

    observation_space: Any = spaces.Box(-10, 10, (2,))
    action_space: Any = spaces.Discrete(2)

    def __init__(self, fault: Callable[[], Any] | None = None) -> None:
        self.fault, self.steps = fault, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        answer = self.fault() if self.steps == 5 and self.fault is not None else None
        obs, reward = answer or (np.zeros(2, np.float32), 1.0)
        return obs, reward, False, False, {}


def raise_error() -> None:
    raise KeyError("the simulator has lost its mind")


def cannot_be_made() -> gym.Env[Any, int]:
    raise RuntimeError("no licence")


def workers(fault: Any, **kwargs: Any) -> WorkerVecEnv:
    return WorkerVecEnv([Faulty, partial(Faulty, fault)], **kwargs)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_error, r"Worker 1 of 2 has ended with exit code 1. Its own traceback:(.|\n)*lost its mind"),
        (partial(os._exit, 7), "Worker 1 of 2 has ended with exit code 7"),
        (partial(signal.raise_signal, signal.SIGKILL), r"exit code -9 \(killed, perhaps for want of memory\)"),
        (partial(time.sleep, 1000), "Worker 1 has not answered for 1.5 seconds: it hangs"),
    ],
)
def test_what_became_of_a_worker_is_said(fault: Any, message: str) -> None:
    before = set(multiprocessing.active_children())
    env = workers(fault, timeout=1.5)
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.raises(WorkerError, match=message):
        model.learn(100)
    assert model.num_timesteps == 8  # those that were made
    env.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("first", [True, False])
def test_an_environment_that_cannot_be_made(first: bool) -> None:
    before = set(multiprocessing.active_children())

    def make_and_reset() -> None:
        env = WorkerVecEnv([cannot_be_made, Faulty] if first else [Faulty, cannot_be_made])
        try:
            env.reset()
        finally:
            env.close()

    with pytest.raises(WorkerError, match=r"Worker [01] of 2 has ended with exit code 1(.|\n)*no licence"):
        make_and_reset()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number(bad: float) -> None:
    """TRAPS 15: where it comes from, before it is stored."""
    env = workers(lambda: (np.zeros(2, np.float32), bad))
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match=f"At step 10, the reward of environment 1 is {bad}"):
        model.learn(100)
    assert model.replay_buffer is not None
    assert model.replay_buffer.pos == 4
    env.close()


def test_an_observation_that_is_no_number() -> None:
    env = workers(lambda: (np.array([0, math.nan], np.float32), 1.0))
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match="At step 10, an observation of environment 1 is NaN"):
        model.learn(100)
    env.close()


class Secretive(Faulty):
    """From the fifth step on it holds what no state tells."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 4:
            self.hidden = iter([])
        return super().step(action)


def test_a_state_that_cannot_be_read_any_more_ends_no_worker(tmp_path: Path) -> None:
    env = WorkerVecEnv([Secretive, Secretive])
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, train_freq=1, device="cpu")
    with pytest.warns(UserWarning, match="No checkpoint at step 16.*hidden is a list_iterator"):
        model.learn(30, callback=RunCheckpoints(tmp_path, every=8))
    assert model.num_timesteps == 30
    env.close()
