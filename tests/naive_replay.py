"""Random streams of observations, and a replay memory that is nothing but its definition: an oracle for ours."""

import math
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_per_dqn import PrioritizedReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import LOST_STEP, PrioritizedReplayBufferSamples

N_ACTIONS = 5


class StackStream:
    """
    One environment's observations: stacks of frames, of which the oldest leaves with every step.

    :param shape: of a frame
    :param axis: along which they are stacked, 0 or -1
    :param depth: number of frames in a stack
    """

    def __init__(self, shape: tuple[int, ...], axis: int, depth: int, dtype: Any, rng: np.random.Generator) -> None:
        self.shape, self.axis, self.depth, self.dtype, self.rng = shape, axis, depth, np.dtype(dtype), rng
        self.space = spaces.Box(-np.inf if self.dtype.kind == "f" else 0, 100, self.join(self.blank()).shape, dtype)
        self.frames = self.blank()

    def blank(self) -> list[np.ndarray]:
        return [np.zeros(self.shape, self.dtype) for _ in range(self.depth)]

    def join(self, frames: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(frames, axis=self.axis)

    def new_frame(self) -> np.ndarray:
        """Now and then blank or as before, so that one stack looks like another; with the floats that compare oddly."""
        kind = self.rng.choice(["random", "blank", "same", "odd"], p=[0.7, 0.1, 0.1, 0.1])
        if kind == "same":
            return self.frames[-1].copy()
        frame = self.rng.integers(0, 100, self.shape).astype(self.dtype)
        if kind == "blank":
            frame[...] = 0
        if kind == "odd" and self.dtype.kind == "f":
            frame[...] = self.rng.choice([np.nan, -0.0, 0.0, np.inf])
        return frame

    def reset(self) -> np.ndarray:
        newest = self.new_frame()
        kind = self.rng.choice(["zeros", "repeated", "any", "as before"])
        older = {
            "zeros": self.blank()[1:],
            "repeated": [newest] * (self.depth - 1),
            "any": [self.new_frame() for _ in range(self.depth - 1)],
            "as before": self.frames[1:],
        }[str(kind)]
        self.frames = [*older, newest]
        return self.join(self.frames)

    def step(self) -> np.ndarray:
        self.frames = [*self.frames[1:], self.new_frame()]
        return self.join(self.frames)


class ImageStream(StackStream):
    """Images that are no stacks; the first of them look like stacks, being blank."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.blank_steps = int(self.rng.integers(0, 6))

    def step(self) -> np.ndarray:
        self.blank_steps -= 1
        if self.blank_steps >= 0:
            return self.join(self.blank())
        return self.rng.integers(0, 100, self.space.shape).astype(self.dtype)

    def reset(self) -> np.ndarray:
        return self.step()


class LateStream(StackStream):
    """A still picture for a while; then stacks of frames of two or more thicknesses; perhaps images at last."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.picture = np.full(self.space.shape, 7, self.dtype)
        self.steps = 0
        self.still, self.until = self.rng.integers(0, 40), self.rng.integers(20, 90)

    def step(self) -> np.ndarray:
        self.steps += 1
        if self.steps > self.until:
            self.picture = self.rng.integers(0, 100, self.space.shape).astype(self.dtype)
        elif self.steps > self.still:
            newest = self.rng.integers(0, 100, self.shape).astype(self.dtype)
            kept = np.delete(self.picture, np.arange(self.shape[self.axis]), axis=self.axis)
            self.picture = np.concatenate([kept, newest], axis=self.axis)
        return self.picture.copy()

    reset = step


class VectorStream(StackStream):
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.space = spaces.Box(-np.inf, np.inf, (3,))

    def step(self) -> np.ndarray:
        return self.rng.normal(size=3).astype(np.float32)

    reset = step


class DiscreteStream(VectorStream):
    """Few values, so that what comes after a reset often equals what would have come without it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.space: Any = spaces.Discrete(2)

    def step(self) -> Any:
        return self.rng.integers(2)

    reset = step


class DictStream:
    def __init__(self, streams: dict[str, Any]) -> None:
        self.streams = streams
        self.space = spaces.Dict({key: stream.space for key, stream in streams.items()})

    def step(self) -> dict[str, Any]:
        return {key: stream.step() for key, stream in self.streams.items()}

    def reset(self) -> dict[str, Any]:
        return {key: stream.reset() for key, stream in self.streams.items()}


def stacked(observations: list[Any]) -> Any:
    """Observations of several environments, as a VecEnv returns them: arrays of their own."""
    if isinstance(observations[0], dict):
        return {key: stacked([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def image(observation: Any) -> Any:
    """What two observations have in common if and only if they are the same bits."""
    if isinstance(observation, dict):
        return {key: image(part) for key, part in observation.items()}
    return np.asarray(observation).tobytes()


def spoil(observation: Any) -> None:
    for part in observation.values() if isinstance(observation, dict) else [observation]:
        part.fill(1)


class Step(NamedTuple):
    """What an environment did."""

    obs: Any
    next_obs: Any
    action: int
    reward: float
    terminated: bool
    truncated: bool
    lost: bool


class Streams:
    """Environments in which everything random happens: ends, time limits, breaks that observations show, lost steps."""

    def __init__(self, streams: list[Any], rng: np.random.Generator) -> None:
        self.streams, self.rng = streams, rng
        self.space = streams[0].space
        self.obs = [stream.reset() for stream in streams]
        self.new = [True] * len(streams)

    def reset(self) -> None:
        self.obs = [stream.reset() for stream in self.streams]
        self.new = [True] * len(self.streams)

    def step(self, *buffers: PrioritizedReplayBuffer) -> list[tuple[bool, Step]]:
        """
        Make one step, add it to the buffers, and spoil the arrays that they were given (TRAPS 23).

        :return: for each environment, whether the step follows its last one, and the step
        """
        n_envs = len(self.streams)
        obs, follows = list(self.obs), [not new for new in self.new]
        kinds = ["no", "terminated", "truncated", "breaks off", "lost"]
        ends = self.rng.choice(kinds, n_envs, p=[0.73, 0.08, 0.08, 0.08, 0.03])
        next_obs = [
            stream.reset() if end == "lost" else stream.step() for stream, end in zip(self.streams, ends, strict=True)
        ]
        actions = self.rng.integers(N_ACTIONS, size=n_envs)
        rewards = self.rng.normal(size=n_envs).astype(np.float32)
        done = (ends == "terminated") | (ends == "truncated") | (ends == "lost")
        infos = [{"TimeLimit.truncated": end in ("truncated", "lost")} for end in ends]  # as a worker says it
        for env in np.flatnonzero(ends == "lost"):
            infos[env][LOST_STEP] = True
        given = stacked(obs), stacked(next_obs), actions.copy(), rewards.copy(), done.copy()
        for buffer in buffers:
            buffer.add(*given, infos)
        for array in given:
            spoil(array)
        happened = []
        for env, end in enumerate(ends):
            step = Step(
                obs[env],
                next_obs[env],
                int(actions[env]),
                float(rewards[env]),
                terminated=end == "terminated",
                truncated=end == "truncated",
                lost=end == "lost",
            )
            happened.append((follows[env], step))
            self.obs[env] = next_obs[env] if end in ("no", "lost") else self.streams[env].reset()
            # A break shows where observations differ. Where they do not, the step follows, for all that anybody knows
            same = image(self.obs[env]) == image(next_obs[env])
            self.new[env] = bool(done[env]) or not same
        return happened


class NaiveReplay:
    """Whole observations in a dict by serial number; windows, returns, priorities and weights by their definitions."""

    def __init__(self, buffer_size: int, n_envs: int, alpha: float, eps: float, n_steps: int, gamma: float) -> None:
        self.rows, self.n_envs = max(buffer_size // n_envs, 1), n_envs
        self.alpha, self.eps, self.n_steps, self.gamma = alpha, eps, n_steps, gamma
        self.steps: dict[int, Step] = {}
        self.ends: set[int] = set()  # serial numbers after which a segment ends
        self.priorities: dict[int, float] = {}
        self.learned: set[int] = set()
        self.last_max = 1.0
        self.added = 0

    @property
    def max_priority(self) -> float:
        return max((self.priorities[serial] for serial in self.learned), default=self.last_max)

    def add(self, happened: list[tuple[bool, Step]]) -> None:
        for env, (follows, step) in enumerate(happened):
            serial = self.added + env
            if step.lost or not follows:
                self.ends.add(serial - self.n_envs)
            if step.lost:
                continue
            if step.terminated or step.truncated:
                self.ends.add(serial)
            self.steps[serial] = step
        self.added += self.n_envs
        self._enter_complete_windows()
        for serial in [serial for serial in self.steps if serial < self.added - self.rows * self.n_envs]:
            del self.steps[serial]
            self.priorities.pop(serial, None)
            self.learned.discard(serial)
            self.ends.discard(serial)

    def end_segments(self) -> None:
        self.ends.update(range(self.added - self.n_envs, self.added))
        self._enter_complete_windows()

    def _enter_complete_windows(self) -> None:
        self.last_max = entry = self.max_priority
        for serial in self.steps:
            window = self.window(serial)
            if serial not in self.priorities and (len(window) == self.n_steps or window[-1] in self.ends):
                self.priorities[serial] = entry

    def window(self, serial: int) -> list[int]:
        window = [serial]
        while len(window) < self.n_steps and window[-1] not in self.ends and window[-1] + self.n_envs in self.steps:
            window.append(window[-1] + self.n_envs)
        return window

    def update(self, indices: list[int], td_errors: list[float]) -> None:
        for serial, td_error in zip(indices, td_errors, strict=True):
            if serial in self.priorities:
                self.priorities[serial] = math.pow(abs(td_error) + self.eps, self.alpha)
                self.learned.add(serial)

    def weights(self, beta: float) -> dict[int, float]:
        total, n = math.fsum(self.priorities.values()), len(self.priorities)
        weights = {serial: (n * priority / total) ** -beta for serial, priority in self.priorities.items()}
        largest = max(weights.values())
        return {serial: weight / largest for serial, weight in weights.items()}

    def check(self, batch: PrioritizedReplayBufferSamples, beta: float) -> None:
        """Every field of the batch is what the definitions say of the transitions that it names, bit by bit."""
        weights = self.weights(beta)
        for i, serial in enumerate(batch.indices.tolist()):
            window = [self.steps[number] for number in self.window(serial)]
            first, last = window[0], window[-1]
            assert serial in self.priorities, "not drawable"
            assert image(numpy_row(batch.observations, i)) == image(first.obs)
            if not last.terminated:
                assert image(numpy_row(batch.next_observations, i)) == image(last.next_obs)
            assert batch.dones[i].item() == last.terminated
            assert batch.actions[i].item() == first.action
            expected = math.fsum(self.gamma**k * step.reward for k, step in enumerate(window))
            assert math.isclose(batch.rewards[i].item(), expected, rel_tol=1e-5, abs_tol=1e-5)
            if self.n_steps == 1:
                assert batch.discounts is None
            else:
                assert batch.discounts is not None
                assert math.isclose(batch.discounts[i].item(), self.gamma ** len(window), rel_tol=1e-6)
            assert math.isclose(batch.weights[i].item(), weights[serial], rel_tol=1e-5, abs_tol=1e-37)


def numpy_row(observations: Any, row: int) -> Any:
    if isinstance(observations, dict):
        return {key: numpy_row(part, row) for key, part in observations.items()}
    values = observations[row].numpy()
    return values[0] if values.shape == (1,) and values.dtype == np.int64 else values  # Discrete, kept as (1,)
