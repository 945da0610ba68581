"""
Saving and loading, and everything else that works with SB3's DQN.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_per_dqn import PerDoubleDQN, PiecewiseSchedule, PrioritizedReplayBuffer
from tests.random_walk import DictWalk, DiscreteWalk, EachStep, RandomWalk, buffer_of, make, walks

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
