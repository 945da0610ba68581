"""What a DQN cannot be made with, or learn from, found before anything is started or stored, and the way out."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize, VecTransposeImage
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer

FINITE = (
    *("tau", "gamma", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
    *("learning_starts", "target_update_interval"),
)
WHOLE = ("buffer_size", "batch_size", "gradient_steps", "n_steps")


def check_whole(name: str, value: Any, smallest: int) -> None:
    """
    :param name: of an argument
    :param value: its value
    :param smallest: that it may have
    :raises ValueError: if it is smaller, or no whole number
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < smallest:
        raise ValueError(f"{name}={value!r} must be a whole number, {smallest} or more.")


def check_arguments(model: DQN) -> None:
    """
    :param model: with SB3's arguments as attributes, before anything is made of them
    :raises ValueError: naming one that is out of range
    """
    if not issubclass(model.policy_class, DQNPolicy):  # a class that was given, or that a loaded file names
        raise ValueError(
            f"policy={model.policy_class.__name__} is no policy of DQN, but one of another algorithm: choose "
            f"{', '.join(model.policy_aliases)}, or a subclass of one of them."
        )
    for name in FINITE if callable(model.learning_rate) else (*FINITE, "learning_rate"):
        value = getattr(model, name)
        if not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"{name}={value!r} must be a finite number.")
    for name in WHOLE:
        value = getattr(model, name)
        if not isinstance(value, Integral) or value < (-1 if name == "gradient_steps" else 1):
            alone = " (or 0, or -1 for as many as steps)" if name == "gradient_steps" else ""
            raise ValueError(f"{name}={value!r} must be a whole number, 1 or more{alone}.")
    _check_train_freq(model.train_freq)
    if not (isinstance(model.max_grad_norm, Real) and model.max_grad_norm > 0):  # infinity switches clipping off
        raise ValueError(f"max_grad_norm={model.max_grad_norm!r} must be a number above 0.")
    _check_starts(model.action_space, model.observation_space)


def _check_train_freq(given: Any) -> None:
    frequency, unit = given if isinstance(given, tuple) and len(given) == 2 else (given, "step")
    units = (*TrainFrequencyUnit, *(each.value for each in TrainFrequencyUnit))  # a loaded file has SB3's object
    if not isinstance(frequency, int) or frequency < 1 or unit not in units:
        raise ValueError(
            f"train_freq={given!r} must be a whole number of steps, 1 or more, or a pair (number, 'step') or "
            "(number, 'episode')."
        )


def _check_starts(actions: spaces.Space[Any], observations: spaces.Space[Any]) -> None:
    if isinstance(actions, spaces.Discrete) and actions.start != 0:
        raise ValueError(f"action_space={actions}: actions must be numbered from 0 on, with start=0.")
    parts = observations.values() if isinstance(observations, spaces.Dict) else (observations,)
    numbered = (part for part in parts if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)))
    if any(np.any(part.start) for part in numbered):  # SB3's networks see one-hot vectors
        raise ValueError(f"observation_space={observations}: observations must be numbered from 0 on, with start=0.")


def check_episodes(model: DQN, n_envs: int) -> None:
    """
    :param model: made
    :param n_envs: number of environments that it is to be trained in
    :raises ValueError: if ``train_freq`` counts episodes, and they are several
    """
    assert isinstance(model.train_freq, TrainFreq)
    if model.train_freq.unit == TrainFrequencyUnit.EPISODE and n_envs > 1:
        given = (model.train_freq.frequency, "episode")
        raise ValueError(f"train_freq={given} is for one environment, and there are {n_envs}: count steps.")


def check_going_together(model: DQN, train_while_stepping: bool) -> None:
    """
    Replay memory, environments and their wrappers, once all are known.

    :param model: about to learn
    :param train_while_stepping: whether it learns while environments step
    :raises ValueError: naming two that do not go together
    """
    buffer = model.replay_buffer
    assert buffer is not None
    stored = buffer.buffer_size * buffer.n_envs
    if stored < model.batch_size:  # not in the constructor: a model may be loaded with buffer_size=1 to be watched
        raise ValueError(
            f"buffer_size={model.buffer_size} holds {stored} transitions, fewer than batch_size={model.batch_size}: "
            "make the buffer larger or the batch smaller."
        )
    if train_while_stepping and isinstance(buffer, HerReplayBuffer):
        raise ValueError(
            "train_while_stepping=True: HerReplayBuffer asks the environments for rewards while they step: "
            "pass train_while_stepping=False."
        )
    if model.get_vec_normalize_env() is not None:
        if isinstance(buffer, DeviceReplayBuffer):
            raise ValueError(
                "replay_buffer_class=DeviceReplayBuffer does not know VecNormalize, whose statistics are on the host: "
                "leave the class out, or VecNormalize."
            )
        _check_transposition(model.env)
    check_episodes(model, model.n_envs)


def _check_transposition(env: Any) -> None:
    # SB3 stores what VecNormalize was given, which must be what the networks see
    while isinstance(env, VecEnvWrapper) and not isinstance(env, VecNormalize):
        if isinstance(env, VecTransposeImage) and not env.skip:
            raise ValueError(
                "VecNormalize inside VecTransposeImage keeps images with channels last, and the networks see them "
                "first: VecNormalize(VecTransposeImage(env), ...)."
            )
        env = env.venv


def check_restarts(model: DQN) -> None:
    """
    :param model: about to learn
    :raises ValueError: if a lost worker is to be replaced, and replay memory cannot leave the lost step out
    """
    restarts = getattr(model.env, "restarts", 0)
    if restarts and not isinstance(model.replay_buffer, PrioritizedReplayBuffer):
        raise ValueError(
            f"restarts={restarts}: {type(model.replay_buffer).__name__} cannot leave out the step at which a worker "
            "was lost: pass restarts=0 (or PrioritizedReplayBuffer)."
        )


def check_step(
    step: int,
    new_obs: np.ndarray | dict[str, np.ndarray],
    reward: np.ndarray,
    dones: np.ndarray,
    infos: Sequence[Mapping[str, Any]],
) -> None:
    """
    :param step: number of environment steps so far
    :param new_obs: what followed, shape (n_envs, ...), or a dict of such
    :param reward: shape (n_envs,)
    :param dones: where an episode ended, shape (n_envs,)
    :param infos: of each environment; where an episode ended, with its ``terminal_observation``
    :raises ValueError: if a reward is not finite as float32, or an observation is NaN, naming the environment
    """
    with np.errstate(over="ignore"):
        kept = np.asarray(reward).astype(np.float32)  # as replay memory keeps it
    if not np.isfinite(kept).all():
        env = int(np.flatnonzero(~np.isfinite(kept))[0])
        raise ValueError(
            f"At step {step}, the reward of environment {env} is {reward[env]}, which nothing can be "
            "learned from: mend the environment. Nothing of this step was stored."
        )
    ended = [env for env in np.flatnonzero(dones).tolist() if _with_nan(infos[env].get("terminal_observation"))]
    if with_nan := _with_nan(new_obs) + ended:
        raise ValueError(
            f"At step {step}, an observation of environment {with_nan[0]} is NaN: mend the environment. "
            "Nothing of this step was stored."
        )


def _with_nan(observations: Any) -> list[int]:
    """
    :param observations: a batch of them, or a dict of batches
    :return: places of those that hold a NaN
    """
    parts = observations.values() if isinstance(observations, dict) else (observations,)
    floats = [part for part in map(np.atleast_1d, parts) if part.dtype.kind == "f"]
    return [int(place[0]) for part in floats if np.isnan(part).any() for place in np.argwhere(np.isnan(part))]
