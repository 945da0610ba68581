"""Environments whose observations are pairs, all of them different, and prioritized buffers of these."""

from itertools import count
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_per_dqn import PrioritizedReplayBuffer

N_ACTIONS = 7
PAIR_SPACE = spaces.Box(-np.inf, np.inf, (2,))  # environment, number of the observation


class Transition(NamedTuple):
    env: int
    obs: list[float]
    next_obs: list[float]
    action: int
    reward: float
    done: bool  # by a true termination


class RandomStreams:
    """Environments whose observations are all different; their episodes end at random, also by a time limit."""

    def __init__(self, n_envs: int, seed: int) -> None:
        self.n_envs = n_envs
        self.rng = np.random.default_rng(seed)
        self.numbers = count()
        self.last_obs = self._observe()

    def _observe(self) -> np.ndarray:
        return np.array([[env, next(self.numbers)] for env in range(self.n_envs)], dtype=np.float32)

    def step(self, *buffers: PrioritizedReplayBuffer) -> list[Transition]:
        """Make one step, add it to the buffers, spoil the arrays that they were given, and say what happened."""
        obs, next_obs = self.last_obs, self._observe()
        actions = self.rng.integers(N_ACTIONS, size=self.n_envs)
        rewards = self.rng.normal(size=self.n_envs).astype(np.float32)
        ends = self.rng.choice(["no", "terminated", "time limit"], size=self.n_envs, p=[0.6, 0.2, 0.2])
        dones = ends != "no"
        infos = [{"TimeLimit.truncated": end == "time limit"} if end != "no" else {} for end in ends]
        happened = [
            Transition(
                env,
                obs[env].tolist(),
                next_obs[env].tolist(),
                int(actions[env]),
                float(rewards[env]),
                end == "terminated",
            )
            for env, end in enumerate(ends)
        ]
        self.last_obs = np.where(dones[:, None], self._observe(), next_obs)
        given = (obs.copy(), next_obs, actions, rewards, dones)
        for buffer in buffers:
            buffer.add(*given, infos)
        for array in given:  # TRAPS 23
            array.fill(77)
        for info in infos:
            info.clear()
        return happened


def pair_buffer(
    buffer_size: int, n_envs: int = 1, make: type[PrioritizedReplayBuffer] = PrioritizedReplayBuffer, **kwargs: Any
) -> PrioritizedReplayBuffer:
    return make(buffer_size, PAIR_SPACE, spaces.Discrete(N_ACTIONS), device="cpu", n_envs=n_envs, **kwargs)


def filled_buffer(buffer_size: int, n_envs: int = 1, rows: int | None = None, **kwargs: Any) -> PrioritizedReplayBuffer:
    buffer = pair_buffer(buffer_size, n_envs, **kwargs)
    streams = RandomStreams(n_envs, seed=0)
    for _ in range(buffer.buffer_size if rows is None else rows):
        streams.step(buffer)
    return buffer


def relative_priorities(buffer: PrioritizedReplayBuffer, draws: int = 2000) -> dict[int, float]:
    """Stored priorities by serial number, up to a factor: what the weights of beta = 1 say."""
    batch = buffer.sample(draws, beta=1.0)
    return dict(zip(batch.indices.tolist(), (1 / batch.weights.numpy().astype(float)).ravel(), strict=True))
