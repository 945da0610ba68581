"""What is wrong with a run's arguments, found before anything is started or written, and the way out."""

import difflib
import glob
import inspect
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_per_dqn.minatar import register_minatar
from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer

# What rl-zoo3 reads beside an algorithm's arguments, and what we do
ZOO_KEYS = {
    *("n_timesteps", "n_envs", "env_wrapper", "vec_env_wrapper", "frame_stack", "normalize", "callback"),
    *("monitor_kwargs", "env_kwargs", "noise_type", "noise_std"),
}
OUR_KEYS = {"emulators", "ray_actors", "worker_restarts"}
OF_FLAGS = {"env": "--env", "seed": "--seed", "device": "--device", "verbose": "--verbose", "tensorboard_log": "-tb"}
SCHEDULES = {"learning_rate", "clip_range", "clip_range_vf", "delta_std"}  # of which lin_0.001 falls to 0
MONITORS = {"env", "filename"}  # arguments of Monitor that are the zoo's own
STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
COUNTS = {"n_timesteps": (int, float), "n_envs": (int,), "frame_stack": (int,)}  # !!float 1e7 steps


def check_algo(algo: str, flag: str = "--algo=") -> None:
    """
    :param algo: name of an algorithm
    :param flag: that gave it, for the message
    :raises ValueError: if rl-zoo3 does not know it, with the nearest one that it knows
    """
    if algo not in ALGOS:
        raise ValueError(f"{flag}{algo!r} is not known to rl-zoo3; {_hint(algo, ALGOS)}")


def check_env_id(env_id: str) -> None:
    """
    :param env_id: id of an environment
    :raises ValueError: if gymnasium does not know it, with the nearest ids that it knows
    :raises ModuleNotFoundError: for a MinAtar id without the ``minatar`` package
    """
    if env_id.startswith("MinAtar/"):
        register_minatar()
    if env_id not in gym.registry:
        near = difflib.get_close_matches(env_id, gym.registry, n=3)
        hint = f"Did you mean {', '.join(near)}? " if near else ""
        raise ValueError(
            f"--env={env_id!r} is not known to gymnasium. {hint}One of your own is registered by a package: "
            "name it with --gym-packages."
        )


def check_folder_name(folder: str, flag: str) -> None:
    """
    :param folder: of runs
    :param flag: that gave it, for the message
    :raises ValueError: if there is none, or if rl-zoo3, which looks for its latest run by glob, would see none
    """
    if not folder:  # which the zoo takes for the root of all folders
        raise ValueError(f"{flag}='' is the name of no folder: leave it out, or choose one.")
    if glob.has_magic(folder):
        raise ValueError(
            f"{flag}={folder!r}: runs are not found in a folder with * ? or [ in its name: choose another."
        )


def check_writable(folder: str, flag: str) -> None:
    """
    :param folder: where something is going to be written; need not exist
    :param flag: that gave it, for the message
    :raises ValueError: if it could not be made or written in
    """
    path = Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"output folder {folder!r}: cannot write in {nearest}; choose another with {flag}.")


def check_device(device: str) -> None:
    """
    :param device: of ``--device``
    :raises ValueError: if PyTorch knows none of this name
    """
    try:
        get_device(device)
    except RuntimeError as error:
        raise ValueError(f"--device={device} is no device: {str(error).splitlines()[0]}.") from None


def check_storage(storage: str) -> None:
    """
    :param storage: of ``--storage``: a journal's file, or the address of a database, in which tables are made
    :raises ValueError: if Optuna cannot keep a study there
    """
    if storage.endswith(".log"):
        check_writable(os.path.dirname(storage), "--storage")
        return
    try:
        optuna.storages.get_storage(storage)
    except Exception as error:  # of the address, the connection, a database's own package
        message = str(error).splitlines()[0]
        raise ValueError(
            f"--storage={storage}: no study can be kept there ({message}): it must be a file that ends in .log, or "
            "the address of a database, as sqlite:///study.db."
        ) from error


def check_seed(seed: int, may_be_drawn: bool = False, n_envs: int = 1) -> None:
    """
    :param seed: of ``--seed``
    :param may_be_drawn: whether -1 is one, which rl-zoo3 takes for a seed that is drawn
    :param n_envs: environments, of which each is seeded with one more than the last
    :raises ValueError: if NumPy could not be seeded with it, or one of the environments
    """
    lowest, highest = -1 if may_be_drawn else 0, 2**32 - n_envs
    if not lowest <= seed <= highest:
        drawn = " (which draws one)" if may_be_drawn else ""
        each = f": {n_envs} environments are seeded from there on" if n_envs > 1 else ""
        raise ValueError(f"--seed={seed} must be from {lowest}{drawn} to {highest}{each}.")


def warn_of_early_joints(model: PerDoubleDQN, n_timesteps: int) -> None:
    """
    Epsilon's joints are fractions of the run, and the warm-up is a number of steps: in a run much shorter than the one
    they were made for, exploration may be over before learning begins.

    :param model: an initialized model
    :param n_timesteps: length of the run
    """
    at_start = model.exploration_schedule(1.0)
    at_first_update = model.exploration_schedule(1.0 - min(model.learning_starts / n_timesteps, 1.0))
    if at_first_update < 0.5 * at_start:
        warnings.warn(
            f"epsilon is down from {at_start:.3g} to {at_first_update:.3g} when learning starts, at step "
            f"{model.learning_starts} of {n_timesteps}: a run of this length needs its own endpoints.",
            stacklevel=2,
        )


def check_keys(hyperparams: dict[str, Any], algorithm: type[BaseAlgorithm], length_is_given: bool) -> None:
    """
    :param hyperparams: of one environment, as in the zoo's YAML
    :param algorithm: which they are for
    :param length_is_given: on the command line
    :raises ValueError: for a key that nothing reads, and for one that is missing
    """
    for name, flag in OF_FLAGS.items():
        if name in hyperparams:
            raise ValueError(f"hyperparameters: {name}={hyperparams[name]!r} is given by {flag}: leave it out here.")
    needed = {"policy"} if length_is_given else {"policy", "n_timesteps"}
    check_known(hyperparams, ZOO_KEYS | OUR_KEYS | arguments_of(algorithm), "hyperparameters")
    for name in sorted(needed - hyperparams.keys()):
        raise ValueError(f"hyperparameters: {name} is missing (there are {', '.join(sorted(hyperparams))}).")
    _check_numbers(hyperparams, algorithm)


def check_policy(policy: Any, algorithm: type[BaseAlgorithm]) -> None:
    """
    :param policy: as in the zoo's YAML
    :param algorithm: which it is for
    :raises ValueError: if it is neither MODULE.CLASS nor one of the algorithm's names, with the nearest one
    """
    known = algorithm.policy_aliases
    if not isinstance(policy, str) or ("." not in policy and policy not in known):
        raise ValueError(f"hyperparameters: policy={policy!r} is none of {algorithm.__name__}; {_hint(policy, known)}")


def _check_numbers(hyperparams: Mapping[str, Any], algorithm: type[BaseAlgorithm]) -> None:
    """Text where a number belongs (YAML takes ``1e-3`` for text), and counts below 1."""
    defaults = {name: parameter.default for name, parameter in _parameters_of(algorithm).items()}
    numbers = {name for name, default in defaults.items() if type(default) in (int, float)} | SCHEDULES | COUNTS.keys()
    for name, value in hyperparams.items():
        if name in numbers and isinstance(value, str) and not _is_schedule(name, value):
            wanted = _number_for(name, value, type(defaults.get(name)))
            raise ValueError(f"hyperparameters: {name}={value!r} is text: write {wanted}.")
        is_off = name == "frame_stack" and value is None
        if name in COUNTS and not is_off and not (isinstance(value, COUNTS[name]) and 1 <= value < math.inf):
            raise ValueError(f"hyperparameters: {name}={value!r} must be a whole number, 1 or more.")


def _is_schedule(name: str, value: str) -> bool:
    start, _, number = value.partition("_")
    return name in SCHEDULES and start == "lin" and _is_number(number)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number_for(name: str, text: str, kind: type[Any]) -> str:
    may_be_float = kind is float or name in SCHEDULES or name == "n_timesteps"
    if not _is_number(text):
        if not may_be_float:
            return "a number"
        text = "1e6" if name == "n_timesteps" else "1e-3"
    in_yaml = f" or, in YAML, !!float {text}" if may_be_float else ""
    falling = f", or lin_{text} for one that falls to 0" if name in SCHEDULES else ""
    return f"{np.format_float_positional(float(text), trim='-')}{in_yaml}{falling}"


def check_wrapper_kwargs(hyperparams: Mapping[str, Any]) -> None:
    """
    :param hyperparams: of one environment, as in the zoo's YAML, evaluated
    :raises ValueError: for a key of ``normalize`` or ``monitor_kwargs`` that nothing reads, and for ``env_kwargs`` that
        are no dictionary
    """
    env_kwargs = hyperparams.get("env_kwargs", {})
    if not (isinstance(env_kwargs, dict) and all(isinstance(name, str) for name in env_kwargs)):
        raise ValueError(
            f"hyperparameters: env_kwargs={env_kwargs!r} must be a dictionary: {{size: 4}} in YAML, or "
            "env_kwargs:dict(size=4)."
        )
    for key, kind, made_by_zoo in (("normalize", VecNormalize, {"venv"}), ("monitor_kwargs", Monitor, MONITORS)):
        given = hyperparams.get(key)
        if isinstance(given, dict):
            check_known(given, arguments_of(kind) - made_by_zoo, key)


def check_kwargs(arguments: dict[str, Any], algorithm: type[BaseAlgorithm]) -> None:
    """
    :param arguments: of the algorithm
    :param algorithm: which they are for
    :raises ValueError: for a key of ``policy_kwargs`` or ``replay_buffer_kwargs`` that nothing reads
    """
    policy = algorithm.policy_aliases.get(arguments["policy"])
    if policy is not None:  # what a class of the user's own reads of its **kwargs, nobody knows
        check_known(arguments.get("policy_kwargs") or {}, arguments_of(policy), "policy_kwargs")
        if issubclass(policy, DQNPolicy):
            _check_net_arch((arguments.get("policy_kwargs") or {}).get("net_arch"))
    buffer = arguments.get("replay_buffer_class") or PrioritizedReplayBuffer
    if buffer.__module__.split(".")[0] in ("sb3_per_dqn", "stable_baselines3"):  # likewise
        check_known(arguments.get("replay_buffer_kwargs") or {}, arguments_of(buffer), "replay_buffer_kwargs")


def _check_net_arch(net_arch: Any) -> None:
    is_list = isinstance(net_arch, (list, tuple)) and all(type(units) is int and units > 0 for units in net_arch)
    if net_arch is not None and not is_list:
        raise ValueError(
            f"policy_kwargs: net_arch={net_arch!r} must be a list of layers' units, each 1 or more, such as [256, 256]."
        )


def arguments_of(kind: type[Any]) -> set[str]:
    """
    :param kind: a class, whose constructor may hand arguments on to those of its bases
    :return: names of the constructor's arguments
    """
    return set(_parameters_of(kind))


def _parameters_of(kind: type[Any]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        named = {name: parameter for name, parameter in parameters.items() if parameter.kind not in STARRED}
        found = {**named, **found}  # what a subclass says comes first
        if len(named) == len(parameters):
            break
    found.pop("self", None)
    return found


def check_known(given: Iterable[str], known: set[str], what: str) -> None:
    """
    :param given: names
    :param known: those that are read
    :param what: they belong to
    :raises ValueError: for one that nothing reads, with the nearest one that is read
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{what}: nothing reads {name!r}; {_hint(name, known)}")


def _hint(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
