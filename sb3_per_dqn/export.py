"""The command that writes a run's model into a folder to share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]
from rl_zoo3.utils import get_saved_hyperparams
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_per_dqn.checks import check_device, check_env_id, check_folder_name, check_writable
from sb3_per_dqn.classes import imported, listed, name_and_kwargs
from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.run_settings import RUN_FILE, SavedRun
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing import EnvironmentSettings, export_model
from sb3_per_dqn.sharing.environment import Wrapper
from sb3_per_dqn.sharing.model_folder import CURVE, check_free
from sb3_per_dqn.sharing.normalization import normalization_of
from sb3_per_dqn.sharing.small import round_weights
from sb3_per_dqn.zoo.evaluation import create_evaluation_env
from sb3_per_dqn.zoo.finished import EVALUATION_GAMES, measured
from sb3_per_dqn.zoo.models import get_model_path
from sb3_per_dqn.zoo.values import StoreValues


def _parser(default_env: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sb3-per-dqn export", allow_abbrev=False)
    parser.add_argument("--env", default=default_env, metavar="ID", help="environment (%(default)s)")
    parser.add_argument("-f", "--folder", "--log-folder", default="logs", help="as for train (%(default)s)")
    parser.add_argument("--exp-id", type=int, default=0, metavar="N", help="number of the run (the latest)")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="where to write; must be empty or not there yet")
    parser.add_argument(
        "--games", type=int, metavar="N", help="score the model anew over so many (the score that the run ended with)"
    )
    parser.add_argument(
        "--small", action="store_true", help="a quarter of the size: rounded weights, scored anew; without the video"
    )
    parser.add_argument("--with-video", action="store_true", help="with the video, though it is --small")
    parser.add_argument("--device", default="auto", help="on which to play them (%(default)s)")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register the environment")
    return parser


def export_run(arguments: list[str], default_env: str) -> str:
    """
    :param arguments: of the command
    :param default_env: environment if they name none
    :return: what was written, in one line
    :raises ValueError: if an argument is wrong, or there is no such run; nothing is written then
    """
    given = _parser(default_env).parse_args(arguments)
    for package in given.gym_packages:
        imported(package, "--gym-packages")
    check_folder_name(given.folder, "-f")
    check_env_id(given.env)
    check_free(given.to)
    check_writable(given.to, "--to")
    check_device(given.device)
    if given.games is not None and given.games < 1:
        raise ValueError(f"--games={given.games} must be 1 or more.")
    run_folder, model, environment = saved_run(given.env, given.folder, given.exp_id, given.device, given.gym_packages)
    env = model.get_env()
    assert env is not None
    try:
        if given.small:
            round_weights(model.policy)  # what is shared is what is scored
        score = None if given.games or given.small else Score.read(run_folder)
        if score is None or score.steps != model.num_timesteps:
            score = measured(model, env, given.games or EVALUATION_GAMES, deterministic=True)
        normalization = normalization_of(model)
        if normalization is not None:
            normalization.training = True  # whoever trains it further goes on from there
        curve, video = _if_there(run_folder / CURVE), _if_there(run_folder / "videos" / "full-game.mp4")
        video = None if given.small and not given.with_video else video
        files = {"curve": curve, "video": video}
        export_model(
            model, given.to, env_id=given.env, environment=environment, score=score, small=given.small, **files
        )
    finally:
        env.close()
    size = sum(file.stat().st_size for file in Path(given.to).iterdir()) / 1e6
    parts = [f"model folder: {given.to} ({size:.2f} MB)", f"score: {score}", f"plot: {curve or 'none'}"]
    return "; ".join([*parts, f"video: {video or 'none'}"])


def saved_run(
    env_id: str, logs: str, number: int = 0, device: str = "auto", packages: Sequence[str] = ()
) -> tuple[Path, PerDoubleDQN, EnvironmentSettings]:
    """
    Load the model of a run, from SB3's ``.zip`` (which runs code in it: load only what you trust).

    :param env_id: id of the environment
    :param logs: the folder given to ``train`` with ``-f``
    :param number: of the run; 0 is the latest
    :param device: for the model
    :param packages: that register the environment, beside those that the run was begun with
    :return: the run's folder, and the model on one environment in evaluation mode, ``VecNormalize`` around it if it was
        trained with that; and how that environment is made
    :raises AssertionError: if there is no such run
    :raises ValueError: if there is no model in it
    """
    name = EnvironmentName(env_id)
    _, model_path, folder = get_model_path(number, logs, "per_ddqn", name)
    saved, stats_path = get_saved_hyperparams(f"{folder}/{name}", norm_reward=True)
    hyperparams = dict(saved)
    environment = _environment_settings(Path(folder), hyperparams, packages)
    env_kwargs = dict(environment.evaluation_kwargs or environment.kwargs)
    env = create_evaluation_env(
        env_id, stats_path=stats_path, should_render=False, hyperparams=hyperparams, env_kwargs=env_kwargs
    )
    normalization = unwrap_vec_normalize(env)
    if normalization is not None:  # whose returns are Monitor's: what becomes of rewards matters to learning alone
        normalization.norm_reward = hyperparams["normalize_kwargs"].get("norm_reward", True)
    return Path(folder), PerDoubleDQN.load(model_path, env, device=device), environment


def _environment_settings(
    run_folder: Path, hyperparams: dict[str, Any], packages: Sequence[str]
) -> EnvironmentSettings:
    """As the zoo chooses them: the command line's arguments come before those of the YAML."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--env-kwargs", "--eval-env-kwargs"):
        parser.add_argument(flag, nargs="+", action=StoreValues, default={})
    parser.add_argument("--gym-packages", nargs="+", default=[])
    is_ours = (run_folder / RUN_FILE).exists()  # and was not begun by the zoo alone
    given, _ = parser.parse_known_args(SavedRun.read(run_folder).arguments if is_ours else [])
    return EnvironmentSettings(
        packages=tuple(dict.fromkeys([*given.gym_packages, *packages])),
        kwargs=given.env_kwargs or hyperparams.get("env_kwargs") or {},
        evaluation_kwargs=given.eval_env_kwargs,
        wrappers=wrappers_of(hyperparams.get("env_wrapper")),
        vec_wrappers=wrappers_of(hyperparams.get("vec_env_wrapper")),
        frame_stack=hyperparams.get("frame_stack"),
    )


def wrappers_of(given: Any) -> tuple[Wrapper, ...]:
    """
    :param given: as in the zoo's YAML: a wrapper or a list of them
    :return: their names and arguments
    """
    found = [name_and_kwargs(wrapper) for wrapper in listed(given)]
    return tuple(
        (name if isinstance(name, str) else f"{name.__module__}.{name.__qualname__}", kwargs) for name, kwargs in found
    )


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None
