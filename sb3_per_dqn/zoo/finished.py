"""What becomes of a run that is over: its score, its video, and what to say of a picture that fails."""

import io
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecVideoRecorder
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_per_dqn.score import Score

EVALUATION_GAMES = 10
MAX_VIDEO_STEPS = 5_000


def measured(
    model: BaseAlgorithm,
    env: VecEnv,
    games: int,
    deterministic: bool,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> Score:
    """
    :param model: to play
    :param env: what to play, in evaluation mode
    :param games: how many
    :param deterministic: whether actions are greedy
    :param callback: of SB3's ``evaluate_policy``, called after each step
    :return: the score
    """
    returns, _ = evaluate_policy(
        model, env, games, deterministic=deterministic, callback=callback, return_episode_rewards=True
    )
    return Score.of(returns, deterministic, model.num_timesteps)  # type: ignore[arg-type]


class GameRecorder(VecVideoRecorder):
    """
    SB3's recorder, for the first game alone, or its first ``MAX_VIDEO_STEPS`` steps.

    :param env: one environment, in evaluation mode, that renders pictures
    :param folder: for the video, whose name is ``video_path``
    """

    def __init__(self, env: VecEnv, folder: Path) -> None:
        super().__init__(env, str(folder), lambda step: step == 0, MAX_VIDEO_STEPS)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: what the environment gives
        """
        returned = super().step_wait()
        infos = returned[-1]
        if self.recording and "episode" in infos[0]:  # Monitor's: a whole game is over, and not a life
            self._stop_recording()
        return returned

    def _stop_recording(self) -> None:
        with redirect_stdout(io.StringIO()):  # moviepy says a lot
            super()._stop_recording()


def recorded_game(model: BaseAlgorithm, env: VecEnv, folder: Path, deterministic: bool) -> Path:
    """
    :param model: to play
    :param env: one environment, in evaluation mode, that renders pictures; it is closed afterwards
    :param folder: for the video
    :param deterministic: whether actions are greedy
    :return: the video of a whole game, or of its first ``MAX_VIDEO_STEPS`` steps
    :raises ValueError: if it renders none
    """
    if env.render_mode != "rgb_array":  # SB3's recorder says so, too, and fails once more when it is collected
        env.close()
        raise ValueError("the environment has no render_mode 'rgb_array'")
    try:
        recorder = GameRecorder(env, folder)
    except BaseException:
        env.close()
        raise
    with closing(recorder):
        evaluate_policy(model, recorder, n_eval_episodes=1, deterministic=deterministic)
    return Path(recorder.video_path).rename(folder / "full-game.mp4")


def result_or_reason(make: Callable[[], Any]) -> str:
    """
    The run is over and saved: a picture that fails is reported, and must not look like a failed run.

    :param make: makes it
    :return: what it returns, or why it did not
    """
    try:
        return str(make())
    except Exception as error:
        return f"none ({type(error).__name__}: {error})"
