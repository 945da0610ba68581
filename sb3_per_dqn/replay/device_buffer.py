"""Prioritized replay on the device of the networks: drawn, weighted and written back without asking the host."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_per_dqn.replay.device_store import DeviceStore
from sb3_per_dqn.replay.device_tree import DeviceTree
from sb3_per_dqn.replay.frame_store import FrameLayout
from sb3_per_dqn.replay.memory import move_tensors, to_device
from sb3_per_dqn.replay.observation_store import AdaptiveStore, DictStore, ObservationStore, make_observation_store
from sb3_per_dqn.replay.prioritized_buffer import (
    TINY,
    IntArray,
    PrioritizedReplayBuffer,
    PrioritizedReplayBufferSamples,
)


class DeviceReplayBuffer(PrioritizedReplayBuffer):
    """
    A ``PrioritizedReplayBuffer`` whose frames, transitions and priorities lie on the device of the networks.

    It draws by the same rules, and reads the same. What differs:

    - The host decides, at ``add``, what a transition is (its frames, its n-step return, where its segment ends), and
      uploads it once its window is complete. All else happens on the device: ``sample`` and ``update_priorities``
      depend on no number that the host would have to wait for, so that a gradient step can be recorded as a CUDA graph.
    - ``indices`` are a tensor. Random numbers are the device's (``torch.manual_seed``).
    - A TD error that is not finite is left out. Who reads losses and errors has to look (``PerDoubleDQN`` does).
    - ``VecNormalize``'s statistics are the host's: ``sample`` does not take it.
    - Memory is that of the device. Where many segments begin or are cut by time limits, the oldest transitions may be
      forgotten a little before their time, see ``PooledFrames``.

    :param args: as for ``PrioritizedReplayBuffer``
    :param kwargs: as for ``PrioritizedReplayBuffer``
    :raises ValueError: if an argument is out of range, or ``compress_frames`` is set
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("compress_frames"):
            raise ValueError(
                "compress_frames=True is for PrioritizedReplayBuffer: DeviceReplayBuffer keeps raw frames."
            )
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget all transitions and priorities."""
        super().reset()
        self._can_draw = False
        self._forgotten = 0  # steps whose frames are gone
        self._layouts: list[Any] = []  # in which the stored places are

    def _make_store(self) -> ObservationStore:
        def make(*args: Any) -> AdaptiveStore:
            return DeviceStore(*args, device=self.device)

        return make_observation_store(
            self.buffer_size, self.n_envs, self.observation_space, self.single_frames, make=make
        )

    @property
    def _parts(self) -> dict[str, DeviceStore]:
        """Stores by the keys of a Dict observation."""
        stores = self._store.stores if isinstance(self._store, DictStore) else {"": self._store}
        return {key: store for key, store in stores.items() if isinstance(store, DeviceStore)}

    @property
    def max_priority(self) -> Any:
        """(|delta| + eps)^alpha with which the next transition enters, a tensor as soon as something is stored."""
        if self._steps == 0:
            return self._last_max_priority
        largest = self._learned_priorities.largest
        return th.where(largest > 0, largest, self._last_max_priority)

    @property
    def drawable(self) -> bool:
        """Whether there is a transition to draw: one whose n-step window is complete."""
        return self._can_draw

    @property
    def nbytes(self) -> int:
        """Bytes held, on the device and on the host (reserved, before the buffer is full)."""
        if self._steps == 0:
            return 0
        on_host = self.actions.nbytes + self.rewards.nbytes + self.dones.nbytes + self.timeouts.nbytes
        trees: int = self._priorities.nbytes + self._learned_priorities.nbytes
        return on_host + trees + self._integers.nbytes + self._numbers.nbytes + self._store.nbytes

    @property
    def _slot_nbytes(self) -> int:
        # two trees' leaves, return, done and discount, and the places of frames, of eight numbers for a usual stack
        return 2 * 8 + 3 * 4 + 4 * (self.action_dim + 8 * len(self._parts))

    @property
    def _memory_device(self) -> th.device | None:
        return self.device

    @property
    def _frame_layouts(self) -> list[FrameLayout | None]:
        return [part.frames.layout for part in self._parts.values()]

    @property
    def _first_step(self) -> int:
        return max(part.frames.first_step for part in self._parts.values())

    def _nbytes_to_come(self) -> float:
        if self._steps > 0 and not self._store.moves:
            return 0.0
        # A device gives memory when it is asked for, and not when it is written to
        return self._store.full_nbytes + self._slot_nbytes * self.capacity * (self._steps == 0)

    def _allocate_trees(self) -> None:
        self._priorities: Any = DeviceTree(self.capacity, self.device)  # p_i^alpha
        self._learned_priorities: Any = DeviceTree(self.capacity, self.device)

    def _allocate(self) -> None:
        super()._allocate()
        # Of each slot: return, done and discount; see _upload() for the integers
        self._numbers = th.zeros((self.capacity, 3), dtype=th.float32, device=self.device)
        self._added = th.zeros((), dtype=th.int64, device=self.device)  # transitions, ever
        # Of the batches since the last summary: their number, sums over them of sample sizes and ages; largest weight
        self._draw_sums = th.zeros(3, dtype=th.float64, device=self.device)
        self._max_weight = th.zeros((), dtype=th.float32, device=self.device)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As for ``PrioritizedReplayBuffer``."""
        super().add(*args, **kwargs)
        self._added.fill_(self._steps * self.n_envs)
        first = self._first_step
        oldest = max(self._forgotten, self._steps - self.buffer_size)
        if first > oldest:
            rows = np.arange(oldest, first) % self.buffer_size
            slots = self._on_device((rows[:, None] * self.n_envs + np.arange(self.n_envs)).reshape(-1))
            self._priorities[slots] = 0.0
            self._learned_priorities[slots] = 0.0
        self._forgotten = first

    def _clear_learned(self, slots: IntArray) -> None:
        self._learned_priorities[self._on_device(slots)] = 0.0

    def _set_priorities(self, slots: IntArray, priorities: Any) -> None:
        numbers = self._on_device(priorities) if isinstance(priorities, np.ndarray) else priorities
        self._priorities[self._on_device(slots)] = numbers

    def _enter(self, slots: IntArray) -> None:
        layouts = [[] if layout is None else [layout.axis, layout.depth] for layout in self._frame_layouts]
        if layouts != self._layouts:  # all places are others now
            width = self.action_dim + sum(2 * part.frames.depth for part in self._parts.values())
            self._integers = th.zeros((self.capacity, width), dtype=th.int32, device=self.device)
            self._layouts = layouts
            self._upload(np.flatnonzero(self._priorities.values))
        steps = self._serial_numbers(slots) // self.n_envs
        slots = slots[steps >= self._first_step]  # the frames of others are gone already
        self._upload(slots)
        super()._enter(slots)
        self._can_draw = self._can_draw or bool(slots.size)

    def _upload(self, slots: IntArray) -> None:
        """
        :param slots: whose windows are complete: action and places of frames, return, done and discount are final
        """
        if not slots.size:
            return
        steps, envs = np.divmod(self._serial_numbers(slots), self.n_envs)
        rewards, last_steps, discounts = self._n_step_returns(steps, envs, None)
        last_steps = steps if last_steps is None else last_steps
        discounts = np.full_like(rewards, self.gamma) if discounts is None else discounts
        last_rows = last_steps % self.buffer_size
        dones = self.dones[last_rows, envs] * (1.0 - self.timeouts[last_rows, envs])
        places = [part.frames.places(steps, envs, last_steps) for part in self._parts.values()]
        integers = np.concatenate([self.actions[steps % self.buffer_size, envs], *places], axis=1, dtype=np.int32)
        rows = self._on_device(slots)
        self._integers[rows] = self._on_device(integers)
        self._numbers[rows] = self._on_device(np.concatenate([rewards, dones[:, None], discounts], axis=1))

    @property
    def _owners(self) -> list[Any]:
        parts = list(self._parts.values())
        if self._steps == 0:
            return [self, *parts]
        return [self, *parts, self._priorities, self._learned_priorities, *(part.frames for part in parts)]

    @property
    def tensors(self) -> list[th.Tensor]:
        """All that ``sample`` and ``update_priorities`` read and write."""
        own = [self._integers, self._numbers, self._added, self._draw_sums, self._max_weight]
        of_parts = (value for owner in self._owners[1:] for value in vars(owner).values())
        return [*own, *(value for value in of_parts if isinstance(value, th.Tensor))]

    @property
    def numbers(self) -> tuple[float, ...]:
        """What else they depend on."""
        return self.alpha, self.eps, self.normalize_weights == "memory", self._forgotten_transitions

    def to(self, device: th.device) -> None:
        """
        Move everything to another device, for a buffer that comes from a file.

        :param device: where to
        """
        for owner in self._owners:
            move_tensors(owner, device)

    def _on_device(self, array: npt.NDArray[Any]) -> th.Tensor:
        return to_device(array, self.device)

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None, beta: float | th.Tensor = 1.0
    ) -> PrioritizedReplayBufferSamples:
        """
        Draw transitions independently of each other, with replacement.

        :param batch_size: number of transitions
        :param env: must be ``None``
        :param beta: how far the weights correct for the uneven draws, in [0, 1]; a tensor is not checked
        :return: the transitions with their weights and serial numbers (a tensor), on the device
        :raises ValueError: if the buffer is empty or an argument out of range
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more.")
        if not isinstance(beta, th.Tensor) and not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta={beta} must lie in [0, 1].")
        if not self.drawable:
            raise ValueError("The replay buffer is empty: add transitions (n_steps of them) before sampling.")
        uniform = th.rand(batch_size, dtype=th.float64, device=self.device)
        slots = self._priorities.find(uniform * self._priorities.total)
        weights = self._importance_sampling_weights(slots, beta)
        newest = self._added - 1
        ages = (newest - slots) % self.capacity
        self._record(weights, ages)
        indices = newest - ages + self._forgotten_transitions
        return PrioritizedReplayBufferSamples(*self._get_samples(slots, env), weights[:, None], indices)

    def _record(self, weights: th.Tensor, ages: th.Tensor) -> None:
        doubles = weights.double()
        size = doubles.sum().square() / doubles.square().sum() / len(weights)
        self._draw_sums += th.stack([th.ones_like(size), size, ages.double().mean()])
        self._max_weight.copy_(th.maximum(self._max_weight, weights.amax()))

    def update_priorities(self, indices: Any, td_errors: npt.NDArray[Any] | th.Tensor) -> None:
        """
        Set p_i = (|delta_i| + eps)^alpha. An update for a transition that is not stored or cannot be drawn, or whose
        error is not finite, is dropped; of several for one transition, the last counts.

        :param indices: serial numbers, from ``sample``, shape (batch,)
        :param td_errors: TD errors as they are, signed and unweighted, of as many elements
        :raises ValueError: if the lengths differ
        :raises IndexError: if nothing is stored
        """
        indices = th.as_tensor(indices, device=self.device).reshape(-1)
        errors = th.as_tensor(td_errors, device=self.device).detach().reshape(-1).double().abs()
        if errors.shape != indices.shape:
            raise ValueError(f"td_errors has {len(errors)} elements for {len(indices)} indices: give one for each.")
        if self._steps == 0:
            raise IndexError(f"indices={indices} names a transition that was never stored: pass sample's indices.")
        numbers = indices - self._forgotten_transitions
        slots = numbers % self.capacity
        stored = (numbers >= (self._added - self.capacity).clamp(min=0)) & (numbers < self._added)
        stored &= errors.isfinite() & (self._priorities[slots] > 0)
        same = (slots[:, None] == slots) & stored  # (batch, batch)
        last = stored & ~same.triu(diagonal=1).any(dim=1)
        slots = th.where(last, slots, self._priorities.nowhere)
        priorities = th.where(last, (errors + self.eps) ** self.alpha, 0.0)
        self._priorities[slots] = priorities
        self._learned_priorities[slots] = priorities

    def statistics(self) -> dict[str, float]:
        """
        :return: as for ``PrioritizedReplayBuffer``
        """
        if self._steps == 0:
            return {}
        batches, sizes, ages = self._draw_sums.tolist()
        draws = {}
        if batches:
            max_weight = self._max_weight.item()
            draws = {"effective_sample_size": sizes / batches, "max_weight": max_weight, "age": ages / batches}
        self._draw_sums.zero_()
        self._max_weight.zero_()
        return {**draws, **self._priority_statistics(), "gigabytes": self.nbytes / 1e9}

    def _importance_sampling_weights(self, slots: Any, beta: Any) -> Any:
        """
        (N P(i))^-beta over its maximum in the memory or in the batch (Sec. 3.4): N and the sum in P cancel out.

        :return: weights in (0, 1], float32, shape (batch,)
        """
        priorities = self._priorities[slots]
        smallest = self._priorities.smallest if self.normalize_weights == "memory" else priorities.min()
        weights = (smallest / priorities) ** beta
        return weights.clamp(min=TINY).float()

    def _get_samples(self, batch_inds: Any, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_inds: slots, a tensor of shape (batch,)
        :param env: must be ``None``
        :return: the transitions in these slots
        :raises ValueError: if there is something to normalize
        """
        if env is not None:
            raise ValueError("DeviceReplayBuffer does not normalize: use PrioritizedReplayBuffer with VecNormalize.")
        integers, numbers = self._integers[batch_inds], self._numbers[batch_inds]
        widths = [self.action_dim, *(2 * part.frames.depth for part in self._parts.values())]
        actions, *places = th.split(integers, widths, dim=1)
        pairs = {
            key: part.frames.read(of_part) for (key, part), of_part in zip(self._parts.items(), places, strict=True)
        }
        observations: Any = {key: pair[0] for key, pair in pairs.items()}
        next_observations: Any = {key: pair[1] for key, pair in pairs.items()}
        if not isinstance(self._store, DictStore):
            observations, next_observations = observations[""], next_observations[""]
        return ReplayBufferSamples(
            observations=observations,
            actions=actions.long(),
            next_observations=next_observations,
            dones=numbers[:, 1:2],
            rewards=numbers[:, 0:1],
            discounts=None if self.n_steps == 1 else numbers[:, 2:3],
        )
