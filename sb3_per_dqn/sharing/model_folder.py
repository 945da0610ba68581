"""
A model as a folder to share: what it takes to use it and to train it further, and nothing that could run.

    folder/
      README.md            the model card
      config.json          policy, arguments, spaces, how the environment was made; the checksum of the weights
      model.safetensors    both networks' weights, VecNormalize's statistics; in a small folder, the online network's
                         in half precision, and the target network is its copy
      results.json         the score
      learning_curves.png  the curves
      replay.mp4           a game

Neither replay memory nor the optimizer's state is in it: training goes on with fresh ones.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.replay.memory import available_memory
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing.environment import EnvironmentSettings
from sb3_per_dqn.sharing.normalization import (
    PREFIX,
    check_settings,
    normalization_of,
    normalized,
    settings_of,
    statistics_of,
)
from sb3_per_dqn.sharing.plain import KNOWN, ModelFolderError, Plain, as_endpoints, from_plain, nameable, to_plain
from sb3_per_dqn.sharing.plain_spaces import space_from_plain, space_to_plain
from sb3_per_dqn.sharing.small import Forms, Tensors, completed, small_forms, smaller, smaller_picture
from sb3_per_dqn.whole_files import read_file, sha256, sync_folder, write_file

FORMAT, VERSION = "sb3-per-dqn model", 1
CONFIG, WEIGHTS, RESULTS, CURVE, VIDEO, CARD = (
    *("config.json", "model.safetensors", "results.json", "learning_curves.png", "replay.mp4", "README.md"),
)
MOST_JSON = 2**26  # bytes
SCHEDULES = ("learning_rate", "exploration", "prioritized_replay_beta")
# All but policy, environment, device, and tensorboard_log, which is a place on the machine that trained it
ARGUMENTS = (
    *("learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma", "train_freq", "gradient_steps"),
    *("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage", "n_steps", "target_update_interval"),
    *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps", "max_grad_norm", "stats_window_size"),
    *("policy_kwargs", "verbose", "seed", "double_q", "prioritized_replay", "prioritized_replay_alpha"),
    *("prioritized_replay_beta", "prioritized_replay_eps", "exploration", "per_env_exploration", "speedups"),
    *("prioritized_replay_normalize_weights", "train_while_stepping"),
)
ADDED_LATER = {"prioritized_replay_normalize_weights"}  # of which older folders have none, and the default is as it was


def export_model(
    model: PerDoubleDQN,
    folder: str | os.PathLike[str],
    *,
    env_id: str,
    environment: EnvironmentSettings | None = None,
    score: Score | None = None,
    curve: str | os.PathLike[str] | None = None,
    video: str | os.PathLike[str] | None = None,
    small: bool = False,
) -> Path:
    """
    Write a model into a folder, wholly or not at all.

    A callable schedule is written as endpoints. The statistics of a ``VecNormalize`` on top of the model's environment
    come along.

    :param model: to write
    :param folder: must be empty, or not be there yet
    :param env_id: id of the environment that it was trained on, for the model card
    :param environment: how that was made, likewise; by default as :func:`~sb3_per_dqn.atari.make_atari_vec_env` or
        SB3's ``make_vec_env`` makes it
    :param score: of the model
    :param curve: a PNG picture of its learning curves
    :param video: an MP4 video of a game
    :param small: write weights in half precision (float16), without the target network, which becomes the online
        network's copy, and the curves in few colours: a quarter of the size. Rounded weights may score otherwise:
        :func:`~sb3_per_dqn.sharing.small.round_weights` makes the model's so before it is scored
    :return: the folder
    :raises ModelFolderError: if something of the model cannot be written, or an argument is wrong; nothing is left then
    :raises OSError: if writing fails; likewise
    :raises ModuleNotFoundError: without the hub's library, in whose format the model card is
    """
    check_free(folder)
    if find_spec("huggingface_hub") is None:
        raise ModuleNotFoundError("export_model writes a model card by huggingface_hub: pip install 'sb3-per-dqn[zoo]'")
    target = Path(folder).absolute()
    pictures = {CURVE: curve, VIDEO: video}
    for name, path in pictures.items():
        if path is not None and not Path(path).is_file():
            raise ModelFolderError(f"{'curve' if name == CURVE else 'video'}={str(path)!r} is no file.")
    files = _model_files(model, env_id, environment, score, small)
    if small and curve is not None:
        files[CURVE] = smaller_picture(curve)
        pictures[CURVE] = None
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        for name, data in files.items():
            write_file(beside / name, data)
        for name, path in pictures.items():
            if path is not None:
                write_file(beside / name, Path(path).read_bytes())
        _write_card(beside, score)
        sync_folder(beside)
        beside.rename(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return Path(folder)


def check_free(folder: str | os.PathLike[str]) -> None:
    """
    :param folder: where a model is to be written
    :raises ModelFolderError: if something is there
    """
    path = Path(folder)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ModelFolderError(f"folder={str(folder)!r} is there and not empty: choose another.")


def _model_files(
    model: PerDoubleDQN, env_id: str, environment: EnvironmentSettings | None, score: Score | None, small: bool
) -> dict[str, bytes]:
    normalization = normalization_of(model)
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.policy.state_dict().items()}
    _check_finite(tensors, "the model")
    tensors = smaller(tensors) if small else tensors
    if normalization is not None:
        statistics = statistics_of(normalization)
        _check_finite(statistics, "the model")
        tensors |= statistics
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    config = {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": PerDoubleDQN.__name__,
        "env_id": env_id,
        "environment": environment and environment.to_plain(),  # for the reader: loading takes no notice of it
        "sha256": sha256(weights),
        "small": small,
        "observation_space": space_to_plain(model.observation_space),
        "action_space": space_to_plain(model.action_space),
        "policy": to_plain(model.policy_class, "policy"),
        "arguments": {name: to_plain(value, name) for name, value in _arguments_of(model).items()},
        "vec_normalize": normalization and to_plain(settings_of(normalization), "vec_normalize"),
        "num_timesteps": int(model.num_timesteps),
        "n_updates": int(model._n_updates),
        "exploration_rate": float(model.exploration_rate),
        "versions": {"stable-baselines3": stable_baselines3.__version__, "torch": th.__version__},
    }
    files = {WEIGHTS: weights, CONFIG: json.dumps(config, indent=1, allow_nan=False).encode()}
    if len(files[CONFIG]) > MOST_JSON:
        raise ModelFolderError(f"policy, arguments and spaces take more than {MOST_JSON} bytes of JSON.")
    if score is not None:
        files[RESULTS] = json.dumps(_results(score), indent=1).encode()
    return files


def _arguments_of(model: PerDoubleDQN) -> dict[str, Any]:
    values = {**vars(model), "stats_window_size": model._stats_window_size}
    arguments = {name: values[name] for name in ARGUMENTS}
    if isinstance(model.train_freq, TrainFreq):
        arguments["train_freq"] = [model.train_freq.frequency, model.train_freq.unit.value]
    return arguments | {name: as_endpoints(arguments[name], name) for name in SCHEDULES}


def _results(score: Score) -> dict[str, Any]:
    """In the words of huggingface_sb3."""
    return {
        "mean_reward": score.mean,
        "std_reward": score.std,
        "is_deterministic": score.deterministic,
        "n_eval_episodes": score.games,
        "num_timesteps": score.steps,
    }


def _write_card(folder: Path, score: Score | None) -> None:
    # Not at the top: whoever loads a model, worker processes among them, needs nothing of the hub's library
    from sb3_per_dqn.sharing.card import model_card

    config = json.loads((folder / CONFIG).read_bytes())
    card = model_card(config, score, curve=CURVE if (folder / CURVE).exists() else None)
    write_file(folder / CARD, str(card).encode())


def load_model(
    folder: str | os.PathLike[str],
    env: GymEnv | str | None = None,
    device: th.device | str = "auto",
    *,
    classes: Iterable[type] = (),
    **kwargs: Any,
) -> PerDoubleDQN:
    """
    Read a model from a folder of :func:`export_model`. No code of the folder is run or imported.

    :param folder: to read
    :param env: The new environment to run the loaded model on (can be None if you only need prediction); if the model
        was trained with ``VecNormalize``, it gets one with the model's settings and statistics, and comes without
    :param device: Device on which the code should run.
    :param classes: of yours, that the model is made of (a policy, a features extractor, ...)
    :param kwargs: extra arguments to change the model when loading, such as ``buffer_size``
    :return: the model
    :raises ModelFolderError: if it is no model folder, of another version, damaged, made for other spaces or classes
    """
    folder = Path(folder)
    by_name = nameable(classes)
    venv = None if env is None else PerDoubleDQN._wrap_env(maybe_make_env(env, 0))
    config = read_config(folder)
    tensors = _read_tensors(folder, config.get("sha256"))
    try:
        return _loaded(config, tensors, venv, device, by_name, kwargs)
    except ModelFolderError as error:
        raise ModelFolderError(f"{folder}: {error}") from None
    except Exception as error:  # whatever somebody may have written into the JSON
        raise ModelFolderError(f"{folder}: no model can be built from {CONFIG}: {error!r}.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """
    :param folder: a model folder
    :return: what stands in its ``config.json``, where anybody may have written anything
    :raises ModelFolderError: if it is no model folder, damaged, or of another version
    """
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is no folder. (PerDoubleDQN.load reads SB3's .zip, and runs code in it.)")
    if not (folder / CONFIG).exists():
        raise ModelFolderError(f"{folder} is no model folder: {CONFIG} is missing. sb3-per-dqn export makes one.")
    try:
        config = json.loads(read_file(_real(folder, CONFIG), ModelFolderError, MOST_JSON))
    except ModelFolderError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{folder / CONFIG} is damaged: {error}.") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelFolderError(f"{folder / CONFIG} is of no model of sb3-per-dqn.")
    if config.get("version") != VERSION:
        raise ModelFolderError(
            f"{folder / CONFIG} has the format version {config.get('version')!r}, and this package reads {VERSION}: "
            "load it with the version of the package that wrote it."
        )
    return config


def _read_tensors(folder: Path, checksum: Any) -> Tensors:
    file = folder / WEIGHTS
    raw = read_file(_real(folder, WEIGHTS), ModelFolderError, int(available_memory()))
    if sha256(raw) != checksum:
        raise ModelFolderError(f"{file} is damaged: its checksum is not that of {CONFIG}.")
    try:
        tensors: Tensors = safetensors.torch.load(raw)
    except Exception as error:  # whatever somebody may have written there
        raise ModelFolderError(f"{file} is no safetensors file: {error}.") from None
    _check_finite(tensors, str(file))
    return tensors


def _real(folder: Path, name: str) -> Path:
    """
    :return: a file of the folder; of the hub's cache, whose snapshots are links, what the link leads to
    """
    path, home = folder / name, folder.resolve().parent
    if path.is_symlink():
        target = path.resolve()
        if home.name != "snapshots" or target.parent != home.parent / "blobs":
            raise ModelFolderError(f"{path} is a link that leads out of the folder.")
        return target
    return path


def _check_finite(tensors: Tensors, what: str) -> None:
    for name, value in tensors.items():
        if not th.isfinite(value.double()).all():
            raise ModelFolderError(f"{what}: {name} is not finite.")


def _loaded(
    config: dict[str, Plain],
    tensors: Tensors,
    env: VecEnv | None,
    device: th.device | str,
    classes: dict[str, type],
    kwargs: dict[str, Any],
) -> PerDoubleDQN:
    observation_space, action_space = (space_from_plain(config[f"{of}_space"]) for of in ("observation", "action"))
    statistics = {name: tensors[name] for name in tensors if name.startswith(PREFIX)}
    weights = {name: tensors[name] for name in tensors if name not in statistics}
    policy = from_plain(config["policy"], classes, "policy")
    small = config.get("small", False)  # folders of earlier versions do not say
    if type(small) is not bool:
        raise ModelFolderError(f"small={small!r} is neither true nor false.")
    given = set(config["arguments"]) | ADDED_LATER
    if given != set(ARGUMENTS):
        raise ModelFolderError(f"the arguments differ from PerDoubleDQN's: {given ^ set(ARGUMENTS)}.")
    arguments = {name: from_plain(value, classes, name) for name, value in config["arguments"].items()}
    if isinstance(arguments["train_freq"], list):
        arguments["train_freq"] = tuple(arguments["train_freq"])  # which JSON does not know, and SB3 wants
    if not isinstance(policy, type) or not issubclass(policy, BasePolicy):
        raise ModelFolderError(f"policy={policy!r} is no policy.")
    if classes == KNOWN:
        _check_in_advance(policy, observation_space, action_space, arguments["policy_kwargs"], weights, small)
    if config["vec_normalize"] is not None:
        settings = from_plain(config["vec_normalize"], {}, "vec_normalize")
        check_settings(settings)
        env = _normalized(env, settings, statistics)

    model = PerDoubleDQN(policy, env, device=device, _init_setup_model=False, **{**arguments, **kwargs})  # type: ignore[arg-type]
    if model.env is None:
        model.n_envs = 1
    else:
        _check_spaces(model.env, observation_space, action_space)
    model.observation_space, model.action_space = observation_space, action_space
    model._setup_model()
    _check_fit(model.policy, weights, small)
    model.policy.load_state_dict(completed(weights) if small else weights)
    model.num_timesteps, model._n_updates = _count(config["num_timesteps"]), _count(config["n_updates"])
    model.exploration_rate = _probability(config["exploration_rate"])
    return model


def _count(number: Plain) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ModelFolderError(f"{number!r} is no number of steps.")
    return number


def _probability(number: Plain) -> float:
    if type(number) not in (int, float) or not 0 <= number <= 1:
        raise ModelFolderError(f"exploration_rate={number!r} is no probability.")
    return float(number)


def _normalized(env: VecEnv | None, settings: dict[str, Any], statistics: Tensors) -> VecEnv | None:
    if env is None:
        warnings.warn(
            "The model was trained on observations from VecNormalize: pass env=... to get them, or normalize yourself.",
            stacklevel=4,
        )
        return None
    if unwrap_vec_normalize(env) is not None:
        raise ModelFolderError("env has a VecNormalize, and the model brings its own: pass the one without.")
    return normalized(env, settings, statistics)


def _check_spaces(env: VecEnv, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    try:
        check_for_correct_spaces(env, observation_space, action_space)
    except ValueError as error:
        raise ModelFolderError(f"env is another one than the model was made for: {error}.") from None


def _check_in_advance(
    policy: type[BasePolicy],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    policy_kwargs: dict[str, Any],
    weights: Tensors,
    small: bool,
) -> None:
    """Compare shapes before there are networks: a file may ask for larger ones than there is memory for."""
    kwargs = {name: value for name, value in policy_kwargs.items() if not name.startswith("optimizer_")}
    meta = th.device("meta")
    without_memory = type(policy.__name__, (policy,), {"device": meta})
    with meta:
        _check_fit(without_memory(observation_space, action_space, lambda _: 0.0, **kwargs), weights, small)


def _check_fit(policy: th.nn.Module, weights: Tensors, small: bool) -> None:
    wanted, given = _forms(policy.state_dict()), _forms(weights)
    wanted = small_forms(wanted) if small else wanted
    for name in sorted({*wanted, *given}):
        if wanted.get(name) != given.get(name):
            raise ModelFolderError(
                f"{name} is {given.get(name, 'missing')} in {WEIGHTS}, and {wanted.get(name, 'nothing')} in the model "
                f"that {CONFIG} describes."
            )


def _forms(weights: Tensors) -> Forms:
    return {name: (tuple(value.shape), value.dtype) for name, value in weights.items()}
