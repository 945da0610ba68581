"""The YAML files: the seed's experiment field by field, and every entry builds a model."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch as th
import yaml
from stable_baselines3.common.logger import Logger

from sb3_per_dqn import PerDoubleDQN, PrioritizedReplayBuffer
from sb3_per_dqn.zoo import RunManager, hyperparams_folder

STEPS_PER_UPDATE = 8 * 4  # workers, steps of each
UPDATES = 1_000_000
# Entries that stand for many environments, and one of those
REPRESENTATIVES = {"atari": "PongNoFrameskip-v4", "default": "FrozenLake-v1"}
ENTRIES = [
    pytest.param(path, entry, id=f"{path.stem}-{entry}")
    for path in sorted(hyperparams_folder().glob("*.yml"))
    for entry in yaml.safe_load(path.read_text())
]


def build(config: Path, env_id: str, log_folder: Path, **overrides: Any) -> tuple[PerDoubleDQN, RunManager]:
    """The model as the command line would build it, with the environments in this process."""
    manager = RunManager(
        argparse.Namespace(env_kwargs=None),
        "per_ddqn",
        env_id,
        str(log_folder),
        n_timesteps=-1,
        eval_freq=-1,
        hyperparams=overrides,
        config=str(config),
        device="cpu",
        verbose=0,
    )
    result = manager.setup_experiment()
    assert result is not None
    model = result[0]
    assert isinstance(model, PerDoubleDQN)
    return model, manager


@pytest.fixture(scope="module")
def seed_experiment(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = hyperparams_folder() / "per_ddqn.yml"
    model, manager = build(config, "BreakoutNoFrameskip-v4", tmp_path_factory.mktemp("logs"))
    yield model, manager
    assert model.env is not None
    model.env.close()


def progress_remaining(update: int) -> float:
    return 1.0 - update / UPDATES


def linear_sizes(net: th.nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, th.nn.Linear)]


def test_seed_length_and_workers(seed_experiment: Any) -> None:
    model, manager = seed_experiment
    assert model.n_envs == manager.n_envs == 8
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (4, "step")
    assert model.n_envs * model.train_freq.frequency == STEPS_PER_UPDATE
    assert manager.n_timesteps == UPDATES * STEPS_PER_UPDATE


def test_seed_gradient_steps(seed_experiment: Any) -> None:
    model, _ = seed_experiment
    assert model.gradient_steps == 8
    assert model.batch_size == 32
    assert model.gamma == 0.99
    assert model.max_grad_norm == 0.5


def test_seed_optimizer(seed_experiment: Any) -> None:
    model, _ = seed_experiment
    optimizer = model.policy.optimizer
    assert type(optimizer) is th.optim.Adam
    assert [model.lr_schedule(progress_remaining(update)) for update in (0, UPDATES)] == [2.5e-4, 2.5e-4]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2.5e-4, (0.9, 0.999), 0)


@pytest.mark.parametrize(
    ("update", "epsilon"),
    [(0, 1.0), (12_500, 0.55), (25_000, 0.1), (262_500, 0.055), (500_000, 0.01), (750_000, 0.01), (1_000_000, 0.01)],
)
def test_seed_exploration(seed_experiment: Any, update: int, epsilon: float) -> None:
    model, _ = seed_experiment
    assert model.exploration_schedule(progress_remaining(update)) == pytest.approx(epsilon, rel=1e-9)


@pytest.mark.parametrize(("update", "beta"), [(0, 0.4), (250_000, 0.55), (500_000, 0.7), (1_000_000, 1.0)])
def test_seed_beta(seed_experiment: Any, update: int, beta: float) -> None:
    model, _ = seed_experiment
    assert model.beta_schedule(progress_remaining(update)) == pytest.approx(beta, rel=1e-9)


def test_seed_replay_buffer(seed_experiment: Any) -> None:
    model, _ = seed_experiment
    buffer = model.replay_buffer
    assert isinstance(buffer, PrioritizedReplayBuffer)
    assert buffer.buffer_size * buffer.n_envs == 2**14
    assert (buffer.alpha, buffer.eps, buffer.normalize_weights) == (0.6, 1e-6, "memory")


def test_seed_learns_from_a_full_buffer_on(seed_experiment: Any) -> None:
    model, _ = seed_experiment
    # SB3 trains while num_timesteps > learning_starts: true with all 2^14 transitions there, false one step before
    assert 2**14 - model.n_envs <= model.learning_starts < 2**14


def test_seed_target_network_follows_every_250_updates(seed_experiment: Any) -> None:
    model, _ = seed_experiment
    online, target = (net.value_net[-1].bias for net in (model.q_net, model.q_net_target))
    model.set_logger(Logger(folder=None, output_formats=[]))
    synced_after = []
    for step in range(1, 2 * 250 * 4 + 1):  # two periods; one call for each step of all workers
        with th.no_grad():
            online.add_(1.0)
        model._on_step()
        if th.equal(online, target):
            synced_after.append(step)
    assert synced_after == [250 * 4, 2 * 250 * 4]


def test_seed_network(seed_experiment: Any) -> None:
    model, _ = seed_experiment
    assert model.observation_space.shape == (4, 84, 84)
    assert model.double_q
    for net in (model.q_net, model.q_net_target):
        assert linear_sizes(net.features_extractor)[-1][1] == 512
        assert linear_sizes(net.value_net) == [(512, 256), (256, 1)]
        assert linear_sizes(net.advantage_net) == [(512, 256), (256, 4)]


def test_every_file_is_there() -> None:
    files = {path.name for path in hyperparams_folder().glob("*.yml")}
    assert files >= {"per_ddqn.yml", "breakout_50k.yml", "atari_200k.yml", "minatar_300k.yml"}


@pytest.mark.parametrize(("config", "entry"), ENTRIES)
def test_every_entry_builds_a_model_that_still_explores_when_it_starts_to_learn(
    config: Path, entry: str, tmp_path: Path
) -> None:
    if entry.startswith("MinAtar/"):
        pytest.importorskip("minatar")
    if entry.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    model, manager = build(config, REPRESENTATIVES.get(entry, entry), tmp_path, n_envs=1)
    assert model.env is not None
    model.env.close()
    assert model.learning_starts < manager.n_timesteps
    # A first joint within the warm-up would mean that the run never learned while it explored
    epsilon = model.exploration_schedule(1.0 - model.learning_starts / manager.n_timesteps)
    assert epsilon > 0.5 > model.exploration_schedule(0.0)
