"""
The algorithm against hand-written calculations: gradient steps, exploration and schedules; and that it learns.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import LinearSchedule

from sb3_per_dqn import PerDoubleDQN, PiecewiseSchedule, PrioritizedReplayBuffer
from sb3_per_dqn.policies import MlpPolicy
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBufferSamples
from tests.random_walk import GAMMA, N_ACTIONS, DictWalk, DiscreteWalk, EachStep, RandomWalk, buffer_of, make, walks

EPS = 0.25  # large, so that it shows


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


class Flagged(MlpPolicy):
    """Action 1 where it may be random, else 0."""

    def _predict(self, obs: Any, deterministic: bool = True) -> th.Tensor:
        return th.full((len(obs),), 0 if deterministic else 1)


@pytest.mark.parametrize("per_env_exploration", [True, False])
def test_a_policy_that_is_random_by_itself_stays_so(per_env_exploration: bool) -> None:
    model = make(policy=Flagged, per_env_exploration=per_env_exploration)
    model.exploration_rate = 0.0
    obs = np.zeros((3, 2), dtype=np.float32)
    assert model.predict(obs)[0].tolist() == [1, 1, 1]
    assert model.predict(obs, deterministic=True)[0].tolist() == [0, 0, 0]


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
    beta = [[0, 0.4], [1, 1.0]]
    model = make(replay_buffer_class=RecordedBetas, gradient_steps=4, train_freq=10, prioritized_replay_beta=beta)
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
        n_eval_episodes=10,
        eval_freq=5_120,
        verbose=0,
    )
    model.learn(total_timesteps, callback=evaluation)
    assert evaluation.best_mean_reward >= 475
