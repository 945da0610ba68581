"""Where a run's hyperparameters come from, and what is wrong with them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_wrapper_class
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_per_dqn.checks import check_keys, check_kwargs
from sb3_per_dqn.classes import check_classes, imported
from sb3_per_dqn.run_settings import CONF_KINDS
from sb3_per_dqn.workers import WorkerVecEnv
from sb3_per_dqn.zoo.evaluation import in_evaluation_mode, native_wrapper_kwargs


class HyperparameterManager(ExperimentManager):
    """
    The zoo's ``ExperimentManager`` with hyperparameters of ours.

    - Those of ``per_ddqn`` are from this project's YAML, unless ``--conf-file`` is given.
    - What nothing reads, or is not there, is refused.
    - ``worker_restarts`` and ``emulators`` in the YAML are taken out of what the zoo sees.

    :param args: as for the zoo's class
    :param kwargs: as for the zoo's class
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own_file = hyperparams_folder() / f"{self.algo}.yml"
        if kwargs.get("config") is None and own_file.is_file():
            self.config = str(own_file)
        if self.vec_env_class is SubprocVecEnv:
            self.vec_env_class = WorkerVecEnv
        self.evaluation_wrapper: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None
        self.model_arguments: dict[str, Any] = {}
        self.emulators = "processes"
        self.worker_restarts = 0
        self.wrapper_kwargs: dict[str, Any] = {}  # of AtariGameWrapper, for native emulators

    def _check_flags(self) -> None:
        lowest = {"n_timesteps": 1, "log_interval": 1, "n_eval_envs": 1, "eval_episodes": 1}
        for name, value in vars(self.args).items():
            if name in lowest and value < lowest[name] and value not in (-1, -2):  # the zoo's words for "not given"
                raise ValueError(f"--{name.replace('_', '-')}={value} must be {lowest[name]} or more.")

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: hyperparameters, and those to save
        :raises ValueError: if there is no such file, or nothing reads one of its keys
        """
        if not self.config.endswith(CONF_KINDS):
            imported(self.config, "--conf-file")
        elif not os.path.isfile(self.config):
            raise ValueError(f"--conf-file={self.config}: there is no such file.")
        if self.trial_id is not None:
            trial = self._parameters_of_trial()
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        hyperparams, saved = super().read_hyperparameters()
        check_keys(hyperparams, ALGOS[self.algo], length_is_given=self.n_timesteps > 0)
        check_classes(hyperparams)
        return hyperparams, saved

    def _parameters_of_trial(self) -> dict[str, Any]:
        """The zoo reads them too, but takes number 0 for none."""
        if not (self.storage and self.study_name):
            raise ValueError(f"--trial-id={self.trial_id}: say of which study, with --storage and --study-name.")
        try:
            return dict(self.load_trial(self.storage, self.study_name, self.trial_id))
        except (IndexError, KeyError):
            raise ValueError(
                f"--trial-id={self.trial_id}: no such trial has been made in --study-name={self.study_name} of "
                f"--storage={self.storage}."
            ) from None

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        hyperparams.setdefault("n_timesteps", self.n_timesteps)  # the zoo wants it in the file even if -n is given
        self.emulators = hyperparams.pop("emulators", "processes")
        if self.emulators != "processes":
            self.wrapper_kwargs = native_wrapper_kwargs(hyperparams)
        self.worker_restarts = hyperparams.pop("worker_restarts", 0)
        if self.worker_restarts and (self.emulators != "processes" or self.vec_env_class is not WorkerVecEnv):
            raise ValueError(f"worker_restarts={self.worker_restarts!r} is for worker processes: leave it out.")
        evaluation = in_evaluation_mode(hyperparams)
        self.evaluation_wrapper = get_wrapper_class(evaluation)
        # 1% of the actions are random in the environment itself: the model adds nothing to that
        self.deterministic_eval = self.deterministic_eval or evaluation is not hyperparams
        processed = super()._preprocess_hyperparams(hyperparams)
        if not self._eval_env_kwargs_args:
            self.eval_env_kwargs = self.env_kwargs  # those of the YAML, too: the zoo took them before they were read
        self.model_arguments = processed[0]
        check_kwargs(self.model_arguments, ALGOS[self.algo])
        return processed


def hyperparams_folder() -> Path:
    """
    :return: the YAML files: inside the package when it is installed, beside it in a checkout
    """
    package = Path(__file__).parent.parent
    inside, beside = package / "hyperparams", package.parent / "hyperparams"
    return inside if inside.is_dir() else beside
