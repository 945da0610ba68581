"""
SB3's tools around a model, each by what comes of it; SB3's DQN is the oracle where there can be one.

Not here: videos (``tests/test_atari.py``, ``tests/test_zoo.py``), and SB3's own tests (``benchmarks/sb3_contract.py``).
"""

import csv
import json
import pickle
import re
import tracemalloc
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, plot_results
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN
from tests.test_equality import ALL_OFF, DictEnv, assert_same, cartpole, images

SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "batch_size": 16,
    "buffer_size": 500,
    "train_freq": 2,
    "target_update_interval": 48,
    "seed": 11,
    "device": "cpu",
}


def make(env: VecEnv, policy: str = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    """Ours, with all extensions."""
    return PerDoubleDQN(policy, env, **{**SMALL, **kwargs})


def pair(
    make_env: Callable[[], VecEnv],
    policy: str = "MlpPolicy",
    policy_kwargs: dict[str, Any] | None = None,
    learn: tuple[int, ...] = (),
    **kwargs: Any,
) -> tuple[PerDoubleDQN, DQN]:
    """Ours with none of them, and SB3's, which learn for so many steps each and go on for as many as come then."""
    arguments, policy_kwargs = {**SMALL, **kwargs}, policy_kwargs or {}
    off = {"policy_kwargs": {"dueling": False, **policy_kwargs}, **ALL_OFF}
    models: list[Any] = []
    for algorithm, own in ((PerDoubleDQN, off), (DQN, {"policy_kwargs": policy_kwargs})):
        models.append(algorithm(policy, make_env(), **own, **arguments))
        for steps in learn:
            models[-1].learn(steps, reset_num_timesteps=models[-1].num_timesteps == 0)
    return models[0], models[1]


def transitions(model: Any) -> list[Any]:
    """All that is stored, as gradient steps would see it."""
    buffer = model.replay_buffer
    return list(buffer._get_samples(np.arange(buffer.size() * buffer.n_envs)))[:5]


# ----------------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_of_the_same_weights_gives_the_same_returns(deterministic: bool) -> None:
    ours, theirs = pair(lambda: cartpole(2))
    ours.learn(200)
    theirs.set_parameters(ours.get_parameters())
    ours.per_env_exploration = deterministic  # which makes no difference to greedy actions
    returns = []
    for model in (ours, theirs):
        model.exploration_rate = 0.3
        model.set_random_seed(5)
        env = make_vec_env("CartPole-v1", 2, seed=7)
        returns.append(evaluate_policy(model, env, 10, deterministic, return_episode_rewards=True))
    assert returns[0] == returns[1]
    assert len(set(returns[0][0])) > 1


@pytest.mark.parametrize(("threshold", "evaluated"), [(1.0, [60]), (501.0, [60, 120, 180, 240])])
def test_a_reward_threshold_stops_training(threshold: float, evaluated: list[int], tmp_path: Path) -> None:
    """At the first evaluation that reaches it; an episode has 1 to 500 points."""
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", seed=7),
        StopTrainingOnRewardThreshold(threshold, verbose=0),
        eval_freq=30,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = make(cartpole(2)).learn(240, evaluation)
    assert evaluation.evaluations_timesteps == evaluated
    assert model.num_timesteps == evaluated[-1]
    best = PerDoubleDQN.load(tmp_path / "best_model", device="cpu")
    means = [np.mean(results) for results in evaluation.evaluations_results]
    assert best.num_timesteps == evaluated[int(np.argmax(means))]


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    """With its replay buffer, which holds what the run had stored by then, and VecNormalize's statistics."""
    callback = CheckpointCallback(50, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    model = make(VecNormalize(cartpole(2))).learn(200, callback)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"rl_model_{name}_steps.{suffix}"
        for steps in (100, 200)
        for name, suffix in ((steps, "zip"), (f"replay_buffer_{steps}", "pkl"), (f"vecnormalize_{steps}", "pkl"))
    }
    env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_100_steps.pkl"), cartpole(2))
    loaded = PerDoubleDQN.load(tmp_path / "rl_model_100_steps", env=env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_100_steps.pkl")
    assert loaded.num_timesteps == 100
    assert env.obs_rms.count == pytest.approx(102)  # 100 steps and a reset, and a little to begin with
    stored, original = transitions(loaded), transitions(model)
    assert 90 <= len(stored[0]) <= 100  # the callback comes before its step is stored
    for mine, other in zip(stored[:3], original[:3], strict=True):
        assert th.equal(mine, other[: len(mine)])
    loaded.learn(100, reset_num_timesteps=False)
    assert loaded.num_timesteps == 200
    assert loaded._n_updates == model._n_updates - 1  # nor was what it had earned at step 100 paid, as in SB3
    assert len(transitions(loaded)[0]) >= 190


def test_the_progress_bar_is_full_at_the_end() -> None:
    model = make(cartpole(2))
    for steps in (200, 100):
        bar = ProgressBarCallback()
        model.learn(steps, bar, reset_num_timesteps=steps == 200)
        assert (bar.pbar.n, bar.pbar.total) == (steps, steps)
    assert model.num_timesteps == 300


# ------------------------------------------------------------------------------------------------------------- loggers


def test_all_loggers_hold_the_same_numbers(tmp_path: Path) -> None:
    """And under SB3's names what SB3 has a name for."""
    logged = []
    for model, name in zip((make(cartpole(2)), pair(lambda: cartpole(2))[1]), ("ours", "theirs"), strict=True):
        model.set_logger(configure(str(tmp_path / name), ["csv", "json", "tensorboard"]))
        model.learn(400, log_interval=2)
        logged.append([json.loads(line) for line in (tmp_path / name / "progress.json").open()])
    ours, theirs = logged
    assert theirs[-1].keys() < ours[-1].keys()
    assert len(ours) >= 5
    assert ours[-1]["train/loss"] > 0
    with (tmp_path / "ours" / "progress.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == ours
    events = EventAccumulator(str(tmp_path / "ours"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert ours[-1].keys() - tags == {"time/episodes", "time/time_elapsed", "time/total_timesteps", "train/n_updates"}
    for tag in tags:
        seen = {event.step: event.value for event in events.Scalars(tag)}
        assert seen == pytest.approx({row["time/total_timesteps"]: row[tag] for row in ours if tag in row}, rel=1e-6)


def test_a_plot_of_results_shows_what_monitor_saw(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=3, monitor_dir=str(tmp_path))
    make(env).learn(300)
    returns, lengths = (np.concatenate(env.env_method(f"get_episode_{what}")) for what in ("rewards", "lengths"))
    env.close()
    results = load_results(str(tmp_path))
    assert sorted(results["r"]) == sorted(returns)
    assert results["l"].sum() == lengths.sum() <= 300
    plt.switch_backend("agg")
    try:
        plot_results([str(tmp_path)], None, X_TIMESTEPS, "CartPole")
        points = np.asarray(plt.gca().collections[0].get_offsets())  # (episodes, 2)
    finally:
        plt.close("all")
    assert points[:, 0].tolist() == np.cumsum(results["l"]).tolist()
    assert points[:, 1].tolist() == results["r"].tolist()


# -------------------------------------------------------------------------------------- environments and continued runs


def test_continued_learning_is_sb3s() -> None:
    ours, theirs = pair(lambda: cartpole(2), learn=(200, 150))
    assert_same(ours, theirs)
    assert ours.num_timesteps == 352  # a rollout has four
    assert ours.exploration_rate == theirs.exploration_rate
    assert ours._episode_num == theirs._episode_num


def test_vec_normalize_is_sb3s() -> None:
    ours, theirs = pair(lambda: VecNormalize(cartpole(2), clip_obs=1.0), learn=(300,))
    assert_same(ours, theirs)
    mine, other = ours.get_vec_normalize_env(), theirs.get_vec_normalize_env()
    assert mine is not None
    assert other is not None
    assert np.array_equal(mine.obs_rms.mean, other.obs_rms.mean)


def test_hindsight_replay_is_sb3s() -> None:
    def goals() -> VecEnv:
        return make_vec_env(lambda: BitFlippingEnv(n_bits=6), 2, seed=3)

    her = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 4}}
    ours, theirs = pair(goals, "MultiInputPolicy", learn=(300,), **her)
    assert_same(ours, theirs)
    drawn = []
    for model in (ours, theirs):
        assert isinstance(model.replay_buffer, HerReplayBuffer)
        np.random.seed(0)
        drawn.append(model.replay_buffer.sample(200))
    assert th.equal(drawn[0].rewards, drawn[1].rewards)
    assert drawn[0].rewards.max() == 0  # goals that were reached, most of them with hindsight
    ours.set_env(goals())
    assert np.isfinite(evaluate_policy(ours, goals(), 3)[0])


class Halves(BaseFeaturesExtractor):
    """A layer for each part of a Dict, or for the two halves of an image."""

    def __init__(self, observation_space: spaces.Space[Any], width: int = 6) -> None:
        super().__init__(observation_space, 2 * width)
        if isinstance(observation_space, spaces.Dict):
            sizes = [spaces.flatdim(part) for part in observation_space.spaces.values()]
        else:
            sizes = [spaces.flatdim(observation_space) // 2] * 2
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)

    def forward(self, observations: Any) -> th.Tensor:
        parts = observations.values() if isinstance(observations, dict) else observations.flatten(1).chunk(2, dim=1)
        return th.cat([layer(part.flatten(1)) for layer, part in zip(self.layers, parts, strict=True)], dim=1)


def dicts() -> VecEnv:
    return make_vec_env(DictEnv, 2, seed=3)


@pytest.mark.parametrize(("policy", "make_env"), [("MultiInputPolicy", dicts), ("CnnPolicy", lambda: images(2))])
def test_a_features_extractor_of_ones_own(policy: str, make_env: Callable[[], VecEnv]) -> None:
    extractor = {"features_extractor_class": Halves, "features_extractor_kwargs": {"width": 5}, "net_arch": [8]}
    ours, theirs = pair(make_env, policy, extractor, learn=(120,))
    assert_same(ours, theirs)
    model = make(make_env(), policy, policy_kwargs=extractor)
    before = deepcopy(model.q_net.state_dict())
    model.learn(120)
    mine = model.q_net.features_extractor
    assert isinstance(mine, Halves)
    assert [layer.out_features for layer in mine.layers] == [5, 5]
    learned = [name for name, weights in model.q_net.state_dict().items() if not th.equal(weights, before[name])]
    assert len(learned) == len(before)  # those of the extractor, and of both streams
    assert not th.equal(mine.layers[0].weight, model.q_net_target.features_extractor.layers[0].weight)


@pytest.mark.parametrize(
    "make_env",
    [lambda: cartpole(3), lambda: make_vec_env("Acrobot-v1", 2), lambda: images(2)],
    ids=["more", "other", "images"],
)
def test_set_env_refuses_what_sb3_refuses(make_env: Callable[[], VecEnv]) -> None:
    errors = []
    for model in pair(lambda: cartpole(2)):
        env = model.get_env()
        with pytest.raises((AssertionError, ValueError)) as error:
            model.set_env(make_env())
        errors.append((error.type, str(error.value).replace("PerDoubleDQN", "DQN")))
        assert model.get_env() is env
    assert errors[0] == errors[1]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_load_takes_another_number_of_environments(n_envs: int, tmp_path: Path) -> None:
    make(cartpole(2)).learn(100).save(tmp_path / "model")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=cartpole(n_envs), device="cpu")
    loaded.learn(120, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 220
    assert loaded.replay_buffer is not None
    assert loaded.replay_buffer.n_envs == n_envs
    assert loaded.replay_buffer.size() * n_envs == loaded.num_timesteps - 100


# -------------------------------------------------------------------------------------------------- parameters, memory


@pytest.mark.parametrize("from_file", [False, True])
def test_parameters_make_a_model_the_same(from_file: bool, tmp_path: Path) -> None:
    """Target network and optimizer included: from the same transitions it learns the same."""
    model, other = make(cartpole(2), learning_rate=1e-2), make(cartpole(2), learning_rate=1e-2, seed=12)
    model.learn(200)
    model.save(tmp_path / "model")
    parameters = deepcopy(model.get_parameters())
    assert parameters.keys() == pair(lambda: cartpole(2))[1].get_parameters().keys()
    other.learn(100)
    other.set_parameters(str(tmp_path / "model.zip") if from_file else parameters, device="cpu")
    assert_networks_equal(model, other)
    online, target = model.q_net.state_dict(), model.q_net_target.state_dict()
    assert not all(th.equal(online[name], target[name]) for name in online)

    other.replay_buffer = deepcopy(model.replay_buffer)
    other._current_progress_remaining = model._current_progress_remaining
    for each in (model, other):
        np.random.seed(0)
        each.train(5, 16)
    assert_networks_equal(model, other)
    changed = model.q_net.state_dict()
    assert not any(th.equal(changed[name], parameters["policy"][f"q_net.{name}"]) for name in changed)


def assert_networks_equal(model: DQN, other: DQN) -> None:
    mine, others = model.policy.state_dict(), other.policy.state_dict()
    assert mine.keys() == others.keys()
    assert all(th.equal(mine[name], others[name]) for name in mine)


def test_parameters_that_do_not_fit_are_refused_as_by_sb3() -> None:
    errors = []
    for model in pair(lambda: cartpole(1)):
        parameters = model.get_parameters()
        del parameters["policy.optimizer"]
        with pytest.raises(ValueError, match=r"policy\.optimizer") as error:
            model.set_parameters(parameters)
        errors.append(re.sub(r"\W", "", str(error.value)))
        model.set_parameters(parameters, exact_match=False)
    assert errors[0] == errors[1]


def test_a_replay_buffer_comes_back(tmp_path: Path) -> None:
    """Every transition of it; a model without one takes any, and has nothing to say about it."""
    model = make(cartpole(2)).learn(150)
    stored = transitions(model)
    model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_replay_buffer(tmp_path / "buffer")
    assert len(stored[0]) == 152
    assert all(th.equal(mine, other) for mine, other in zip(transitions(model), stored, strict=True))


class FrameEnv(gym.Env[np.ndarray, int]):
    """Atari's observations."""

    observation_space: Any = spaces.Box(0, 255, (4, 84, 84), dtype=np.uint8)
    action_space: Any = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


@pytest.mark.parametrize("with_env", [False, True])
@pytest.mark.parametrize(
    ("arguments", "at_load"),
    [
        ({}, {}),
        ({"replay_buffer_class": DeviceReplayBuffer}, {}),
        ({"prioritized_replay": False}, {"buffer_size": 1}),  # as with SB3's DQN, whose memory is there from the start
    ],
)
def test_loading_takes_no_replay_memory(
    arguments: dict[str, Any], at_load: dict[str, Any], with_env: bool, tmp_path: Path
) -> None:
    """Of a model that was trained with a million of Atari's transitions, nor is there a word about memory."""
    env = make_vec_env(FrameEnv, 2)
    model = make(env, "CnnPolicy", **arguments)
    model.buffer_size = 1_000_000
    model.save(tmp_path / "model")
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = PerDoubleDQN.load(tmp_path / "model", env if with_env else None, "cpu", **at_load)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # the file, which holds two networks and the optimizer
    size = len(pickle.dumps(loaded.replay_buffer))  # with what is on a device
    assert size < 1e6  # its spaces, mostly
    actions, _ = loaded.predict(env.reset(), deterministic=True)
    assert actions.shape == (2,)
