"""The command line from end to end: what a run leaves, how it is watched, how it stops."""

import csv
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import optuna
import psutil
import pytest
import rl_zoo3
import rl_zoo3.train
import torch as th
import yaml
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from hypothesis import given
from hypothesis import strategies as st
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import DQN
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN, atari, zoo
from sb3_per_dqn.callbacks import InterruptGuard
from sb3_per_dqn.plots import draw_learning_curves, read_columns, running_mean
from sb3_per_dqn.zoo import evaluation, finished
from sb3_per_dqn.zoo.finished import EVALUATION_GAMES
from tests.command_line import (
    BREAKOUT,
    BREAKOUT_PARAMS,
    CARTPOLE_PARAMS,
    SHORT_CARTPOLE,
    Run,
    closing_line,
    frames,
    run_main,
)


def test_worker_restarts_reach_the_training_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = []
    create_envs = ExperimentManager.create_envs

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        env = create_envs(self, *args, **kwargs)
        restarts.append(getattr(env.unwrapped, "restarts", None))
        return env

    monkeypatch.setattr(ExperimentManager, "create_envs", remember)
    flags = [*SHORT_CARTPOLE, "--vec-env", "subproc", "--eval-freq", "200", *CARTPOLE_PARAMS, "n_envs:2"]
    run = run_main("train", *flags, "worker_restarts:3", logs=tmp_path)
    assert run.status == 0, run.err
    assert restarts[:3] == [None, 0, 3]  # the trial in this process, evaluation, training
    bad = run_main("train", *flags, "worker_restarts:-1", logs=tmp_path)
    assert bad.status == 2
    assert "restarts=-1 must be a whole number, 0 or more" in bad.err
    assert multiprocessing.active_children() == []  # evaluation's, which were there by then


@pytest.mark.parametrize("flags", [[], ["--eval-env-kwargs", "sutton_barto_reward:False"]], ids=["same", "other"])
def test_arguments_of_the_yamls_environment_are_those_of_evaluation(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless there are others for that."""
    made = []
    create_envs = ExperimentManager.create_envs

    def remember(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        env = create_envs(self, n_envs, eval_env, no_log)
        made.append((eval_env, env.get_attr("_sutton_barto_reward")))
        return env

    monkeypatch.setattr(ExperimentManager, "create_envs", remember)
    params = [*CARTPOLE_PARAMS, "env_kwargs:{'sutton_barto_reward': True}"]
    run = run_main("train", *SHORT_CARTPOLE, "--eval-freq", "200", *params, *flags, logs=tmp_path)
    assert run.status == 0, run.err
    in_training, in_evaluation = (
        [value for is_evaluation, value in made if is_evaluation is when] for when in (False, True)
    )
    assert in_training == [[True]] * 2  # the trial, and training
    assert in_evaluation == [[not flags]] * 3  # while it trains, for the score, for the video


class EndlessCartPole(CartPoleEnv):
    """A pole that never falls."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps_beyond_terminated = None
        observation, reward, _, truncated, info = super().step(action)
        return observation, float(reward), False, truncated, info


def test_an_evaluation_ends_where_the_game_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In MinAtar's Seaquest the submarine may stay at the surface."""
    monkeypatch.setattr(evaluation, "MAX_STEPS", 50)
    with monkeypatch.context() as patch:
        patch.setitem(gym.registry, "Endless-v0", EnvSpec("Endless-v0", EndlessCartPole))
        run = run_main(
            *["train", "--env", "Endless-v0", "-n", "300", "--eval-freq", "200", "--eval-episodes", "2"],
            *["-params", "policy:'MlpPolicy'", "learning_starts:100", "buffer_size:1000"],
            logs=tmp_path,
            env_id="Endless-v0",
        )
        assert run.status == 0, run.err
        assert json.loads((run.folder / "score.json").read_text())["mean"] == 50
        assert frames(run.folder / "videos" / "full-game.mp4") == 51
        assert run_main("export", "--env", "Endless-v0", "--to", str(tmp_path / "model"), logs=tmp_path).status == 0


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained through ``python -m``, in workers."""
    logs = tmp_path_factory.mktemp("cartpole")
    arguments = ["train", *SHORT_CARTPOLE, "-f", str(logs), "--vec-env", "subproc", "--eval-freq", "200"]
    arguments += ["--save-freq", "400"]
    done = subprocess.run(
        [sys.executable, "-m", "sb3_per_dqn", *arguments, *CARTPOLE_PARAMS], capture_output=True, text=True, timeout=300
    )
    return Run(done.returncode, done.stdout, done.stderr, logs, "CartPole-v1")


@pytest.fixture(scope="module")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Trained in this process, where games can be cut short: an untrained policy may wait for ever to serve."""
    logs = tmp_path_factory.mktemp("breakout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "EVALUATION_MAX_FRAMES", 300)
        few = ["train", "-n", "400", "--vec-env", "dummy", "--seed", "1", "--eval-freq", "300", "--device", "cpu"]
        yield run_main(*few, *BREAKOUT_PARAMS, logs=logs, env_id=BREAKOUT)


@pytest.fixture(params=["cartpole", "breakout"])
def trained(request: pytest.FixtureRequest) -> Run:
    run: Run = request.getfixturevalue(request.param)
    return run


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that ended, and that nobody has asked for its status, is a zombie."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class TestTraining:
    def test_ends_well(self, trained: Run) -> None:
        assert trained.status == 0, trained.err
        assert "Traceback" not in trained.err

    def test_model_and_settings_are_saved(self, trained: Run) -> None:
        model = PerDoubleDQN.load(trained.folder / f"{trained.env_id}.zip", device="cpu")
        config = yaml.load((trained.folder / trained.env_id / "config.yml").read_text(), yaml.UnsafeLoader)
        assert model.num_timesteps >= 400
        assert model.learning_starts == dict(config)["learning_starts"] == 100

    def test_progress_is_logged(self, trained: Run) -> None:
        progress = read_columns(trained.folder / "progress.csv")
        assert {
            "train/loss", "train/td_error", "train/beta", "train/q_value", "train/target_q_value",
            "rollout/exploration_rate", "eval/mean_reward",
        } <= progress.keys()  # fmt: skip
        steps = progress["time/total_timesteps"]
        assert steps[-1] == 400
        assert (np.diff(steps) >= 0).all()
        assert np.isfinite(progress["train/loss"]).sum() >= 2

    def test_episodes_are_those_of_monitor(self, trained: Run) -> None:
        episodes = read_columns(trained.folder / "episodes.csv")
        monitor = load_results(str(trained.folder))
        assert len(monitor) >= 2
        for name in ("r", "l"):
            np.testing.assert_allclose(np.sort(episodes[name]), np.sort(monitor[name]))
        steps = episodes["timesteps"]
        assert (np.diff(steps) >= 0).all()
        assert 0 < steps[0] <= steps[-1] <= 408

    def test_tensorboard_is_on(self, trained: Run) -> None:
        (events,) = (trained.logs / "tensorboard").rglob("events.out.tfevents.*")
        assert events.stat().st_size > 1000

    def test_closing_line_names_score_model_plot_and_video(self, trained: Run) -> None:
        result = closing_line(trained)
        assert list(result) == ["score", "model", "plot", "video"]
        assert result["score"].endswith(f"over {EVALUATION_GAMES} full games")
        float(result["score"].split()[0])
        assert Path(result["model"]) == trained.folder / f"{trained.env_id}.zip"

    def test_plot_is_a_picture(self, trained: Run) -> None:
        picture = cv2.imread(closing_line(trained)["plot"])
        assert picture is not None
        assert min(picture.shape[:2]) >= 600
        assert len(np.unique(picture.astype(int) @ [1, 256, 65536])) > 20  # colours of lines and text: no empty page

    def test_video_shows_a_whole_game(self, trained: Run) -> None:
        recorded = frames(Path(closing_line(trained)["video"]))
        # CartPole: 1 to 500 steps; Breakout: 300 emulator frames, less those before the first action
        low, high = (2, 502) if trained.env_id == "CartPole-v1" else (40, 78)
        assert low <= recorded <= high

    def test_leaves_no_process(self, trained: Run) -> None:
        assert multiprocessing.active_children() == []

    def test_evaluation_is_of_full_games(self, breakout: Run) -> None:
        evaluations = np.load(breakout.folder / "evaluations.npz")
        lengths = evaluations["ep_lengths"]  # in emulator frames, as Monitor counts them
        assert (lengths >= 290).all()
        assert (lengths <= 304).all()

    def test_a_trained_model_goes_on(self, cartpole: Run, tmp_path: Path) -> None:
        """As one that had not stopped: no other start of epsilon, and steps are counted on."""
        trained = cartpole.folder / "CartPole-v1.zip"
        flags = ["-i", str(trained), "--eval-freq", "200", "--save-freq", "200"]
        run = run_main("train", *SHORT_CARTPOLE, *CARTPOLE_PARAMS, *flags, logs=tmp_path, env_id="CartPole-v1")
        assert run.status == 0, run.err
        before, after = PerDoubleDQN.load(trained), PerDoubleDQN.load(run.folder / "CartPole-v1.zip")
        assert after.num_timesteps == before.num_timesteps + 400
        assert after._n_updates > before._n_updates
        on_the_way = [*run.folder.glob("rl_model_*_steps.zip"), run.folder / "best_model.zip"]
        assert len(on_the_way) > 1
        assert all(PerDoubleDQN.load(path).num_timesteps > before.num_timesteps for path in on_the_way)
        logged = read_columns(run.folder / "progress.csv")
        assert min(logged["time/total_timesteps"]) > before.num_timesteps
        epsilon = logged["rollout/exploration_rate"]
        assert set(epsilon[~np.isnan(epsilon)]) == {before.exploration_rate}

    def test_dqn_through_our_manager_is_the_zoos_own_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = [*SHORT_CARTPOLE, "--algo", "dqn", "--eval-freq", "-1"]
        ours = run_main("train", *arguments, *CARTPOLE_PARAMS, logs=tmp_path / "ours")
        assert ours.status == 0, ours.err
        assert "rl_zoo3/hyperparams/dqn.yml" in ours.out.replace(os.sep, "/")
        monkeypatch.setattr(rl_zoo3.train, "ExperimentManager", ExperimentManager)
        monkeypatch.setattr(sys, "argv", ["train", *arguments, "-f", str(tmp_path / "zoo"), *CARTPOLE_PARAMS])
        rl_zoo3.train.train()
        weights = [
            DQN.load(tmp_path / who / "dqn" / "CartPole-v1_1" / "CartPole-v1.zip").policy.state_dict()
            for who in ("ours", "zoo")
        ]
        assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[1])

    def test_a_picture_that_fails_does_not_fail_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = []

        def fail(env: Any, *_: Any) -> None:
            close = env.close
            env.close = lambda: closed.append(close())
            raise ImportError("no moviepy here")

        monkeypatch.setattr(finished, "GameRecorder", fail)
        run = run_main(
            "train", *SHORT_CARTPOLE, "--eval-freq", "-1", *CARTPOLE_PARAMS, logs=tmp_path, env_id="CartPole-v1"
        )
        assert run.status == 0
        assert closing_line(run)["video"] == "none (ImportError: no moviepy here)"
        assert len(closed) == 1


def test_a_game_that_cannot_be_drawn_leaves_no_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's complains when it is collected, after the closing line."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    env = DummyVecEnv([CartPoleEnv])
    with pytest.raises(ValueError, match="no render_mode 'rgb_array'"):
        finished.recorded_game(PerDoubleDQN("MlpPolicy", env), env, tmp_path, deterministic=True)
    gc.collect()
    assert complaints == []


class TestWatching:
    @pytest.mark.parametrize("trained", ["breakout"], indirect=True)
    def test_enjoy_plays_full_games(self, trained: Run) -> None:
        run = run_main("enjoy", "--no-render", "-n", "200", "--device", "cpu", logs=trained.logs)
        assert run.status == 0, run.err
        lengths = [int(line.split()[-1]) for line in run.out.splitlines() if line.startswith("Atari Episode Length")]
        assert lengths
        assert min(lengths) >= 290  # emulator frames: the game ends at the cap, not with a life

    def test_record_video(self, trained: Run, tmp_path: Path) -> None:
        run = run_main("record_video", "--env", trained.env_id, "-n", "15", "-o", str(tmp_path), logs=trained.logs)
        assert run.status == 0, run.err
        (video,) = tmp_path.glob("*.mp4")
        assert frames(video) >= 15

    def test_record_video_of_an_environment_of_ones_own(
        self, cartpole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "logs" / "per_ddqn" / "MyPole-v0_1"
        (folder / "MyPole-v0").mkdir(parents=True)
        shutil.copy(cartpole.folder / "CartPole-v1.zip", folder / "MyPole-v0.zip")
        (tmp_path / "poles.py").write_text(
            "import gymnasium\n"
            "gymnasium.register('MyPole-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=9)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        arguments = ["-n", "15", "-o", str(tmp_path / "videos"), "--gym-packages", "poles"]
        try:
            run = run_main("record_video", "--env", "MyPole-v0", *arguments, logs=tmp_path / "logs")
        finally:
            gym.registry.pop("MyPole-v0", None)
            sys.modules.pop("poles", None)
        assert run.status == 0, run.err
        (video,) = (tmp_path / "videos").glob("*.mp4")
        assert frames(video) >= 15

    @pytest.mark.parametrize("command", [["enjoy", "--no-render"], ["record_video"]], ids=["enjoy", "record_video"])
    @pytest.mark.parametrize("memory", [{}, {"replay_buffer_class": DeviceReplayBuffer}, {"prioritized_replay": False}])
    def test_watching_takes_no_replay_memory(
        self, command: list[str], memory: dict[str, Any], breakout: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a model that was trained with a million of Atari's transitions, 28 GB or more as SB3 keeps them."""
        shutil.copytree(breakout.logs, tmp_path / "logs")
        path = tmp_path / "logs" / breakout.folder.relative_to(breakout.logs) / f"{BREAKOUT}.zip"
        model = PerDoubleDQN.load(path, device="cpu", **memory)
        model.buffer_size = 1_000_000
        model.save(path)
        buffers: list[Any] = []
        setup = PerDoubleDQN._setup_model

        def remember(model: PerDoubleDQN) -> None:
            setup(model)
            buffers.append(model.replay_buffer)

        monkeypatch.setattr(PerDoubleDQN, "_setup_model", remember)
        monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 300)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = run_main(*command, "-n", "2", logs=tmp_path / "logs")
        assert run.status == 0, run.err
        assert [len(pickle.dumps(buffer)) < 1e6 for buffer in buffers] == [True]  # its spaces, mostly
        assert not [warning.message for warning in caught if "memory" in str(warning.message)]
        assert rl_zoo3.ALGOS["per_ddqn"] is PerDoubleDQN

    def test_plot_train(self, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("seaborn")
        pytest.importorskip("scipy")
        monkeypatch.setenv("MPLBACKEND", "agg")
        run = run_main("plot_train", "-e", trained.env_id, logs=trained.logs)
        assert run.status == 0, run.err

    def test_record_training(self, cartpole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A checkpoint, the last model and the best one; the run's own videos stay. No font need be installed."""
        monkeypatch.chdir(tmp_path)  # to which the folder is relative
        (tmp_path / "no & few.conf").write_text("<fontconfig></fontconfig>")
        monkeypatch.setenv("FONTCONFIG_FILE", str(tmp_path / "no & few.conf"))
        before = sorted((cartpole.folder / "videos").iterdir())
        commands = []
        call = subprocess.call

        def note(command: Any, *args: Any, **kwargs: Any) -> int:
            commands.append(command)
            return call(command, *args, **kwargs)

        monkeypatch.setattr(subprocess, "call", note)
        packages = ["--gym-packages", "tests.command_line", "tests.random_walk"]
        flags = ["--env", "CartPole-v1", "-n", "20", "-o", "videos", *packages]
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        run = run_main("record_training", *flags, logs=cartpole.logs)
        assert run.status == 0, run.err
        assert [command[-3:] for command in commands if "record_video" in command] == [packages] * 3
        parts = [frames(path) for path in (tmp_path / "videos").glob("*-per_ddqn-*.mp4")]
        assert len(parts) == 3
        assert frames(tmp_path / "videos" / "training.mp4") == sum(parts) > 0
        assert sorted((cartpole.folder / "videos").iterdir()) == before

    def test_all_plots_and_plot_from_file(self, cartpole: Run, tmp_path: Path) -> None:
        for number in (1, 2):  # plot_from_file wants several
            folder = tmp_path / "logs" / "per_ddqn" / f"CartPole-v1_{number}"
            folder.mkdir(parents=True)
            shutil.copy(cartpole.folder / "evaluations.npz", folder)
        data = tmp_path / "data"
        run = run_main("all_plots", "-e", "CartPole-v1", "-o", str(data), "--no-display", logs=tmp_path / "logs")
        assert run.status == 0, run.err
        scores = np.load(cartpole.folder / "evaluations.npz")["results"]
        assert f"{scores[-1].mean():.0f}" in run.out  # the zoo's table
        run = run_main("plot_from_file", "-i", str(data), "-o", str(tmp_path / "curves.png"), "--format", "png")
        assert run.status == 0, run.err
        assert cv2.imread(str(tmp_path / "curves.png")).shape[2] == 3

    @pytest.mark.parametrize("wrapper", [{}, {"terminal_on_life_loss": True, "screen_size": 84}])
    def test_test_environments_are_in_evaluation_mode(self, wrapper: dict[str, Any]) -> None:
        name = "sb3_per_dqn.atari.AtariGameWrapper"
        hyperparams = {"env_wrapper": [{name: wrapper}] if wrapper else name, "frame_stack": 4, "normalize": False}
        env = rl_zoo3.utils.create_test_env(BREAKOUT, should_render=False, hyperparams=hyperparams, stats_path=".")
        assert env.get_attr("evaluation") == [True]
        env.close()
        assert rl_zoo3.create_test_env is rl_zoo3.utils.create_test_env


class TestInterrupt:
    def test_ctrl_c_saves_and_leaves_no_worker(self, tmp_path: Path) -> None:
        """SIGINT to the whole process group, as a terminal sends it."""
        log = (tmp_path / "out.txt").open("w+")
        arguments = ["train", "-n", "20000", "-f", str(tmp_path / "logs"), "--eval-freq", "-1", "--device", "cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "sb3_per_dqn", *arguments, *BREAKOUT_PARAMS],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        children: list[psutil.Process] = []
        try:
            run_folder = tmp_path / "logs" / "per_ddqn" / f"{BREAKOUT}_1"
            deadline = time.monotonic() + 120
            while not _has_rows(run_folder / "progress.csv"):
                assert process.poll() is None, (tmp_path / "out.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
            os.killpg(process.pid, signal.SIGINT)
            status = process.wait(60)
            psutil.wait_procs(children, timeout=10)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output = (tmp_path / "out.txt").read_text()
        assert status == 130
        assert "Traceback" not in output
        assert alive(children) == []
        assert f"model: {run_folder / BREAKOUT}.zip" in output
        assert cv2.imread(str(run_folder / "learning_curves.png")) is not None
        assert 0 < PerDoubleDQN.load(run_folder / f"{BREAKOUT}.zip", device="cpu").num_timesteps < 20_000

    def test_first_press_ends_the_step_and_the_second_raises(self) -> None:
        guard = InterruptGuard()
        before = signal.getsignal(signal.SIGINT)
        with guard.listening():
            assert guard._on_step()
            signal.raise_signal(signal.SIGINT)
            assert not guard._on_step()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before

    def test_during_the_final_evaluation_the_model_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def press(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(finished, "evaluate_policy", press)
        run = run_main(
            "train", *SHORT_CARTPOLE, "--eval-freq", "-1", *CARTPOLE_PARAMS, logs=tmp_path, env_id="CartPole-v1"
        )
        assert run.status == 130
        assert Path(closing_line(run)["model"]).is_file()
        assert closing_line(run)["score"] == "not measured"

    def test_while_starting_leaves_no_run_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def press(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(zoo.RunManager, "create_callbacks", press)
        run = run_main("train", *SHORT_CARTPOLE, logs=tmp_path, env_id="CartPole-v1")
        assert run.status == 130
        assert not run.folder.exists()


class TestOptimization:
    SHORT = ("train", "--env", "CartPole-v1", "-optimize", "--n-trials", "3", "--n-evaluations", "1", "--device", "cpu")
    QUIET = ("--no-optim-plots", "--pruner", "none", "--study-name", "one", "--storage")

    @pytest.mark.parametrize(
        ("signum", "status", "completed", "jobs"),
        [
            (signal.SIGINT, 130, 0, 1),
            (signal.SIGINT, 130, 1, 1),
            (signal.SIGTERM, 143, 0, 1),
            (signal.SIGINT, 130, 0, 2),
        ],
    )
    def test_an_interrupted_one_ends_with_its_trials(
        self, signum: int, status: int, completed: int, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With its report, if there is anything to report."""
        objective = zoo.RunManager.objective
        begun = Barrier(jobs)

        def press(self: zoo.RunManager, trial: optuna.Trial) -> float:
            if trial.number >= completed:
                if begun.wait(60) == 0:
                    os.kill(os.getpid(), signum)
                self.n_timesteps = 10_000_000
            return objective(self, trial)

        monkeypatch.setattr(zoo.RunManager, "objective", press)
        study = f"sqlite:///{tmp_path}/study.db"
        run = run_main(*self.SHORT, "-n", "300", "--n-jobs", str(jobs), *self.QUIET, study, logs=tmp_path / "logs")
        assert run.status == status, run.err
        trials = optuna.load_study(study_name="one", storage=study).trials
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * completed + ["FAIL"] * jobs
        assert len(list((tmp_path / "logs").rglob("report_*.csv"))) == completed

    def test_one_without_a_trial_that_was_completed_says_the_way_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def diverge(*_: Any, **__: Any) -> None:
            raise ValueError("a NaN")

        monkeypatch.setattr(PerDoubleDQN, "learn", diverge)
        run = run_main(*self.SHORT, "-n", "300", *self.QUIET, f"sqlite:///{tmp_path}/study.db", logs=tmp_path)
        assert run.status == 2
        assert run.out.count("a NaN") == 3
        last = run.err.strip().splitlines()[-1]
        assert last.startswith("sb3-per-dqn: error: -optimize: no trial was completed")
        assert "--n-trials" in last


class TestPlots:
    @given(st.lists(st.floats(-1e3, 1e3), max_size=50), st.integers(1, 20))
    def test_running_mean_is_the_mean_of_the_last(self, values: list[float], window: int) -> None:
        naive = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
        np.testing.assert_allclose(running_mean(np.array(values), window), naive, atol=1e-9)

    def test_columns_with_gaps(self, tmp_path: Path) -> None:
        path = tmp_path / "progress.csv"
        path.write_text("a,b\n1,\n,2.5\n")
        columns = read_columns(path)
        np.testing.assert_array_equal(columns["a"], [1, np.nan])
        np.testing.assert_array_equal(columns["b"], [np.nan, 2.5])

    def test_a_run_that_logged_nothing_can_be_drawn(self, tmp_path: Path) -> None:
        for name in ("progress.csv", "episodes.csv"):
            (tmp_path / name).touch()
        assert cv2.imread(str(draw_learning_curves(tmp_path))) is not None


def _has_rows(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open(newline="") as file:
        return len(list(csv.reader(file))) > 1
