"""Whose code plays a model folder: names in the folder are texts of somebody, and not all of them are followed."""

from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium import wrappers as gymnasium_wrappers
from stable_baselines3.common import atari_wrappers, vec_env

from sb3_per_dqn.minatar import register_minatar
from sb3_per_dqn.sharing.environment import EnvironmentSettings
from sb3_per_dqn.sharing.plain import ModelFolderError
from sb3_per_dqn.sharing.plain_spaces import space_from_plain
from sb3_per_dqn.sharing.recipe import environment_of

PACKAGES = ("gymnasium", "ale_py", "minatar", "rl_zoo3")  # whose environments are made
OURS = ("sb3_per_dqn.atari.AtariGameWrapper", "sb3_per_dqn.minatar.ChannelFirst")
# Of these two, those that no text or number can make write a file or call a function, and that end no game (TimeLimit:
# these wrappers are above Monitor, which counts games)
GYMNASIUMS = (
    *("AtariPreprocessing", "ClipReward", "DelayObservation", "DiscretizeAction", "DtypeObservation"),
    *("FilterObservation", "FlattenObservation", "FrameStackObservation", "GrayscaleObservation"),
    *("MaxAndSkipObservation", "RescaleObservation", "ReshapeObservation", "ResizeObservation", "StickyAction"),
    "TimeAwareObservation",
)
SB3S = (
    *(atari_wrappers.AtariWrapper, atari_wrappers.ClipRewardEnv, atari_wrappers.EpisodicLifeEnv),
    *(atari_wrappers.FireResetEnv, atari_wrappers.MaxAndSkipEnv, atari_wrappers.NoopResetEnv),
    *(atari_wrappers.StickyActionEnv, atari_wrappers.WarpFrame),
)
SB3S_VEC = (vec_env.VecCheckNan, vec_env.VecExtractDictObs, vec_env.VecTransposeImage)
WAY_OUT = "The folder's README.md has code that plays it"


def trusted_environment(config: dict[str, Any], packages: Iterable[str] = ()) -> tuple[str, EnvironmentSettings]:
    """
    :param config: what stands in ``config.json``, where anybody may have written anything
    :param packages: modules that the user trusts, and has imported
    :return: id of the environment, and how to make it: by code of this package, of ``PACKAGES``, and of ``packages``
    :raises ModelFolderError: if it takes other code than that, or it is nothing that this package writes
    """
    trusted, env_id = {name.split(".")[0] for name in packages}, config.get("env_id")
    try:
        settings = EnvironmentSettings.from_plain(environment_of(config))
        space = space_from_plain(config["observation_space"])
    except ModelFolderError:
        raise
    except Exception as error:  # whatever somebody may have written
        raise ModelFolderError(f"environment is nothing that this package writes: {error!r}.") from error
    _check_id(env_id, settings, trusted)
    wrappers = {name: _names() for name, _ in settings.wrappers}
    wrappers |= {name: {_full_name(known) for known in SB3S_VEC} for name, _ in settings.vec_wrappers}
    for name, known in wrappers.items():
        root = name.split(".")[0]
        if name not in known and root not in trusted:
            raise ModelFolderError(
                f"the wrapper {name!r} is not among those that are taken from a folder: if you trust it, "
                f"--gym-packages {root}. {WAY_OUT}."
            )
    if settings.frame_stack is not None and not 1 <= settings.frame_stack <= _longest(space):
        raise ModelFolderError(f"frame_stack={settings.frame_stack} makes no observation of {space}.")
    return str(env_id), settings


def _check_id(env_id: Any, settings: EnvironmentSettings, trusted: set[str]) -> None:
    if isinstance(env_id, str) and env_id.startswith("MinAtar/"):
        register_minatar()
    if not isinstance(env_id, str) or env_id not in gym.registry:  # which would import MODULE from MODULE:ID
        needed = f": if you trust what registers it, --gym-packages {' '.join(settings.packages)}"
        raise ModelFolderError(
            f"env_id={env_id!r} is not known to gymnasium{needed if settings.packages else ''}. {WAY_OUT}."
        )
    entry: Any = gym.registry[env_id].entry_point
    module = entry.split(":")[0] if isinstance(entry, str) else str(getattr(entry, "__module__", ""))
    root = module.split(".")[0]
    if root not in {*PACKAGES, *trusted}:
        raise ModelFolderError(
            f"env_id={env_id!r} is an environment of {root!r}: if you trust that, --gym-packages {root}. {WAY_OUT}."
        )


def _longest(space: spaces.Space[Any]) -> int:
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return max(size for part in parts for size in (1, *(part.shape or ())))


def _names() -> set[str]:
    """Those that wrappers around one environment have: where they are defined, and where gymnasium shows them."""
    return {*OURS, *map(_full_name, SB3S), *_of_gymnasium()}


def _of_gymnasium() -> Iterator[str]:
    for name in GYMNASIUMS:
        if hasattr(gymnasium_wrappers, name):  # not all are in each version
            yield from (f"gymnasium.wrappers.{name}", _full_name(getattr(gymnasium_wrappers, name)))


def _full_name(known: type) -> str:
    return f"{known.__module__}.{known.__qualname__}"
