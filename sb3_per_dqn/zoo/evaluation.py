"""Evaluation mode: games of Atari that are watched and scored, from hyperparameters as the zoo has them."""

from typing import Any

from rl_zoo3.utils import create_test_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn.atari import AtariGameWrapper
from sb3_per_dqn.classes import listed, name_and_kwargs

GAME_WRAPPER = f"{AtariGameWrapper.__module__}.{AtariGameWrapper.__name__}"
EVALUATION_KWARGS = {"evaluation": True, "terminal_on_life_loss": False, "clip_reward": False}  # of AtariGameWrapper


def create_evaluation_env(env_id: str, *args: Any, **kwargs: Any) -> VecEnv:
    """
    The zoo's ``create_test_env``, with Atari games in evaluation mode.

    :param env_id: id of the environment
    :param args: as for the zoo's function
    :param kwargs: as for the zoo's function, and its ``hyperparams``
    :return: the vectorized environment
    """
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
