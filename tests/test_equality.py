"""With every extension off, PerDoubleDQN is SB3's DQN bit for bit."""

from typing import Any

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_per_dqn import PerDoubleDQN

ALL_OFF: dict[str, Any] = {
    "double_q": False,
    "prioritized_replay": False,
    "per_env_exploration": False,
    "speedups": "none",
}


def cartpole(n_envs: int) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs, seed=3)


class SeededImageEnv(FakeImageEnv):
    """SB3's random images, repeatable under a seed."""

    def __init__(self) -> None:
        super().__init__(screen_height=36, screen_width=36, n_channels=4, channel_first=True)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.observation_space.seed(seed)
        return super().reset(seed=seed)


def images(n_envs: int) -> VecEnv:
    return make_vec_env(SeededImageEnv, n_envs, seed=3)


class DictEnv(gym.Env[Any, int]):
    """Random observations with a Box and a Discrete part; an episode lasts nine steps."""

    observation_space: Any = spaces.Dict({"box": spaces.Box(-1, 1, (3,)), "discrete": spaces.Discrete(5)})
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(action), False, self.steps == 9, {}


def train(algorithm: type[DQN], policy: str, env: VecEnv, policy_kwargs: dict[str, Any], **kwargs: Any) -> DQN:
    settings = {"learning_starts": 40, "batch_size": 20, "buffer_size": 500, "target_update_interval": 48, "seed": 11}
    model = algorithm(policy, env, train_freq=2, policy_kwargs=policy_kwargs, **{**settings, **kwargs})
    model.learn(400)
    env.close()
    return model


def assert_same(ours: DQN, theirs: DQN) -> None:
    mine, other = ours.policy.state_dict(), theirs.policy.state_dict()
    assert list(mine) == list(other)
    assert all(th.equal(mine[name], other[name]) for name in other)
    ours_optimizer, theirs_optimizer = ours.policy.optimizer.state_dict(), theirs.policy.optimizer.state_dict()
    for key, state in theirs_optimizer["state"].items():
        assert all(th.equal(state[name], ours_optimizer["state"][key][name]) for name in state)
    assert ours.num_timesteps == theirs.num_timesteps
    assert ours._n_updates == theirs._n_updates > 0


@pytest.mark.parametrize("n_envs", [1, 8])
@pytest.mark.parametrize(("policy", "make_env"), [("MlpPolicy", cartpole), ("CnnPolicy", images)])
def test_all_off_equals_sb3(policy: str, make_env: Any, n_envs: int) -> None:
    ours = train(PerDoubleDQN, policy, make_env(n_envs), {"dueling": False}, **ALL_OFF)
    theirs = train(DQN, policy, make_env(n_envs), {})
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "extra", [{"n_steps": 3}, {"tau": 0.3, "gradient_steps": -1}, {"max_grad_norm": 0.01, "gamma": 0.9}]
)
def test_all_off_equals_sb3_with_other_settings(extra: dict[str, Any]) -> None:
    ours = train(PerDoubleDQN, "MlpPolicy", cartpole(2), {"dueling": False, "net_arch": [32]}, **ALL_OFF, **extra)
    theirs = train(DQN, "MlpPolicy", cartpole(2), {"net_arch": [32]}, **extra)
    assert_same(ours, theirs)


class RegularizedFeatures(FlattenExtractor):
    """With layers that act differently in training and in use."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.layers = nn.Sequential(nn.BatchNorm1d(self.features_dim), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.layers(super().forward(observations))
        return features


def test_all_off_equals_sb3_in_training_mode() -> None:
    policy_kwargs = {"features_extractor_class": RegularizedFeatures}
    ours = train(PerDoubleDQN, "MlpPolicy", cartpole(2), {"dueling": False, **policy_kwargs}, **ALL_OFF)
    theirs = train(DQN, "MlpPolicy", cartpole(2), policy_kwargs)
    assert_same(ours, theirs)


def test_all_off_equals_sb3_with_a_schedule_of_the_learning_rate() -> None:
    schedule = {"learning_rate": lambda progress_remaining: 1e-2 * progress_remaining}
    ours = train(PerDoubleDQN, "MlpPolicy", cartpole(2), {"dueling": False}, **ALL_OFF, **schedule)
    theirs = train(DQN, "MlpPolicy", cartpole(2), {}, **schedule)
    assert_same(ours, theirs)


def test_all_off_equals_sb3_with_dict_observations() -> None:
    ours = train(PerDoubleDQN, "MultiInputPolicy", make_vec_env(DictEnv, 2, seed=3), {"dueling": False}, **ALL_OFF)
    theirs = train(DQN, "MultiInputPolicy", make_vec_env(DictEnv, 2, seed=3), {})
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "switched_on",
    [
        {"double_q": True},
        {"prioritized_replay": True},
        {"per_env_exploration": True},
        {"exploration": 0.5},
        {"dueling": True},
    ],
)
def test_each_extension_alone_changes_the_run(switched_on: dict[str, Any]) -> None:
    arguments = {**ALL_OFF, **switched_on}
    policy_kwargs = {"dueling": arguments.pop("dueling", False)}
    # so much between two target updates that the networks come to disagree about the best action
    fast: dict[str, Any] = {"learning_rate": 1e-2, "gradient_steps": 8, "target_update_interval": 200}
    ours = train(PerDoubleDQN, "MlpPolicy", cartpole(8), policy_kwargs, **fast, **arguments)
    theirs = train(DQN, "MlpPolicy", cartpole(8), {}, **fast)
    mine, other = ours.policy.state_dict(), theirs.policy.state_dict()
    assert list(mine) != list(other) or not all(th.equal(mine[name], other[name]) for name in other)
