"""
The algorithm against hand-written calculations, and everything around it that works with SB3's DQN.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import math
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_per_dqn import PerDoubleDQN, PiecewiseSchedule, PrioritizedReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBufferSamples

GAMMA = 0.9
EPS = 0.25  # large, so that it shows
N_ACTIONS = 3


class RandomWalk(gym.Env[np.ndarray, int]):
    """Random observations and rewards; an episode ends with chance 1/8. It keeps a record of what happened."""

    observation_space: Any = spaces.Box(-1, 1, (2,))

    def __init__(self, n_actions: int = N_ACTIONS, first_action: int = 0) -> None:
        self.action_space: Any = spaces.Discrete(n_actions, start=first_action)
        self.record: list[tuple[Any, int, float, Any, bool]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.obs = self.observation_space.sample()
        return self.obs, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before, self.obs = self.obs, self.observation_space.sample()
        reward, terminated = float(self.np_random.normal()), bool(self.np_random.random() < 1 / 8)
        self.record.append((before, int(action), reward, self.obs, terminated))
        return self.obs, reward, terminated, False, {}


class DictWalk(RandomWalk):
    observation_space = spaces.Dict({"room": spaces.Discrete(5), "box": spaces.Box(-1, 1, (2,))})


class DiscreteWalk(RandomWalk):
    observation_space = spaces.Discrete(6)


class NanReward(RandomWalk):
    """The reward of the thirtieth step is NaN."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, math.nan if len(self.record) == 30 else reward, *rest


def walks(n_envs: int = 1, env: Callable[[], gym.Env[Any, Any]] = RandomWalk, max_steps: int = 5) -> VecEnv:
    return make_vec_env(lambda: TimeLimit(env(), max_steps), n_envs, seed=3)


def make(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    """A small model of a kind that is soon trained."""
    policy_kwargs = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    arguments: dict[str, Any] = {
        "learning_starts": 20,
        "batch_size": 16,
        "buffer_size": 200,
        "train_freq": 2,
        "target_update_interval": 40,
        "gamma": GAMMA,
        "seed": 1,
        "device": "cpu",
        **kwargs,
    }
    return PerDoubleDQN(policy, walks() if env is None else env, policy_kwargs=policy_kwargs, **arguments)


def buffer_of(model: PerDoubleDQN) -> PrioritizedReplayBuffer:
    assert isinstance(model.replay_buffer, PrioritizedReplayBuffer)
    return model.replay_buffer


class EachStep(BaseCallback):
    """Calls a function with the model after every step; training stops where it returns False."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self.model) is not False


# ------------------------------------------------------------------------------------------ one gradient step, by hand


def linear_model(**kwargs: Any) -> PerDoubleDQN:
    """Value and advantages are linear, the optimizer is plain SGD: a step is the gradient. The networks differ."""
    sgd = {"net_arch": [], "optimizer_class": th.optim.SGD}
    model = make(policy_kwargs=sgd, learning_rate=1.0, max_grad_norm=1e9, prioritized_replay_eps=EPS, **kwargs)
    generator = th.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data = th.randn(parameter.shape, generator=generator)
    model.learn(0)  # makes the logger
    return model


def by_hand(network: th.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().astype(float).copy() for name, value in network.state_dict().items()}


def q_by_hand(parameters: dict[str, np.ndarray], obs: np.ndarray) -> np.ndarray:
    value = obs @ parameters["value_net.0.weight"].T + parameters["value_net.0.bias"]
    advantages = obs @ parameters["advantage_net.0.weight"].T + parameters["advantage_net.0.bias"]
    return np.asarray(value + advantages - advantages.mean(axis=1, keepdims=True))


def td_errors_by_hand(model: PerDoubleDQN, batch: Any, double_q: bool) -> list[float]:
    """delta = r + gamma * Q'(s', a*) - Q(s, a), one transition after the other."""
    online, target = by_hand(model.q_net), by_hand(model.q_net_target)
    q_values = q_by_hand(online, batch.observations.numpy())
    next_online = q_by_hand(online, batch.next_observations.numpy())
    next_target = q_by_hand(target, batch.next_observations.numpy())
    td_errors = []
    for i in range(len(q_values)):
        best = int(next_online[i].argmax()) if double_q else int(next_target[i].argmax())
        discount = GAMMA if batch.discounts is None else float(batch.discounts[i])
        bootstrapped = 0.0 if batch.dones[i] else discount * next_target[i, best]
        td_errors.append(float(batch.rewards[i]) + bootstrapped - q_values[i, int(batch.actions[i])])
    return td_errors


def fixed_batch(size: int = 40, discounts: bool = False, weights: th.Tensor | None = None) -> Any:
    generator = th.Generator().manual_seed(1)
    return PrioritizedReplayBufferSamples(
        observations=th.randn(size, 2, generator=generator),
        actions=th.randint(N_ACTIONS, (size, 1), generator=generator),
        next_observations=th.randn(size, 2, generator=generator),
        dones=(th.rand(size, 1, generator=generator) < 0.3).float(),
        rewards=th.randn(size, 1, generator=generator),
        discounts=th.rand(size, 1, generator=generator) if discounts else None,
        weights=th.rand(size, 1, generator=generator) if weights is None else weights,
        indices=np.arange(size),
    )


class FixedBatch(PrioritizedReplayBuffer):
    """Hands out one batch, and keeps what comes back."""

    batch: PrioritizedReplayBufferSamples
    drawable = True

    def sample(self, *args: Any, **kwargs: Any) -> PrioritizedReplayBufferSamples:  # type: ignore[override]
        return self.batch

    def update_priorities(self, indices: Any, td_errors: Any) -> None:
        self.updates = (indices, td_errors)


def train_on(batch: PrioritizedReplayBufferSamples, **kwargs: Any) -> tuple[PerDoubleDQN, dict[str, np.ndarray]]:
    """:return: the model after one step on the batch, and the gradient of that step"""
    model = linear_model(replay_buffer_class=FixedBatch, **kwargs)
    assert isinstance(model.replay_buffer, FixedBatch)
    model.replay_buffer.batch = batch
    before = by_hand(model.q_net)
    model.train(1, batch_size=len(batch.indices))
    after = by_hand(model.q_net)
    return model, {name: before[name] - after[name] for name in before}


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("discounts", [True, False])
def test_loss_and_gradient_of_a_fixed_batch(double_q: bool, discounts: bool) -> None:
    """
    Targets by Van Hasselt et al. (2016), Eq. 4, or plain; the weighted Huber loss; its gradient, written out for
    linear streams: dL/dq_i = -w_i clip(delta_i, -1, 1) / N, whole for the value, less the mean for the advantages.
    """
    batch = fixed_batch(discounts=discounts)
    td_errors = td_errors_by_hand(linear_model(), batch, double_q)
    assert min(map(abs, td_errors)) < 1 < max(map(abs, td_errors))  # both arms of the Huber loss
    assert td_errors != td_errors_by_hand(linear_model(), batch, not double_q)
    weights, size = batch.weights.numpy().ravel().tolist(), len(td_errors)
    huber = [0.5 * delta**2 if abs(delta) < 1 else abs(delta) - 0.5 for delta in td_errors]
    loss = sum(weight * h for weight, h in zip(weights, huber, strict=True)) / size
    gradient = {name: np.zeros(shape) for name, shape in [("value_net.0.weight", (1, 2)), ("value_net.0.bias", 1)]}
    gradient |= {"advantage_net.0.weight": np.zeros((N_ACTIONS, 2)), "advantage_net.0.bias": np.zeros(N_ACTIONS)}
    for i, delta in enumerate(td_errors):
        dq = -weights[i] * max(-1.0, min(1.0, delta)) / size
        obs = batch.observations[i].numpy()
        gradient["value_net.0.weight"][0] += dq * obs
        gradient["value_net.0.bias"] += dq
        for action in range(N_ACTIONS):
            share = dq * ((action == int(batch.actions[i])) - 1 / N_ACTIONS)
            gradient["advantage_net.0.weight"][action] += share * obs
            gradient["advantage_net.0.bias"][action] += share

    model, step = train_on(batch, double_q=double_q)
    assert model.logger.name_to_value["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert model.logger.name_to_value["train/td_error"] == pytest.approx(np.abs(td_errors).mean(), rel=1e-5)
    q_values = q_by_hand(by_hand(linear_model().q_net), batch.observations.numpy())
    q_value = np.take_along_axis(q_values, batch.actions.numpy(), axis=1).mean()
    assert model.logger.name_to_value["train/q_value"] == pytest.approx(q_value, rel=1e-4)
    assert model.logger.name_to_value["train/target_q_value"] == pytest.approx(q_value + np.mean(td_errors), rel=1e-4)
    for name in gradient:
        np.testing.assert_allclose(step[name], gradient[name], atol=2e-6, err_msg=name)


def test_equal_weights_give_the_plain_loss() -> None:
    batch = fixed_batch(weights=th.ones(40, 1))
    model, step = train_on(batch)
    plain = linear_model(prioritized_replay=False)
    before = by_hand(plain.q_net)
    plain.replay_buffer.sample = lambda *_, **__: ReplayBufferSamples(*batch[:6])  # type: ignore[union-attr, method-assign]
    plain.train(1)
    assert plain.logger.name_to_value["train/loss"] == pytest.approx(model.logger.name_to_value["train/loss"], rel=1e-6)
    for name, after in by_hand(plain.q_net).items():
        np.testing.assert_allclose(before[name] - after, step[name], atol=1e-6)


def test_the_gradient_is_clipped() -> None:
    model, step = train_on(fixed_batch())
    norm = math.sqrt(sum((part**2).sum() for part in step.values()))
    model = linear_model(replay_buffer_class=FixedBatch)
    model.max_grad_norm = 0.01 * norm
    model.replay_buffer.batch = fixed_batch()  # type: ignore[union-attr]
    before = by_hand(model.q_net)
    model.train(1)
    for name, after in by_hand(model.q_net).items():
        np.testing.assert_allclose(before[name] - after, 0.01 * step[name], rtol=1e-2, atol=1e-6)


def test_the_buffer_gets_unweighted_errors_of_the_weights_before_the_step() -> None:
    """TRAPS 12."""
    batch = fixed_batch()
    td_errors = td_errors_by_hand(linear_model(), batch, double_q=True)
    model, _ = train_on(batch)
    indices, given = model.replay_buffer.updates  # type: ignore[union-attr]
    np.testing.assert_array_equal(indices, batch.indices)
    np.testing.assert_allclose(np.abs(given.numpy().ravel()), np.abs(td_errors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_priorities_are_written_back(alpha: float, beta: float) -> None:
    """TRAPS 9, 12: (|delta| + eps)^alpha of every transition, the same for beta = 0 and beta = 1."""
    model = linear_model(prioritized_replay_alpha=alpha, prioritized_replay_beta=beta, learning_starts=100)
    model.learn(12)
    buffer = buffer_of(model)
    stored = buffer.sample(500, beta=1.0)
    priorities = (np.abs(td_errors_by_hand(model, stored, double_q=True)) + EPS) ** alpha
    model.train(1, batch_size=400)  # each of the twelve is among them
    after = buffer.sample(500, beta=1.0)
    by_serial = dict(zip(stored.indices.tolist(), priorities.tolist(), strict=True))
    assert len(by_serial) == 12
    weights = [min(by_serial.values()) / by_serial[serial] for serial in after.indices.tolist()]
    np.testing.assert_allclose(after.weights.numpy().ravel(), weights, rtol=1e-3)
    assert buffer.max_priority == pytest.approx(max(by_serial.values()), rel=1e-4)


# --------------------------------------------------------------------------------------------------------- exploration


def explorer(exploration_rate: float, env: Any = None, **kwargs: Any) -> PerDoubleDQN:
    """Greedy is action 0 whatever is observed, and a random action is hardly ever 0."""
    model = make(walks(env=lambda: RandomWalk(500)) if env is None else env, **kwargs)
    for parameter in model.q_net.parameters():
        parameter.data.zero_()
    model.q_net.advantage_net[-1].bias.data[0] = 1.0  # type: ignore[union-attr, index]
    model.exploration_rate = exploration_rate
    return model


def test_each_environment_explores_by_itself() -> None:
    """The share of random actions is epsilon, and one environment's says nothing about another's."""
    model = explorer(0.3)
    explored = np.array([model.predict(np.zeros((4, 2), dtype=np.float32))[0] != 0 for _ in range(3000)])
    np.testing.assert_allclose(explored.mean(axis=0), 0.3, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(explored.T) - np.eye(4), 0, atol=0.08)
    together = (explored == explored[:, :1]).all(axis=1).mean()
    assert together == pytest.approx(0.3**4 + 0.7**4, abs=0.04)


def test_one_coin_for_all_as_in_sb3() -> None:
    model = explorer(0.3, per_env_exploration=False)
    explored = np.array([model.predict(np.zeros((4, 2), dtype=np.float32))[0] != 0 for _ in range(500)])
    assert (explored.sum(axis=1) > 2).mean() == pytest.approx(0.3, abs=0.1)
    assert set(explored.sum(axis=1)) <= {0, 3, 4}


def test_epsilon_zero_and_one() -> None:
    obs = np.zeros((2000, 2), dtype=np.float32)
    greedy, _ = explorer(0.0).predict(obs)
    assert (greedy == 0).all()
    assert greedy.shape == (2000,)
    counts = np.bincount(explorer(1.0).predict(obs)[0], minlength=500)
    assert counts.max() < 25
    assert (counts > 0).mean() > 0.95
    deterministic, _ = explorer(1.0).predict(obs, deterministic=True)
    assert (deterministic == 0).all()
    assert greedy.dtype == deterministic.dtype == explorer(0.5).predict(obs)[0].dtype


def test_exploration_of_a_single_observation() -> None:
    model = explorer(0.5)
    actions = [model.predict(np.zeros(2, dtype=np.float32))[0] for _ in range(400)]
    assert {action.shape for action in actions} == {()}
    assert np.mean([action != 0 for action in actions]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("env", "policy"), [(DictWalk, "MultiInputPolicy"), (DiscreteWalk, "MlpPolicy")])
def test_exploration_with_dict_and_discrete_observations(env: type[RandomWalk], policy: str) -> None:
    model = explorer(0.5, env=walks(env=lambda: env(500)), policy=policy)
    single = env.observation_space.sample()
    if isinstance(single, dict):
        batch: Any = {key: np.stack([value] * 1000) for key, value in single.items()}
    else:
        batch = np.full(1000, single)
    actions, _ = model.predict(batch)
    assert actions.shape == (1000,)
    assert (actions != 0).mean() == pytest.approx(0.5, abs=0.07)
    assert model.predict(single)[0].shape == ()


def test_the_seed_decides_the_exploration() -> None:
    def run(seed: int) -> list[int]:
        env = walks(4)
        make(env, seed=seed, exploration=0.5).learn(100)
        return [row[1] for i in range(4) for row in env.get_attr("record")[i]]

    assert run(5) == run(5) != run(6)


# ----------------------------------------------------------------------------------------------------------- schedules


class RecordedBetas(PrioritizedReplayBuffer):
    betas: list[float]

    def sample(self, batch_size: int, env: Any = None, beta: float = 1.0) -> Any:
        self.betas = [*getattr(self, "betas", []), beta]
        return super().sample(batch_size, env, beta)


@pytest.mark.parametrize("n_envs", [1, 8])
def test_beta_and_epsilon_follow_their_endpoints(n_envs: int) -> None:
    """TRAPS 14: read through a real run: exact at each joint and at the end, and linear between."""
    beta_points = [[0.0, 0.4], [0.25, 0.5], [1.0, 1.0]]
    epsilon_points = [[0.0, 1.0], [0.5, 0.1], [0.75, 0.01]]
    model = make(
        walks(n_envs),
        learning_starts=0,
        train_freq=1,
        prioritized_replay_beta=beta_points,
        exploration=epsilon_points,
        replay_buffer_class=RecordedBetas,
    )
    epsilons: list[float] = []
    total = 80 * n_envs
    model.learn(total, callback=EachStep(lambda model: epsilons.append(model.exploration_rate)))
    epsilons = [*epsilons[1:], model.exploration_rate]  # a step's callback comes before epsilon moves on
    betas = model.replay_buffer.betas  # type: ignore[union-attr]
    elapsed = np.arange(1, 81) / 80
    for read, points in ((epsilons, epsilon_points), (betas, beta_points)):
        joints, values = np.array(points).T
        np.testing.assert_allclose(read, np.interp(elapsed, joints, values), rtol=1e-12)
    assert (epsilons[39], epsilons[59], epsilons[-1]) == (0.1, 0.01, 0.01)
    assert (betas[19], betas[-1]) == (0.5, 1.0)
    assert model.logger.name_to_value["train/beta"] == 1.0
    assert model.logger.name_to_value["rollout/exploration_rate"] == 0.01


def test_schedules_end_where_the_run_ends() -> None:
    """TRAPS 14: eight environments overshoot the last step; beta does not leave its range with them."""
    model = make(walks(8), learning_starts=0, train_freq=1, prioritized_replay_beta=lambda left: 1.0 - 0.6 * left)
    model.learn(50)
    assert model.num_timesteps == 56
    assert model.logger.name_to_value["train/beta"] == 1.0


def test_a_callable_epsilon_ends_where_the_run_ends() -> None:
    """TRAPS 14: likewise."""
    model = make(walks(8), exploration=lambda left: left)
    model.learn(50)
    assert model.num_timesteps == 64
    assert model.exploration_rate == 0.0


def test_reading_a_schedule_twice_changes_nothing() -> None:
    """TRAPS 14: two gradient steps of one call get the same beta, and the schedule has no state."""
    model = make(replay_buffer_class=RecordedBetas, gradient_steps=4, train_freq=10)
    model.learn(60)
    betas = model.replay_buffer.betas  # type: ignore[union-attr]
    assert len(betas) == 16
    assert all(len(set(betas[i : i + 4])) == 1 for i in range(0, 16, 4))
    assert betas == sorted(betas)
    assert len(set(betas)) == 4


def test_default_exploration_is_sb3s() -> None:
    model = make(exploration_fraction=0.5, exploration_final_eps=0.1)
    assert isinstance(model.exploration_schedule, LinearSchedule)
    model.learn(40)
    assert model.exploration_rate == 0.1


@pytest.mark.parametrize("schedule", [0.3, lambda left: 0.3, PiecewiseSchedule(((0.0, 0.3),)), [[0, 0.3]]])
def test_every_form_of_a_schedule(schedule: Any) -> None:
    model = make(exploration=schedule, prioritized_replay_beta=schedule)
    model.learn(40)
    assert model.exploration_rate == model.logger.name_to_value["train/beta"] == 0.3


# --------------------------------------------------------------------------------- what the buffer holds after a run


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_buffer_holds_what_the_environments_did(n_envs: int, normalize: bool) -> None:
    """
    TRAPS 17, 19, 20, 22: each transition is one that its own environment recorded, none is missing among the newest,
    and done tells the end from the time limit, whose last observation is there bit for bit.
    """
    env = walks(n_envs)
    wrapped = VecNormalize(env) if normalize else env
    model = make(wrapped, buffer_size=60 * n_envs, prioritized_replay_alpha=0.0)  # so that each is soon drawn
    model.learn(100 * n_envs)
    buffer = buffer_of(model)
    batch: Any = buffer.sample(3000 * n_envs)
    assert set(batch.indices) == set(range(40 * n_envs, 100 * n_envs))
    records = env.get_attr("record")
    time_limits = 0
    for i, serial in enumerate(batch.indices.tolist()):
        record, at = records[serial % n_envs], serial // n_envs
        obs, action, reward, next_obs, terminated = record[at]
        goes_on = at + 1 < len(record) and np.array_equal(next_obs, record[at + 1][0])
        time_limits += not goes_on and not terminated
        assert batch.actions[i].item() == action
        assert batch.rewards[i].item() == pytest.approx(reward, rel=1e-6)
        assert batch.dones[i].item() == terminated
        assert np.array_equal(batch.observations[i].numpy(), obs)
        if goes_on or not normalize:  # SB3 computes an episode's last observation back from the normalized one
            assert np.array_equal(batch.next_observations[i].numpy(), next_obs)
    assert time_limits > 10


class SpoilWeights(BaseCallback):
    """At step 30, as a learning rate that is too large would."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 30:
            with th.no_grad():
                next(self.model.policy.parameters()).fill_(float("nan"))
        return True


def test_a_td_error_that_is_no_number_names_the_step() -> None:
    """TRAPS 15: nothing of the tree is lost, and the message says where, which and what to do."""
    model = make(walks(), learning_starts=28, train_freq=1, batch_size=100)
    with pytest.raises(ValueError, match=r"step (30|31).*not finite.*smaller"):
        model.learn(60, callback=SpoilWeights())
    buffer = buffer_of(model)
    assert np.isfinite(buffer.max_priority)
    assert th.isfinite(buffer.sample(50).weights).all()


def test_a_nan_reward_names_the_step() -> None:
    """TRAPS 15: before it is stored."""
    model = make(walks(env=NanReward), learning_starts=28, train_freq=1, batch_size=100)
    with pytest.raises(ValueError, match=r"At step (30|31), the reward of environment 0 is nan"):
        model.learn(60)
    buffer = buffer_of(model)
    assert np.isfinite(buffer.max_priority)
    assert th.isfinite(buffer.sample(50).weights).all()
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_a_reward_beyond_float32_names_the_step() -> None:
    """Worker processes hand on rewards in float64; replay memory keeps float32, in which this one is infinite."""
    env = walks(2)
    step = env.step_wait

    def with_huge_reward() -> Any:
        obs, _, dones, infos = step()
        return obs, np.array([0.0, 1e39]), dones, infos

    env.step_wait = with_huge_reward  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"At step 2, the reward of environment 1 is 1e\+39"):
            make(env).learn(60)


class NanAtTheEnd(RandomWalk):
    """The last observation of each episode is NaN."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, *rest = super().step(action)
        return np.full_like(obs, math.nan) if terminated else obs, reward, terminated, *rest


class NanAtTheEndOfADict(NanAtTheEnd):
    observation_space: Any = spaces.Dict({"plain": spaces.Box(-1, 1, (2,)), "number": spaces.Discrete(3)})

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, *rest = RandomWalk.step(self, action)
        obs = {**obs, "plain": np.full((2,), math.nan, np.float32)} if terminated else obs
        return obs, reward, terminated, *rest


@pytest.mark.parametrize(("env", "policy"), [(NanAtTheEnd, "MlpPolicy"), (NanAtTheEndOfADict, "MultiInputPolicy")])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_nan_in_an_episodes_last_observation_names_the_step(
    env: type[RandomWalk], policy: str, normalize: bool
) -> None:
    """It stands in the info alone, as the environment was reset."""
    games = walks(2, env, max_steps=100)
    model = make(VecNormalize(games, norm_obs=False) if normalize else games, policy, learning_starts=1000)
    with pytest.raises(ValueError, match=r"At step \d+, an observation of environment [01] is NaN"):
        model.learn(200)
    assert model.num_timesteps == 2 * max(len(record) for record in games.get_attr("record"))


# ---------------------------------------------------------------------------------------------------- saving, loading


def trained(**kwargs: Any) -> PerDoubleDQN:
    model = make(walks(2), **kwargs)
    model.learn(60)
    return model


def test_a_saved_model_goes_on(tmp_path: Path) -> None:
    """TRAPS 24: with its buffer, its maximum priority, its schedules and its step."""
    beta, exploration = [[0, 0.4], [0.5, 1.0]], [[0, 1.0], [0.5, 0.2], [1, 0.1]]
    model = trained(prioritized_replay_beta=beta, exploration=exploration)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=walks(2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert (loaded.num_timesteps, loaded._n_updates, loaded._n_calls) == (60, model._n_updates, 30)
    assert loaded.exploration_rate == model.exploration_rate
    assert loaded.beta_schedule == PiecewiseSchedule(((0.0, 0.4), (0.5, 1.0)))
    assert loaded.exploration_schedule == PiecewiseSchedule(((0.0, 1.0), (0.5, 0.2), (1.0, 0.1)))
    mine, other = buffer_of(model), buffer_of(loaded)
    assert other.max_priority == mine.max_priority != 1.0
    np.random.seed(0)
    drawn = mine.sample(50, beta=0.5)
    np.random.seed(0)
    again = other.sample(50, beta=0.5)
    assert np.array_equal(drawn.indices, again.indices)
    assert th.equal(drawn.weights, again.weights)
    updates = loaded._n_updates
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100
    assert loaded._n_updates > updates
    assert loaded.exploration_rate == 0.1
    assert other.size() == 50


def test_the_target_networks_clock_survives(tmp_path: Path) -> None:
    """TRAPS 24: every tenth step updates the target. Saved after 15 steps, four more do not, and the fifth does."""
    model = make(target_update_interval=10, learning_starts=1000, train_freq=1)
    model.learn(15)
    model.save(tmp_path / "model")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=walks(), device="cpu")
    for parameter in loaded.q_net.parameters():
        parameter.data.normal_()

    def is_synchronized() -> bool:
        pairs = zip(loaded.q_net.parameters(), loaded.q_net_target.parameters(), strict=True)
        return all(th.equal(online, target) for online, target in pairs)

    after_each_step: list[bool] = []
    for _ in range(6):
        loaded.learn(1, reset_num_timesteps=False)
        after_each_step.append(is_synchronized())
    assert after_each_step == [False, False, False, False, True, True]


def test_all_settings_survive(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "double_q": False,
        "prioritized_replay_alpha": 0.3,
        "prioritized_replay_beta": 0.7,
        "prioritized_replay_eps": 0.01,
        "prioritized_replay_normalize_weights": "batch",
        "per_env_exploration": False,
        "exploration": 0.2,
    }
    make(**settings, policy_kwargs={"dueling": False}).save(tmp_path / "model")
    loaded = PerDoubleDQN.load(tmp_path / "model", device="cpu")
    assert {name: getattr(loaded, name) for name in settings} == settings
    buffer = buffer_of(loaded)
    assert (buffer.alpha, buffer.eps, buffer.normalize_weights) == (0.3, 0.01, "batch")
    assert not hasattr(loaded.q_net, "value_net")


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("saved_with", [True, False])
def test_prioritized_replay_is_switched_at_load(saved_with: bool, n_steps: int, tmp_path: Path) -> None:
    """Without a warning, in both directions; n-step returns only where replay is not prioritized."""
    trained(prioritized_replay=saved_with, n_steps=1 if saved_with else n_steps).save(tmp_path / "model")
    changes: dict[str, Any] = {"prioritized_replay": not saved_with, "n_steps": n_steps if saved_with else 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PerDoubleDQN.load(tmp_path / "model", env=walks(2), device="cpu", **changes)
    expected = NStepReplayBuffer if saved_with and n_steps > 1 else ReplayBuffer
    assert type(loaded.replay_buffer) is (expected if saved_with else PrioritizedReplayBuffer)
    loaded.learn(40)
    assert ("train/beta" in loaded.logger.name_to_value) is not saved_with


@pytest.mark.parametrize("prioritized_replay", [True, False])
def test_a_load_without_changes_warns_of_nothing(prioritized_replay: bool, tmp_path: Path) -> None:
    model = trained(prioritized_replay=prioritized_replay)
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PerDoubleDQN.load(tmp_path / "model", device="cpu")
    assert type(loaded.replay_buffer) is type(model.replay_buffer)


class FrameEnv(RandomWalk):
    observation_space = spaces.Box(0, 255, (4, 84, 84), dtype=np.uint8)


def test_a_model_is_loaded_to_be_watched(tmp_path: Path) -> None:
    """With buffer_size=1 there is no replay memory; watching works, and learning says why it does not."""
    env = make_vec_env(FrameEnv, 2)
    make(env, "CnnPolicy", buffer_size=1000).save(tmp_path / "model")
    tracemalloc.start()
    try:
        loaded = PerDoubleDQN.load(tmp_path / "model", env=env, device="cpu", buffer_size=1)
        assert loaded.replay_buffer is not None
        kept = sum(trace.size for trace in tracemalloc.take_snapshot().traces if trace.size > 2 * 4 * 84 * 84)
    finally:
        tracemalloc.stop()
    assert kept < 20e6  # the networks; nothing of the buffer
    assert loaded.replay_buffer.size() == 0
    assert not hasattr(loaded.replay_buffer, "rewards")
    actions, _ = loaded.predict(np.asarray(env.reset()))
    assert actions.shape == (2,)
    with pytest.raises(ValueError, match=r"^buffer_size=1 holds 2 transitions, fewer than batch_size=16.*larger"):
        loaded.learn(10)
    assert loaded.num_timesteps == 0


# ------------------------------------------------------------------------------- what works with SB3's DQN works here


def test_vec_normalize() -> None:
    env = VecNormalize(walks(2), clip_obs=0.5, clip_reward=0.1)
    seen: list[Any] = []

    class Seen(PrioritizedReplayBuffer):
        def sample(self, batch_size: int, env: Any = None, beta: float = 1.0) -> Any:
            batch = super().sample(batch_size, env, beta)
            seen.append(batch)
            return batch

    model = make(env, replay_buffer_class=Seen)
    model.learn(60)
    assert max(batch.observations.abs().max() for batch in seen) == 0.5
    assert max(batch.rewards.abs().max() for batch in seen) == pytest.approx(0.1)


@pytest.mark.parametrize(("env", "policy"), [(DictWalk, "MultiInputPolicy"), (DiscreteWalk, "MlpPolicy")])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_observation_spaces(env: type[RandomWalk], policy: str, n_envs: int) -> None:
    model = make(walks(n_envs, env), policy)
    model.learn(60)
    assert model._n_updates > 0
    rewards, _ = evaluate_policy(model, walks(1, env), n_eval_episodes=2)
    assert np.isfinite(rewards)


def test_images_and_the_cnn_policy() -> None:
    model = make(make_vec_env(FrameEnv, 2), "CnnPolicy", buffer_size=40, batch_size=4, policy_kwargs={"net_arch": [4]})
    model.learn(26)
    assert model._n_updates > 0


def test_normalization_of_images_that_are_transposed_afterwards_is_refused() -> None:
    """SB3's buffers then get images with channels last, whose shape is not that of their space."""

    class ChannelsLast(RandomWalk):
        observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def games() -> VecEnv:
        return make_vec_env(ChannelsLast, 2)

    arguments: Any = {"buffer_size": 40, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}}
    with pytest.raises(ValueError, match=r"VecNormalize\(VecTransposeImage\(env\), \.\.\.\)"):
        make(VecNormalize(games(), norm_obs=False), "CnnPolicy", **arguments).learn(26)
    make(VecNormalize(VecTransposeImage(games()), norm_obs=False), "CnnPolicy", **arguments).learn(26)


def _interrupt_after(calls: int) -> Callable[[Any], None]:
    remaining = iter(range(calls))

    def interrupt(model: Any) -> None:
        if next(remaining, None) is None:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_a_callback_stops_early_and_a_second_learn_goes_on(reset_num_timesteps: bool) -> None:
    """
    TRAPS 22: SB3 does not store the step at which a callback stops; the next one must not start from before it.
    After every start the buffer holds nothing but what happened.
    """
    env = walks(2)
    model = make(env)
    model.learn(1000, callback=EachStep(lambda model: model.num_timesteps < 41 * 2))
    assert model.num_timesteps == 41 * 2
    model.learn(52, reset_num_timesteps=reset_num_timesteps)
    assert model.num_timesteps == 52 + (0 if reset_num_timesteps else 41 * 2)
    model.learn(50, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
    with pytest.raises(KeyboardInterrupt):
        model.learn(50, callback=EachStep(_interrupt_after(23)), reset_num_timesteps=False)
    model.learn(50, reset_num_timesteps=False)
    happened = {(row[0].tobytes(), row[1], row[3].tobytes()) for record in env.get_attr("record") for row in record}
    buffer = buffer_of(model)
    batch = buffer.sample(1000)
    for obs, action, next_obs in zip(batch.observations, batch.actions, batch.next_observations, strict=True):
        assert (obs.numpy().tobytes(), int(action), next_obs.numpy().tobytes()) in happened


def test_set_env() -> None:
    model = make(walks(2))
    model.learn(40)
    other = walks(2)
    model.set_env(other)
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 80
    assert all(len(record) == 20 for record in other.get_attr("record"))


def test_evaluation_leaves_the_buffer_alone() -> None:
    model = make()
    model.learn(40)
    env = walks()
    evaluate_policy(model, env, n_eval_episodes=5, deterministic=False)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 40
    assert model.num_timesteps == 40


def test_hindsight_replay_takes_the_place_of_prioritized() -> None:
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4)])
    her: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}
    with pytest.warns(UserWarning, match="HerReplayBuffer takes the place of prioritized replay"):
        model = make(env, "MultiInputPolicy", **her)
    model.learn(60)
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert model._n_updates > 0
    assert "train/beta" not in model.logger.name_to_value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(env, "MultiInputPolicy", prioritized_replay=False, **her)


class OwnBuffer(PrioritizedReplayBuffer):
    def __init__(self, *args: Any, colour: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.colour = colour


def test_a_buffer_class_of_ones_own(tmp_path: Path) -> None:
    model = make(replay_buffer_class=OwnBuffer, replay_buffer_kwargs={"colour": "red"}, prioritized_replay_alpha=0.3)
    assert isinstance(model.replay_buffer, OwnBuffer)
    assert (model.replay_buffer.colour, model.replay_buffer.alpha) == ("red", 0.3)
    model.learn(40)
    assert model.logger.name_to_value["train/beta"] > 0
    model.save(tmp_path / "model")
    loaded = PerDoubleDQN.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded.replay_buffer, OwnBuffer)
    assert loaded.replay_buffer.colour == "red"


def test_replay_buffer_kwargs_come_first() -> None:
    """What the user gives for the buffer reaches the buffer, and the user's dict is left as it is."""
    replay_buffer_kwargs = {"handle_timeout_termination": False, "eps": 0.5}
    model = make(replay_buffer_kwargs=replay_buffer_kwargs, prioritized_replay_alpha=0.4)
    assert not buffer_of(model).handle_timeout_termination
    assert (buffer_of(model).alpha, buffer_of(model).eps) == (0.4, 0.5)
    assert replay_buffer_kwargs == {"handle_timeout_termination": False, "eps": 0.5}


def test_n_steps_without_prioritized_replay() -> None:
    replay_buffer_kwargs = {"handle_timeout_termination": True}
    model = make(prioritized_replay=False, n_steps=3, replay_buffer_kwargs=replay_buffer_kwargs)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    assert replay_buffer_kwargs == {"handle_timeout_termination": True}
    model.learn(40)


def test_logs() -> None:
    model = make(gradient_steps=3)
    model.learn(40)
    logged = model.logger.name_to_value
    names = ("loss", "td_error", "q_value", "target_q_value", "beta", "n_updates", "learning_rate")
    assert all(np.isfinite(logged[f"train/{name}"]) for name in names)
    assert logged["train/n_updates"] == model._n_updates == 3 * 10


def test_a_built_in_environment_by_name_and_positional_arguments() -> None:
    model = PerDoubleDQN("MlpPolicy", "CartPole-v1", 1e-3, 500, 20, device="cpu")
    assert (model.learning_rate, model.buffer_size, model.learning_starts) == (1e-3, 500, 20)
    model.learn(60)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("prioritized_replay_alpha", value) for value in (-0.1, 1.5, math.nan, "high")),
        *(("prioritized_replay_eps", value) for value in (0.0, -1.0, math.inf, math.nan)),
        *(("prioritized_replay_normalize_weights", value) for value in ("all", True, None)),
        *(("prioritized_replay_beta", value) for value in (-0.1, 1.5, math.nan, [[0, 0.4], [1, 2.0]], [], "high")),
        *(("exploration", value) for value in (-0.1, 1.5, math.nan, [[0.5, 1.0], [0.2, 0.1]], lambda left: 2.0)),
        *(("gamma", value) for value in (math.nan, math.inf, "0.99", None)),
        *(("learning_rate", value) for value in (math.nan, -math.inf, "fast", None)),
        *(("max_grad_norm", value) for value in (math.nan, None)),
        *(("tau", value) for value in (math.nan,)),
        *(("learning_starts", value) for value in (math.nan, math.inf)),
        *(("target_update_interval", value) for value in (math.nan, "often")),
        *(("buffer_size", value) for value in (math.nan, 1e3, 0)),
        *(("batch_size", value) for value in (math.nan, 2.5, "32", 0, -3)),
        *(("gradient_steps", value) for value in (math.nan, -2)),
        *(("n_steps", value) for value in (math.nan, 0)),
        *(("train_freq", value) for value in (0, -1, 2.5, "4", None, (0, "step"), (1, "foo"), (1, []), (1, "step", 2))),
        ("gamma", abs),
        *(("exploration_fraction", value) for value in (math.nan,)),
        *(("exploration_initial_eps", value) for value in (math.nan, math.inf)),
        *(("exploration_final_eps", value) for value in (math.nan, "small")),
    ],
)
def test_bad_arguments_are_named_with_their_value(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        make(**{argument: value})
    message = str(error.value)
    assert "\n" not in message
    assert str(value) in message or repr(value) in message


def test_a_bad_argument_at_load_is_refused(tmp_path: Path) -> None:
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match="prioritized_replay_alpha=7"):
        PerDoubleDQN.load(tmp_path / "model", device="cpu", prioritized_replay_alpha=7)


def test_a_continuous_action_space_is_refused() -> None:
    """In SB3's words, which name the space."""
    with pytest.raises(AssertionError, match=r"Box\(-2.0, 2.0, \(1,\)"):
        PerDoubleDQN("MlpPolicy", "Pendulum-v1")


def test_actions_that_do_not_start_at_zero_are_refused() -> None:
    """SB3's networks number actions from 0, so a random action would be none of theirs."""
    with pytest.raises(ValueError, match=r"Discrete\(3, start=1\).*start=0"):
        make(walks(env=lambda: RandomWalk(first_action=1)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=1),
        spaces.Dict({"number": spaces.Discrete(3, start=1)}),
        spaces.MultiDiscrete([3, 2], start=[0, 1]),
    ],
)
def test_observations_that_do_not_start_at_zero_are_refused(space: spaces.Space[Any]) -> None:
    """SB3's networks see one-hot vectors, which have no place for the last one."""

    class Numbered(RandomWalk):
        observation_space = space

    with pytest.raises(ValueError, match=r"observation_space=.*start=.* must be numbered from 0 on"):
        make(walks(env=Numbered), "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy")


def test_episodes_of_several_environments_are_refused() -> None:
    model = PerDoubleDQN("MlpPolicy", make_vec_env("CartPole-v1", 2), train_freq=(1, "episode"))
    with pytest.raises(ValueError, match=r"^train_freq=\(1, 'episode'\) is for one environment, and there are 2"):
        model.learn(100)


def test_a_buffer_smaller_than_a_batch_is_refused_when_training_starts() -> None:
    env = walks(2)
    model = make(env, buffer_size=15)
    with pytest.raises(ValueError, match=r"^buffer_size=15 holds 14 transitions, fewer than batch_size=16"):
        model.learn(100)
    assert env.get_attr("record") == [[], []]
    make(walks(2), buffer_size=16).learn(40)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.slow
@pytest.mark.parametrize("fast", [{}, {"speedups": "max", "train_while_stepping": True}], ids=["default", "fastest"])
def test_cartpole_reaches_475(fast: dict[str, Any]) -> None:
    """With the settings that the command line uses; 475 is where the environment counts as solved, and the end."""
    hyperparams = yaml.safe_load((Path(__file__).parent.parent / "hyperparams" / "per_ddqn.yml").read_text())
    settings = ExperimentManager._preprocess_schedules(hyperparams["CartPole-v1"])
    total_timesteps = int(settings.pop("n_timesteps"))
    settings["policy_kwargs"] = eval(settings["policy_kwargs"])
    model = PerDoubleDQN(env="CartPole-v1", seed=0, device="cpu", **settings, **fast)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", seed=99),
        callback_on_new_best=StopTrainingOnRewardThreshold(475),
        n_eval_episodes=20,
        eval_freq=2_560,
        verbose=0,
    )
    model.learn(total_timesteps, callback=evaluation)
    assert evaluation.best_mean_reward >= 475
