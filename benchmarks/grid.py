"""
Grids of runs, games × variants × seeds, as the files in ``benchmarks/grids/`` name them:

    conf_file: hyperparams/minatar_300k.yml  # from the checkout's root; rl_zoo3:hyperparams/dqn.yml is in a package
    games: [MinAtar/Breakout-v0]             # entries of that file
    seeds: [0, 1, 2]
    n_timesteps: 300000                      # else the file's
    evaluation_episodes: 30                  # games of the final model; or {a game: so many}, and 30 of the others
    set: {batch_size: 64}                    # in place of the file's, for every variant
    reference: {MinAtar/Breakout-v0: 10}     # a score that counts as 1; [low, high] count as 0 and 1
    variants:
      dqn: {algo: dqn, label: SB3's DQN}     # and conf_file, if it has one of its own
      small: {algo: per_ddqn, set: {double_q: false}, games: {MinAtar/Breakout-v0: {learning_rate: 0.001}}}

Of ``conf_file`` and ``set`` of the whole grid, a variant takes what its algorithm knows.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.checks import OUR_KEYS, ZOO_KEYS, arguments_of, check_keys

ROOT = Path(__file__).parents[1]
GRIDS = ROOT / "benchmarks" / "grids"
ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"dqn": DQN, "qrdqn": QRDQN, "per_ddqn": PerDoubleDQN}
FOR_THE_ENVIRONMENT = {"env_wrapper", "frame_stack", "n_envs", "n_timesteps", "ray_actors"}
FOR_ALL = {"exploration"}  # an argument of ours, but others can be given the same schedule
OURS_ALONE = arguments_of(PerDoubleDQN) - arguments_of(DQN) - FOR_ALL
GRID_KEYS = {"conf_file", "games", "seeds", "n_timesteps", "evaluation_episodes", "set", "reference", "variants"}
VARIANT_KEYS = {"algo", "label", "conf_file", "set", "games"}
EVALUATION_EPISODES = 30
NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, eq=False)
class Cell:
    """
    One run.

    :param grid: name of its grid
    :param game: id of the environment
    :param variant: name of the variant
    :param seed: of the run
    :param settings: ``algo``, ``n_timesteps``, ``evaluation_episodes`` and ``hyperparameters`` (as in the zoo's YAML)
    """

    grid: str
    game: str
    variant: str
    seed: int
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.game}, {self.variant}, seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        """Which of its grid's runs this is."""
        return self.game, self.variant, self.seed

    @property
    def folder_name(self) -> str:
        """For what the run leaves while it is under way; another one for other settings."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.game.replace('/', '-')}_{self.variant}_{self.seed}_{digest}"


@dataclass(frozen=True)
class Grid:
    """
    :param name: of the file, without its ending
    :param cells: seed by seed, so that what is there early are whole comparisons
    :param labels: of variants, for readers
    :param references: of games: scores that count as 0 and as 1
    """

    name: str
    cells: list[Cell]
    labels: dict[str, str]
    references: dict[str, tuple[float, float]]

    def chosen(self, **wanted: list[Any] | None) -> list[Cell]:
        """
        :param wanted: some values of ``game``, ``variant`` or ``seed``; ``None`` is all
        :return: the cells that have them
        :raises ValueError: for a value that no cell has
        """
        for name, values in wanted.items():
            known = list(dict.fromkeys(getattr(cell, name) for cell in self.cells))
            for value in values or ():
                if value not in known:
                    raise ValueError(f"--{name}s {value}: not in the grid; there are {', '.join(map(str, known))}.")
        return [
            cell
            for cell in self.cells
            if all(values is None or getattr(cell, name) in values for name, values in wanted.items())
        ]


def read_grid(given: str) -> Grid:
    """
    :param given: path of a grid's file, or the name of one in ``benchmarks/grids/``
    :return: the grid
    :raises ValueError: in one line, for what is wrong in the file
    """
    path = Path(given) if given.endswith(".yml") else GRIDS / f"{given}.yml"
    try:
        return _grid(path.stem, _yaml(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _grid(name: str, given: dict[str, Any]) -> Grid:
    _check_keys(given, GRID_KEYS, "in the grid", needed=("conf_file", "games", "seeds", "variants"))
    games, seeds, variants = given["games"], given["seeds"], given["variants"]
    _check_keys(given.get("set", {}), None, "in set")
    _check_list("games", games, str)
    _check_list("seeds", seeds, int)
    if isinstance(given.get("evaluation_episodes"), dict):
        _check_keys(given["evaluation_episodes"], set(games), "in evaluation_episodes")
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"variants={variants!r} must be name: {{algo: ...}}, one or more.")
    for variant, of_variant in variants.items():
        _check_variant(variant, of_variant, games)
    settings = {key: _settings(given, *key) for key in product(games, variants)}
    cells = [
        Cell(name, game, variant, seed, settings[game, variant])
        for seed, game, variant in product(seeds, games, variants)
    ]
    labels = {variant: str(variants[variant].get("label", variant)) for variant in variants}
    references = given.get("reference", {})
    _check_keys(references, set(games), "in reference")
    return Grid(name, cells, labels, {game: _low_and_high(game, value) for game, value in references.items()})


def _settings(grid: dict[str, Any], game: str, variant: str) -> dict[str, Any]:
    given = grid["variants"][variant]
    algorithm = ALGORITHMS[given["algo"]]
    conf_file = given.get("conf_file", grid["conf_file"])
    of_file = _yaml(_path(conf_file))
    if game not in of_file:
        raise ValueError(f"games: {game} is not in {conf_file}; there are {', '.join(map(str, of_file))}.")
    _check_keys(of_file[game], None, f"for {game} in {conf_file}")
    length = {"n_timesteps": grid["n_timesteps"]} if "n_timesteps" in grid else {}
    of_all = {**of_file[game], **grid.get("set", {}), **length}
    if algorithm is not PerDoubleDQN:
        of_all = {key: value for key, value in of_all.items() if key not in OURS_ALONE}
    hyperparameters = {**of_all, **given.get("set", {}), **given.get("games", {}).get(game, {})}
    n_timesteps = hyperparameters.pop("n_timesteps", None)
    _check_hyperparameters(hyperparameters, algorithm, f"{variant}, {game}")
    episodes = grid.get("evaluation_episodes", EVALUATION_EPISODES)
    if isinstance(episodes, dict):
        episodes = episodes.get(game, EVALUATION_EPISODES)
    for name, value in (("n_timesteps", n_timesteps), ("evaluation_episodes", episodes)):
        if not isinstance(value, (int, float)) or value < 1 or value != int(value):
            raise ValueError(f"{name}={value!r} must be a whole number, 1 or more.")
    return {
        "algo": given["algo"],
        "n_timesteps": int(n_timesteps),
        "evaluation_episodes": int(episodes),
        "hyperparameters": hyperparameters,
    }


def _check_hyperparameters(given: dict[str, Any], algorithm: type[OffPolicyAlgorithm], where: str) -> None:
    unread = ((ZOO_KEYS | OUR_KEYS) - FOR_THE_ENVIRONMENT) & given.keys()
    if unread:
        raise ValueError(f"{where}: {', '.join(sorted(unread))} is not for grids: leave it out.")
    try:
        check_keys({key: value for key, value in given.items() if key not in FOR_ALL}, algorithm, length_is_given=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_variant(name: Any, given: Any, games: list[str]) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"variants: {name!r} must be a word of letters, digits, '_', '-' and '.'; label is for more.")
    _check_keys(given, VARIANT_KEYS, f"in variant {name}", needed=("algo",))
    if given["algo"] not in ALGORITHMS:
        raise ValueError(f"variant {name}: algo={given['algo']!r} must be one of {', '.join(ALGORITHMS)}.")
    _check_keys(given.get("games", {}), set(games), f"in games of variant {name}")
    for hyperparameters in (given.get("set", {}), *given.get("games", {}).values()):
        _check_keys(hyperparameters, None, f"in variant {name}")


def _check_keys(given: Any, known: set[str] | None, where: str, needed: Iterable[str] = ()) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{given!r} {where} must be names with values.")
    for key in given:
        if known is not None and key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
            raise ValueError(f"nothing reads {key!r} {where}; {hint}")
    for key in needed:
        if key not in given:
            raise ValueError(f"{key} is missing {where}.")


def _check_list(name: str, given: Any, kind: type) -> None:
    right = isinstance(given, list) and given and all(type(each) is kind for each in given)
    if not right or len(set(given)) < len(given) or (kind is int and min(given) < 0):
        what = "whole numbers, 0 or more" if kind is int else "names"
        raise ValueError(f"{name}={given!r} must be a list of {what}, each once.")


def _low_and_high(game: str, given: Any) -> tuple[float, float]:
    try:
        low, high = given if isinstance(given, list) else (0, given)
        if float(low) != float(high):
            return float(low), float(high)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"reference of {game}: {given!r} must be a score, or [low, high] that differ.")


def _path(conf_file: Any) -> Path:
    package, separator, path = str(conf_file).rpartition(":")
    if not separator:
        return ROOT / path
    try:
        return Path(str(resources.files(package))) / path
    except (ModuleNotFoundError, TypeError):
        raise ValueError(f"conf_file={conf_file!r}: there is no package {package}.") from None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    _check_keys(content, None, f"in {path}")
    return dict(content)
