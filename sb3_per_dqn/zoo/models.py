"""Where a run's model is, and what to ask for instead where there is none."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from rl_zoo3 import utils

from sb3_per_dqn.checkpoint.files import CheckpointFolder

CHECKPOINTS = "checkpoints"  # in a run's folder
_get_model_path = utils.get_model_path


def get_model_path(
    exp_id: int,
    folder: str,
    algo: str,
    env_name: str,
    load_best: bool = False,
    load_checkpoint: str | None = None,
    load_last_checkpoint: bool = False,
) -> Any:
    """
    The zoo's function, which names what there is if there is no such model: one that was kept on the way, or a run that
    has one, as one that failed is the latest, too.

    :param exp_id: number of the run; 0 is the latest
    :param folder: of all runs
    :param algo: name of the algorithm
    :param env_name: the zoo's name of the environment
    :param load_best: the best that was evaluated on the way
    :param load_checkpoint: the one that was kept after so many steps
    :param load_last_checkpoint: the last one that was kept on the way
    :return: what the zoo's function returns
    :raises AssertionError: if there is no such run
    :raises ValueError: if there is no such model in it, with the way out
    """
    arguments = load_best, load_checkpoint, load_last_checkpoint
    try:
        return _get_model_path(exp_id, folder, algo, env_name, *arguments)
    except ValueError as error:
        message = str(error)
    latest = utils.get_latest_run_id(f"{folder}/{algo}", env_name)
    run_folder = Path(folder, algo, "" if exp_id < 0 else f"{env_name}_{exp_id or latest}")
    if load_best:
        raise ValueError(f"{message}; --eval-freq, while training, keeps the best.")
    if load_checkpoint is not None or load_last_checkpoint:
        found = (path.stem.split("_")[-2] for path in run_folder.glob("rl_model_*_steps.zip"))
        kept = sorted(int(steps) for steps in found if steps.isdecimal())
        there = f"there are --load-checkpoint {', '.join(map(str, kept))}" if kept else "none was kept"
        raise ValueError(f"{message}; {there} (--save-freq, while training, keeps some).")
    for other in range(latest, 0, -1):
        with suppress(AssertionError, ValueError):
            _get_model_path(other, folder, algo, env_name)
            message += f"; the newest run that has one is --exp-id {other}"
            break
    if CheckpointFolder(run_folder / CHECKPOINTS).steps:
        message += f"; this one goes on with sb3-per-dqn train --resume {run_folder}"
    raise ValueError(message)
