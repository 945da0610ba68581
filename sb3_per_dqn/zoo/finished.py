"""What becomes of a run that is over: its score, and what to say of pictures that fail."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn.score import Score

EVALUATION_GAMES = 10
MAX_VIDEO_STEPS = 5_000


def measured(model: BaseAlgorithm, env: VecEnv, games: int, deterministic: bool) -> Score:
    """
    :param model: to play
    :param env: what to play, in evaluation mode
    :param games: how many
    :param deterministic: whether actions are greedy
    :return: the score
    """
    returns, _ = evaluate_policy(model, env, games, deterministic=deterministic, return_episode_rewards=True)
    return Score.of(returns, deterministic, model.num_timesteps)  # type: ignore[arg-type]


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
