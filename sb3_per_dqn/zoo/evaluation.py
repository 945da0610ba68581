"""Evaluation mode: games that are watched and scored, from hyperparameters as the zoo has them."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import create_test_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn.atari import AtariGameWrapper
from sb3_per_dqn.classes import listed, name_and_kwargs

GAME_WRAPPER = f"{AtariGameWrapper.__module__}.{AtariGameWrapper.__name__}"
EVALUATION_KWARGS = {"evaluation": True, "terminal_on_life_loss": False, "clip_reward": False}  # of AtariGameWrapper


MAX_STEPS = 10_000  # of a game that has no limit of its own, where a greedy policy may stand still for ever


def limited(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param env_id: id of the environment
    :param env_kwargs: for ``gymnasium.make``
    :return: the same, with ``max_episode_steps`` if nothing else ends an episode (games of Atari have a limit)
    """
    is_endless = gym.spec(env_id).max_episode_steps is None and not ExperimentManager.is_atari(env_id)
    return {**({"max_episode_steps": MAX_STEPS} if is_endless else {}), **env_kwargs}


def create_evaluation_env(env_id: str, *args: Any, **kwargs: Any) -> VecEnv:
    """
    The zoo's ``create_test_env``, with Atari games in evaluation mode, and episodes that end.

    :param env_id: id of the environment
    :param args: as for the zoo's function
    :param kwargs: as for the zoo's function, and its ``hyperparams``
    :return: the vectorized environment
    """
    kwargs["env_kwargs"] = limited(env_id, kwargs.get("env_kwargs") or {})
    kwargs["hyperparams"] = in_evaluation_mode(kwargs.get("hyperparams") or {})
    return create_test_env(env_id, *args, **kwargs)


def in_evaluation_mode(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: as in the zoo's YAML
    :return: the same with :class:`AtariGameWrapper` in evaluation mode; ``hyperparams`` itself without that wrapper
    """
    wrappers = listed(hyperparams.get("env_wrapper"))
    evaluation = [_wrapper_in_evaluation_mode(wrapper) for wrapper in wrappers]
    return hyperparams if evaluation == wrappers else {**hyperparams, "env_wrapper": evaluation}


def _wrapper_in_evaluation_mode(wrapper: Any) -> Any:
    name, kwargs = name_and_kwargs(wrapper)
    return {name: {**kwargs, **EVALUATION_KWARGS}} if _is_game_wrapper(name) else wrapper


def native_wrapper_kwargs(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: as in the zoo's YAML
    :return: the arguments of their :class:`AtariGameWrapper`, whose work native emulators do
    :raises ValueError: if the environment is wrapped in something else
    """
    given = hyperparams.get("env_wrapper")
    wrappers = listed(given)
    name, kwargs = name_and_kwargs(wrappers[0]) if len(wrappers) == 1 else (None, {})
    if not _is_game_wrapper(name) or hyperparams.get("vec_env_wrapper") or hyperparams.get("normalize"):
        raise ValueError(
            f"emulators: native is for env_wrapper: {GAME_WRAPPER} alone, without vec_env_wrapper and normalize: "
            f"leave out the others, or choose emulators: processes (env_wrapper={given!r})."
        )
    return dict(kwargs)


def _is_game_wrapper(name: Any) -> bool:
    return name in (AtariGameWrapper, GAME_WRAPPER)
