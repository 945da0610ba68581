"""Acting on a Ray cluster, as the zoo's YAML has it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_per_dqn.checks import arguments_of, check_known

MADE_HERE = {"env_fn", "envs_per_actor", "vec_env_wrapper", "ray_address"}  # arguments of RemoteActors


def actors_arguments(given: Any, n_envs: int) -> dict[str, Any]:
    """
    :param given: how many actors, or a dictionary of ``RemoteActors``' arguments, ``n_actors`` among them
    :param n_envs: environments of all actors together
    :return: arguments of ``RemoteActors`` that make so many environments
    :raises ValueError: if they do not
    """
    from sb3_per_dqn.cluster import RemoteActors

    arguments = dict(given) if isinstance(given, dict) else {"n_actors": given}
    check_known(arguments, arguments_of(RemoteActors) - MADE_HERE, "ray_actors")
    n_actors = arguments.get("n_actors")
    if not isinstance(n_actors, int) or n_actors < 1 or n_envs % n_actors:
        raise ValueError(
            f"ray_actors={given!r}: n_envs={n_envs} environments are shared out among the actors: n_actors must be a "
            "whole number that divides n_envs."
        )
    return {**arguments, "envs_per_actor": n_envs // n_actors}


def attributes_for_actors(
    arguments: dict[str, Any],
    address: str | None = None,
    frame_stack: int | None = None,
    vec_env_wrapper: Callable[[VecEnv], VecEnv] | None = None,
) -> dict[str, Any]:
    """
    :param arguments: as from :func:`actors_arguments`
    :param address: of the cluster
    :param frame_stack: as in the zoo's YAML
    :param vec_env_wrapper: likewise
    :return: attributes with which a manager makes actors. What it puts around vectorized environments is in these then
    """
    from sb3_per_dqn.cluster import RemoteActors

    options = {**arguments, "vec_env_wrapper": partial(_wrapped, vec_env_wrapper, frame_stack), "ray_address": address}
    return {"vec_env_class": partial(RemoteActors, **options), "frame_stack": None, "vec_env_wrapper": None}


def _wrapped(wrapper: Callable[[VecEnv], VecEnv] | None, frame_stack: int | None, venv: VecEnv) -> VecEnv:
    venv = venv if wrapper is None else wrapper(venv)  # in the zoo's order
    return venv if frame_stack is None else VecFrameStack(venv, frame_stack)
