"""Proportional prioritized experience replay (Schaul et al., 2016, https://arxiv.org/abs/1511.05952)."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_per_dqn.replay.observation_store import Observations, ObservationStore, make_observation_store
from sb3_per_dqn.replay.sum_tree import MaxTree, MinTree, SumTree

IntArray = npt.NDArray[np.int64]

TINY = float(np.finfo(np.float32).tiny)  # no weight may vanish when it is rounded to float32


class PrioritizedReplayBufferSamples(NamedTuple):
    """
    A batch of transitions: SB3's fields, then what prioritization adds.

    ``weights``: importance-sampling weights in (0, 1], float32, shape (batch, 1).
    ``indices``: serial numbers of the drawn transitions, int64, shape (batch,), for ``update_priorities``.
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    next_observations: th.Tensor | TensorDict
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor
    indices: IntArray


class PrioritizedReplayBuffer(ReplayBuffer):
    """
    Replay buffer that draws transition i with probability P(i) = p_i^alpha / sum_k p_k^alpha (Eq. 1).

    A slot is ``row * n_envs + env``, one tree spans all environments, and a slot can be drawn exactly when its priority
    is above zero. A new transition enters with the largest priority among those stored that were learned from
    (1 while none was), so that it is drawn soon; the paper's maximum over all history would never fall again and
    would starve the rest once errors are small.

    Storage is allocated at the first ``add``: a model that is loaded to be watched costs no replay memory.

    :param buffer_size: transitions to hold, over all environments
    :param observation_space: any that SB3's DQN takes, Dict included
    :param action_space: action space
    :param device: device of the sampled tensors
    :param n_envs: number of environments
    :param optimize_memory_usage: not supported, must be ``False``
    :param handle_timeout_termination: treat an episode that a time limit cut as going on (``done`` is 0)
    :param alpha: how much prioritization is used, in [0, 1]; 0 draws uniformly
    :param eps: added to every absolute TD error, above 0, so that no transition is lost for ever
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        alpha: float = 0.6,
        eps: float = 1e-6,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True is not supported by PrioritizedReplayBuffer: leave it False.")
        check_priority_arguments(alpha, eps)
        # Past ReplayBuffer's constructor, which would allocate the observations (as SB3's DictReplayBuffer does)
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.alpha = alpha
        self.eps = eps
        self._store: ObservationStore | None = None
        self.reset()

    @property
    def capacity(self) -> int:
        """Number of slots, over all environments."""
        return self.buffer_size * self.n_envs

    @property
    def max_priority(self) -> float:
        """(|delta| + eps)^alpha with which the next transition enters."""
        return self._learned_priorities.root or self._last_max_priority

    def reset(self) -> None:
        """Forget all transitions and priorities."""
        super().reset()
        self._rows_added = 0
        self._last_max_priority = 1.0  # for when nothing stored was learned from
        self._priorities = SumTree(self.capacity)  # p_i^alpha
        self._smallest_priority = MinTree(self.capacity)
        self._learned_priorities = MaxTree(self.capacity)  # p_i^alpha, 0 where nothing was learned from the transition

    def _allocate(self) -> None:
        self._store = make_observation_store(self.buffer_size, self.n_envs, self.observation_space)
        available = psutil.virtual_memory().available
        if self._store.nbytes > available:  # the arrays grow into memory as they are filled
            warnings.warn(
                "This system does not have apparently enough memory to store the complete "
                f"replay buffer {self._store.nbytes / 1e9:.2f}GB > {available / 1e9:.2f}GB",
                stacklevel=3,
            )
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros((*shape, self.action_dim), dtype=self._maybe_cast_dtype(self.action_space.dtype))
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.dones = np.zeros(shape, dtype=np.float32)
        self.timeouts = np.zeros(shape, dtype=np.float32)

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one step of every environment, with maximum priority.

        :param obs: observations before the step, shape (n_envs, \\*obs_shape), or a dict of such
        :param next_obs: observations after the step (of the same episode, also at its end), likewise
        :param action: actions, shape (n_envs, action_dim) or (n_envs,)
        :param reward: rewards, shape (n_envs,)
        :param done: whether the episode ended, shape (n_envs,)
        :param infos: one dict per environment; ``TimeLimit.truncated`` tells a time limit from an end
        """
        if self._store is None:
            self._allocate()
        assert self._store is not None
        row = self.pos
        self.actions[row] = np.reshape(action, (self.n_envs, self.action_dim))
        self._store.add(row, obs, next_obs)
        self.rewards[row] = reward
        self.dones[row] = done
        if self.handle_timeout_termination:
            self.timeouts[row] = [info.get("TimeLimit.truncated", False) for info in infos]

        slots = row * self.n_envs + np.arange(self.n_envs)
        self._last_max_priority = self.max_priority
        self._set_priorities(slots, self._last_max_priority)
        self._learned_priorities[slots] = 0.0

        self._rows_added += 1
        self.pos = self._rows_added % self.buffer_size
        self.full = self._rows_added >= self.buffer_size

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None, beta: float = 1.0
    ) -> PrioritizedReplayBufferSamples:
        """
        Draw transitions independently of each other, with replacement.

        :param batch_size: number of transitions
        :param env: normalizes observations and rewards, if given
        :param beta: how far the weights correct for the uneven draws, in [0, 1]
        :return: the transitions with their weights and serial numbers
        :raises ValueError: if the buffer is empty or an argument out of range
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more.")
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta={beta} must lie in [0, 1].")
        if self._rows_added == 0:
            raise ValueError("The replay buffer is empty: add transitions before sampling.")
        slots = self._priorities.find(np.random.random(batch_size) * self._priorities.total)
        weights = self._importance_sampling_weights(slots, beta)
        return PrioritizedReplayBufferSamples(
            *self._get_samples(slots, env),
            self.to_torch(weights.reshape(-1, 1), copy=False),
            self._serial_numbers(slots),
        )

    def update_priorities(self, indices: IntArray, td_errors: npt.NDArray[Any] | th.Tensor) -> None:
        """
        Set p_i = (|delta_i| + eps)^alpha. An update for a transition that was overwritten since it was drawn is
        dropped; of several for one transition, the last counts. After an error all priorities are as they were.

        :param indices: serial numbers, from ``sample``, shape (batch,)
        :param td_errors: TD errors as they are, signed and unweighted, of as many elements
        :raises ValueError: if a TD error is not finite or the lengths differ
        :raises IndexError: if no transition ever had that serial number
        """
        if isinstance(td_errors, th.Tensor):
            td_errors = td_errors.detach().cpu().numpy()
        errors = np.abs(np.asarray(td_errors, dtype=np.float64)).reshape(-1)
        indices = np.asarray(indices).reshape(-1)
        if errors.shape != indices.shape:
            raise ValueError(f"td_errors has {errors.size} elements for {indices.size} indices: give one for each.")
        if not np.isfinite(errors).all():
            at = int(np.flatnonzero(~np.isfinite(errors))[0])
            raise ValueError(
                f"td_errors[{at}]={errors[at]} (transition {indices[at]}) is not finite; no priority was changed."
            )
        rows = indices // self.n_envs
        if indices.size and (rows.min() < 0 or rows.max() >= self._rows_added):
            raise IndexError(f"indices={indices} names a transition that was never stored: pass sample's indices.")
        stored = rows >= self._rows_added - self.buffer_size
        slots = indices[stored] % self.capacity
        priorities = (errors[stored] + self.eps) ** self.alpha
        self._set_priorities(slots, priorities)
        self._learned_priorities[slots] = priorities

    def _set_priorities(self, slots: IntArray, priorities: npt.NDArray[np.float64] | float) -> None:
        self._priorities[slots] = priorities
        self._smallest_priority[slots] = priorities

    def _importance_sampling_weights(self, slots: IntArray, beta: float) -> npt.NDArray[np.float32]:
        """
        (N P(i))^-beta over its maximum in the whole buffer (Sec. 3.4): N and the sum in P cancel out.

        :return: weights in (0, 1], shape (batch,)
        """
        weights = (self._smallest_priority.root / self._priorities[slots]) ** beta
        return np.maximum(weights, TINY).astype(np.float32)

    def _serial_numbers(self, slots: IntArray) -> IntArray:
        """
        :return: numbers that count all transitions ever added; one names the same transition for ever
        """
        newest = self._rows_added * self.n_envs  # the serial number that comes next
        return newest - 1 - (newest - 1 - slots) % self.capacity

    def _get_samples(self, batch_inds: IntArray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_inds: slots, shape (batch,)
        :param env: normalizes observations and rewards, if given
        :return: the transitions in these slots
        """
        assert self._store is not None
        rows, envs = np.divmod(batch_inds, self.n_envs)
        observations, next_observations = self._store.get(rows, envs)
        dones = self.dones[rows, envs] * (1.0 - self.timeouts[rows, envs])
        rewards = self._normalize_reward(self.rewards[rows, envs].reshape(-1, 1), env)
        return ReplayBufferSamples(
            observations=self._to_tensors(self._normalize_obs(observations, env)),
            actions=self.to_torch(self.actions[rows, envs], copy=False),
            next_observations=self._to_tensors(self._normalize_obs(next_observations, env)),
            dones=self.to_torch(dones.reshape(-1, 1), copy=False),
            rewards=self.to_torch(rewards, copy=False),
        )

    def _to_tensors(self, observations: Observations) -> Any:
        # the arrays are copies made for this batch alone, so the tensors may share them
        if isinstance(observations, dict):
            return {key: self.to_torch(array, copy=False) for key, array in observations.items()}
        return self.to_torch(observations, copy=False)


def check_priority_arguments(alpha: float, eps: float, prefix: str = "") -> None:
    """
    :param alpha: exponent of the priorities
    :param eps: added to the absolute TD errors
    :param prefix: before the names, in messages
    :raises ValueError: if alpha is outside [0, 1], or eps not above 0 and finite
    """
    if not _is_number(alpha) or not 0.0 <= alpha <= 1.0:
        raise ValueError(f"{prefix}alpha={alpha!r} must be a number in [0, 1]; 0 draws uniformly.")
    if not _is_number(eps) or not 0.0 < eps < math.inf:
        raise ValueError(f"{prefix}eps={eps!r} must be a finite number above 0, so that every transition can be drawn.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
