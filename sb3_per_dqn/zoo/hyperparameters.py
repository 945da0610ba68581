"""Where a run's hyperparameters come from, and what is wrong with them."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3 import exp_manager
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_wrapper_class
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_per_dqn.checks import check_keys, check_kwargs, check_policy, check_storage, check_wrapper_kwargs
from sb3_per_dqn.classes import check_classes, imported
from sb3_per_dqn.run_settings import CONF_KINDS
from sb3_per_dqn.workers import WorkerVecEnv
from sb3_per_dqn.zoo.evaluation import in_evaluation_mode, native_wrapper_kwargs
from sb3_per_dqn.zoo.remote import actors_arguments

LOWEST = {  # of the zoo's flags, and below it the words for "not given", and for all processors
    **{"n_timesteps": (1, -1), "log_interval": (1, -1, -2), "n_eval_envs": (1,), "eval_episodes": (1,)},
    **{"n_evaluations": (1,), "n_trials": (1,), "n_startup_trials": (0,), "n_jobs": (1, -1)},
}
_DICTIONARY = (dict,), "a dictionary, such as dict(name=value)"
EVALUATED: dict[str, tuple[tuple[type, ...], str]] = {  # what they are, if they are given as text
    "policy_kwargs": _DICTIONARY,
    "replay_buffer_kwargs": _DICTIONARY,
    "monitor_kwargs": _DICTIONARY,
    "replay_buffer_class": ((type,), "the name of a class"),
    "normalize": ((bool, dict), "True, False or a dictionary, such as dict(norm_obs=True, norm_reward=False)"),
}


class HyperparameterManager(ExperimentManager):
    """
    The zoo's ``ExperimentManager`` with hyperparameters of ours.

    - Those of ``per_ddqn`` are from this project's YAML, unless ``--conf-file`` is given.
    - What nothing reads, or is not there, is refused.
    - ``worker_restarts``, ``emulators`` and ``ray_actors`` in the YAML are taken out of what the zoo sees.

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
        self.ray_actors: dict[str, Any] = {}  # arguments of RemoteActors; none for environments on this machine
        self.wrapper_kwargs: dict[str, Any] = {}  # of AtariGameWrapper, for native emulators

    def _check_flags(self) -> None:
        for name, (lowest, *words) in LOWEST.items():
            value = getattr(self.args, name, None)
            if value is not None and value < lowest and value not in words:
                raise ValueError(f"--{name.replace('_', '-')}={value} must be {lowest} or more.")

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: hyperparameters, and those to save
        :raises ValueError: if there is no such file, or nothing reads one of its keys
        """
        self._check_conf_file()
        if self.trial_id is not None:
            trial = self._parameters_of_trial()
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        try:
            hyperparams, saved = super().read_hyperparameters()
        except Exception as error:  # of the zoo, when it is empty, a list, or has nothing under the name; of the parser
            is_shape = isinstance(error, (AttributeError, TypeError, KeyError)) and not self.config.endswith(".py")
            reason = "" if is_shape else f" ({type(error).__name__}: {error})"
            raise ValueError(
                f"--conf-file={self.config} does not give the hyperparameters of this environment{reason}: it must "
                f"hold, in YAML or in Python's `hyperparams`, {self.env_name.gym_id}: "
                "{policy: ..., n_timesteps: ...}."
            ) from error
        check_keys(hyperparams, ALGOS[self.algo], length_is_given=self.n_timesteps > 0)
        check_policy(hyperparams["policy"], ALGOS[self.algo])
        check_classes(hyperparams)
        _evaluate(hyperparams)
        check_wrapper_kwargs(hyperparams)
        return hyperparams, saved

    def _check_conf_file(self) -> None:
        if self.config.endswith(CONF_KINDS):
            if not os.path.isfile(self.config):
                raise ValueError(f"--conf-file={self.config}: there is no such file.")
            return
        if os.sep in self.config or "" in self.config.split("."):
            kinds = ", ".join(CONF_KINDS)
            raise ValueError(f"--conf-file={self.config}: it must be a file ({kinds}), or the name of a module.")
        imported(self.config, "--conf-file")

    def _parameters_of_trial(self) -> dict[str, Any]:
        """The zoo reads them too, but takes number 0 for none."""
        if not (self.storage and self.study_name):
            raise ValueError(f"--trial-id={self.trial_id}: say of which study, with --storage and --study-name.")
        check_storage(self.storage)
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
        self.ray_actors = self._arguments_of_actors(hyperparams)
        self._check_stacks(hyperparams)
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

    def _arguments_of_actors(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """Takes them out. What does not go with them is refused here, before the first actor is started."""
        given = hyperparams.pop("ray_actors", 0)
        if not given:
            return {}
        if self.algo != "per_ddqn" or self.optimize_hyperparameters:
            raise ValueError(
                f"ray_actors={given!r} is for training with --algo per_ddqn: leave it out (ray_actors:0); "
                "-optimize takes --ray-address alone."
            )
        alone = {"normalize": hyperparams.get("normalize"), "emulators: native": self.emulators != "processes"}
        for name, is_on in {**alone, "worker_restarts": self.worker_restarts}.items():
            if is_on:
                raise ValueError(f"ray_actors={given!r} and {name} do not go together: leave one out.")
        return actors_arguments(given, hyperparams.get("n_envs", 1))

    def _check_stacks(self, hyperparams: dict[str, Any]) -> None:
        """The zoo stacks outside of ``VecNormalize``, from which SB3 takes for replay what was not stacked yet."""
        stacks, normalize = hyperparams.get("frame_stack"), hyperparams.get("normalize")
        if stacks and stacks > 1 and normalize and issubclass(ALGOS[self.algo], OffPolicyAlgorithm):
            raise ValueError(
                f"frame_stack={stacks} and normalize={normalize!r} do not go together with replay memory: leave one "
                "out, or stack by env_wrapper: {gymnasium.wrappers.FrameStackObservation: {stack_size: "
                f"{stacks}}}}}."
            )


def _evaluate(hyperparams: dict[str, Any]) -> None:
    """What the zoo evaluates without a word on its key. It takes the value, too."""
    for key, (kinds, wanted) in EVALUATED.items():
        given = hyperparams.get(key)
        if given is None:
            continue
        try:
            value = eval(given, dict(vars(exp_manager))) if isinstance(given, str) else given
        except Exception as error:
            name = str(error.name) if isinstance(error, NameError) else ""
            near = difflib.get_close_matches(name, dir(exp_manager), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it must be {wanted}."
            message = error.msg if isinstance(error, SyntaxError) else error  # whose place is of this line alone
            raise ValueError(f"hyperparameters: {key}={given!r}: {type(error).__name__}: {message}; {hint}") from error
        if not isinstance(value, kinds):
            raise ValueError(f"hyperparameters: {key}={given!r} must be {wanted}.")
        hyperparams[key] = value


def hyperparams_folder() -> Path:
    """
    :return: the YAML files: inside the package when it is installed, beside it in a checkout
    """
    package = Path(__file__).parent.parent
    inside, beside = package / "hyperparams", package.parent / "hyperparams"
    return inside if inside.is_dir() else beside
