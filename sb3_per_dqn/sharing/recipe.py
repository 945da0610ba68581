"""Python that makes a model's environment again, for the model card."""

import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from sb3_per_dqn.checkpoint.state import KIND
from sb3_per_dqn.sharing.environment import EnvironmentSettings, is_name
from sb3_per_dqn.sharing.plain import Plain

GAME_WRAPPER = "sb3_per_dqn.atari.AtariGameWrapper"  # by name: to import it takes the emulators
FRAME = [84, 84]  # the size that it gives them
INSTALLED = ("sb3_per_dqn", "stable_baselines3", "gymnasium", "ale_py", "minatar", "rl_zoo3")  # with this package
TRAINING_ALONE = ("evaluation", "terminal_on_life_loss", "clip_reward")  # its arguments that evaluation sets

Lines = list[str]


def making_environment(config: dict[str, Any]) -> tuple[Lines, Lines]:
    """
    :param config: what stands in ``config.json``
    :return: lines that import, and lines that make ``env``, games of Atari in evaluation mode
    """
    environment = environment_of(config)
    kwargs = environment["evaluation_kwargs"] or environment["kwargs"]
    arguments = [literal(config["env_id"]), *_if_any("env_kwargs", kwargs)]
    wrappers = [wrapper["name"] for wrapper in environment["wrappers"]]
    if wrappers == [GAME_WRAPPER] and not environment["vec_wrappers"]:
        return _atari(environment, arguments)
    return _other(config["env_id"], environment, arguments)


def installation(config: dict[str, Any]) -> str:
    """
    :param config: what stands in ``config.json``
    :return: the command that installs what :func:`making_environment` needs of this package
    """
    env_id = config["env_id"]
    is_of_zoo = any(module.split(".")[0] == "rl_zoo3" for module in _modules(environment_of(config)))
    needed = {"atari": _is_atari(env_id), "minatar": _is_minatar(env_id), "zoo": is_of_zoo}
    extras = ",".join(extra for extra, is_needed in needed.items() if is_needed)
    return f'pip install ".[{extras}]"' if extras else "pip install ."


def environment_of(config: dict[str, Any]) -> dict[str, Plain]:
    """
    :param config: what stands in ``config.json``
    :return: what it says of the environment, or else how this package makes it
    """
    if config.get("environment") is not None:
        return dict(config["environment"])
    shape, env_id = config["observation_space"].get("shape", []), config["env_id"]
    if _is_atari(env_id) and shape[1:] == FRAME:
        return EnvironmentSettings(wrappers=((GAME_WRAPPER, {}),), frame_stack=shape[0]).to_plain()
    if _is_minatar(env_id):
        return EnvironmentSettings(wrappers=(("sb3_per_dqn.minatar.ChannelFirst", {}),)).to_plain()
    return EnvironmentSettings().to_plain()


def _is_atari(env_id: str) -> bool:
    spec = gym.registry.get(env_id)
    return spec is not None and "AtariEnv" in str(spec.entry_point)


def _is_minatar(env_id: str) -> bool:
    return env_id.startswith("MinAtar/")


def _modules(environment: dict[str, Plain]) -> list[str]:
    wrappers = [*environment["wrappers"], *environment["vec_wrappers"]]
    return [*environment["packages"], *(wrapper["name"].rpartition(".")[0] for wrapper in wrappers)]


def _import(module: str) -> str:
    return (
        f"import {module}" if module.split(".")[0] in INSTALLED else f"import {module}  # which is not of sb3_per_dqn"
    )


def _atari(environment: dict[str, Plain], arguments: list[str]) -> tuple[Lines, Lines]:
    imports = [
        "from stable_baselines3.common.vec_env import DummyVecEnv",
        "from sb3_per_dqn import load_model, make_atari_vec_env",
        *map(_import, environment["packages"]),
    ]
    arguments = [
        *arguments,
        f"n_envs=1, evaluation=True, frame_stack={environment['frame_stack'] or 1}",
        *_if_any("wrapper_kwargs", _without_training(environment["wrappers"][0]["kwargs"])),
        "vec_env_cls=DummyVecEnv",
    ]
    return imports, [f"env = make_atari_vec_env({', '.join(arguments)})"]


def _other(env_id: str, environment: dict[str, Plain], arguments: list[str]) -> tuple[Lines, Lines]:
    modules = [*_modules(environment), *(["sb3_per_dqn.atari"] if _is_atari(env_id) else [])]  # registers the games
    imports = [
        "from stable_baselines3.common.env_util import make_vec_env",
        "from sb3_per_dqn import load_model",
        *map(_import, modules),
    ]
    lines = []
    if _is_minatar(env_id):
        imports.append("import sb3_per_dqn.minatar")
        lines.append("sb3_per_dqn.minatar.register_minatar()")
    if environment["wrappers"]:
        arguments = [*arguments, f"wrapper_class=lambda env: {_wrapped('env', environment['wrappers'])}"]
    lines.append(f"env = make_vec_env({', '.join(arguments)})")
    if environment["vec_wrappers"]:
        lines.append(f"env = {_wrapped('env', environment['vec_wrappers'])}")
    if environment["frame_stack"]:
        imports.append("from stable_baselines3.common.vec_env import VecFrameStack")
        lines.append(f"env = VecFrameStack(env, {environment['frame_stack']})")
    return imports, lines


def _wrapped(expression: str, wrappers: list[dict[str, Plain]]) -> str:
    """
    :param expression: what the wrappers are put around
    :param wrappers: the innermost first
    :return: the whole
    """
    for wrapper in wrappers:
        name, kwargs = wrapper["name"], wrapper["kwargs"]
        if name == GAME_WRAPPER:
            kwargs = {**_without_training(kwargs), "evaluation": True}
        expression = f"{name}({', '.join([expression, *_keywords(kwargs)])})"
    return expression


def _without_training(kwargs: Mapping[str, Plain]) -> dict[str, Plain]:
    return {name: value for name, value in kwargs.items() if name not in TRAINING_ALONE}


def _keywords(kwargs: Mapping[str, Plain]) -> list[str]:
    if all(map(is_name, kwargs)):
        return [f"{name}={literal(value)}" for name, value in kwargs.items()]
    return [f"**{literal(kwargs)}"]


def _if_any(name: str, kwargs: Mapping[str, Plain]) -> list[str]:
    return [f"{name}={literal(kwargs)}"] if kwargs else []


def literal(plain: Plain) -> str:
    """
    :param plain: data, from :func:`~sb3_per_dqn.sharing.plain.to_plain`
    :return: Python that gives what it was made from
    """
    if isinstance(plain, str):
        return json.dumps(plain, ensure_ascii=False)
    if isinstance(plain, list):
        return f"[{', '.join(map(literal, plain))}]"
    if not isinstance(plain, dict):
        return repr(plain)
    if plain.get(KIND) == "tuple":
        return f"tuple({literal(plain['items'])})"
    if plain.get(KIND) == "float":
        return f"float({literal(plain['value'])})"
    return f"{{{', '.join(f'{literal(key)}: {literal(value)}' for key, value in plain.items())}}}"
