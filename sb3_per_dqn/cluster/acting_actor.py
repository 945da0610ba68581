"""An actor of Ape-X: a copy of the policy that plays, and tells the learner what happened."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from ray import cloudpickle
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_per_dqn.cluster.actors import EnvFn, EnvironmentActor
from sb3_per_dqn.cluster.fragment import Fragment, Version, n_step_td_errors, packed
from sb3_per_dqn.replay.prioritized_buffer import TD_ERROR
from sb3_per_dqn.workers import WorkerError

Array = npt.NDArray[Any]
EXPLORATION = 1  # which of a seed's streams the coins are


@dataclass(frozen=True)
class Settings:
    """
    What an actor takes over from the learner.

    :param number: counts them
    :param policy_class: of the policy
    :param policy_kwargs: its arguments, without spaces and learning rate
    :param gamma: discount factor
    :param n_steps: rewards of a window
    :param learning_starts: steps of the learner for which all actions are random, as in SB3
    """

    number: int
    policy_class: type[DQNPolicy]
    policy_kwargs: dict[str, Any]
    gamma: float
    n_steps: int
    learning_starts: int


def epsilons(n_envs: int, base: float, alpha: float) -> Array:
    """
    Horgan et al. (2018), Sec. 4: eps_i = base^(1 + alpha i / (N - 1)).

    :param n_envs: N, of all actors together
    :param base: epsilon of the first
    :param alpha: how much less the last explores
    :return: shape (n_envs,)
    """
    exponents: Array = 1.0 + alpha * np.arange(n_envs) / max(n_envs - 1, 1)
    return np.power(base, exponents)


class ActingActor(EnvironmentActor):
    """
    Environments, each in ``Monitor``, and a copy of the policy that plays them.

    :param wrapper: what is put around the vectorized environment of this actor
    :param of_all: probabilities of a random action, of all environments of all actors
    :param env_fns: as for ``EnvironmentActor``
    :param numbers: likewise
    :param seeds: likewise
    """

    def __init__(
        self,
        wrapper: Callable[[VecEnv], VecEnv] | None,
        of_all: Array,
        env_fns: list[EnvFn],
        numbers: range,
        seeds: list[int | None] | None = None,
    ) -> None:
        super().__init__(env_fns, numbers, seeds)
        venv = self.venv if wrapper is None else wrapper(self.venv)
        if unwrap_vec_normalize(venv) is not None:
            raise WorkerError(
                "vec_env_wrapper puts VecNormalize around the environments: each actor would have statistics of its "
                "own, which nobody saves. Leave it out."
            )
        self.venv = BaseAlgorithm._wrap_env(venv)  # images with their channels first, as the learner would have them
        self._epsilons = of_all[numbers.start : numbers.stop]
        self._random = _coins(None if seeds is None else seeds[0])
        self._obs: Any = None
        self._settings: Settings | None = None
        self._version = Version(-1, 0, 0)
        self._error: Exception | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = perf_counter()

    def _wrapped(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return env if is_wrapped(env, Monitor) else Monitor(env)

    def _take_over(self, seeds: list[int | None]) -> None:
        self.venv._seeds = seeds  # nobody waits for a first observation

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[VecEnvObs, list[dict[str, Any]]]:
        """
        :param seeds: one for each environment
        :param options: likewise
        :return: first observations, and what was said of them
        """
        with self._not_after_an_error():
            if seeds[0] is not None:
                self._random = _coins(seeds[0])
            self._obs, infos = super().reset(seeds, options)
            return self._obs, infos

    @contextmanager
    def _not_after_an_error(self) -> Iterator[None]:
        """Some environments have made a step then, and others have not: whatever else was asked for is refused."""
        if self._error is not None:
            raise self._error
        try:
            yield
        except Exception as error:
            self._error = error
            raise

    def act(self, settings: Settings, weights: dict[str, Array], version: Version, n_steps: int) -> Fragment:
        """
        :param settings: of the learner
        :param weights: of its Q-network
        :param version: of these weights
        :param n_steps: how many steps to make, of all environments
        :return: what happened
        """
        with self._not_after_an_error():
            with self._timed("waiting"):  # since the last call
                pass
            with self._timed("loading"):
                self._load(settings, weights, version)
            if self._obs is None:
                self._obs = self.venv.reset()
            epsilons = np.ones_like(self._epsilons) if version.timesteps < settings.learning_starts else self._epsilons
            rows = [self._step(epsilons) for _ in range(n_steps)]
            with self._timed("packing"):
                fragment = self._fragment(rows, settings)
            fragment.seconds, self._seconds = dict(self._seconds), defaultdict(float)
            return fragment

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Seconds since the last stage ended."""
        yield
        now = perf_counter()
        self._seconds[stage] += now - self._last
        self._last = now

    def _load(self, settings: Settings, weights: dict[str, Array], version: Version) -> None:
        if self._settings is None or settings.number != self._settings.number:
            space: Any = self.venv.observation_space
            actions: Any = self.venv.action_space
            policy = settings.policy_class(space, actions, _no_learning, **settings.policy_kwargs)
            policy.set_training_mode(False)
            self._policy, self._settings = policy, settings
            self._version = Version(-1, 0, 0)
        if version != self._version:
            self._policy.q_net.load_state_dict({name: th.tensor(array) for name, array in weights.items()})
            self._version = version

    def _q_values(self, obs: Any) -> Array:
        with th.no_grad():
            q_values: Array = self._policy.q_net(self._policy.obs_to_tensor(obs)[0]).float().numpy()
        return q_values

    def _step(self, epsilons: Array) -> tuple[Any, ...]:
        obs = self._obs
        with self._timed("acting"):
            q_values = self._q_values(obs)  # (n_envs, n_actions)
            n_envs, n_actions = q_values.shape
            explores = self._random.random(n_envs) < epsilons
            actions = np.where(explores, self._random.integers(n_actions, size=n_envs), q_values.argmax(axis=1))
        with self._timed("environment"):
            self._obs, rewards, dones, infos = self.venv.step(actions)
        return obs, q_values, actions, rewards, dones, infos

    def _fragment(self, rows: list[tuple[Any, ...]], settings: Settings) -> Fragment:
        obs, q_values, actions, rewards, dones, infos = zip(*rows, strict=True)
        all_obs, of_q = (*obs, self._obs), np.stack(q_values)
        of_actions, of_rewards, of_dones = np.stack(actions), np.stack(rewards), np.stack(dones)
        taken = np.take_along_axis(of_q, of_actions[..., None], axis=-1)[..., 0]
        next_values = np.concatenate([of_q[1:], self._q_values(self._obs)[None]]).max(axis=-1)
        self._mend_ends(next_values, of_dones, infos)
        errors = n_step_td_errors(of_rewards, of_dones, taken, next_values, settings.gamma, settings.n_steps)
        for of_step, step_errors in zip(infos, errors.tolist(), strict=True):
            for info, error in zip(of_step, step_errors, strict=True):
                info[TD_ERROR] = error
        space: Any = self.venv.observation_space
        if isinstance(all_obs[0], dict):
            parts = {key: packed(np.stack([one[key] for one in all_obs]), space[key]) for key in all_obs[0]}
        else:
            parts = {"": packed(np.stack(all_obs), space)}
        sent: bytes = cloudpickle.dumps(infos)  # type: ignore[no-untyped-call]
        return Fragment(parts, of_actions, of_rewards, of_dones, sent, self._version, {})

    def _mend_ends(self, next_values: Array, dones: Array, infos: Any) -> None:
        """Nothing comes after a true end; after a time limit, what its last observation is worth."""
        next_values[dones] = 0.0
        cut = [place for place in np.argwhere(dones) if infos[place[0]][place[1]].get("TimeLimit.truncated")]
        if cut:
            last = [infos[step][env]["terminal_observation"] for step, env in cut]
            batch: Any = (
                {key: np.stack([one[key] for one in last]) for key in last[0]}
                if isinstance(last[0], dict)
                else np.stack(last)
            )
            next_values[tuple(np.transpose(cut))] = self._q_values(batch).max(axis=-1)


def _coins(seed: int | None) -> np.random.Generator:
    """Not those of the first environment, which has the same seed."""
    return np.random.default_rng(None if seed is None else [seed, EXPLORATION])


def _no_learning(_: float) -> float:
    return 0.0
