"""Environments in Ray actors, in the place of SubprocVecEnv."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_per_dqn.cluster.actors import ActorVecEnv, EnvironmentActor, joined
from sb3_per_dqn.workers import WorkerError


class RayVecEnv(ActorVecEnv):
    """
    Environments in Ray actors, on this machine or on a cluster, that step together as in ``SubprocVecEnv``.

        env = RayVecEnv([make_simulator] * 32, envs_per_actor=4)

    In each actor is SB3's ``DummyVecEnv``: results are the same, bit for bit. With ``restarts``, an actor that ends or
    hangs during a step, or an environment of which raises an error, is replaced as a worker of
    :class:`~sb3_per_dqn.workers.WorkerVecEnv` is, all of its environments together.

    :param env_fns: one function per environment, making it
    :param envs_per_actor: how many of them an actor has
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
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        envs_per_actor: int = 1,
        timeout: float = 600.0,
        restarts: int = 0,
        num_cpus: float = 1.0,
        ray_address: str | None = None,
    ) -> None:
        super().__init__(env_fns, envs_per_actor, EnvironmentActor, (), timeout, restarts, num_cpus, ray_address)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: one for each environment
        """
        self._check_open()
        self._actions = actions
        self._steps = [self._step(actor) for actor in range(len(self._actors))]

    def _step(self, actor: int) -> Any:
        part = self._parts[actor]
        return self._actors[actor].step.remote(self._actions[part.start : part.stop])

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones, infos
        :raises WorkerError: if an actor has ended, its environment has raised an error, or it does not answer, and it
            is not replaced
        """
        answers = [self._stepped(actor) for actor in range(len(self._actors))]
        obs, rewards, dones, infos, reset_infos = zip(*answers, strict=True)
        self.reset_infos = [info for of_actor in reset_infos for info in of_actor]
        # copies: what Ray hands out cannot be written to
        own_infos = deepcopy([info for of_actor in infos for info in of_actor])
        return joined(obs), np.concatenate(rewards), np.concatenate(dones), own_infos

    def _stepped(self, actor: int) -> Any:
        while True:
            try:
                return self._answer(actor, self._steps[actor])
            except WorkerError as error:
                self._replace(actor, str(error))
            self._steps[actor] = self._step(actor)
