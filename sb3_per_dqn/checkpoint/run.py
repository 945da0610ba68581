"""Checkpoints of a whole run, from which it goes on as if it had never stopped."""

import gc
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from filelock import FileLock, Timeout
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn.arguments import check_whole
from sb3_per_dqn.checkpoint.environments import (
    captured_environments,
    captured_layers,
    captured_random,
    layers_of,
    restore_environments,
    restore_layers,
    restore_random,
    why_not,
)
from sb3_per_dqn.checkpoint.files import CheckpointError, CheckpointFolder
from sb3_per_dqn.checkpoint.logs import cut_back, positions
from sb3_per_dqn.checkpoint.replay import captured_buffer, restore_buffer
from sb3_per_dqn.checkpoint.state import NotThereError, StateError, Tree, captured, restored
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer

EVERY = 50_000
RUN_NAME = re.compile(r"\w[\w.-]*")
PACKAGES = ("sb3-per-dqn", "stable-baselines3", "torch", "numpy", "gymnasium", "ale-py")
# What an algorithm knows beyond its arguments, networks, optimizer, replay memory and environments
ATTRIBUTES = (
    "num_timesteps",
    "_total_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "_owed_gradient_steps",
    "_current_progress_remaining",
    "exploration_rate",
    "ep_info_buffer",
    "ep_success_buffer",
    "_last_obs",
    "_last_episode_starts",
    "_last_original_obs",
)
_IDS: WeakKeyDictionary[VecEnv, str] = WeakKeyDictionary()  # asked for once: later, an actor may be gone for a while
NOT_OF_A_CALLBACK = {"model", "_logger", "locals", "globals", "parent", "callback", "callbacks"}


class RunCheckpoints(BaseCallback):
    """
    Writes checkpoints of everything that a run consists of: networks, optimizer, replay memory with its priorities,
    counters, schedules' places, all random states, environments with their wrappers, statistics of ``VecNormalize``,
    logger and callbacks. A run that goes on from one of them ends with the same weights, bit for bit, as if it had
    never stopped (on a CPU, with the same machine, versions and number of threads).

        checkpoints = RunCheckpoints("runs/breakout")
        timesteps = checkpoints.resume(model) if checkpoints.steps else 1_000_000
        model.learn(timesteps, callback=checkpoints, reset_num_timesteps=not checkpoints.steps)

    It writes between a rollout's gradient steps and the next rollout. Where the state of an environment cannot be read
    (there is a warning), all environments start anew with each checkpoint, in a run that goes on as in one that
    resumes: both are alike, but depend on ``every``. Wrappers of the vectorized environment, and so the statistics of
    ``VecNormalize``, go on also then; what a wrapper of a single game keeps beyond ``reset()`` does not.

    :param folder: where; no other run may have it
    :param every: environment steps from one checkpoint to the next
    :param keep: how many to keep
    :param logs: files that grow with the run (``Monitor``'s, say): ``resume`` cuts them back to where they were. It
        does so with TensorBoard's, and goes on in the same folder, without being told
    :param verbose: 1 to say when one was written
    :raises ValueError: if an argument is out of range
    """

    goes_on = False  # as it was, in a run that is resumed

    def __init__(
        self,
        folder: str | Path,
        every: int = EVERY,
        keep: int = 2,
        logs: Sequence[str | Path] = (),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_whole("every", every, 1)
        if isinstance(logs, (str, PathLike)):
            raise ValueError(f"logs={logs!r} must be a list of files: logs=[{str(logs)!r}].")
        self.every = every
        self.files = CheckpointFolder(folder, keep)
        self.logs = [Path(log) for log in logs]
        self.requested = False
        self._last_step: int | None = None
        self._run: BaseAlgorithm | None = None  # whose checkpoints these are
        self._waiting: tuple[Tree, Tree] | None = None
        self._lock = FileLock(self.files.folder / ".lock")
        self._why_restart = ""

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, the oldest first."""
        return self.files.steps

    def request(self) -> None:
        """Write a checkpoint before the next rollout, whenever the last one was. ``requested`` tells whether it was."""
        self.requested = True

    def resume(self, model: OffPolicyAlgorithm, step: int | None = None) -> int:
        """
        Put a checkpoint into a model that was made as the one that it is of: same arguments, same environments.

        :param model: a new model, with its environments
        :param step: of the checkpoint; ``None`` takes the newest
        :return: steps that are left, for ``learn(..., reset_num_timesteps=False)``
        :raises CheckpointError: if there is none, it is damaged, does not fit the model, or another run uses it. The
            model may be spoilt then
        """
        _check_algorithm(model)
        self._claim()
        step, tree = self.files.read(step)
        where = self.files.path(step)
        _check_fit(model, tree, where)
        theirs, names = tree.get("log_names"), [log.name for log in self.logs]
        if theirs != names:
            raise CheckpointError(
                f"{where} was written with logs named {theirs}, and here they are {names}: give the same, in the same "
                "order."
            )
        try:
            _restore_run(model, tree)
            self._go_on_logging(model, tree)
        except (StateError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{where} does not fit this model: {error}") from error
        self._waiting = tree["logger"], tree["callbacks"]  # for objects that come with learn()
        self._run, self._last_step = model, step
        return int(model._total_timesteps - model.num_timesteps)

    def _go_on_logging(self, model: OffPolicyAlgorithm, tree: Tree) -> None:
        folders = []
        if model.tensorboard_log is not None and RUN_NAME.fullmatch(tree["tensorboard"] or ""):
            folders = [Path(model.tensorboard_log) / tree["tensorboard"]]
        cut_back([*self.logs, *folders], tree["logs"])
        for folder in folders:
            formats = ["stdout", "tensorboard"] if model.verbose >= 1 else ["tensorboard"]  # as SB3 chooses them
            model.set_logger(configure(str(folder), formats))

    def _claim(self) -> None:
        if self._lock.is_locked:
            return
        self.files.prepare()
        try:
            self._acquire()
        except Timeout:
            raise CheckpointError(
                f"{self.files.folder}: another run that is still alive writes its checkpoints there: end it, or choose "
                "another folder. If it is an earlier try in this process (of a notebook), let_go() of its "
                "RunCheckpoints gives the folder back."
            ) from None

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            gc.collect()  # of an earlier try that ended with an exception, whose callbacks and model hold each other
            self._lock.acquire(timeout=0)

    def hold(self) -> None:
        """
        Take the folder now, and keep it beyond the end of training, for what else is written beside it.

        :raises CheckpointError: if another run has it
        """
        self._claim()
        self._lock.acquire()  # it counts, and the end of training takes one back

    def let_go(self) -> None:
        """Let others have the folder."""
        self._lock.release(force=True)

    def _init_callback(self) -> None:
        _check_algorithm(self.model)
        self._check_place()
        self._claim()
        goes_on = self._run is self.model and self.model.num_timesteps >= (self._last_step or 0)
        if self.steps and not goes_on:
            self._lock.release()
            raise CheckpointError(
                f"{self.files.folder} holds the checkpoints of another run: resume it, or choose another folder."
            )
        self._run = self.model
        self._why_restart = why_not(self.training_env)
        if self._why_restart:
            warnings.warn(
                f"The state of the environments cannot be saved ({self._why_restart}): they start anew with every "
                f"checkpoint, each {self.every} steps.",
                stacklevel=2,
            )
        if not goes_on:
            self._last_step = self.model.num_timesteps

    def _check_place(self) -> None:
        if isinstance(self.parent, EventCallback):
            raise CheckpointError(
                f"RunCheckpoints in {type(self.parent).__name__}, which tells it of no rollout, would write nothing: "
                "give it to learn() itself, with every=..."
            )

    def _on_training_start(self) -> None:
        self._check_place()  # once more: a list tells its callbacks only now what it is in
        if self._waiting is not None:
            (of_logger, of_callbacks), self._waiting = self._waiting, None
            for name, values in of_logger.items():
                getattr(self.logger, name).update(restored(None, values))
            _restore_callbacks(self._outermost(), of_callbacks)

    def _outermost(self) -> BaseCallback:
        callback: BaseCallback = self.locals["callback"]  # of learn()
        return callback

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        assert self._last_step is not None
        if self.requested or self.model.num_timesteps >= self._last_step + self.every:
            self._save()

    def _save(self) -> None:
        model: Any = self.model
        assert self._last_step is not None
        if model.num_timesteps == self._last_step and self._last_step in self.steps:  # it is there already
            self.requested = False
            return
        before, self._last_step, self.requested = self._last_step, model.num_timesteps, False
        tree = None
        try:
            tree = self._captured(model)
            self.files.forget_after(before)
            path = self.files.write(model.num_timesteps, tree)
        except Exception as error:  # also a fault of ours, or too little memory: the run is worth more
            last = f"the last one is {self.files.path(self.steps[-1])}" if self.steps else "there is none yet"
            known = isinstance(error, (CheckpointError, StateError, OSError))
            why = (str(error) if known else repr(error)).rstrip(".")
            warnings.warn(f"No checkpoint at step {model.num_timesteps}: {why}. Going on; {last}.", stacklevel=2)
        else:
            if self.verbose:
                print(f"Checkpoint: {path}")
        if self._why_restart and tree is not None:
            _restart(model, tree["restart"])

    def _captured(self, model: Any) -> Tree:
        writers = [
            output.writer for output in model.logger.output_formats if isinstance(output, TensorBoardOutputFormat)
        ]
        for writer in writers:
            writer.flush()
        folders = [Path(writer.log_dir) for writer in writers]
        return {
            **_captured_run(model, restart=bool(self._why_restart)),
            "callbacks": _captured_callbacks(self._outermost()),
            "logs": positions([*self.logs, *folders]),
            "log_names": [log.name for log in self.logs],
            "tensorboard": next((folder.name for folder in folders), None),
        }

    def _on_training_end(self) -> None:
        self._lock.release()


def _captured_run(model: Any, restart: bool) -> Tree:
    """
    :param model: between two rollouts
    :param restart: whether environments are to start anew
    :return: all that the run consists of
    """
    seed = int(np.random.randint(2**31)) if restart else None
    return {
        "fit": _fit(model),
        "versions": _versions(),
        "model": {name: captured(getattr(model, name, None)) for name in ATTRIBUTES},
        "policy": {name: tensor.cpu().numpy() for name, tensor in model.policy.state_dict().items()},
        "optimizer": captured(model.policy.optimizer.state_dict()),
        "buffer": captured_buffer(model.replay_buffer),
        "restart": seed,
        "environments": {"layers": captured_layers(model.env)} if restart else captured_environments(model.env),
        "logger": _captured_logger(model.logger),
        "random": _captured_random(model),
    }


def _restore_run(model: Any, tree: Tree) -> None:
    # Environments first: to reset them takes random numbers
    seed = _restore_environments(model.env, tree["environments"], tree["restart"])
    for name, of_attribute in tree["model"].items():
        if name not in ATTRIBUTES:
            raise StateError(f"{name} is no part of a run")
        setattr(model, name, restored(getattr(model, name, None), of_attribute))
    model.policy.load_state_dict({name: th.from_numpy(np.array(array)) for name, array in tree["policy"].items()})
    model.policy.optimizer.load_state_dict(restored(None, tree["optimizer"]))
    restore_buffer(model.replay_buffer, tree["buffer"])
    _restore_random(model, tree["random"])
    if seed is not None:
        _restart(model, seed)


def _restore_environments(env: VecEnv, tree: Tree, seed: int | None) -> int | None:
    """
    :param env: the model's
    :param tree: from ``captured_environments``, or the wrappers alone where the rest starts anew
    :param seed: with which it does; ``None`` if it goes on
    :return: the seed; one also if environments must start anew, as they held what new ones do not: better than to lose
        the run
    """
    try:
        if seed is None:
            restore_environments(env, tree)
        elif tree is not None:  # as it was in checkpoints that were written before wrappers went on
            restore_layers(env, tree["layers"])
    except NotThereError as error:
        warnings.warn(
            f"The state of the environments cannot be restored ({error}): they start anew here, and the run goes on "
            "otherwise than if it had not been stopped.",
            stacklevel=4,
        )
        return int(np.random.randint(2**31)) if seed is None else seed
    return seed


def _restart(model: Any, seed: int) -> None:
    model.env.seed(seed)
    model._last_obs = model.env.reset()
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    if isinstance(model.replay_buffer, PrioritizedReplayBuffer):
        model.replay_buffer.end_segments()


def _captured_logger(logger: Logger) -> Tree:
    """
    :return: what was recorded since the last dump, without pictures and the like
    """
    numbers = {
        name: value for name, value in logger.name_to_value.items() if isinstance(value, (int, float, np.number))
    }
    counts = {name: logger.name_to_count[name] for name in numbers if name in logger.name_to_count}
    excluded = {name: logger.name_to_excluded[name] for name in numbers if name in logger.name_to_excluded}
    return {
        "name_to_value": captured(numbers),
        "name_to_count": captured(counts),
        "name_to_excluded": captured(excluded),
    }


def _captured_random(model: Any) -> Tree:
    is_used = th.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "process": captured_random(),
        "torch": th.get_rng_state().numpy(),
        "cuda": [generator.numpy() for generator in th.cuda.get_rng_state_all()] if is_used else [],
        "actions": captured(model.action_space.np_random),
    }


def _restore_random(model: Any, tree: Tree) -> None:
    restore_random(tree["process"])
    th.set_rng_state(th.from_numpy(np.array(tree["torch"])))
    for device, generator in enumerate(tree["cuda"][: th.cuda.device_count()]):
        th.cuda.set_rng_state(th.from_numpy(np.array(generator)), device)
    restored(model.action_space.np_random, tree["actions"])


def _callbacks_of(callback: BaseCallback) -> Iterator[BaseCallback]:
    yield callback
    children = callback.callbacks if isinstance(callback, CallbackList) else [getattr(callback, "callback", None)]
    for child in children:
        if isinstance(child, BaseCallback):
            yield from _callbacks_of(child)


def _captured_callbacks(outermost: BaseCallback) -> Tree:
    """
    :return: counters, best scores and the like: what of their attributes can be captured, and why others cannot
    """
    trees = []
    for callback in _callbacks_of(outermost):
        attributes, lost = {}, {}
        for name in _attributes_of(callback):
            value = getattr(callback, name)
            try:
                attributes[name] = captured_environments(value) if isinstance(value, VecEnv) else captured(value)
            except StateError as error:
                lost[name] = str(error)
        trees.append({"class": type(callback).__qualname__, "attributes": attributes, "lost": lost})
    return trees


def _attributes_of(callback: BaseCallback) -> list[str]:
    """
    :return: names of what may go on in another process. Not texts, which are paths, and may be others now
    """
    if not getattr(callback, "goes_on", True):
        return []
    return [
        name for name, value in vars(callback).items() if name not in NOT_OF_A_CALLBACK and not isinstance(value, str)
    ]


def _restore_callbacks(outermost: BaseCallback, trees: Tree) -> None:
    callbacks = list(_callbacks_of(outermost))
    if [type(callback).__qualname__ for callback in callbacks] != [tree["class"] for tree in trees]:
        warnings.warn("Other callbacks than before: they begin anew.", stacklevel=2)
        return
    for callback, tree in zip(callbacks, trees, strict=True):
        if not type(callback).__module__.startswith("stable_baselines3."):  # a user can mend nothing there
            for name, why in tree["lost"].items():
                warnings.warn(f"{type(callback).__name__}.{name} begins anew: {why}.", stacklevel=2)
        for name, of_attribute in tree["attributes"].items():
            if name not in _attributes_of(callback):
                continue
            value = getattr(callback, name)
            try:
                if isinstance(value, VecEnv):  # of an evaluation
                    restore_environments(value, of_attribute)
                else:
                    setattr(callback, name, restored(value, of_attribute))
            except StateError as error:
                warnings.warn(f"{type(callback).__name__}.{name} begins anew: {error}.", stacklevel=2)


def _check_algorithm(model: Any) -> None:
    """
    :param model: of any algorithm
    :raises CheckpointError: if it keeps what a run consists of elsewhere than DQN does
    """
    if not (isinstance(model, OffPolicyAlgorithm) and hasattr(model.policy, "optimizer")):
        raise CheckpointError(
            f"RunCheckpoints is for DQN and what is made like it, and not for {type(model).__name__}: leave it out "
            "(SB3's CheckpointCallback saves any model)."
        )


def _fit(model: Any) -> dict[str, str]:
    """
    :return: what must be the same in a model that a checkpoint is put into, as text
    """
    buffer = model.replay_buffer
    names = ("buffer_size", "n_envs", "alpha", "eps", "n_steps", "gamma", "handle_timeout_termination")
    of_buffer = {name: getattr(buffer, name) for name in names if hasattr(buffer, name)}
    return {
        "algorithm": type(model).__name__,
        "policy": type(model.policy).__name__,
        "optimizer": type(model.policy.optimizer).__name__,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "n_envs": str(model.n_envs),
        "environments": " in ".join(str(part) for part in _names_of(model.env)),
        "replay_buffer": f"{type(buffer).__name__} with {of_buffer}",
        "weights": str({name: tuple(tensor.shape) for name, tensor in model.policy.state_dict().items()}),
    }


def _names_of(env: VecEnv) -> list[str]:
    layers, games = layers_of(env)
    if games not in _IDS:
        spec = games.get_attr("spec", indices=0)[0] if games.has_attr("spec") else None
        _IDS[games] = getattr(spec, "id", "unknown")
    return [_IDS[games], type(games).__name__, *(type(layer).__name__ for layer in reversed(layers))]


def _check_fit(model: Any, tree: Tree, where: Path) -> None:
    if not isinstance(tree, dict) or not all(isinstance(tree.get(name), dict) for name in ("fit", "versions")):
        raise CheckpointError(f"{where} is no checkpoint of a run.")
    for name, mine in _fit(model).items():
        if tree["fit"].get(name) != mine:
            raise CheckpointError(
                f"{where} is of another run: its {name} is {tree['fit'].get(name)}, and the model's {mine}. "
                "Make the model as it was made then."
            )
    theirs = tree["versions"]
    other = [f"{package} {theirs.get(package)}" for package, mine in _versions().items() if theirs.get(package) != mine]
    if other:
        warnings.warn(f"A checkpoint written with {', '.join(other)}: the run may differ from now on.", stacklevel=3)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # of a checkout, say
            versions[package] = metadata.version(package)
    return versions
