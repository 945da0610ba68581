"""Environments that choose their actions themselves: where these come from, as the algorithm sees it."""

from abc import abstractmethod
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs


class ActingVecEnv(VecEnv):
    """
    Environments whose steps were made elsewhere, by a copy of the policy, and are played back here. Infos have the TD
    error of each step (``TD_ERROR``) as that copy saw it.
    """

    @abstractmethod
    def acted(self, model: Any) -> tuple[VecEnvObs, np.ndarray, np.ndarray]:
        """
        The next step, which ``step`` then returns the results of.

        :param model: that learns from it, and whose weights are to act
        :return: observations before it; its actions; and where it does not follow the last step, shape (n_envs,)
        """

    @abstractmethod
    def statistics(self) -> dict[str, float]:
        """
        :return: what is to be logged, by name
        """
