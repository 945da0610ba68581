"""The model card, in the form in which the Hugging Face hub shows models of Stable-Baselines3."""

import json
from typing import Any

import gymnasium as gym
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing.plain import foreign_names

LIBRARY = "stable-baselines3"
FRAME = [84, 84]  # the size that AtariGameWrapper gives them
SCORED_GAMES = 10


def model_card(config: dict[str, Any], score: Score | None = None, curve: str | None = None) -> ModelCard:
    """
    :param config: what stands in ``config.json``
    :param score: of the model
    :param curve: name of the picture
    :return: the card, with metadata that the hub reads (library, tags, ``mean_reward``)
    """
    algorithm, env_id = config["algorithm"], config["env_id"]
    data = ModelCardData(
        library_name=LIBRARY,
        tags=[env_id, "deep-reinforcement-learning", "reinforcement-learning", LIBRARY, "sb3-per-dqn"],
        model_name=algorithm,
        eval_results=None if score is None else [_eval_result(env_id, score)],
    )
    arguments = {"policy": config["policy"], **config["arguments"]}
    trained = f"Trained for {config['num_timesteps']:,} environment steps."
    parts = [
        f"# **{algorithm}** agent playing **{env_id}**",
        f"A trained **{algorithm}** agent (DQN with Double-Q targets, prioritized replay and a dueling network, unless "
        "the arguments below say otherwise) playing "
        f"**{env_id}**, for [stable-baselines3](https://github.com/DLR-RM/stable-baselines3) with sb3-per-dqn.",
        trained if score is None else f"{trained} Score: {score}.",
        *([] if curve is None else [f"![learning curves]({curve})"]),
        "## Usage",
        "Weights are in safetensors and the configuration is JSON: loading runs no code of this folder.",
        f"```python\n{usage(config, score)}\n```",
        "Training can go on (`model.learn(...)`), with an empty replay memory and a fresh optimizer.",
        "## Arguments",
        "```yaml\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in arguments.items()) + "\n```",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _eval_result(env_id: str, score: Score) -> EvalResult:
    return EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=env_id,
        dataset_name=env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{score.mean:.2f} +/- {score.std:.2f}",
        verified=False,
    )


def usage(config: dict[str, Any], score: Score | None = None) -> str:
    """
    :param config: what stands in ``config.json``
    :param score: of the model
    :return: Python that loads and evaluates it
    """
    imports, make_env = _environment(config)
    own = sorted(foreign_names([config["policy"], config["arguments"]]))
    classes = f", classes=[{', '.join(own)}]" if own else ""
    frozen = ["model.get_vec_normalize_env().training = False"] if config["vec_normalize"] else []
    lines = [
        *sorted([*imports, "from stable_baselines3.common.evaluation import evaluate_policy"]),
        *(f"# import {name}, which is not of sb3_per_dqn" for name in own),
        "",
        'folder = "."  # where this file is; from the hub: huggingface_hub.snapshot_download("USER/NAME")',
        *make_env,
        f"model = load_model(folder, env{classes})",
        *frozen,
        f"games = {SCORED_GAMES if score is None else score.games}",
        "print(evaluate_policy(model, model.get_env(), n_eval_episodes=games, deterministic=True))",
    ]
    return "\n".join(lines)


def _environment(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """
    :return: lines that import, and lines that make the environment
    """
    space, env_id, literal = config["observation_space"], config["env_id"], json.dumps(config["env_id"])
    make_vec_env = "from stable_baselines3.common.env_util import make_vec_env"
    spec = gym.registry.get(env_id)
    if spec is not None and "AtariEnv" in str(spec.entry_point) and space.get("shape", [])[1:] == FRAME:
        arguments = f"{literal}, n_envs=1, evaluation=True, frame_stack={space['shape'][0]}, vec_env_cls=DummyVecEnv"
        return [
            "from stable_baselines3.common.vec_env import DummyVecEnv",
            "from sb3_per_dqn import load_model, make_atari_vec_env",
        ], [f"env = make_atari_vec_env({arguments})"]
    if env_id.startswith("MinAtar/"):
        return [
            make_vec_env,
            "from sb3_per_dqn import load_model",
            "from sb3_per_dqn.minatar import ChannelFirst, register_minatar",
        ], ["register_minatar()", f"env = make_vec_env({literal}, wrapper_class=ChannelFirst)"]
    return [make_vec_env, "from sb3_per_dqn import load_model"], [f"env = make_vec_env({literal})"]
