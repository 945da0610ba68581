"""The model card, in the form in which the Hugging Face hub shows models of Stable-Baselines3."""

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing.plain import Plain, foreign_names
from sb3_per_dqn.sharing.recipe import installation, making_environment

LIBRARY = "stable-baselines3"
SCORED_GAMES = 10
SMALL = (
    "They are in half precision (float16), without the target network: loaded, they are float32 again, and the target "
    "network is the online network's copy."
)


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
    arguments, environment = {"policy": config["policy"], **config["arguments"]}, config.get("environment")
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
        *([SMALL] if config["small"] else []),
        f"sb3-per-dqn is installed from a checkout of its repository: `{installation(config)}`.",
        f"```python\n{usage(config, score)}\n```",
        "Training can go on (`model.learn(...)`), with an empty replay memory and a fresh optimizer.",
        *([] if environment is None else ["## Environment, as in training", _yaml(environment)]),
        "## Arguments",
        _yaml(arguments),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _yaml(settings: dict[str, Plain]) -> str:
    return "```yaml\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()) + "\n```"


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
    imports, make_env = making_environment(config)
    own = sorted(foreign_names([config["policy"], config["arguments"]]))
    classes = f", classes=[{', '.join(own)}]" if own else ""
    frozen = ["model.get_vec_normalize_env().training = False"] if config["vec_normalize"] else []
    lines = [
        *sorted({*imports, "from stable_baselines3.common.evaluation import evaluate_policy"}),
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
