"""Proportional prioritized experience replay (Schaul et al., 2016, https://arxiv.org/abs/1511.05952)."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_per_dqn.replay.arguments import check_frame_arguments, check_n_step_arguments, check_priority_arguments
from sb3_per_dqn.replay.frame_ring import lz4
from sb3_per_dqn.replay.memory import available_memory, to_device
from sb3_per_dqn.replay.observation_store import Observations, ObservationStore, make_observation_store
from sb3_per_dqn.replay.statistics import DrawStatistics, priority_statistics
from sb3_per_dqn.replay.sum_tree import MaxTree, MinTree, SumTree

IntArray = npt.NDArray[np.int64]

LOST_STEP = "sb3_per_dqn/lost_step"  # key of an info: nobody knows what this step did
TD_ERROR = "sb3_per_dqn/td_error"  # likewise: TD error of the n-step window that begins here
TREES_NBYTES = 25  # of a transition: the leaves of three trees, and what stands above them
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
    would starve the rest once errors are small. Where its info has a TD error (``TD_ERROR``), it enters with that.

    Storage is allocated at the first ``add``: a model that is loaded to be watched costs no replay memory.

    :param buffer_size: transitions to hold, over all environments
    :param observation_space: any that SB3's DQN takes, Dict included
    :param action_space: action space
    :param device: device of the sampled tensors
    :param n_envs: number of environments
    :param optimize_memory_usage: taken for SB3's sake, without effect: see ``single_frames``
    :param handle_timeout_termination: treat an episode that a time limit cut as going on (``done`` is 0)
    :param alpha: how much prioritization is used, in [0, 1]; 0 draws uniformly
    :param eps: added to every absolute TD error, above 0, so that no transition is lost for ever
    :param n_steps: rewards to sum before bootstrapping, at least 1. A window ends early where its episode does, and can
        be drawn as soon as it is complete
    :param gamma: discount factor of these rewards, in [0, 1]; without effect if ``n_steps`` is 1
    :param single_frames: ``None`` keeps each frame once where observations prove to be sliding stacks of frames, and
        whole arrays elsewhere; ``True`` demands the former (of the images in a Dict), ``False`` the latter
    :param compress_frames: compress single frames with LZ4 (an extra: ``pip install sb3-per-dqn[compression]``)
    :param normalize_weights: by the largest that a transition of the whole ``"memory"`` has, or one of the ``"batch"``
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
        n_steps: int = 1,
        gamma: float = 0.99,
        single_frames: bool | None = None,
        compress_frames: bool = False,
        normalize_weights: str = "memory",
    ) -> None:
        check_priority_arguments(alpha, eps, normalize_weights)
        check_n_step_arguments(n_steps, gamma)
        check_frame_arguments(single_frames, compress_frames)
        # Past ReplayBuffer's constructor, which would allocate the observations (as SB3's DictReplayBuffer does)
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.alpha = alpha
        self.eps = eps
        self.n_steps = n_steps
        self.gamma = gamma
        self.single_frames = single_frames
        self._steps = 0
        self._forgotten_transitions = 0
        self.normalize_weights = normalize_weights
        self._action_dtype = self._maybe_cast_dtype(action_space.dtype)
        self.compress_frames = compress_frames
        self.reset()

    @property
    def capacity(self) -> int:
        """Number of slots, over all environments."""
        return self.buffer_size * self.n_envs

    @property
    def max_priority(self) -> float:
        """(|delta| + eps)^alpha with which the next transition enters."""
        return (self._steps > 0 and self._learned_priorities.root) or self._last_max_priority

    @property
    def drawable(self) -> bool:
        """Whether there is a transition to draw: one whose n-step window is complete."""
        return self._steps > 0 and self._priorities.total > 0

    @property
    def nbytes(self) -> int:
        """Bytes held (reserved, before the buffer is full)."""
        if self._steps == 0:
            return 0
        trees = self._priorities.nbytes + self._learned_priorities.nbytes
        if self._smallest_priority is not None:
            trees += self._smallest_priority.nbytes
        transitions = self.actions.nbytes + self.rewards.nbytes + self.dones.nbytes + self.timeouts.nbytes
        return trees + transitions + self._store.nbytes

    @property
    def _slot_nbytes(self) -> int:
        """Bytes of a transition without its observations."""
        return (
            TREES_NBYTES + self.action_dim * np.dtype(self._action_dtype).itemsize + 3 * np.dtype(np.float32).itemsize
        )

    @property
    def _memory_device(self) -> th.device | None:
        """Whose memory the observations take; ``None`` is the host's."""
        return None

    def expect(self, transitions: int) -> None:
        """
        Say how many transitions are to come, so that memory is asked for these and not for a full buffer.

        :param transitions: transitions to come, over all environments
        :raises ValueError: if they cannot fit into the memory that is available, or n steps into the buffer
        """
        self._last_step = self._steps + transitions / self.n_envs
        self._check_size()

    def _check_size(self) -> None:
        if self.compress_frames:
            lz4()
        if self.buffer_size < self.n_steps:
            raise ValueError(
                f"buffer_size={self.capacity} holds {self.buffer_size} steps of {self.n_envs} environments, fewer than "
                f"n_steps={self.n_steps}: make the buffer larger."
            )
        self._check_trees()
        needed = self._nbytes_to_come()
        available = available_memory(self._memory_device)
        if needed > available:
            # Sixteen fewer, as a smaller ring of frames has as many rows of history, and of a group to spare
            of_step = self._store.full_nbytes / self.buffer_size + self._slot_nbytes * self.n_envs
            fits = (int(available / of_step) + self._rows_kept - 16) * self.n_envs
            raise ValueError(
                f"buffer_size={self.capacity} needs {needed / 1e9:.3g} GB of memory, of which "
                f"{available / 1e9:.3g} GB are available: "
                + (f"buffer_size={fits} would fit." if fits > 0 else "free some memory.")
            )
        self._checked_nbytes = self._store.full_nbytes

    def _check_trees(self) -> None:
        """They are made whole, though memory is taken only where they are written to: the system may refuse that."""
        try:
            np.empty(TREES_NBYTES * self.capacity, dtype=np.uint8)
        except (MemoryError, ValueError):
            raise ValueError(
                f"buffer_size={self.capacity}: its priorities alone have {TREES_NBYTES * self.capacity / 1e9:.3g} GB, "
                "more than the system can give: make the buffer smaller."
            ) from None

    @property
    def _rows_there(self) -> int:
        # Arrays grow as they are filled; those of a loaded buffer are there already
        return self.buffer_size if self._is_loaded else min(self._steps, self.buffer_size)

    @property
    def _rows_kept(self) -> int:
        return 0 if self._store.moves else self._rows_there  # observations that move are not

    def _nbytes_to_come(self) -> float:
        """
        :return: bytes that will be taken for the transitions that are expected
        """
        last = min(self._last_step, self.buffer_size)
        observations = self._store.full_nbytes / self.buffer_size * max(last - self._rows_kept, 0)
        return observations + self._slot_nbytes * self.n_envs * max(last - self._rows_there, 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._is_loaded = self._steps > 0 and not self.compress_frames

    def reset(self) -> None:
        """Forget all transitions and priorities."""
        super().reset()
        self._forgotten_transitions += self._steps * self.n_envs  # so that no serial number ever names another one
        self._store = self._make_store()
        self._last_step = math.inf  # that is expected
        self._checked_nbytes = 0.0
        self._is_loaded = False
        self._steps = 0  # rows added since
        self._open = np.zeros(self.n_envs, dtype=bool)  # whether the next observation may follow the last one
        self._waiting = np.zeros(self.n_envs, dtype=np.int64)  # newest rows whose n-step windows are not complete
        self._initial_errors: npt.NDArray[np.float64] | None = None  # of the last n steps, NaN where none is known
        self._last_max_priority = 1.0  # for when nothing stored was learned from
        self._draws = DrawStatistics()

    def _make_store(self) -> ObservationStore:
        return make_observation_store(
            self.buffer_size, self.n_envs, self.observation_space, self.single_frames, self.compress_frames
        )

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
        Store one step of every environment. A transition enters with maximum priority once its n-step window is
        complete. Where an observation is not the last ``next_obs``, the stream broke off and a new segment begins.

        :param obs: observations before the step, shape (n_envs, \\*obs_shape), or a dict of such
        :param next_obs: observations after the step (of the same episode, also at its end), likewise
        :param action: actions, shape (n_envs, action_dim) or (n_envs,)
        :param reward: rewards, shape (n_envs,)
        :param done: whether the episode ended, shape (n_envs,)
        :param infos: one dict per environment; ``TimeLimit.truncated`` tells a time limit from an end, and
            ``LOST_STEP`` a step of which nothing is known: it is never drawn, and the segment ends before it;
            ``TD_ERROR`` gives the priority with which a transition enters (one that is not finite is left out)
        :raises ValueError: if the observations do not fit the space, the memory or ``single_frames``, or a TD
            error is no number; nothing is stored
        """
        # All of it is looked at before anything is written
        action = np.reshape(action, (self.n_envs, self.action_dim)).astype(self._action_dtype)
        reward = np.reshape(reward, self.n_envs).astype(np.float32)
        done = np.reshape(done, self.n_envs).astype(bool)
        if len(infos) != self.n_envs:
            raise ValueError(f"infos has {len(infos)} entries: give one for each of {self.n_envs} environments.")
        timeouts = np.zeros(self.n_envs, dtype=bool)
        if self.handle_timeout_termination:
            timeouts[:] = [info.get("TimeLimit.truncated", False) for info in infos]
        lost = np.array([info.get(LOST_STEP, False) for info in infos])
        errors = np.array([info.get(TD_ERROR, math.nan) for info in infos], dtype=np.float64)
        done, timeouts = done | lost, timeouts & ~lost
        uses_next = ~done | timeouts
        try:
            follows = self._store.prepare(self._steps, obs, next_obs, uses_next) & self._open & ~lost
            if self._steps == 0 or self._store.full_nbytes > 1.25 * self._checked_nbytes:
                self._check_size()
        except BaseException:
            self._store.withdraw()
            raise
        if self._steps == 0:
            self._allocate()

        self._break_off(self._open & ~follows)
        self._is_loaded = self._is_loaded and not self._store.moves  # to arrays that are yet to grow
        self._store.add(self._steps, obs, next_obs, follows, uses_next)
        row = self.pos
        self.actions[row] = action
        self.rewards[row] = reward
        self.dones[row] = done
        self.timeouts[row] = timeouts
        self._open = ~done
        self._note_errors(errors)
        self._steps += 1
        self.pos = self._steps % self.buffer_size
        self.full = self._steps >= self.buffer_size

        new = row * self.n_envs + np.arange(self.n_envs)
        if self.n_steps > 1 or lost.any():
            self._set_priorities(new, 0.0)
            self._waiting += ~lost
            self._enter(self._complete_windows(ends=done))
        else:
            self._enter(new)
        self._clear_learned(new)

    def _note_errors(self, errors: npt.NDArray[np.float64]) -> None:
        if self._initial_errors is None:
            if np.isnan(errors).all():
                return
            self._initial_errors = np.full((self.n_steps, self.n_envs), math.nan)
        self._initial_errors[self._steps % self.n_steps] = errors

    @property
    def layouts(self) -> Any:
        """How observations are stacks of frames, see ``AdaptiveStore.layouts``; ``None`` if nothing is stored."""
        return self._store.layouts if self._steps > 0 else None

    def allocate(self, layouts: Any) -> None:
        """
        Make room, for contents that come from a file.

        :param layouts: that a buffer made with the same arguments had
        """
        if layouts is not None:
            self._allocate()
            self._store.allocate(layouts)

    def _allocate(self) -> None:
        self._allocate_trees()
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros((*shape, self.action_dim), dtype=self._action_dtype)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.dones = np.zeros(shape, dtype=np.float32)
        self.timeouts = np.zeros(shape, dtype=np.float32)  # where a segment ends, but is bootstrapped from

    def _allocate_trees(self) -> None:
        self._priorities = SumTree(self.capacity)  # p_i^alpha
        self._smallest_priority = MinTree(self.capacity) if self.normalize_weights == "memory" else None
        self._learned_priorities = MaxTree(self.capacity)  # p_i^alpha, 0 where nothing was learned from the transition

    def end_segments(self, where: npt.NDArray[np.bool_] | None = None) -> None:
        """
        Say that what comes next does not follow the last step of an environment. Observations alone may not show it:
        the first one of an episode may be the same as the last one of the segment that broke off.

        :param where: of which environments, shape (n_envs,); ``None`` for all
        """
        broken = self._open if where is None else self._open & where
        self._break_off(broken)
        self._open = self._open & ~broken

    def _break_off(self, broken: npt.NDArray[np.bool_]) -> None:
        """
        End segments at the last step as a time limit does: windows end there, and are bootstrapped from.

        :param broken: where, shape (n_envs,)
        """
        if broken.any():
            self.timeouts[self.pos - 1, broken] = 1.0
            if self.n_steps > 1:
                self._enter(self._complete_windows(ends=broken))

    def _complete_windows(self, ends: npt.NDArray[np.bool_]) -> IntArray:
        """
        :param ends: where a segment ends with the last step, shape (n_envs,)
        :return: slots whose windows it completes: those ``n_steps - 1`` steps before it, and where it is an end, all
            that wait
        """
        ages = np.arange(self.n_steps)
        complete = (ages < self._waiting[:, None]) & (ends[:, None] | (ages == self.n_steps - 1))  # (n_envs, n_steps)
        self._waiting = np.where(ends, 0, np.minimum(self._waiting, self.n_steps - 1))
        envs, ages = complete.nonzero()
        slots: IntArray = (self._steps - 1 - ages) % self.buffer_size * self.n_envs + envs
        return slots

    def _enter(self, slots: IntArray) -> None:
        self._last_max_priority = self.max_priority
        self._set_priorities(slots, self._last_max_priority)
        if self._initial_errors is not None:
            steps, envs = np.divmod(self._serial_numbers(slots), self.n_envs)
            errors = np.abs(self._initial_errors[steps % self.n_steps, envs])
            known = np.isfinite(errors)
            self._set_priorities(slots[known], (errors[known] + self.eps) ** self.alpha)

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
        if not self.drawable:
            raise ValueError("The replay buffer is empty: add transitions (n_steps of them) before sampling.")
        slots = self._priorities.find(np.random.random(batch_size) * self._priorities.total)
        weights = self._importance_sampling_weights(slots, beta)
        indices = self._serial_numbers(slots)
        self._draws.record(weights, self._steps * self.n_envs - 1 - indices)
        return PrioritizedReplayBufferSamples(
            *self._get_samples(slots, env),
            self.to_torch(weights.reshape(-1, 1)),
            indices + self._forgotten_transitions,
        )

    def update_priorities(self, indices: IntArray, td_errors: npt.NDArray[Any] | th.Tensor) -> None:
        """
        Set p_i = (|delta_i| + eps)^alpha. An update for a transition that was overwritten since it was drawn is
        dropped; of several for one transition, the last counts. After an error all priorities are as they were.

        :param indices: serial numbers, from ``sample``, shape (batch,)
        :param td_errors: TD errors as they are, signed and unweighted, of as many elements
        :raises ValueError: if a TD error is not finite or the lengths differ
        :raises IndexError: if no transition ever had that serial number, or it cannot be drawn yet
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
        if not indices.size:
            return
        rows = (indices - self._forgotten_transitions) // self.n_envs
        if indices.min() < 0 or rows.max() >= self._steps:
            raise IndexError(f"indices={indices} names a transition that was never stored: pass sample's indices.")
        stored = rows >= max(self._steps - self.buffer_size, 0)
        slots = (indices[stored] - self._forgotten_transitions) % self.capacity
        if self.n_steps > 1 and not self._priorities[slots].all():
            raise IndexError(f"indices={indices} names a transition whose n-step window is not complete yet.")
        priorities = (errors[stored] + self.eps) ** self.alpha
        self._set_priorities(slots, priorities)
        self._learned_priorities.write(slots, priorities)

    def statistics(self) -> dict[str, float]:
        """
        :return: what the buffer knows about itself: see ``DrawStatistics.summary`` (since the last call) and
            ``priority_statistics``; ``gigabytes`` held (10^9 bytes). Nothing if nothing is stored
        """
        if self._steps == 0:
            return {}
        return {
            **self._draws.summary(),
            **self._priority_statistics(),
            "gigabytes": self.nbytes / 1e9,
        }

    def _priority_statistics(self) -> dict[str, float]:
        stored = slice(min(self._steps, self.buffer_size) * self.n_envs)  # of a large buffer, no empty slots
        return priority_statistics(self._priorities.values[stored], self._learned_priorities.values[stored])

    def _set_priorities(self, slots: IntArray, priorities: npt.NDArray[np.float64] | float) -> None:
        self._priorities[slots] = priorities
        if self._smallest_priority is not None:
            self._smallest_priority.write(slots, priorities)

    def _clear_learned(self, slots: IntArray) -> None:
        self._learned_priorities.write(slots, 0.0)

    def _importance_sampling_weights(self, slots: IntArray, beta: float) -> npt.NDArray[np.float32]:
        """
        (N P(i))^-beta over its maximum in the memory or in the batch (Sec. 3.4): N and the sum in P cancel out.

        :return: weights in (0, 1], shape (batch,)
        """
        priorities = self._priorities[slots]
        smallest = priorities.min() if self._smallest_priority is None else self._smallest_priority.root
        weights = (smallest / priorities) ** beta
        return np.maximum(weights, TINY).astype(np.float32)

    def _serial_numbers(self, slots: IntArray) -> IntArray:
        """
        :return: numbers that count all transitions added since the last ``reset``
        """
        newest = self._steps * self.n_envs  # the serial number that comes next
        return newest - 1 - (newest - 1 - slots) % self.capacity

    def _get_samples(self, batch_inds: IntArray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_inds: slots, shape (batch,)
        :param env: normalizes observations and rewards, if given
        :return: the transitions in these slots
        """
        steps, envs = np.divmod(self._serial_numbers(batch_inds), self.n_envs)
        rewards, last_steps, discounts = self._n_step_returns(steps, envs, env)
        rows = steps % self.buffer_size
        last_rows = rows if last_steps is None else last_steps % self.buffer_size
        dones = self.dones[last_rows, envs] * (1.0 - self.timeouts[last_rows, envs])
        observations, next_observations = self._store.get(steps, envs, last_steps)
        return ReplayBufferSamples(
            observations=self._to_tensors(self._normalize_obs(observations, env)),
            actions=self.to_torch(self.actions[rows, envs], copy=False),
            next_observations=self._to_tensors(self._normalize_obs(next_observations, env)),
            dones=self.to_torch(dones.reshape(-1, 1), copy=False),
            rewards=self.to_torch(rewards, copy=False),
            discounts=None if discounts is None else self.to_torch(discounts, copy=False),
        )

    def _n_step_returns(
        self, steps: IntArray, envs: IntArray, env: VecNormalize | None
    ) -> tuple[npt.NDArray[np.float32], IntArray | None, npt.NDArray[np.float32] | None]:
        """
        The sum of gamma^k r_k over a window of n steps, or of fewer where a segment ends (Sutton, 1988).

        :param steps: first steps of the windows, shape (batch,)
        :param envs: their environments, shape (batch,)
        :param env: normalizes rewards, if given
        :return: returns, shape (batch, 1); last steps, shape (batch,); and what the value after them is discounted by,
            gamma^(number of rewards), shape (batch, 1). The last two are ``None`` if n is 1
        """
        rows = (steps[:, None] + np.arange(self.n_steps)) % self.buffer_size  # (batch, n_steps)
        rewards = self._normalize_reward(self.rewards[rows, envs[:, None]], env)
        if self.n_steps == 1:
            return rewards, None, None
        ends = (self.dones[rows, envs[:, None]] != 0) | (self.timeouts[rows, envs[:, None]] != 0)
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, self.n_steps)  # (batch,)
        summed = np.arange(self.n_steps) < lengths[:, None]
        gammas = self.gamma ** np.arange(self.n_steps, dtype=np.float32)
        returns = (rewards * gammas * summed).sum(axis=1, keepdims=True)
        return returns, steps + lengths - 1, self.gamma ** lengths[:, None].astype(np.float32)

    def _to_tensors(self, observations: Observations) -> Any:
        # the arrays are copies made for this batch alone, so the tensors may share them
        if isinstance(observations, dict):
            return {key: self.to_torch(array, copy=False) for key, array in observations.items()}
        return self.to_torch(observations, copy=False)

    def to_torch(self, array: npt.NDArray[Any], copy: bool = True) -> th.Tensor:
        """
        :param array: any array
        :param copy: whether the tensor may not share the array's memory
        :return: the same on the buffer's device
        """
        if self.device.type != "cuda":
            return super().to_torch(array, copy)
        return to_device(array, self.device)  # there it is always a copy
