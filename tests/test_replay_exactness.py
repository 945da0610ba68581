"""
The whole replay memory, every part at once (stores, segments, n-step windows, priorities), against a naive one.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import copy
import os
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_per_dqn import DeviceReplayBuffer, PrioritizedReplayBuffer
from sb3_per_dqn.replay import device_store
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBufferSamples
from tests.naive_replay import (
    N_ACTIONS,
    DictStream,
    DiscreteStream,
    ImageStream,
    LateStream,
    NaiveReplay,
    StackStream,
    Streams,
    VectorStream,
)

SOAK_OPERATIONS = int(os.environ.get("SOAK_OPERATIONS", "10000"))  # a million takes about an hour
DTYPES = [np.uint8, np.uint16, np.int16, np.float16, np.float32, np.float64]
ON_DEVICE_WHOLE = {"make": DeviceReplayBuffer, "single_frames": False}
SHAPES = [((1,), 0), ((3,), 0), ((1, 2, 3), 0), ((3, 2, 2), 0), ((2, 3, 1), -1), ((2, 2, 3), -1)]  # frame, axis


def make_stream(kind: str, shape: tuple[int, ...], axis: int, depth: int, dtype: Any, rng: np.random.Generator) -> Any:
    stack = (shape, axis, depth, dtype, rng)
    if kind == "dict":
        return DictStream(
            {
                "frames": StackStream(*stack),
                "images": ImageStream(*stack),
                "room": DiscreteStream(rng),
                "v": VectorStream(rng),
            }
        )
    kinds = {"frames": StackStream, "images": ImageStream, "late": LateStream}
    return kinds[kind](*stack) if kind in kinds else {"vector": VectorStream, "discrete": DiscreteStream}[kind](rng)


@pytest.fixture(autouse=True)
def no_frame_is_forgotten_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """These streams break off all the time, which takes many more frames than one a step."""
    monkeypatch.setattr(device_store, "SPARE", 10)


class World:
    """A buffer, its oracle, and the environments that feed both."""

    def __init__(
        self,
        kind: str = "frames",
        shape_and_axis: tuple[tuple[int, ...], int] = ((1, 2, 3), 0),
        depth: int = 4,
        dtype: Any = np.uint8,
        n_envs: int = 3,
        buffer_size: int = 24,
        n_steps: int = 1,
        alpha: float = 0.6,
        seed: int = 0,
        make: type[PrioritizedReplayBuffer] = PrioritizedReplayBuffer,
        **kwargs: Any,
    ) -> None:
        np.random.seed(seed)
        self.rng = np.random.default_rng(seed)
        shape, axis = shape_and_axis
        streams = [make_stream(kind, shape, axis, depth, dtype, self.rng) for _ in range(n_envs)]
        self.streams = Streams(streams, self.rng)
        gamma = 0.9
        self.naive = NaiveReplay(buffer_size, n_envs, alpha, 1e-6, n_steps, gamma)
        self.buffer = make(
            buffer_size,
            self.streams.space,
            spaces.Discrete(N_ACTIONS),
            "cpu",
            n_envs,
            alpha=alpha,
            n_steps=n_steps,
            gamma=gamma,
            **kwargs,
        )

    def add(self) -> None:
        self.naive.add(self.streams.step(self.buffer))

    def break_off(self) -> None:
        self.streams.reset()
        self.buffer.end_segments()
        self.naive.end_segments()

    def sample(self, batch_size: int, beta: float) -> np.ndarray:
        batch = self.buffer.sample(batch_size, beta=beta)
        self.naive.check(batch, beta)
        indices = np.array(batch.indices.tolist(), dtype=np.int64)
        for tensors in batch:  # TRAPS 23
            for part in tensors.values() if isinstance(tensors, dict) else [tensors]:
                if isinstance(part, th.Tensor):
                    part.fill_(1)
        return indices

    def update(self, indices: np.ndarray, td_errors: np.ndarray) -> None:
        self.buffer.update_priorities(indices, td_errors)
        self.naive.update(indices.tolist(), td_errors.tolist())

    def check_every_slot(self) -> None:
        """What can be drawn is what the definition says, and each of it is right."""
        slots = np.flatnonzero(self.buffer._priorities.values)
        serials = self.buffer._serial_numbers(slots)
        assert sorted(serials) == sorted(self.naive.priorities)
        expected = [self.naive.priorities[serial] for serial in serials]
        np.testing.assert_allclose(self.buffer._priorities.values[slots], expected, rtol=1e-12)
        if not slots.size:
            return
        every = np.random.permutation(np.repeat(slots, 2))
        given: Any = th.as_tensor(every) if isinstance(self.buffer, DeviceReplayBuffer) else every
        weights = self.buffer._importance_sampling_weights(given, 0.7)
        batch = self.buffer.sample(1, beta=0.7)._replace(
            **self.buffer._get_samples(given)._asdict(),
            weights=th.as_tensor(weights),
            indices=self.buffer._serial_numbers(every),
        )
        self.naive.check(batch, beta=0.7)


class ReplayMachine(RuleBasedStateMachine):
    """
    TRAPS 6, 8, 9, 13, 16, 17, 18, 19, 20, 21, 22, 23, 24: every kind of observation, any depth of stacks, 1 to 4 steps,
    small rings that wrap many times, streams that break off, pickles in between.
    """

    @initialize(
        kind=st.sampled_from(["frames", "frames", "late", "images", "dict", "vector", "discrete"]),
        shape_and_axis=st.sampled_from(SHAPES),
        depth=st.integers(2, 5),
        dtype=st.sampled_from(DTYPES),
        n_envs=st.integers(1, 4),
        rows=st.integers(4, 20),
        n_steps=st.integers(1, 4),
        alpha=st.sampled_from([0.0, 0.6, 1.0]),
        frames=st.sampled_from(
            [{}, {"compress_frames": True}, {"single_frames": False}, {"make": DeviceReplayBuffer}, ON_DEVICE_WHOLE]
        ),
        seed=st.integers(0, 2**31),
    )
    def start(self, rows: int, n_envs: int, frames: dict[str, Any], **kwargs: Any) -> None:
        self.world = World(buffer_size=rows * n_envs, n_envs=n_envs, **frames, **kwargs)
        self.world.add()

    @rule(steps=st.integers(1, 5))
    def add(self, steps: int) -> None:
        for _ in range(steps):
            self.world.add()

    @rule()
    def break_off(self) -> None:
        self.world.break_off()

    @precondition(lambda self: self.world.naive.priorities)
    @rule(batch_size=st.integers(1, 6), beta=st.sampled_from([0.0, 0.4, 1.0]))
    def sample_and_update(self, batch_size: int, beta: float) -> None:
        indices = self.world.sample(batch_size, beta)
        self.world.update(indices, self.world.rng.normal(size=indices.size))

    @rule(copier=st.sampled_from([copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))]))
    def save_and_load(self, copier: Any) -> None:
        self.world.buffer = copier(self.world.buffer)

    @invariant()
    def every_slot_is_right(self) -> None:
        if hasattr(self, "world"):
            self.world.check_every_slot()


TestReplayMachine = ReplayMachine.TestCase
TestReplayMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_what_no_target_uses_need_not_be_a_stack(n_steps: int) -> None:
    """Also after a lost step, which is no time limit although it is said to be one."""
    world = World(single_frames=True, n_steps=n_steps)
    for _ in range(200):
        world.add()  # raises if frames could not be kept once
        world.check_every_slot()


@pytest.mark.parametrize("seed", range(6))
def test_soak(seed: int) -> None:
    """
    TRAPS 3, 21, 25: very many operations in random order, with hundreds of wraps, and nothing drifts. The environment's
    SOAK_OPERATIONS makes it longer.
    """
    configurations: list[dict[str, Any]] = [
        {"kind": "dict", "n_steps": 3, "buffer_size": 60, "n_envs": 4, "depth": 3, "dtype": np.float32},
        {"kind": "frames", "n_steps": 3, "buffer_size": 120, "n_envs": 8, "compress_frames": True},
        {"kind": "frames", "n_steps": 1, "buffer_size": 40, "n_envs": 2, "shape_and_axis": ((2, 2, 3), -1)},
        {"kind": "frames", "n_steps": 2, "buffer_size": 40, "n_envs": 2, "depth": 2, "dtype": np.float64},
        {"kind": "frames", "n_steps": 3, "buffer_size": 120, "n_envs": 8, "make": DeviceReplayBuffer},
        {"kind": "dict", "n_steps": 1, "buffer_size": 40, "n_envs": 2, "make": DeviceReplayBuffer},
    ]
    world = World(**configurations[seed], seed=seed)
    indices = np.zeros(0, dtype=np.int64)
    world.add()
    for _ in range(SOAK_OPERATIONS // 4):
        choice = world.rng.integers(100)
        if choice < 45:
            world.add()
        elif choice < 47:
            world.break_off()
        elif choice < 70 and world.naive.priorities:
            indices = world.sample(4, beta=0.7)
        elif choice < 98:  # some of these were overwritten meanwhile
            world.update(indices, world.rng.normal(size=indices.size) * 10.0 ** world.rng.integers(-6, 4))
        elif choice == 98:
            world.buffer = pickle.loads(pickle.dumps(world.buffer))
        else:
            world.check_every_slot()
    world.check_every_slot()
    assert world.naive.added > 50 * world.buffer.capacity or SOAK_OPERATIONS < 10_000
    assert float(world.buffer._priorities.total) == pytest.approx(world.buffer._priorities.values.sum(), rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("frames", [{}, {"compress_frames": True}, {"make": DeviceReplayBuffer}])
def test_a_layout_is_left_at_any_time(seed: int, frames: dict[str, Any]) -> None:
    """Also after the ring has wrapped, and in the middle of a group of compressed frames."""
    rng = np.random.default_rng(seed)
    rows, n_envs, depth = (int(rng.integers(*bounds)) for bounds in ((1, 20), (1, 4), (2, 5)))
    shape = SHAPES[rng.integers(len(SHAPES))]
    world = World("late", shape, depth, n_envs=n_envs, buffer_size=rows * n_envs, seed=seed, **frames)
    for _ in range(100):
        world.add()
        world.check_every_slot()


@pytest.mark.parametrize("seed", range(30))
def test_what_is_forgotten_early_cannot_be_drawn(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no frame to spare, nor room for the stacks of many beginnings: what is drawn is right all the same."""
    monkeypatch.setattr(device_store, "pool_length", lambda rows, n_envs, depth: (rows + 2 * depth) * n_envs)
    rng = np.random.default_rng(seed)
    rows, n_envs, n_steps = (int(rng.integers(*bounds)) for bounds in ((6, 40), (1, 6), (1, 6)))
    kind = str(rng.choice(["frames", "late", "dict", "images"]))
    world = World(
        kind, depth=3, n_envs=n_envs, buffer_size=rows * n_envs, n_steps=n_steps, seed=seed, make=DeviceReplayBuffer
    )
    for _ in range(120):
        world.add()
        drawable = th.as_tensor(np.flatnonzero(world.buffer._priorities.values))
        serials = world.buffer._serial_numbers(drawable.numpy())
        assert set(serials) <= set(world.naive.priorities)
        if not serials.size:
            continue
        batch = world.buffer._get_samples(drawable)
        ones = th.ones(len(serials), 1)  # the weights for beta = 0
        world.naive.check(PrioritizedReplayBufferSamples(*batch, ones, serials), beta=0.0)


@given(
    n_steps=st.integers(2, 5),
    rows=st.integers(6, 12),
    steps=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    normalize=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_n_step_returns_equal_sb3s(n_steps: int, rows: int, steps: int, seed: int, normalize: bool) -> None:
    """TRAPS 18: bit for bit, on the same indices; one environment, as SB3's buffer draws the environment itself."""
    rng = np.random.default_rng(seed)
    space, actions = spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(N_ACTIONS)
    ours = PrioritizedReplayBuffer(rows, space, actions, "cpu", n_steps=n_steps, gamma=0.97)
    theirs = NStepReplayBuffer(rows, space, actions, "cpu", n_steps=n_steps, gamma=0.97)
    obs = rng.normal(size=(1, 3)).astype(np.float32)
    for _ in range(steps):
        next_obs = rng.normal(size=(1, 3)).astype(np.float32)
        done = rng.random() < 0.2
        infos = [{"TimeLimit.truncated": done and rng.random() < 0.5}]
        transition = obs, next_obs, np.array([1]), rng.normal(size=1), np.array([done]), infos
        for buffer in (ours, theirs):
            buffer.add(*transition)
        obs = rng.normal(size=(1, 3)).astype(np.float32) if done else next_obs
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False)
    env.ret_rms.var = np.array(7.0)
    slots = np.flatnonzero(ours._priorities.values)
    mine = ours._get_samples(slots, env if normalize else None)
    other = theirs._get_samples(slots, env if normalize else None)
    assert other.discounts is not None
    for name, value in mine._asdict().items():
        assert th.equal(value, getattr(other, name)), name
