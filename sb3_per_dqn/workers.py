"""Environments in worker processes that leave signals to the parent, tell their state, and say what ends them."""

import math
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.util import Finalize
from numbers import Real
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sb3_per_dqn.arguments import check_whole
from sb3_per_dqn.checkpoint.environments import StatefulEnv
from sb3_per_dqn.replay.prioritized_buffer import LOST_STEP

END_SECONDS = 5.0  # that a worker has to end by itself


class WorkerError(RuntimeError):
    """A worker process has ended, or does not answer."""


class WorkerVecEnv(SubprocVecEnv):
    """
    ``SubprocVecEnv`` whose workers leave signals to the parent, tell it their environments' state, and are missed.

    A terminal sends SIGINT to the whole process group (and some schedulers SIGTERM); workers that die of it break the
    parent's pipes before it can save. Here they go on, and end when the parent closes them or is gone.

    With ``restarts``, a worker that ends or hangs during a step is replaced. What that step did is lost: its answer is
    a first observation, reward 0 and ``truncated``, with ``info[LOST_STEP]``, by which a
    :class:`~sb3_per_dqn.replay.prioritized_buffer.PrioritizedReplayBuffer` leaves it out and ends the episode with the
    step before. ``Monitor`` has no record of such an episode, and goes on with the same file.

    :param env_fns: one function per worker, making its environment
    :param start_method: as for ``SubprocVecEnv``
    :param timeout: seconds without an answer after which a worker is taken to hang
    :param restarts: how many workers may be replaced, in all
    :raises ValueError: if ``timeout`` or ``restarts`` is out of range
    :raises WorkerError: if an environment cannot be made, with the worker's own traceback
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        timeout: float = 600.0,
        restarts: int = 0,
    ) -> None:
        check_replacement(timeout, restarts)
        self.timeout = timeout
        self.restarts = restarts
        self.restarted = 0
        self._env_fns = env_fns
        self._start_method = start_method
        self._first_seeds: list[int | None] = [None] * len(env_fns)
        self._reports = tempfile.TemporaryDirectory(prefix="sb3-per-dqn-")
        made: list[Callable[[], gym.Env[Any, Any]]]
        made = [partial(_make_for_worker, env_fn, self._report(i)) for i, env_fn in enumerate(env_fns)]
        with _none_left_behind(self):
            try:
                super().__init__(made, start_method)
            except (EOFError, OSError) as error:
                message = self._what_happened()
                self.close()
                raise WorkerError(message) from error
            # Python ends what children are left with SIGTERM, which these ignore, and would wait for them for ever
            Finalize(self, _kill, args=(self.processes,), exitpriority=10)

    def _report(self, worker: int) -> Path:
        return Path(self._reports.name) / f"{worker}.txt"

    def seed(self, seed: int | None = None) -> Any:
        """
        :param seed: of the first environment's next reset; the others get the numbers after it
        :return: the seeds
        """
        super().seed(seed)
        self._first_seeds = list(self._seeds)
        return self._first_seeds

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: one for each environment
        """
        self._actions = actions
        for worker in range(self.num_envs):
            self._send_action(worker)
        self.waiting = True

    def _send_action(self, worker: int) -> None:
        with suppress(OSError):  # of a worker that has ended: the answer that does not come tells
            self.remotes[worker].send(("step", self._actions[worker]))

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones, infos
        :raises WorkerError: if a worker has ended (with its own traceback) or does not answer, and is not replaced
        """
        answers = [self._answer(worker) for worker in range(self.num_envs)]
        self.waiting = False
        obs, rewards, dones, infos, self.reset_infos = zip(*answers, strict=True)  # type: ignore[assignment]
        return _stack_obs(obs, self.observation_space), np.stack(rewards), np.stack(dones), infos  # type: ignore[return-value]

    def _answer(self, worker: int) -> Any:
        while True:
            try:
                return self._received(worker)
            except WorkerError as error:
                message = str(error)
            except (EOFError, OSError):
                message = self._what_became_of(worker)
            if self.restarted >= self.restarts:
                raise WorkerError(message)
            self._replace(worker, message)
            self._send_action(worker)

    def _received(self, worker: int) -> Any:
        if self.remotes[worker].poll(self.timeout):
            return self.remotes[worker].recv()
        raise WorkerError(f"Worker {worker} has not answered for {self.timeout:g} seconds: it hangs.")

    def _replace(self, worker: int, message: str) -> None:
        """
        :param worker: which one ends, if it has not ended yet
        :param message: why
        """
        self.restarted += 1
        warnings.warn(f"{message}\nIt is replaced ({self.restarted} of {self.restarts} restarts).", stacklevel=2)
        self.processes[worker].kill()
        self.processes[worker].join()
        self.remotes[worker].close()
        self._report(worker).unlink(missing_ok=True)
        seed = replacement_seed(self._first_seeds[worker], self.restarted)
        replacement = partial(_make_replacement, self._env_fns[worker], self._report(worker), seed)
        try:
            alone = _OneWorkerVecEnv(replacement, self._start_method)
        except (EOFError, OSError) as error:
            raise WorkerError(f"Worker {worker} could not be replaced.\n{self._own_traceback(worker)}") from error
        self.processes[worker] = alone.processes[0]
        self.remotes = (*self.remotes[:worker], alone.remotes[0], *self.remotes[worker + 1 :])

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations
        :raises WorkerError: if a worker has ended (with its own traceback) or does not answer
        """
        with self._watched():
            for remote, seed, options in zip(self.remotes, self._seeds, self._options, strict=True):
                remote.send(("reset", (seed, options)))
            answers = [self._received(worker) for worker in range(self.num_envs)]
        obs, self.reset_infos = zip(*answers, strict=True)  # type: ignore[assignment]
        self._reset_seeds()
        self._reset_options()
        return _stack_obs(obs, self.observation_space)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        One after the other: of a worker that has ended, no other's answer is left behind in its pipe.

        :param method_name: of the environments
        :param method_args: its arguments
        :param indices: which environments; all by default
        :param method_kwargs: its arguments by keyword
        :return: what it returns in each of them
        :raises WorkerError: if a worker has ended (with its own traceback) or does not answer
        """
        return self._asked(("env_method", (method_name, method_args, method_kwargs)), self._get_indices(indices))

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: of the environments
        :return: whether each of them has it
        :raises WorkerError: as for ``env_method``
        """
        return all(self._asked(("has_attr", attr_name), range(self.num_envs)))

    def _asked(self, question: Any, workers: Iterable[int]) -> list[Any]:
        answers = []
        with self._watched():
            for worker in workers:
                self.remotes[worker].send(question)
                answers.append(self._received(worker))
        return answers

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            raise WorkerError(self._what_happened()) from error

    def _what_happened(self) -> str:
        for worker, process in enumerate(self.processes):
            process.join(END_SECONDS / len(self.processes))
            if not process.is_alive():
                return self._what_became_of(worker)
        return "A worker has closed its pipe."

    def _what_became_of(self, worker: int) -> str:
        process = self.processes[worker]
        process.join(END_SECONDS)
        what = f"Worker {worker} of {len(self.processes)} has ended with exit code {process.exitcode}"
        if own := self._own_traceback(worker):
            return f"{what}. {own}"
        return f"{what} (killed, perhaps for want of memory)." if (process.exitcode or 0) < 0 else f"{what}."

    def _own_traceback(self, worker: int) -> str:
        report = self._report(worker)
        return f"Its own traceback:\n\n{report.read_text()}" if report.exists() else ""

    def close(self) -> None:
        """End the workers, also those that hang."""
        if self.closed:
            return
        for remote in self.remotes:
            with suppress(OSError):  # of a worker that has ended already
                remote.send(("close", None))
        for process in self.processes:
            process.join(END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for remote in self.remotes:  # or they stay open until this object is collected, many in a long study
            remote.close()
        self.closed = True
        self._reports.cleanup()


class ReportingEnv(StatefulEnv):
    """
    Reports what its environment raises, for the parent.

    :param env: an environment
    :param report: called with the traceback
    """

    def __init__(self, env: gym.Env[Any, Any], report: Callable[[str], Any]) -> None:
        super().__init__(env)
        self._report = report

    def step(self, action: Any) -> Any:
        """
        :param action: as for the environment
        :return: as the environment's
        """
        with self._reported():
            return self.env.step(action)

    def reset(self, **kwargs: Any) -> Any:
        """
        :param kwargs: as for the environment
        :return: as the environment's
        """
        with self._reported():
            return self.env.reset(**kwargs)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._report(traceback.format_exc())
            raise


class ReplacementEnv(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment in the place of one that is gone in the middle of a step: its answer to that step is a first
    observation, marked ``LOST_STEP``, and the ``reset`` that follows gives the same one.

    :param env: an environment, not yet reset
    :param seed: of the first reset
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int | None) -> None:
        super().__init__(env)
        self._seed = seed
        self._is_new = True
        self._first: Any = None

    def step(self, action: Any) -> Any:
        """
        :param action: as for the environment
        :return: as the environment's
        """
        if not self._is_new:
            return super().step(action)
        self._is_new = False
        self._first = super().reset(seed=self._seed)
        return self._first[0], 0.0, False, True, {LOST_STEP: True}

    def reset(self, **kwargs: Any) -> Any:
        """
        :param kwargs: as for the environment
        :return: as the environment's
        """
        first, self._first = self._first, None
        return super().reset(**kwargs) if first is None else first


class _OneWorkerVecEnv(SubprocVecEnv):
    """Whose worker joins others; it ends if it cannot be made, or not to the end."""

    def __init__(self, env_fn: Callable[[], gym.Env[Any, Any]], start_method: str | None) -> None:
        with _none_left_behind(self):
            super().__init__([env_fn], start_method)


@contextmanager
def _none_left_behind(vec_env: SubprocVecEnv) -> Iterator[None]:
    """
    End what workers there are if they are not all made: after Ctrl-C, say, or when a function cannot be pickled.

    :param vec_env: that is being made
    """
    vec_env.processes = []
    try:
        yield
    except BaseException:
        _kill(vec_env.processes)
        raise


def _kill(processes: list[Any]) -> None:
    for process in processes:
        process.kill()


def _make_for_worker(env_fn: Callable[[], gym.Env[Any, Any]], report: Path) -> gym.Env[Any, Any]:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    try:
        return ReportingEnv(env_fn(), report.write_text)
    except BaseException:
        report.write_text(traceback.format_exc())
        raise


def _make_replacement(env_fn: Callable[[], gym.Env[Any, Any]], report: Path, seed: int | None) -> gym.Env[Any, Any]:
    monitors_go_on()
    return ReplacementEnv(_make_for_worker(env_fn, report), seed)


def replacement_seed(given: int | None, restarted: int) -> int | None:
    """
    :param given: seed of the environment that is gone
    :param restarted: how many were replaced so far, with this one
    :return: another seed than at the start, or the first episodes would be played again
    """
    return None if given is None else int(np.random.SeedSequence([given, restarted]).generate_state(1)[0])


def monitors_go_on() -> None:
    """In this process alone, whose environments must not overwrite the files of those that are gone."""
    plain = Monitor.__init__

    def going_on(self: Monitor, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **{**kwargs, "override_existing": False})

    Monitor.__init__ = going_on  # type: ignore[method-assign]


def check_replacement(timeout: float, restarts: int) -> None:
    """
    :param timeout: seconds without an answer after which somebody is taken to hang
    :param restarts: how many may be replaced
    :raises ValueError: if one of them is out of range
    """
    if not is_number(timeout) or timeout <= 0:
        raise ValueError(f"timeout={timeout!r} must be a number of seconds, above 0.")
    check_whole("restarts", restarts, 0)


def is_number(value: Any) -> bool:
    """
    :param value: of an argument
    :return: whether it is a finite number
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
