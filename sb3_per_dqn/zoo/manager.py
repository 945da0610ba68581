"""The run: rl-zoo3's ``ExperimentManager`` with what ours needs."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from copy import deepcopy
from functools import partial, partialmethod
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar, cast

import optuna
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, get_latest_run_id
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ConvertCallback, EvalCallback, LogEveryNTimesteps
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    sync_envs_normalization,
)

from sb3_per_dqn.acting import check_acting
from sb3_per_dqn.arguments import check_episodes
from sb3_per_dqn.atari import check_atari_id, make_atari_vec_env
from sb3_per_dqn.callbacks import InterruptGuard, RunRecorder
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.checks import check_seed, check_storage, check_writable, warn_of_early_joints
from sb3_per_dqn.classes import listed
from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.plots import draw_learning_curves
from sb3_per_dqn.run_settings import RunSettings
from sb3_per_dqn.workers import WorkerVecEnv
from sb3_per_dqn.zoo.attributes import replaced
from sb3_per_dqn.zoo.evaluation import EVALUATION_KWARGS, limited
from sb3_per_dqn.zoo.finished import EVALUATION_GAMES, measured, recorded_game, result_or_reason
from sb3_per_dqn.zoo.hyperparameters import HyperparameterManager
from sb3_per_dqn.zoo.models import CHECKPOINTS
from sb3_per_dqn.zoo.remote import attributes_for_actors

LOGGED_ROWS = 200  # of a whole run, whatever its length
MIN_STEPS_PER_ROW = 100
NONE_COMPLETED = ("No trials are completed yet.", "Record does not exist.")  # Optuna's words, each of some storages


class RunManager(HyperparameterManager):
    """
    The zoo's ``ExperimentManager`` with what a run of ours needs.

    - Environment and model are built once in this process before anything is started or written.
    - ``worker_restarts`` in the YAML is how many workers that end or hang may be replaced.
    - ``emulators: native`` in the YAML trains and evaluates on ALE's native emulators; the video is of an ordinary one.
    - ``ray_actors`` in the YAML acts in actors on a Ray cluster; on one, each trial of ``-optimize`` may run on a node.
    - Worker processes leave Ctrl-C to the parent; evaluation uses :class:`AtariGameWrapper`'s evaluation mode.
    - ``progress.csv`` and ``episodes.csv`` beside the model; after training a score, a picture and a video.
    - Checkpoints of the whole run, from which ``--resume`` goes on in the same folder.

    :param args: as for the zoo's class
    :param kwargs: as for the zoo's class
    """

    settings: ClassVar[RunSettings] = RunSettings()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_path = str(self.settings.resume or Path(self.save_path))  # the latter without the slash of -f logs/
        self.params_path = f"{self.save_path}/{self.env_name}"
        self.checkpoints: RunCheckpoints | None = None
        self.made_folder = False
        self.replacing = RLock()  # of -optimize with several --n-jobs, each makes environments
        self.guard = InterruptGuard()

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: the model and the hyperparameters to save, or ``None`` for an optimization
            (no new run folder is left then)
        :raises ValueError: for what is wrong with the arguments; no new run folder is left then either
        """
        self._check_flags()
        if self.optimize_hyperparameters and self.algo not in HYPERPARAMS_SAMPLER:
            raise ValueError(f"--algo={self.algo}: no sampler for -optimize; known: {', '.join(HYPERPARAMS_SAMPLER)}.")
        result = None
        try:
            made = super().setup_experiment()
            if self.ray_actors and made is not None:
                check_acting(cast(OffPolicyAlgorithm, made[0]))
            result = made
        finally:
            if result is None:
                self._close_evaluation_envs()
                self._let_go()
                if self.made_folder:  # an empty run would be the latest, and the one that enjoy looks for
                    shutil.rmtree(self.save_path, ignore_errors=True)
        return result

    def _let_go(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.let_go()

    def create_log_folder(self) -> None:
        """The zoo calls this when all arguments are read, and before anything is started or written."""
        flag = "-f (and -tb)" if self.settings.resume is None else "--resume, such as a copy of it"
        for folder in filter(None, (self.params_path, self.tensorboard_log)):
            check_writable(folder, flag)
        check_seed(self.seed, n_envs=max(self.n_envs, self.n_eval_envs))
        self._try_out()
        if self.optimize_hyperparameters and self.storage:
            check_storage(self.storage)
        if self.settings.ray_address is not None:
            self._join_cluster(self.settings.ray_address)
        if self.settings.resume is None:
            self._make_folder()
        super().create_log_folder()  # type: ignore[no-untyped-call]

    def _make_folder(self) -> None:
        """Of the first number that is free: of runs that begin at the same time, each has its own."""
        # Counted upwards from there, as of a folder with glob's characters in its name the zoo knows no runs
        numbers = count(get_latest_run_id(self.log_path, self.env_name) + 1)
        while True:
            with suppress(FileExistsError):
                os.makedirs(self.save_path)
                break
            self.save_path = str(Path(self.log_path, f"{self.env_name}_{next(numbers)}"))
            self.params_path = f"{self.save_path}/{self.env_name}"
        self.made_folder = True

    def _try_out(self) -> None:
        """Find what is wrong with game, environment or hyperparameters by building them here, once."""
        if self._is_atari:
            check_atari_id(self.env_name.gym_id)
        with replaced(self, vec_env_class=DummyVecEnv, ray_actors={}, verbose=0):
            env = self.create_envs(1, no_log=True)
        with closing(env):
            if self.algo == "per_ddqn" and not isinstance(env.action_space, spaces.Discrete):
                raise ValueError(
                    f"--env={self.env_name.gym_id}: its actions are {env.action_space}, and PerDoubleDQN needs "
                    "Discrete ones: make them so by an env_wrapper, or choose another --algo."
                )
            if not self.continue_training and not self.optimize_hyperparameters:
                arguments = self._preprocess_action_noise(deepcopy(self.model_arguments), {}, env)
                model = ALGOS[self.algo](env=env, seed=self.seed, device=self.device, **arguments)
                model._setup_learn(self.n_timesteps)
                if isinstance(model, PerDoubleDQN):
                    check_episodes(model, self.n_envs)
                    warn_of_early_joints(model, self.n_timesteps)

    def _join_cluster(self, address: str) -> None:
        if not (self.ray_actors or self.optimize_hyperparameters):
            raise ValueError(
                f"--ray-address={address}: nothing of this run is on a cluster: say how many actors are to act there "
                "(-params n_envs:8 ray_actors:4), or -optimize, or leave it out."
            )
        from sb3_per_dqn.cluster.actors import connect

        connect(address)

    def create_callbacks(self) -> None:
        """Ours before the zoo's: of its list, it ends the first for certain."""
        super().create_callbacks()  # type: ignore[no-untyped-call]
        recorder = RunRecorder(self.save_path, self.settings.resume is not None)
        self.callbacks[:0] = [recorder, self.guard]
        if self.settings.every and self.algo == "per_ddqn" and not self.optimize_hyperparameters:
            folder = Path(self.save_path) / CHECKPOINTS
            self.checkpoints = RunCheckpoints(folder, self.settings.every, logs=recorder.files)
            self.checkpoints.hold()
            if self.settings.resume is None:
                self.checkpoints.request()  # at once: a run that is killed before the next one can be resumed, too
            self.guard.checkpoints = self.checkpoints
            self.callbacks.insert(2, self.checkpoints)
        if self.log_interval == -1 and issubclass(ALGOS[self.algo], OffPolicyAlgorithm):
            # by steps, as a count of episodes would be a count of lives, and flood the screen
            self.log_interval = -2
            self.callbacks.append(LogEveryNTimesteps(max(self.n_timesteps // LOGGED_ROWS, MIN_STEPS_PER_ROW)))

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.settings.resume is None:
            super()._save_config(saved_hyperparams)
            self.settings.save(self)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: number of environments
        :param eval_env: whether they are for evaluation
        :param no_log: write no ``Monitor`` files
        :return: the vectorized environment, wrapped
        """
        settings: dict[str, Any] = {}
        if eval_env:
            settings["env_wrapper"] = self.evaluation_wrapper
            settings["eval_env_kwargs"] = limited(self.env_name.gym_id, self.eval_env_kwargs)
        monitor_kwargs = self.monitor_kwargs
        if self.settings.resume is not None and not eval_env:
            monitor_kwargs = settings["monitor_kwargs"] = {**monitor_kwargs, "override_existing": False}
        if self.worker_restarts and self.vec_env_class is WorkerVecEnv and not eval_env:  # not while it is tried out
            settings["vec_env_kwargs"] = {"restarts": self.worker_restarts}
        if self.emulators != "processes":
            make_games = partial(
                make_atari_vec_env,
                self.env_name.gym_id,
                n_envs,
                frame_stack=self.frame_stack or 1,
                monitor_dir=None if eval_env or no_log else self.save_path,  # as the zoo chooses it
                monitor_kwargs=monitor_kwargs,
                wrapper_kwargs={**self.wrapper_kwargs, **(EVALUATION_KWARGS if eval_env else {})},
                env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
                emulators=self.emulators,
            )
            settings |= {"vec_env_class": lambda _: make_games(), "frame_stack": None}
        if self.ray_actors and not eval_env:
            no_log = True  # Monitor's files would be on the actors' nodes
            settings |= attributes_for_actors(
                self.ray_actors, self.settings.ray_address, self.frame_stack, self.vec_env_wrapper
            )
        with self.replacing, replaced(self, **settings):
            return super().create_envs(n_envs, eval_env, no_log)

    def objective(self, trial: optuna.Trial) -> float:
        """
        :param trial: of ``-optimize``
        :return: its value
        """
        if self.settings.ray_address is None:
            return super().objective(trial)
        from sb3_per_dqn.cluster.trials import remote_objective

        return remote_objective(self, trial, lambda: self.guard.interrupted)

    def hyperparameters_optimization(self) -> None:
        """
        An interruption ends all trials that are running, here and on a cluster, and then the command, with its report.

        :raises KeyboardInterrupt: if it was interrupted
        :raises ValueError: if no trial was completed
        """
        if self.settings.ray_address is None:  # or remote_objective() looks after it
            guards = [ConvertCallback(lambda *_: self._check_interruption())]
            self.specified_callbacks = [*listed(self.specified_callbacks), *guards]
        self.guard.message = b"\nStopping all trials. Once more stops at once.\n"
        with self.guard.listening():
            try:
                super().hyperparameters_optimization()
            except ValueError as error:
                if not self.guard.interrupted:
                    if str(error) not in NONE_COMPLETED:
                        raise
                    raise ValueError(
                        "-optimize: no trial was completed: each has failed, with its error above, or was pruned. Mend "
                        "what failed, or ask for more trials (--n-trials)."
                    ) from error
        if self.guard.interrupted:
            raise self.guard.exception

    def _check_interruption(self) -> bool:
        if self.guard.interrupted:
            raise self.guard.exception
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Of an optimization, for a trial on a cluster: without what belongs to this process."""
        return {name: value for name, value in vars(self).items() if name not in ("replacing", "guard", "callbacks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, replacing=RLock(), guard=InterruptGuard(), callbacks=[])

    def learn(self, model: BaseAlgorithm) -> None:
        """
        :param model: an initialized RL model
        """
        with self.guard.listening(), ExitStack() as stack:
            if self.checkpoints is not None:
                self.checkpoints.logs += sorted(Path(self.save_path).glob("*.monitor.csv"))
            if self.settings.resume is not None:
                assert self.checkpoints is not None
                assert isinstance(model, OffPolicyAlgorithm)
                try:
                    self.n_timesteps = self.checkpoints.resume(model)
                except BaseException:
                    model.get_env().close()  # type: ignore[union-attr]
                    self._let_go()
                    raise
            if self.settings.resume is not None or (self.continue_training and isinstance(model, PerDoubleDQN)):
                stack.enter_context(_going_on(model))
            try:
                super().learn(model)
            except Exception:
                self._say_how_to_go_on(model, "training")
                self._let_go()
                raise
        if not self.guard.interrupted:
            self._close_evaluation_envs()

    def _close_evaluation_envs(self) -> None:
        for callback in self.callbacks:
            if isinstance(callback, EvalCallback):
                callback.eval_env.close()

    def _say_how_to_go_on(self, model: BaseAlgorithm, what: str) -> None:
        steps = [] if self.checkpoints is None else self.checkpoints.steps
        way = f"sb3-per-dqn train --resume {self.save_path} goes on from step {steps[-1]}" if steps else "no checkpoint"
        print(f"sb3-per-dqn: {what} failed at step {model.num_timesteps}; {way}.", file=sys.stderr)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model; then, unless training was interrupted, score it and record a game; say where everything is.

        :param model: a trained RL model
        :raises KeyboardInterrupt: when all is saved, if training was interrupted
        """
        try:
            super().save_trained_model(model)
        except OSError:
            self._say_how_to_go_on(model, "saving")
            self._let_go()
            raise
        report = {"score": "not measured", "model": f"{self.params_path}.zip", "plot": "none", "video": "none"}
        try:
            report["plot"] = result_or_reason(lambda: draw_learning_curves(self.save_path))
            if self.guard.interrupted:
                raise self.guard.exception  # handed on, now that all is saved
            report["score"] = result_or_reason(lambda: self._score(model))
            report["video"] = result_or_reason(lambda: self._record_game(model))
        finally:
            lines = [f"{model.num_timesteps} steps", *(f"{what}: {result}" for what, result in report.items())]
            print("; ".join(lines), flush=True)
            self._let_go()

    def _score(self, model: BaseAlgorithm) -> str:
        env = self._evaluation_env(model, min(self.n_envs, EVALUATION_GAMES))
        with closing(env):
            score = measured(model, env, EVALUATION_GAMES, self.deterministic_eval)
        score.write(self.save_path)
        return str(score)

    def _record_game(self, model: BaseAlgorithm) -> Path:
        kwargs = {**self.eval_env_kwargs, "render_mode": "rgb_array"}
        with replaced(self, emulators="processes", vec_env_class=DummyVecEnv, eval_env_kwargs=kwargs):
            env = self._evaluation_env(model, 1)
        return recorded_game(model, env, Path(self.save_path) / "videos", self.deterministic_eval)

    def _evaluation_env(self, model: BaseAlgorithm, n_envs: int) -> VecEnv:
        with replaced(self, verbose=0):
            env = self.create_envs(n_envs, eval_env=True)
        assert model.env is not None
        sync_envs_normalization(model.env, env)
        return env


@contextmanager
def _going_on(model: BaseAlgorithm) -> Iterator[None]:
    """The zoo calls ``learn`` without a word on counters: let them go on."""
    kind = type(model)  # what is the model's own would be saved with it
    with replaced(kind, learn=partialmethod(kind.learn, reset_num_timesteps=False)):
        yield
