"""``VecNormalize``'s settings and statistics as plain data and tensors, and back."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_per_dqn.sharing.plain import ModelFolderError

FLAGS, NUMBERS = ("training", "norm_obs", "norm_reward"), ("clip_obs", "clip_reward", "gamma", "epsilon")
SETTINGS = (*FLAGS, *NUMBERS, "norm_obs_keys")
PREFIX = "vec_normalize."


def normalization_of(model: BaseAlgorithm) -> VecNormalize | None:
    """
    :param model: a model
    :return: its environment's ``VecNormalize``
    :raises ModelFolderError: if another wrapper stands around that: loading could not put it there (nor does SB3's DQN
        learn from such an environment, where that changes observations)
    """
    env = model.get_env()
    if isinstance(env, VecNormalize):
        return env
    if model.get_vec_normalize_env() is not None:
        raise ModelFolderError(
            f"the environment's VecNormalize is inside {type(env).__name__}, and a model folder can hold it only on "
            "top of all other wrappers: put it there."
        )
    return None


def settings_of(env: VecNormalize) -> dict[str, Any]:
    """
    :param env: with statistics
    :return: its constructor's arguments
    """
    return {name: getattr(env, name) for name in SETTINGS}


def statistics_of(env: VecNormalize) -> dict[str, th.Tensor]:
    """
    :param env: with statistics
    :return: these, float64, by names that begin with ``PREFIX``
    """
    return {
        f"{PREFIX}{part}.{field}": th.from_numpy(np.array(getattr(moments, field), np.float64))
        for part, moments in _parts(env).items()
        for field in ("mean", "var", "count")
    }


def check_settings(settings: Any) -> None:
    """
    :param settings: as from :func:`settings_of`
    :raises ModelFolderError: if ``VecNormalize`` would take what it cannot work with
    """
    if not isinstance(settings, dict) or settings.keys() != set(SETTINGS):
        raise ModelFolderError(f"vec_normalize={settings!r} must have {', '.join(SETTINGS)}, and nothing else.")
    for names, kinds, wanted in ((FLAGS, (bool,), "true or false"), (NUMBERS, (int, float), "a number, 0 or more")):
        for name in names:
            value = settings[name]
            if type(value) not in kinds or not float(value) >= 0:  # NaN is not, either
                raise ModelFolderError(f"vec_normalize: {name}={value!r} must be {wanted}.")


def normalized(env: VecEnv, settings: dict[str, Any], statistics: dict[str, th.Tensor]) -> VecNormalize:
    """
    :param env: to wrap
    :param settings: from :func:`settings_of`
    :param statistics: from :func:`statistics_of`
    :return: the environment in a ``VecNormalize`` as that was
    :raises ModelFolderError: if they do not fit the environment
    """
    wrapped = VecNormalize(env, **settings)
    expected = {name: tuple(value.shape) for name, value in statistics_of(wrapped).items()}
    given = {name: tuple(value.shape) for name, value in statistics.items()}
    if expected != given:
        raise ModelFolderError(f"the environment would be normalized by {expected}, and the folder has {given}.")
    for part, moments in _parts(wrapped).items():
        mean, var, count = (statistics[f"{PREFIX}{part}.{field}"].numpy() for field in ("mean", "var", "count"))
        if (var < 0).any() or count <= 0:
            raise ModelFolderError(f"{PREFIX}{part} is no statistics: a variance or the count is negative.")
        moments.mean, moments.var, moments.count = mean, var, float(count)
    return wrapped


def _parts(env: VecNormalize) -> dict[str, RunningMeanStd]:
    parts = {"returns": env.ret_rms}
    if env.norm_obs:
        of_observations: Any = env.obs_rms
        if isinstance(of_observations, dict):
            parts |= {f"observations.{key}": moments for key, moments in of_observations.items()}
        else:
            parts["observations"] = of_observations
    return parts
