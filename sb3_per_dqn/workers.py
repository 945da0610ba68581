"""Environments in worker processes that leave signals to the parent, tell their state, and say what ends them."""

import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_per_dqn.checkpoint.environments import StatefulEnv

END_SECONDS = 5.0  # that a worker has to end by itself


class WorkerError(RuntimeError):
    """A worker process has ended, or does not answer."""


class WorkerVecEnv(SubprocVecEnv):
    """
    ``SubprocVecEnv`` whose workers leave signals to the parent, tell it their environments' state, and are missed.

    A terminal sends SIGINT to the whole process group (and some schedulers SIGTERM); workers that die of it break the
    parent's pipes before it can save. Here they go on, and end when the parent closes them or is gone.

    :param env_fns: one function per worker, making its environment
    :param start_method: as for ``SubprocVecEnv``
    :param timeout: seconds without an answer after which a worker is taken to hang
    :raises WorkerError: if an environment cannot be made, with the worker's own traceback
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.timeout = timeout
        self._reports = tempfile.TemporaryDirectory(prefix="sb3-per-dqn-")
        made: list[Callable[[], gym.Env[Any, Any]]]
        made = [partial(_make_for_worker, env_fn, self._report(i)) for i, env_fn in enumerate(env_fns)]
        try:
            super().__init__(made, start_method)
        except (EOFError, OSError) as error:
            message = self._what_happened()
            self.close()
            raise WorkerError(message) from error

    def _report(self, worker: int) -> Path:
        return Path(self._reports.name) / f"{worker}.txt"

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones, infos
        :raises WorkerError: if a worker has ended (with its own traceback) or does not answer
        """
        with self._watched():
            return super().step_wait()

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations
        :raises WorkerError: likewise
        """
        with self._watched(answers=False):
            return super().reset()

    @contextmanager
    def _watched(self, answers: bool = True) -> Iterator[None]:
        try:
            for worker, remote in enumerate(self.remotes if answers else ()):
                if not remote.poll(self.timeout):
                    raise WorkerError(f"Worker {worker} has not answered for {self.timeout:g} seconds: it hangs.")
            yield
        except (EOFError, OSError) as error:
            raise WorkerError(self._what_happened()) from error

    def _what_happened(self) -> str:
        for worker, process in enumerate(self.processes):
            process.join(END_SECONDS / len(self.processes))
            if not process.is_alive():
                what = f"Worker {worker} of {len(self.processes)} has ended with exit code {process.exitcode}"
                report = self._report(worker)
                if report.exists():
                    return f"{what}. Its own traceback:\n\n{report.read_text()}"
                return f"{what} (killed, perhaps for want of memory)." if (process.exitcode or 0) < 0 else f"{what}."
        return "A worker has closed its pipe."

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
        self.closed = True
        self._reports.cleanup()


class ReportingEnv(StatefulEnv):
    """
    Writes down what its environment raises, for the parent.

    :param env: an environment
    :param report: file to write
    """

    def __init__(self, env: gym.Env[Any, Any], report: Path) -> None:
        super().__init__(env)
        self._report_file = str(report)

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
            Path(self._report_file).write_text(traceback.format_exc())
            raise


def _make_for_worker(env_fn: Callable[[], gym.Env[Any, Any]], report: Path) -> gym.Env[Any, Any]:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    try:
        return ReportingEnv(env_fn(), report)
    except BaseException:
        report.write_text(traceback.format_exc())
        raise
