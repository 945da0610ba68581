"""The state of environments: their own where it can be read, and points at which they start anew where it cannot."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_per_dqn.acting import ActingVecEnv
from sb3_per_dqn.checkpoint.state import CONSTANT_NAMES, NotThereError, StateError, Tree, captured, restored


class StatefulEnv(gym.Wrapper[Any, Any, Any, Any]):
    """
    Lets a worker process be asked for its environment's state.

    :param env: an environment, wrapped in all else
    """

    def captured_state(self) -> Tree:
        """
        :return: state of the environment, and of the random numbers of its process; or why it cannot be read, as
            ``error``: an exception would end the worker
        """
        try:
            return {"env": captured(self.env), "random": captured_random()}
        except StateError as error:
            return {"error": str(error)}

    def why_not_captured(self) -> str:
        """
        :return: why the state cannot be read, or nothing
        """
        why: str = self.captured_state().get("error", "")
        return why

    def restore_state(self, tree: Tree) -> StateError | None:
        """
        :param tree: from ``captured_state``
        :return: what does not fit, or nothing
        """
        try:
            restored(self.env, tree["env"])
            restore_random(tree["random"])
        except StateError as error:
            return error
        return None


def captured_random() -> Tree:
    """
    :return: state of Python's and NumPy's random numbers in this process
    """
    return {"python": captured(random.getstate()), "numpy": captured(np.random.get_state(legacy=False))}


def restore_random(tree: Tree) -> None:
    """
    :param tree: from ``captured_random``
    :raises StateError: if it does not fit
    """
    try:
        random.setstate(restored(None, tree["python"]))
        np.random.set_state(restored(None, tree["numpy"]))
    except (TypeError, ValueError, KeyError) as error:
        raise StateError(f"no state of random numbers: {error}") from error


def layers_of(env: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
    """
    :param env: vectorized environment
    :return: its wrappers, the outermost first, and what they wrap
    """
    layers = []
    while isinstance(env, VecEnvWrapper):
        layers.append(env)
        env = env.venv
    return layers, env


def why_not(env: VecEnv) -> str:
    """
    :param env: vectorized environment
    :return: why the state of its environments cannot be read, or nothing
    """
    try:
        layers, games = layers_of(env)
        if isinstance(games, ActingVecEnv):
            return "their actors go on meanwhile"
        for layer in layers:
            _captured_layer(layer)
        if isinstance(games, DummyVecEnv):
            captured(games.envs)
            return ""
    except StateError as error:
        return str(error)
    if not games.has_attr("why_not_captured"):
        return f"{type(games).__name__} does not tell the state of its environments (WorkerVecEnv does)"
    return next((reason for reason in games.env_method("why_not_captured") if reason), "")


def captured_environments(env: VecEnv) -> Tree:
    """
    :param env: vectorized environment
    :return: its state
    :raises StateError: if it cannot be read
    """
    if reason := why_not(env):
        raise StateError(reason)
    games = layers_of(env)[1]
    of_games = captured(games.envs) if isinstance(games, DummyVecEnv) else games.env_method("captured_state")
    seeds = captured(list(games._seeds))  # of a reset that is still to come
    return {"layers": captured_layers(env), "games": of_games, "seeds": seeds}


def captured_layers(env: VecEnv) -> list[Tree]:
    """
    :param env: vectorized environment
    :return: states of its wrappers, the outermost first; ``None`` where one cannot be read
    """
    trees: list[Tree] = []
    for layer in layers_of(env)[0]:
        try:
            trees.append(_captured_layer(layer))
        except StateError:
            trees.append(None)
    return trees


def restore_environments(env: VecEnv, tree: Tree) -> None:
    """
    :param env: vectorized environment that was made as the captured one was
    :param tree: from ``captured_environments``
    :raises StateError: if it does not fit
    """
    games = layers_of(env)[1]
    restore_layers(env, tree["layers"])  # first: they go on also where the games cannot
    if isinstance(games, DummyVecEnv):
        same = restored(list(games.envs), tree["games"])  # of a copy, so that none of them can be put away
        if not isinstance(same, list) or list(map(id, same)) != list(map(id, games.envs)):
            raise StateError(f"there are {games.num_envs} environments, and the state is of others")
    else:
        for i, of_game in zip(range(games.num_envs), tree["games"], strict=True):
            (wrong,) = games.env_method("restore_state", of_game, indices=i)
            if wrong is not None:
                raise type(wrong)(f"environment {i}: {wrong}")
    games._seeds = restored(None, tree["seeds"])


def restore_layers(env: VecEnv, trees: list[Tree]) -> None:
    """
    Reset the environments, and put states into their wrappers.

    :param env: vectorized environment that was made as the captured one was
    :param trees: from ``captured_layers``
    :raises StateError: if they do not fit; if one is of what is not there yet, after the others went in
    """
    layers, _ = layers_of(env)
    if len(layers) != len(trees):
        raise StateError(f"the environments have {len(layers)} wrappers, and the state is of {len(trees)}")
    env.reset()  # some take on their final form only then
    not_there = None
    for layer, of_layer in zip(layers, trees, strict=True):
        try:
            if of_layer is not None:
                _restore_layer(layer, of_layer)
        except NotThereError as error:
            not_there = error
    if not_there is not None:
        raise not_there


def _captured_layer(layer: VecEnvWrapper) -> Tree:
    return captured({name: value for name, value in vars(layer).items() if name not in CONSTANT_NAMES})


def _is_later(layer: VecEnvWrapper, before: Tree, after: Tree) -> bool:
    # It may hold more by then: VecCheckNan's actions, say, come to be with the first step
    more = after.keys() - before.keys()
    return before.keys() <= after.keys() and not any(
        name in CONSTANT_NAMES or hasattr(type(layer), name) for name in more
    )


def _restore_layer(layer: VecEnvWrapper, tree: Tree) -> None:
    before = {name: value for name, value in vars(layer).items() if name not in CONSTANT_NAMES}
    after = restored(dict(before), tree)
    if not isinstance(after, dict) or not _is_later(layer, before, after):
        raise StateError(f"{type(layer).__name__} holds {', '.join(before)}, and the state is of something else")
    vars(layer).update(after)
