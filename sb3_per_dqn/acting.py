"""Environments that choose their actions themselves: where these come from, as the algorithm sees it."""

from abc import abstractmethod
from typing import Any

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer


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


def check_acting(model: OffPolicyAlgorithm) -> None:
    """
    :param model: in whose environment such ones are
    :raises ValueError: if something else of it does not go with them
    """
    env, buffer = model.env, model.replay_buffer
    assert env is not None
    name = type(env.unwrapped).__name__
    if env is not env.unwrapped:
        raise ValueError(
            f"{type(env).__name__} around {name}, whose actors would not see it: wrap what is in the actors "
            "(env_fn, vec_env_wrapper)."
        )
    if isinstance(buffer, HerReplayBuffer):
        raise ValueError(f"replay_buffer_class=HerReplayBuffer asks environments for rewards: not with {name}.")
    if isinstance(buffer, PrioritizedReplayBuffer):
        return
    if model.n_steps > 1 or model.optimize_memory_usage:
        raise ValueError(
            f"{type(buffer).__name__} does not notice where the streams of {name} break off: pass n_steps=1 and "
            "optimize_memory_usage=False, or prioritized_replay=True."
        )
