"""The command line on a Ray cluster: acting in remote actors, and trials of -optimize."""

import csv
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecFrameStack
from test_ray_vec_env import local_cluster as local_cluster  # a fixture

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.cluster import RemoteActors
from sb3_per_dqn.cluster.trials import remote_objective
from sb3_per_dqn.zoo import RunManager
from tests.command_line import run_main

SHORT = ["--env", "CartPole-v1", "-n", "400", "--seed", "3", "--device", "cpu", "--eval-freq", "-1"]
PARAMS = ["learning_starts:100", "train_freq:2", "gradient_steps:2", "buffer_size:1000", "n_envs:4"]
ACTORS = "ray_actors:{'n_actors':2,'fragment':10,'num_cpus':0.1}"
MADE = []


class Seen(RemoteActors):
    """Remembers how it was made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        MADE.append((self, kwargs))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    MADE.clear()
    monkeypatch.setattr("sb3_per_dqn.cluster.RemoteActors", Seen)
    return MADE


def test_a_run_acts_in_actors_and_goes_on_there(
    tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cluster = ["--ray-address", "auto", "--checkpoint-every", "200", "-params", *PARAMS, ACTORS, "frame_stack:3"]
    run = run_main("train", *SHORT, *on_cluster, logs=tmp_path, env_id="CartPole-v1")
    assert run.status == 0, run.err
    assert "score: " in run.out
    ((venv, arguments),) = seen  # for training alone
    assert (venv.num_envs, arguments["envs_per_actor"], venv.fragment) == (4, 2, 10)
    assert arguments["ray_address"] == "auto"
    assert venv.observation_space.shape == (12,)  # stacked in the actors
    assert not isinstance(venv, VecFrameStack)
    model = PerDoubleDQN.load(run.folder / "CartPole-v1.zip")
    assert model.num_timesteps == 400
    with (run.folder / "episodes.csv").open() as file:
        assert sum(int(float(row["l"])) for row in csv.DictReader(file)) > 100
    assert not list(run.folder.glob("*.monitor.csv"))  # nor on the actors' nodes
    assert json.loads((run.folder / "run.json").read_text())["ray_address"] == "auto"

    class Interrupting(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 300:
                signal.raise_signal(signal.SIGINT)
            return True

    make_callbacks = RunManager.create_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(
            RunManager, "create_callbacks", lambda self: (make_callbacks(self), self.callbacks.append(Interrupting()))
        )
        interrupted = run_main("train", *SHORT, *on_cluster, logs=tmp_path, env_id="CartPole-v1")
    assert interrupted.status == 130
    folder = run.folder.with_name("CartPole-v1_2")
    seen.clear()
    resumed = run_main("train", "--resume", str(folder), "--ray-address", "here")
    assert resumed.status == 0, resumed.err
    ((_, arguments),) = seen
    assert arguments["ray_address"] == "here"  # another cluster may go on
    assert PerDoubleDQN.load(folder / "CartPole-v1.zip").num_timesteps == 400


REFUSED = {
    "ray_actors:3": "n_envs=4 environments are shared out",
    "ray_actors:2.0": "must be a whole number",
    "ray_actors:{'n_actors':2,'fragmnt':3}": "did you mean fragment?",
    "ray_actors:{'n_actors':2,'fragment':0}": "fragment=0 must be",
    "ray_actors:{'fragment':3}": "must be a whole number",
    "ray_actors:2 normalize:True": "ray_actors=2 and normalize do not go together",
    "ray_actors:2 worker_restarts:1": "ray_actors=2 and worker_restarts do not go together",
    "ray_actors:2 prioritized_replay:False n_steps:3": "pass n_steps=1",
    "--algo dqn ray_actors:2": "ray_actors=2 is for training with --algo per_ddqn",
    "-optimize ray_actors:2": "-optimize takes --ray-address alone",
    "--ray-address auto": "nothing of this run is on a cluster",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_does_not_go_together_is_said_in_a_line(given: str, tmp_path: Path) -> None:
    words = given.split()
    at = next((place for place, word in enumerate(words) if ":" in word), len(words))
    run = run_main("train", *SHORT, "--vec-env", "subproc", *words[:at], "-params", *PARAMS, *words[at:], logs=tmp_path)
    assert run.status == 2, run.err
    assert REFUSED[given] in run.err
    assert run.err.strip().count("\n") == 0
    assert not list(tmp_path.rglob("CartPole-v1_1"))


def test_a_cluster_that_is_not_there_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> None:
        raise ConnectionError(f"no cluster at {address}")

    monkeypatch.setattr("sb3_per_dqn.cluster.actors.connect", refuse)
    for more in (["-optimize"], ["-params", *PARAMS, ACTORS]):
        run = run_main("train", *SHORT, "--ray-address", "1.2.3.4:5", *more, logs=tmp_path)
        assert run.status == 2
        assert run.err.endswith("error: ConnectionError: no cluster at 1.2.3.4:5\n")
    assert not list(tmp_path.rglob("CartPole-v1_1"))


def test_trials_there_have_settings_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 300, learning_starts: 100}")
    study = f"sqlite:///{tmp_path}/study.db"
    run = run_main(
        *("train", "--env", "CartPole-v1", "--conf-file", "conf.yml", "-optimize"),
        *("--n-trials", "2", "--n-evaluations", "1", "--n-startup-trials", "0", "--no-optim-plots", "--device", "cpu"),
        *("--pruner", "none", "--ray-address", "auto", "--storage", study, "--study-name", "one"),
        logs=tmp_path,
    )
    assert run.status == 0, run.err
    trials = optuna.load_study(study_name="one", storage=study).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert {"prioritized_replay_alpha", "n_steps", "learning_rate"} <= trials[0].params.keys()
    (report,) = tmp_path.rglob("report_*.csv")
    with report.open() as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [trial.value for trial in trials]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_ends_with_its_trials(signum: int, status: int, tmp_path: Path) -> None:
    """Several at a time, which Optuna waits for: at once, with none left on the cluster or running in the storage."""
    study = f"sqlite:///{tmp_path}/study.db"

    trials = optuna.create_study(study_name="one", storage=study, direction="maximize").get_trials

    def interrupt_when_two_are_running() -> None:
        while sum("learning_rate" in trial.params for trial in trials()) < 2:
            time.sleep(0.5)
        os.kill(os.getpid(), signum)

    with ThreadPoolExecutor() as others:
        others.submit(interrupt_when_two_are_running)
        run = run_main(
            *("train", "--env", "CartPole-v1", "-n", "10000000", "-optimize", "--n-trials", "4", "--n-jobs", "2"),
            *("--no-optim-plots", "--device", "cpu", "--ray-address", "auto"),
            *("--storage", study, "--study-name", "one"),
            logs=tmp_path,
        )
    assert run.status == status, run.err
    assert [trial.state.name for trial in trials()] == ["FAIL", "FAIL"]


class Manager:
    """Of an optimization, as far as a trial there knows it."""

    args = SimpleNamespace(gym_packages=["naive_replay"])

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.folder, self.fault = folder, fault

    def objective(self, trial: Any) -> float:
        assert "naive_replay" in sys.modules
        x = trial.suggest_float("x", 0, 1)
        first = self.folder / f"first-{trial.number}"
        if not first.exists():
            first.write_text(str(x))
            if self.fault == "dies":
                os._exit(1)
            if self.fault == "raises":
                raise RuntimeError("the simulator has a fault")
        assert float(first.read_text()) == x  # of a trial that begins again
        assert trial.params == {"x": x}
        trial.set_user_attr("twice", 2 * x)
        trial.report(x / 2, step=1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return float(x)


@pytest.mark.parametrize("fault", ["", "dies"])
def test_a_trial_is_that_of_its_study_wherever_it_runs(fault: str, tmp_path: Path) -> None:
    """The same suggestions as here, where its process dies as well."""
    far, here = (optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)) for _ in range(2))
    far.optimize(lambda trial: remote_objective(Manager(tmp_path, fault), trial), n_trials=2)
    here.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert [trial.value for trial in far.trials] == [trial.value for trial in here.trials]
    for trial in far.trials:
        assert trial.user_attrs == {"twice": 2 * trial.value}
        assert trial.intermediate_values == {1: trial.value / 2}


def test_a_trial_is_pruned_where_it_runs(tmp_path: Path) -> None:
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=-1.0))
    study.optimize(lambda trial: remote_objective(Manager(tmp_path), trial), n_trials=1)
    assert study.trials[0].state.name == "PRUNED"
    assert study.trials[0].user_attrs.keys() == {"twice"}


def test_a_trial_that_raises_does_not_end_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: remote_objective(Manager(tmp_path, "raises"), trial), n_trials=2)
    reason = "RuntimeError: the simulator has a fault"
    said = capsys.readouterr().err
    for number, trial in enumerate(study.trials):
        assert trial.state.name == "PRUNED"
        assert trial.user_attrs == {"failed": reason}
        assert f"trial {number} failed: {reason}" in said
