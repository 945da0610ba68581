"""The search space of ``-optimize``: whatever is drawn from it is a model, and is read back from a study as it was."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.policies import DuelingQNetwork
from sb3_per_dqn.search_space import convert_per_ddqn_params, sample_per_ddqn_params
from tests.command_line import run_main

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}
OURS = {"prioritized_replay_alpha", "prioritized_replay_eps", "initial_beta", "last_joint", "last_eps", "n_steps"}


class Drawing:
    """A trial in which hypothesis chooses, ends of ranges more often than not."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self._params = data, dict[str, Any]()

    def _draw(self, name: str, strategy: st.SearchStrategy[Any]) -> Any:
        self._params[name] = self.data.draw(strategy, label=name)
        return self._params[name]

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return float(self._draw(name, st.floats(low, high)))

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        return int(self._draw(name, st.integers(low, high)))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._draw(name, st.sampled_from(choices))

    def set_user_attr(self, key: str, value: Any) -> None: ...

    @property
    def params(self) -> dict[str, Any]:
        return self._params


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_is_drawn_makes_a_model(data: st.DataObject) -> None:
    trial: Any = Drawing(data)
    arguments = sample_per_ddqn_params(trial, n_actions=2, n_envs=1, additional_args=dict(NO_HER))
    arguments["policy_kwargs"]["net_arch"] = [4]  # the zoo's are large
    model = PerDoubleDQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=5000, **arguments)
    params = trial.params
    assert model.exploration_schedule(1.0) == 1.0
    assert model.exploration_schedule(0.0) == pytest.approx(min(params["last_eps"], params["exploration_final_eps"]))
    assert model.beta_schedule(1.0) == params["initial_beta"]
    buffer: Any = model.replay_buffer
    assert (buffer.alpha, buffer.eps) == (params["prioritized_replay_alpha"], params["prioritized_replay_eps"])
    assert buffer.n_steps == params["n_steps"]
    assert isinstance(model.q_net, DuelingQNetwork) is params["dueling"]


def test_a_study_can_be_read_back() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        drawn = sample_per_ddqn_params(trial, n_actions=2, n_envs=1, additional_args=dict(NO_HER))
        assert set(trial.params) >= OURS
        assert convert_per_ddqn_params(trial.params) == drawn
    assert {name for name in trial.distributions if isinstance(trial.distributions[name], CategoricalDistribution)} == {
        "net_arch",
        "dueling",
    }


def test_hindsight_replay_has_a_space_of_its_own() -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    wanted: dict[str, Any] = {"using_her_replay_buffer": True, "her_kwargs": {"copy_info_dict": True}}
    arguments = sample_per_ddqn_params(trial, n_actions=2, n_envs=1, additional_args=wanted)
    assert arguments["replay_buffer_kwargs"]["copy_info_dict"]
    arguments |= {"policy_kwargs": {"net_arch": [4]}, "learning_starts": 10_000}
    env = BitFlippingEnv(n_bits=3, continuous=False)
    PerDoubleDQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, prioritized_replay=False, **arguments
    ).learn(20)
    assert convert_per_ddqn_params(trial.params).keys() == arguments.keys() - {
        "replay_buffer_kwargs",
        "learning_starts",
    }


def test_optimize_and_train_the_best(tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    common = ["--env", "CartPole-v1", "-n", "300", "--seed", "1", "--device", "cpu"]
    study = ["--storage", str(storage), "--study-name", "ours"]
    flags = ["-optimize", "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots", "--sampler", "random", *study]
    run = run_main("train", *common, *flags, logs=tmp_path / "logs")
    assert run.status == 0, run.err
    assert "Best trial" in run.out
    (report,) = (tmp_path / "logs" / "per_ddqn").glob("report_CartPole-v1_*.csv")
    columns = report.read_text().splitlines()[0]
    assert all(f"params_{name}" in columns for name in OURS)
    none = run_main("train", *common, *study, "--trial-id", "2", logs=tmp_path / "logs")
    assert none.status == 2
    assert "--trial-id=2: no such trial" in none.err
    number = 0  # which the zoo takes for none given
    again = run_main("train", *common, *study, "--trial-id", str(number), logs=tmp_path / "logs", env_id="CartPole-v1")
    assert again.status == 0, again.err
    backend = optuna.storages.journal.JournalFileBackend(str(storage))
    trial = optuna.load_study(study_name="ours", storage=optuna.storages.JournalStorage(backend)).trials[number]
    model = PerDoubleDQN.load(again.folder / "CartPole-v1.zip")
    assert model.prioritized_replay_alpha == trial.params["prioritized_replay_alpha"]
    assert model.n_steps == trial.params["n_steps"]
