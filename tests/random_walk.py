"""Environments of random observations that keep a record, and small models that are soon trained there."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn import PerDoubleDQN, PrioritizedReplayBuffer

GAMMA = 0.9
N_ACTIONS = 3


class RandomWalk(gym.Env[np.ndarray, int]):
    """Random observations and rewards; an episode ends with chance 1/8. It keeps a record of what happened."""

    observation_space: Any = spaces.Box(-1, 1, (2,))

    def __init__(self, n_actions: int = N_ACTIONS, first_action: int = 0) -> None:
        self.action_space: Any = spaces.Discrete(n_actions, start=first_action)
        self.record: list[tuple[Any, int, float, Any, bool]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.obs = self.observation_space.sample()
        return self.obs, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before, self.obs = self.obs, self.observation_space.sample()
        reward, terminated = float(self.np_random.normal()), bool(self.np_random.random() < 1 / 8)
        self.record.append((before, int(action), reward, self.obs, terminated))
        return self.obs, reward, terminated, False, {}


class DictWalk(RandomWalk):
    observation_space = spaces.Dict({"room": spaces.Discrete(5), "box": spaces.Box(-1, 1, (2,))})


class DiscreteWalk(RandomWalk):
    observation_space = spaces.Discrete(6)


def walks(n_envs: int = 1, env: Callable[[], gym.Env[Any, Any]] = RandomWalk, max_steps: int = 5) -> VecEnv:
    return make_vec_env(lambda: TimeLimit(env(), max_steps), n_envs, seed=3)


def make(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    """A small model of a kind that is soon trained."""
    policy_kwargs = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    arguments: dict[str, Any] = {
        "learning_starts": 20,
        "batch_size": 16,
        "buffer_size": 200,
        "train_freq": 2,
        "target_update_interval": 40,
        "gamma": GAMMA,
        "seed": 1,
        "device": "cpu",
        **kwargs,
    }
    return PerDoubleDQN(policy, walks() if env is None else env, policy_kwargs=policy_kwargs, **arguments)


def buffer_of(model: PerDoubleDQN) -> PrioritizedReplayBuffer:
    assert isinstance(model.replay_buffer, PrioritizedReplayBuffer)
    return model.replay_buffer


class EachStep(BaseCallback):
    """Calls a function with the model after every step; training stops where it returns False."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self.model) is not False


class SpoilWeights(BaseCallback):
    """At step 30, as a learning rate that is too large would."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 30:
            with th.no_grad():
                next(self.model.policy.parameters()).fill_(float("nan"))
        return True
