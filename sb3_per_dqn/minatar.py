"""MinAtar (Young & Tian, 2019, https://arxiv.org/abs/1903.03176) for gymnasium and the zoo."""

from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_per_dqn.policies import MlpPolicy

SQUARE = 16  # pixels of a picture for a square of the grid
GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


def register_minatar() -> None:
    """
    Make ``MinAtar/<Game>-v0`` (full action set) and ``-v1`` (minimal) known to gymnasium, once.

    The ids are those of MinAtar's own ``register_envs``, which would import the games and seaborn with them.

    :raises ModuleNotFoundError: without the ``minatar`` package, saying how to get it
    """
    if find_spec("minatar") is None:
        raise ModuleNotFoundError("MinAtar is not installed: pip install 'sb3-per-dqn[minatar]'")
    for game in GAMES:
        for version, minimal in (("v0", False), ("v1", True)):
            env_id = f"MinAtar/{game.title().replace('_', '')}-{version}"
            if env_id not in gym.registry:
                gym.register(env_id, "minatar.gym:BaseEnv", kwargs={"game": game, "use_minimal_action_set": minimal})


class ChannelFirst(gym.ObservationWrapper[np.ndarray, int, np.ndarray]):
    """
    MinAtar's (10, 10, channels) grid as (channels, 10, 10), the order of PyTorch's convolutions, and its pictures as
    bytes that a video can hold: MinAtar paints one pixel for a square, in fractions of 1.

    :param env: an environment with a three-dimensional Box observation, channels last
    """

    def __init__(self, env: gym.Env[np.ndarray, int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(f"ChannelFirst needs a Box of three dimensions, got {space}.")
        self.observation_space = spaces.Box(
            np.moveaxis(space.low, -1, 0),
            np.moveaxis(space.high, -1, 0),
            dtype=space.dtype.type,
        )

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: shape (height, width, channels)
        :return: shape (channels, height, width), contiguous
        """
        return np.ascontiguousarray(np.moveaxis(observation, -1, 0))

    def render(self) -> Any:
        """
        :return: in mode ``rgb_array``, shape (10 SQUARE, 10 SQUARE, 3), uint8; else as the environment does
        """
        picture = self.env.render()
        if self.render_mode != "rgb_array":
            return picture
        colours = np.rint(255 * np.asarray(picture)).astype(np.uint8)
        return colours.repeat(SQUARE, axis=0).repeat(SQUARE, axis=1)


class MinAtarCNN(BaseFeaturesExtractor):
    """
    The body of MinAtar's published DQN: 16 filters of 3×3, then one layer of 128 units.

    :param observation_space: Box of shape (channels, height, width)
    :param features_dim: units of the last layer
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (height - 2) * (width - 2), features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: (batch, channels, height, width), float
        :return: (batch, features_dim)
        """
        features: th.Tensor = self.body(observations)
        return features


class MinAtarPolicy(MlpPolicy):
    """
    ``MlpPolicy`` on :class:`MinAtarCNN`, with no hidden layer behind it unless ``net_arch`` says so.

    :param args: as for ``MlpPolicy``
    :param kwargs: as for ``MlpPolicy``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", MinAtarCNN)
        kwargs.setdefault("net_arch", [])
        super().__init__(*args, **kwargs)
