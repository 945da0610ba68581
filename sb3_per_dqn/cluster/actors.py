"""Ray actors with environments in them, and what all vectorized environments that consist of such have in common."""

import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs

from sb3_per_dqn.arguments import check_whole
from sb3_per_dqn.workers import (
    END_SECONDS,
    ReplacementEnv,
    ReportingEnv,
    WorkerError,
    check_replacement,
    is_number,
    monitors_go_on,
    replacement_seed,
)

ANSWER_SECONDS = 10.0  # that a cluster has, to be there
SLACK = 1e-6  # of processors, as Ray counts them to four digits
ROOM_SECONDS = 3.0  # after which it is said that others have the processors: Ray counts late what has ended
EnvFn = Callable[[], gym.Env[Any, Any]]
Answer = tuple[VecEnvObs, np.ndarray, np.ndarray, list[dict[str, Any]], list[dict[str, Any]]]


class EnvironmentActor:
    """
    SB3's ``DummyVecEnv`` in a process of Ray's.

    :param env_fns: one function per environment, making it
    :param numbers: of the environments, among all of the cluster, for messages
    :param seeds: of the first resets, if these environments take the place of others that are gone
    """

    def __init__(self, env_fns: list[EnvFn], numbers: range, seeds: list[int | None] | None = None) -> None:
        if seeds is not None:
            monitors_go_on()
        self._made: list[gym.Env[Any, Any]] = []
        self.venv: VecEnv = DummyVecEnv(
            [partial(self._make, env_fn, number) for env_fn, number in zip(env_fns, numbers, strict=True)]
        )
        if seeds is not None:
            self._take_over(seeds)

    def _make(self, env_fn: EnvFn, number: int) -> gym.Env[Any, Any]:
        report = partial(_raise_named, number)
        try:
            env = self._wrapped(env_fn())
        except BaseException:
            report(traceback.format_exc())
        self._made.append(env)
        return ReportingEnv(env, report)

    def _wrapped(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return env

    def _take_over(self, seeds: list[int | None]) -> None:
        venv: Any = self.venv
        venv.envs = [ReplacementEnv(env, seed) for env, seed in zip(venv.envs, seeds, strict=True)]

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """
        :return: of observations and of actions
        """
        return self.venv.observation_space, self.venv.action_space

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[VecEnvObs, list[dict[str, Any]]]:
        """
        :param seeds: one for each environment
        :param options: likewise
        :return: first observations, and what was said of them
        """
        games = self.venv.unwrapped
        games._seeds, games._options = list(seeds), list(options)
        return self.venv.reset(), games.reset_infos

    def step(self, actions: np.ndarray) -> Answer:
        """
        :param actions: one for each environment
        :return: observations, rewards, dones, infos, and infos of the last resets
        """
        return (*self.venv.step(actions), self.venv.reset_infos)

    def set_attr(self, attr_name: str, value: Any, index: int) -> None:
        """
        :param attr_name: of what the function made, and not of the wrappers around it
        :param value: to set
        :param index: which environment
        """
        setattr(self._made[index], attr_name, value)

    def env_method(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], index: int) -> Any:
        """
        :param name: of the environment's method
        :param args: its arguments
        :param kwargs: its arguments by keyword
        :param index: which environment
        :return: what it returns
        """
        return self.venv.env_method(name, *args, indices=index, **kwargs)[0]

    def render(self, index: int) -> Any:
        """
        :param index: which environment
        :return: its picture
        """
        return self._made[index].render()

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """
        :param method: of the ``DummyVecEnv``
        :param args: its arguments
        :param kwargs: its arguments by keyword
        :return: what it returns
        """
        return getattr(self.venv, method)(*args, **kwargs)


def _raise_named(number: int, its_traceback: str) -> None:
    raise WorkerError(f"Environment {number} has raised an error. Its own traceback:\n\n{its_traceback}") from None


class ActorVecEnv(VecEnv):
    """
    Environments in Ray actors: all but how they step.

    :param env_fns: one function per environment, making it
    :param envs_per_actor: how many of them an actor has
    :param actor_class: of the actors
    :param actor_args: its first arguments
    :param timeout: seconds without an answer after which an actor is taken to hang
    :param restarts: how many actors may be replaced, in all
    :param num_cpus: processors that Ray reserves for an actor
    :param ray_address: of a cluster, if Ray is not initialized yet; ``None`` takes that of ``RAY_ADDRESS``, or of
        ``ray start`` on this machine, or starts Ray here, and ``"local"`` does so in any case
    :raises ValueError: if an argument is out of range, or the cluster too small
    :raises WorkerError: if an environment cannot be made, with its own traceback
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        envs_per_actor: int,
        actor_class: type[EnvironmentActor],
        actor_args: tuple[Any, ...],
        timeout: float,
        restarts: int,
        num_cpus: float,
        ray_address: str | None,
    ) -> None:
        if not env_fns or not all(map(callable, env_fns)):
            raise ValueError(f"env_fns={env_fns!r} must be a list of functions that make environments, one or more.")
        check_whole("envs_per_actor", envs_per_actor, 1)
        check_replacement(timeout, restarts)
        if not is_number(num_cpus) or num_cpus < 0:
            raise ValueError(f"num_cpus={num_cpus!r} must be a number of processors, 0 or more.")
        self.timeout, self.num_cpus = timeout, num_cpus
        self.restarts = 0  # while they are made, none is replaced
        self.restarted = 0
        self.closed = False
        self._env_fns = list(env_fns)
        self._first_seeds: list[int | None] = [None] * len(env_fns)
        self._actor_class, self._actor_args = actor_class, actor_args
        starts = range(0, len(env_fns), envs_per_actor)
        self._parts = [range(first, min(first + envs_per_actor, len(env_fns))) for first in starts]
        self._actors: list[Any] = []
        connect(ray_address)
        self._check_room()
        try:
            self._actors = [self._start(actor) for actor in range(len(self._parts))]
            of_all = self._asked([(actor, "spaces", ()) for actor in range(len(self._parts))])
            for part, spaces in zip(self._parts, of_all, strict=True):
                if spaces != of_all[0]:
                    raise ValueError(f"Environment {part.start} has spaces {spaces}, and the first one {of_all[0]}.")
            super().__init__(len(env_fns), *of_all[0])
            self.metadata = self.get_attr("metadata", 0)[0]
        except BaseException:
            self.close()
            raise
        self.restarts = restarts

    def _check_room(self) -> None:
        if self.num_cpus == 0:
            return
        n_actors = len(self._parts)
        wanted = f"num_cpus={self.num_cpus:g} for each of {n_actors} actors"
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if _room(nodes, self.num_cpus) < n_actors:
            parts = (cpus / n for cpus in nodes for n in range(1, n_actors + 1))
            fits = max((part for part in parts if _room(nodes, part) >= n_actors), default=0.0)
            raise ValueError(
                f"{wanted}: the cluster has {' + '.join(f'{cpus:g}' for cpus in nodes)}: "
                f"num_cpus={np.floor(100 * fits + SLACK) / 100:g} would fit, or fewer actors."
            )
        deadline, needed = time.monotonic() + ROOM_SECONDS, self.num_cpus * n_actors
        while needed > (free := ray.available_resources().get("CPU", 0.0)) + SLACK:  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                warnings.warn(
                    f"{wanted}: others leave {free:g} of the cluster's {sum(nodes):g}: they are waited for, for "
                    f"timeout={self.timeout:g} seconds.",
                    stacklevel=4,
                )
                break
            time.sleep(0.1)

    def _check_open(self) -> None:
        if self.closed or not ray.is_initialized():
            raise WorkerError("These environments were closed, or Ray was shut down: make others.")

    def _start(self, actor: int, seeds: list[int | None] | None = None) -> Any:
        part = self._parts[actor]
        made: Any = ray.remote(self._actor_class).options(num_cpus=self.num_cpus)
        return made.remote(*self._actor_args, self._env_fns[part.start : part.stop], part, seeds)

    def _replace(self, actor: int, message: str) -> None:
        """
        :param actor: which one ends, if it has not ended yet
        :param message: why
        :raises WorkerError: if no more may be replaced
        """
        self._check_open()
        if self.restarted >= self.restarts:
            raise WorkerError(message)
        self.restarted += 1
        warnings.warn(f"{message}\nIt is replaced ({self.restarted} of {self.restarts} restarts).", stacklevel=2)
        self._start_another(actor)

    def _start_another(self, actor: int) -> None:
        ray.kill(self._actors[actor])
        seeds = [replacement_seed(self._first_seeds[i], self.restarted) for i in self._parts[actor]]
        self._actors[actor] = self._start(actor, seeds)

    def _answer(self, actor: int, ref: Any, waited: bool = False) -> Any:
        """
        :param actor: whose answer it is
        :param ref: to the answer
        :param waited: whether ``timeout`` was waited for it already
        :return: the answer
        :raises WorkerError: if the actor has ended, its environment has raised an error, or it does not answer
        """
        try:
            return ray.get(ref, timeout=ANSWER_SECONDS if waited else self.timeout)
        except RayError as error:
            raise WorkerError(self._what_happened(actor, error)) from error

    def _what_happened(self, actor: int, error: RayError) -> str:
        part = self._parts[actor]
        who = f"Actor {actor} of {len(self._parts)} (environments {part.start} to {part.stop - 1})"
        if isinstance(error, GetTimeoutError):
            return f"{who} has not answered for {self.timeout:g} seconds: it hangs, or Ray had no room to start it."
        if isinstance(error, RayTaskError):
            cause: Any = error.cause
            return f"{who}: {cause if isinstance(cause, WorkerError) else error}"
        return f"{who} has ended. {error}"

    def _asked(self, questions: Sequence[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
        """
        :param questions: of whom, which method, and its arguments
        :return: the answers
        :raises WorkerError: as for ``_answer``
        """
        self._check_open()
        asked = [self._actors[actor] for actor, _, _ in questions]
        refs = [getattr(one, method).remote(*args) for one, (_, method, args) in zip(asked, questions, strict=True)]
        return [self._got(*question, one, ref) for question, one, ref in zip(questions, asked, refs, strict=True)]

    def _got(self, actor: int, method: str, args: tuple[Any, ...], asked: Any, ref: Any) -> Any:
        return self._answer(actor, ref)

    def _asked_each(self, method: str, args: tuple[Any, ...], indices: VecEnvIndices) -> list[Any]:
        """
        :param method: of the actors
        :param args: what comes before the place of an environment in its actor
        :param indices: which environments
        :return: the answers
        """
        places = [divmod(range(self.num_envs)[i], len(self._parts[0])) for i in self._get_indices(indices)]
        return self._asked([(actor, method, (*args, place)) for actor, place in places])

    def seed(self, seed: int | None = None) -> Any:
        """
        :param seed: of the first environment's next reset; the others get the numbers after it
        :return: the seeds
        """
        super().seed(seed)
        self._first_seeds = list(self._seeds)
        return self._first_seeds

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations
        :raises WorkerError: if an actor has ended, its environment has raised an error, or it does not answer
        """
        questions = [
            (actor, "reset", (self._seeds[part.start : part.stop], self._options[part.start : part.stop]))
            for actor, part in enumerate(self._parts)
        ]
        obs, infos = zip(*self._asked(questions), strict=True)
        first: VecEnvObs = joined(obs)
        self.reset_infos = [info for of_actor in infos for info in of_actor]
        self._reset_seeds()
        self._reset_options()
        return first

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: of the environments
        :param indices: which of them; all by default
        :return: its values
        :raises WorkerError: as for ``reset``
        """
        return [value for (value,) in self._asked_each("ask", ("get_attr", attr_name), indices)]

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: of the environments
        :return: whether each of them has it
        :raises WorkerError: as for ``reset``
        """
        return all(self._asked([(actor, "ask", ("has_attr", attr_name)) for actor in range(len(self._parts))]))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: of the environments
        :param value: to set
        :param indices: in which of them; all by default
        :raises WorkerError: as for ``reset``
        """
        self._asked_each("set_attr", (attr_name, value), indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: of the environments
        :param method_args: its arguments
        :param indices: in which of them; all by default
        :param method_kwargs: its arguments by keyword
        :return: what it returns in each of them
        :raises WorkerError: as for ``reset``
        """
        return self._asked_each("env_method", (method_name, method_args, method_kwargs), indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> Any:
        """
        :param wrapper_class: a wrapper
        :param indices: which environments; all by default
        :return: whether it is around each of them
        :raises WorkerError: as for ``reset``
        """
        return [value for (value,) in self._asked_each("ask", ("env_is_wrapped", wrapper_class), indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: a picture of each environment, if ``render_mode`` is ``"rgb_array"``
        :raises WorkerError: as for ``reset``
        """
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode={self.render_mode!r}: only 'rgb_array' gives pictures.", stacklevel=2)
            return [None] * self.num_envs
        return self._asked_each("render", (), None)

    def close(self) -> None:
        """End the actors, also those that hang."""
        if self.closed:
            return
        self.closed = True
        if not ray.is_initialized():  # and so they are gone
            return
        with suppress(Exception):  # Ray may have been shut down and started again: it knows none of them then
            ray.wait(
                [actor.ask.remote("close") for actor in self._actors],
                num_returns=max(len(self._actors), 1),
                timeout=END_SECONDS,
            )
        for actor in self._actors:
            with suppress(Exception):
                ray.kill(actor)


def _room(nodes: Sequence[float], num_cpus: float) -> int:
    """
    :param nodes: processors of each
    :param num_cpus: that an actor takes, all of one node
    :return: how many actors there is room for
    """
    return sum(int((cpus + SLACK) / num_cpus) for cpus in nodes) if num_cpus > 0 else 0


def connect(address: str | None) -> None:
    """
    :param address: of a cluster; ``None`` takes that of ``RAY_ADDRESS``, or of ``ray start`` on this machine, or starts
        Ray here, and ``"local"`` does so in any case
    :raises ConnectionError: if nobody answers there
    """
    if not ray.is_initialized():
        check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, include_dashboard=False)  # one port less, if it is started


def check_reachable(address: str) -> None:
    """
    :param address: of a cluster. That it is there is checked for ``HOST:PORT``, where Ray would try for many minutes
    :raises ConnectionError: if nobody answers there
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"ray_address={address}: no cluster answers there ({error}).") from None


def joined(parts: Sequence[Any]) -> Any:
    """
    :param parts: observations of some environments each: arrays, or dicts or tuples of such
    :return: those of all environments
    """
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return np.concatenate(parts)
