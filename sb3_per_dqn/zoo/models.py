"""Where a run's model is, and what to ask for instead where there is none."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from rl_zoo3 import utils

from sb3_per_dqn.checkpoint.files import CheckpointFolder

CHECKPOINTS = "checkpoints"  # in a run's folder
_get_model_path = utils.get_model_path


def get_model_path(exp_id: int, folder: str, algo: str, env_name: str, *args: Any, **kwargs: Any) -> Any:
    """
    The zoo's function, which names a run that has a model if this one has none: one that failed is the latest, too.

    :param exp_id: number of the run; 0 is the latest
    :param folder: of all runs
    :param algo: name of the algorithm
    :param env_name: the zoo's name of the environment
    :param args: as for the zoo's function
    :param kwargs: as for the zoo's function
    :return: what the zoo's function returns
    :raises AssertionError: if there is no such run
    :raises ValueError: if there is no model in it, with the way out
    """
    try:
        return _get_model_path(exp_id, folder, algo, env_name, *args, **kwargs)
    except ValueError as error:
        message = str(error)
    latest = utils.get_latest_run_id(f"{folder}/{algo}", env_name)
    for other in range(latest, 0, -1):
        with suppress(AssertionError, ValueError):
            _get_model_path(other, folder, algo, env_name, *args, **kwargs)
            message += f"; the newest run that has one is --exp-id {other}"
            break
    run_folder = Path(folder, algo, f"{env_name}_{exp_id or latest}")
    if CheckpointFolder(run_folder / CHECKPOINTS).steps:
        message += f"; this one goes on with sb3-per-dqn train --resume {run_folder}"
    raise ValueError(message)
