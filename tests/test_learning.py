"""
A guard on the quality of what is learned, by whatever line it falls.

On the Blind Cliffwalk (Schaul et al., 2016, Sec. 3.1) with the true Q-values in closed form: random play reaches its
end once in 2^length episodes, so that it takes priorities to learn from these few in time. With jackpots at its cliffs,
drawn more often than it happens, it takes importance-sampling weights to learn what it is worth on average. The guard
is itself held to notice three breaks.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer, PrioritizedReplayBufferSamples

GAMMA = 0.95
CHANCE = 0.05  # of a jackpot
RANDOM_STEPS = 4000


class Cliffwalk(gym.Env[np.ndarray, int]):
    """
    In state i the right action is ``i % 2``; a wrong one ends the episode, and so does the last right one (reward 1).

    :param length: number of states
    :param jackpot: reward of one wrong action in twenty; the others' is 0
    """

    def __init__(self, length: int, jackpot: float) -> None:
        self.length, self.jackpot = length, jackpot
        self.observation_space = spaces.Box(0, 1, (length,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.state = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action != self.state % 2:
            return self._observation(), self.jackpot * (self.np_random.random() < CHANCE), True, False, {}
        self.state += 1
        done = self.state == self.length
        return self._observation(), float(done), done, False, {}

    def true_q_values(self) -> np.ndarray:
        q_values = np.full((self.length, 2), CHANCE * self.jackpot)
        for state in range(self.length):
            q_values[state, state % 2] = GAMMA ** (self.length - 1 - state)
        return q_values

    def _observation(self) -> np.ndarray:
        return np.eye(self.length, dtype=np.float32)[min(self.state, self.length - 1)]


def errors(env: Cliffwalk, learning_steps: int, seed: int) -> np.ndarray:
    """How far learned Q-values are from the true ones, shape (length, 2), after random play throughout."""
    model = PerDoubleDQN(
        "MlpPolicy",
        env,
        policy_kwargs={"net_arch": [], "dueling": True},
        learning_rate=3e-3,
        gamma=GAMMA,
        buffer_size=10_000,
        learning_starts=RANDOM_STEPS,
        train_freq=1,
        gradient_steps=2,
        target_update_interval=50,
        exploration=[[0, 1.0]],
        prioritized_replay_alpha=1.0,
        prioritized_replay_beta=1.0,
        prioritized_replay_eps=0.01,
        prioritized_replay_normalize_weights="memory",
        seed=seed,
        device="cpu",
    )
    model.learn(RANDOM_STEPS + learning_steps)
    with th.no_grad():
        q_values = model.q_net(th.eye(env.length)).numpy()
    return np.abs(q_values - env.true_q_values())


def learns_from_what_is_rare(seed: int = 0) -> bool:
    return bool(
        errors(Cliffwalk(9, jackpot=0), 1000, seed).mean() < 0.01
    )  # 0.000 to 0.003; with uniform draws 0.02 to 0.05


def learns_the_average(seed: int = 0) -> bool:
    return bool(errors(Cliffwalk(8, jackpot=4), 1500, seed).max() < 0.27)  # 0.18 to 0.20; without weights 0.35 to 0.50


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize("seed", [0, 1])
def test_learns_from_what_is_rare(seed: int) -> None:
    assert learns_from_what_is_rare(seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_learns_the_average_of_what_is_drawn_too_often(seed: int) -> None:
    assert learns_the_average(seed)


def test_notices_that_priorities_are_not_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrioritizedReplayBuffer, "update_priorities", lambda *args: None)
    assert not learns_from_what_is_rare()


@pytest.mark.parametrize("broken", [th.ones_like, th.reciprocal])
def test_notices_weights_that_do_not_correct(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    sample = PrioritizedReplayBuffer.sample

    def sample_with_broken_weights(*args: Any, **kwargs: Any) -> PrioritizedReplayBufferSamples:
        batch = sample(*args, **kwargs)
        return batch._replace(weights=broken(batch.weights))

    monkeypatch.setattr(PrioritizedReplayBuffer, "sample", sample_with_broken_weights)
    assert not learns_the_average()


def test_notices_the_worst_action_in_the_place_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.Tensor, "argmax", th.Tensor.argmin)  # double Q's choice; all play is random
    assert not learns_the_average()


class RareReward(gym.Env[np.ndarray, int]):
    """One step, and one action, which is worth 1 once in ten times, and otherwise nothing."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space: Any = spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(self.np_random.random() < 0.1), True, False, {}


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_what_chance_is_worth_by_beta(beta: float) -> None:
    """
    Where rewards are a matter of chance, an error says how lucky a transition was. Draws and weights together count
    each by |delta|^(alpha (1 - beta)), so what is learned is where p (1 - q)^k = (1 - p) q^k, k = 1 + alpha (1 - beta).
    """
    model = PerDoubleDQN(
        "MlpPolicy",
        RareReward(),
        policy_kwargs={"net_arch": []},
        learning_rate=lambda left: 1e-2 * left,
        buffer_size=4000,
        batch_size=64,
        learning_starts=1000,
        train_freq=1,
        prioritized_replay_alpha=0.6,
        prioritized_replay_beta=beta,
        seed=0,
        device="cpu",
    )
    model.learn(4000)
    buffer: Any = model.replay_buffer
    p = buffer.rewards.mean()
    odds = ((1 - p) / p) ** (1 / (1 + 0.6 * (1 - beta)))
    with th.no_grad():
        assert model.q_net(th.ones(1, 1)).item() == pytest.approx(1 / (1 + odds), abs=0.01)
