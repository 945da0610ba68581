"""The command that plays a model folder: in a window, into a video, or for the score alone."""

import argparse
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack

from sb3_per_dqn.checks import check_device, check_seed, check_writable
from sb3_per_dqn.classes import imported
from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing import EnvironmentSettings, ModelFolderError, load_model
from sb3_per_dqn.sharing.model_folder import read_config
from sb3_per_dqn.sharing.trust import WAY_OUT, trusted_environment
from sb3_per_dqn.whole_files import replacing
from sb3_per_dqn.zoo.evaluation import create_evaluation_env
from sb3_per_dqn.zoo.finished import GameRecorder, measured

GAMES = 3
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")  # what the environment has on Linux where there is one


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sb3-per-dqn watch", allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", help="a model folder, as sb3-per-dqn export writes it")
    parser.add_argument("--games", type=int, default=GAMES, metavar="N", help="how many to play (%(default)s)")
    parser.add_argument("--video", type=Path, metavar="FILE.mp4", help="film the first game, instead of a window")
    parser.add_argument("--no-render", action="store_true", help="no window: the returns alone")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the games (%(default)s)")
    parser.add_argument("--device", default="auto", help="for the networks (%(default)s)")
    parser.add_argument(
        "--gym-packages",
        nargs="+",
        default=[],
        metavar="NAME",
        help="packages whose environments and wrappers you trust, for a folder that needs them",
    )
    return parser


def watch_model(arguments: list[str]) -> str:
    """
    Play a model folder in evaluation mode, with greedy actions, and print the return of each game when it is over.

    :param arguments: of the command
    :return: the mean, in one line
    :raises ValueError: if an argument is wrong, or the folder, or it asks for code that nobody has allowed
    """
    given = _parser().parse_args(arguments)
    _check(given)
    for package in given.gym_packages:
        imported(package, "--gym-packages")
    folder = Path(given.folder)
    config = read_config(folder)
    render_mode = "rgb_array" if given.video else None if given.no_render else "human"
    try:
        env_id, settings = trusted_environment(config, given.gym_packages)
        env = _made(env_id, settings, render_mode, given.seed)
    except ModelFolderError as error:
        raise ModelFolderError(f"{folder}: {error}") from None
    with closing(env):
        # without replay memory; the model's own seed would become the environment's
        model = load_model(folder, env, given.device, buffer_size=1, seed=given.seed, verbose=0)
        normalization = model.get_vec_normalize_env()
        if normalization is not None:
            normalization.training = False
        score = _played(model, given.games) if given.video is None else _filmed(model, given.games, given.video)
    return f"mean: {score}" + (f"; video: {given.video}" if given.video else "")


def _check(given: argparse.Namespace) -> None:
    if given.games < 1:
        raise ValueError(f"--games={given.games} must be 1 or more.")
    check_seed(given.seed)
    check_device(given.device)
    if given.video is not None:
        if given.no_render:
            raise ValueError(f"--no-render draws nothing, and --video={given.video} asks for it: leave one out.")
        if given.video.suffix != ".mp4" or given.video.is_dir():
            raise ValueError(f"--video={given.video} must be the name of a file that ends in .mp4.")
        check_writable(str(given.video.absolute().parent), "--video")
    elif not given.no_render and not _has_display():
        raise ValueError("there is no display for a window: add --no-render, or --video FILE.mp4.")


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, DISPLAYS))


def _made(env_id: str, settings: EnvironmentSettings, render_mode: str | None, seed: int) -> VecEnv:
    """
    :param env_id: of an environment that is trusted
    :param settings: likewise
    :param render_mode: of gymnasium
    :param seed: of the games
    :return: one environment, in evaluation mode
    """
    kwargs = {**(settings.evaluation_kwargs or settings.kwargs), "render_mode": render_mode}
    if render_mode is None:
        del kwargs["render_mode"]  # which not every environment takes
    wrappers = {"env_wrapper": settings.wrappers, "vec_env_wrapper": settings.vec_wrappers}
    for key, base in (("env_wrapper", gym.Wrapper), ("vec_env_wrapper", VecEnvWrapper)):
        for name, _ in wrappers[key]:
            _check_wrapper(name, base)
    hyperparams = {key: [{name: dict(arguments)} for name, arguments in named] for key, named in wrappers.items()}
    try:
        env = create_evaluation_env(env_id, seed=seed, should_render=False, hyperparams=hyperparams, env_kwargs=kwargs)
        env = env if settings.frame_stack is None else VecFrameStack(env, settings.frame_stack)
    except Exception as error:  # with whatever arguments
        raise ModelFolderError(f"{env_id} cannot be made as config.json says: {error!r}. {WAY_OUT}.") from error
    if env.render_mode != render_mode and render_mode is not None:
        env.close()
        way_out = "--no-render" if render_mode == "rgb_array" else "--no-render, or --video FILE.mp4"
        raise ModelFolderError(f"{env_id} has no render_mode {render_mode!r}: {way_out}.")
    return env


def _check_wrapper(name: str, base: type) -> None:
    module, _, name_there = name.rpartition(".")
    found = getattr(imported(module, f"wrapper {name!r}"), name_there, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ModelFolderError(f"{name!r} is no {base.__name__}.")


def _played(model: PerDoubleDQN, games: int, env: VecEnv | None = None) -> Score:
    number = 0

    def say(step: dict[str, Any], _: dict[str, Any]) -> None:
        nonlocal number
        if step["done"] and "episode" in step["info"]:  # a game is over, and not a life
            number += 1
            print(f"game {number}: {step['info']['episode']['r']:.2f}", flush=True)

    return measured(model, env or _env_of(model), games, deterministic=True, callback=say)


def _filmed(model: PerDoubleDQN, games: int, video: Path) -> Score:
    """The video is there when all games are over: whole, or what was there before stays."""
    with TemporaryDirectory() as folder:
        recorder = GameRecorder(_env_of(model), Path(folder))
        try:
            score = _played(model, games, recorder)
        finally:
            recorder.recorded_frames.clear()  # of a game that was interrupted
        video.parent.mkdir(parents=True, exist_ok=True)
        with replacing(video) as beside:
            shutil.copyfile(recorder.video_path, beside)
    return score


def _env_of(model: PerDoubleDQN) -> VecEnv:
    env = model.get_env()
    assert env is not None
    return env
