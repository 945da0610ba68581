"""The command line from end to end: what a run leaves, how it stops, and what it says to bad input."""

import contextlib
import csv
import io
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
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
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
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import load_results

from sb3_per_dqn import DeviceReplayBuffer, MlpPolicy, PerDoubleDQN, atari, zoo
from sb3_per_dqn.__main__ import COMMANDS, main, with_defaults
from sb3_per_dqn.callbacks import InterruptGuard
from sb3_per_dqn.checks import check_keys, check_kwargs, warn_of_early_joints
from sb3_per_dqn.plots import draw_learning_curves, read_columns, running_mean
from sb3_per_dqn.zoo import evaluation, finished
from sb3_per_dqn.zoo.evaluation import in_evaluation_mode
from sb3_per_dqn.zoo.finished import EVALUATION_GAMES

BREAKOUT = "BreakoutNoFrameskip-v4"
SHORT_CARTPOLE = ["--env", "CartPole-v1", "-n", "400", "--seed", "3", "--device", "cpu"]
CARTPOLE_PARAMS = ["-params", "learning_starts:100", "train_freq:8", "gradient_steps:2", "buffer_size:1000"]
BREAKOUT_PARAMS = ["-params", "n_envs:2", "learning_starts:100", "buffer_size:1000", "gradient_steps:1", "batch_size:8"]


WRAPPED = "--env CartPole-v1 -params env_wrapper:'{}'"


@dataclass
class Run:
    """One command and what came of it."""

    status: int
    out: str
    err: str
    logs: Path
    env_id: str

    @property
    def folder(self) -> Path:
        return self.logs / "per_ddqn" / f"{self.env_id}_1"


def run_main(*arguments: str, logs: Path | None = None, env_id: str = "") -> Run:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    folder = [] if logs is None else ["-f", str(logs)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["sb3-per-dqn", *arguments, *folder])
        try:
            status = main()
        except SystemExit as exit_:  # argparse
            status = exit_.code if isinstance(exit_.code, int) else 1
    return Run(status, out.getvalue(), err.getvalue(), logs or Path(), env_id)


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


def frames(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    count = 0
    while video.read()[0]:
        count += 1
    return count


def closing_line(run: Run) -> dict[str, str]:
    line = run.out.strip().splitlines()[-1]
    return dict(part.split(": ", 1) for part in line.split("; ")[1:])


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
        run = run_main(
            "train", *SHORT_CARTPOLE, *CARTPOLE_PARAMS, "-i", str(trained), logs=tmp_path, env_id="CartPole-v1"
        )
        assert run.status == 0, run.err
        before, after = PerDoubleDQN.load(trained), PerDoubleDQN.load(run.folder / "CartPole-v1.zip")
        assert after.num_timesteps == before.num_timesteps + 400
        assert after._n_updates > before._n_updates
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
        """A checkpoint, the last model and the best one; the run's own videos stay."""
        monkeypatch.chdir(tmp_path)  # to which the folder is relative
        before = sorted((cartpole.folder / "videos").iterdir())
        run = run_main("record_training", "--env", "CartPole-v1", "-n", "20", "-o", "videos", logs=cartpole.logs)
        assert run.status == 0, run.err
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


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["train", "--env", "BreakoutNoFramskip-v4"], ["--env", "BreakoutNoFramskip-v4", BREAKOUT]),
            (["enjoy", "--env=CartPole-v11"], ["CartPole-v11", "CartPole-v1"]),
            (["record_video", "--env", "CartPoll-v1"], ["CartPoll-v1", "CartPole-v1"]),
            (["record_video", "--env", "CartPole-v1", "-o", "/dev/null/x"], ["'/dev/null/x'", "-o"]),
            (
                ["train", "--env", "CartPole-v1", "-params", "n_envs:2", "train_freq:(1,'episode')"],
                ["train_freq=(1, 'episode')", "2", "count steps"],
            ),
            (["train", "--env", "Pendulum-v1"], ["Discrete", "Box"]),
            (["train", "--env", "CartPole-v1", "-params", "prioritized_replay_alpha:1.5"], ["alpha", "1.5"]),
            (["train", "--env", "CartPole-v1", "-params", "prioritized_replay_beta:[[0,2]]"], ["beta", "2"]),
            (["train", "--env", "CartPole-v1", "-params", "gamma:float('nan')"], ["gamma", "nan"]),
            (["train", "--env", "CartPole-v1", "-params", "buffer_size:10"], ["buffer_size=10", "batch_size"]),
            (["train", "--env", "CartPole-v1", "-params", "n_envs:0"], ["n_envs=0"]),
            (["train", "--env", "CartPole-v1", "-params", "no_such_argument:1"], ["no_such_argument", "known are"]),
            (["train", "--env", "CartPole-v1", "-params", "bufer_size:1"], ["bufer_size", "buffer_size?"]),
            (["train", "--env", "CartPole-v1", "-params", "n_env:1"], ["n_env", "n_envs?"]),
            (["train", "--env", "CartPole-v1", "-params", "policy_kwargs:{'duelling':1}"], ["duelling", "dueling?"]),
            (["train", "--env", "CartPole-v1", "-params", "replay_buffer_kwargs:{'alfa':1}"], ["alfa", "alpha?"]),
            (["train", "--env", "CartPole-v1", "-params", "speedups:max"], ["-params", "speedups:'max'"]),
            (["train", "--env", "CartPole-v1", "-params", "gamma:0,9x"], ["gamma:0,9x"]),
            (["enjoy", "--env", "CartPole-v1", "--env-kwargs", "render_mode"], ["render_mode:'word'"]),
            (["train", "--env", "CartPole-v1", "--trial-id", "0"], ["--trial-id=0", "--storage"]),
            (["train", "--env", "CartPole-v1", "--algo", "per_dqn"], ["per_dqn", "per_ddqn?"]),
            (["enjoy", "--env", "CartPole-v1", "--algo", "perdqn"], ["perdqn", "per_ddqn?"]),
            (["train", "-params", "n_envs:2", "exploration:[[0.5,1],[0,0]]"], ["exploration", "(0.0, 0.0)"]),
            (["train", "--env", "CartPole-v1", "-conf", "no_such_file.yml"], ["no_such_file.yml"]),
            (
                ["train", "--env", "CartPole-v1", "-conf", "no_such_modul"],
                ["--conf-file", "'no_such_modul'", "PYTHONPATH"],
            ),
            (["train", "--env", "X-v1", "--gym-packages", "no_such_modul"], ["--gym-packages", "'no_such_modul'"]),
            (["export", "--env", "X-v1", "--gym-packages", "nowhere.x", "--to", "x"], ["--gym-packages", "'nowhere'"]),
            (
                ["train", *WRAPPED.format("no_such_modul.Wrapper").split()],
                ["env_wrapper='no_such_modul.Wrapper'", "PYTHON"],
            ),
            (["train", *WRAPPED.format("gymnasium.wraper.X").split()], ["env_wrapper=", "'gymnasium.wraper'"]),
            (["train", *WRAPPED.format("gymnasium.wrappers.FlatenObservation").split()], ["FlattenObservation?"]),
            (["train", *WRAPPED.format("TimeLimit").split()], ["env_wrapper='TimeLimit' is no MODULE.CLASS"]),
            (["train", "-params", "vec_env_wrapper:[{'no_such_modul.X':{}}]"], ["vec_env_wrapper='no_such_modul.X'"]),
            (["train", "-params", "callback:'no_such_modul.Callback'"], ["callback='no_such_modul.Callback'"]),
            (["train", "-params", "policy:'sb3_per_dqn.policies.MlpPolic'"], ["policy=", "MlpPolicy?"]),
            (["train", "--env", "CartPole-v1", "-optimize", "--algo", "crossq"], ["-optimize", "crossq"]),
            (["train", "--env", "CartPole-v1", "-n", "0"], ["--n-timesteps=0"]),
            (["train", "--env", "CartPole-v1", "-n", "-5"], ["--n-timesteps=-5"]),
            (["train", "--env", "CartPole-v1", "--log-interval", "0"], ["--log-interval=0"]),
            (["train", "--env", "CartPole-v1", "--n-eval-envs", "0"], ["--n-eval-envs=0"]),
            (
                ["train", "-params", "learning_rate:'1e-3'"],
                ["learning_rate='1e-3'", "0.001", "!!float 1e-3", "lin_1e-3"],
            ),
            (["train", "-params", "learning_rate:'fast'"], ["learning_rate='fast'", "!!float 1e-3", "lin_1e-3"]),
            (["train", "-params", "learning_rate:'lin_fast'"], ["learning_rate='lin_fast'", "lin_1e-3"]),
            (["train", "-params", "n_timesteps:'many'"], ["n_timesteps='many'", "!!float 1e6"]),
            (["train", "-params", "n_timesteps:None"], ["n_timesteps=None"]),
            (["train", "-params", "gamma:'0.9'"], ["gamma='0.9'", "0.9"]),
            (["train", "-params", "n_envs:'8'"], ["n_envs='8'"]),
            (["train", "--env", "CartPole-v1", "-params", "frame_stack:-1"], ["frame_stack=-1", "1 or more"]),
            (
                ["train", "--env", "CartPole-v1", "-params", "frame_stack:2", "normalize:True"],
                ["frame_stack=2 and normalize=True", "leave one out", "FrameStackObservation: {stack_size: 2}}"],
            ),
            (["train", "--env", "CartPole-v1", "-params", "train_freq:0"], ["train_freq=0", "1 or more"]),
            (["train", "-params", "policy:'MlpPolcy'"], ["policy='MlpPolcy'", "MlpPolicy?"]),
            (["train", "-params", "policy:3"], ["policy=3", "known are"]),
            (
                ["train", "-params", "replay_buffer_class:'DeviceReplayBufer'"],
                ["replay_buffer_class='DeviceReplayBufer'", "DeviceReplayBuffer?"],
            ),
            (["train", "-params", "replay_buffer_class:3"], ["replay_buffer_class=3", "a class"]),
            (["train", "-params", "normalize:'yes'"], ["normalize='yes'", "True, False or a dictionary"]),
            (
                ["train", "-params", "policy_kwargs:'dict(net_arch=[64]'"],
                ["policy_kwargs='dict(net_arch=[64]'", "never closed", "a dictionary"],
            ),
            (["train", "-params", "policy_kwargs:[64]"], ["policy_kwargs=[64]", "a dictionary"]),
            (
                ["train", "-params", "env_wrapper:{'gymnasium.wrappers.TimeLimit':{'max_steps':3}}"],
                ["env_wrapper='gymnasium.wrappers.TimeLimit'", "max_steps", "its arguments are max_episode_steps"],
            ),
            (["train", "-params", "env_wrapper:'gymnasium.wrappers.TimeLimit'"], ["env_wrapper=", "max_episode_steps"]),
            (
                ["train", "-params", "env_wrapper:{'gymnasium.wrappers.TimeLimit':3}"],
                ["env_wrapper=", "3", "dictionary"],
            ),
            (["train", "-params", "env_wrapper:{}"], ["env_wrapper={}", "MODULE.CLASS"]),
            (["train", "-params", "learning_rate=0.1"], ["learning_rate=0.1", '"learning_rate:0.1"']),
            (["train", "-params", "policy_kwargs=dict(a={'x':1})"], ["\"policy_kwargs:dict(a={'x':1})\""]),
            (["train", "-params", "speedups=max"], ["\"speedups:'max'\""]),
            (["train", "-conf", "."], ["--conf-file=.", ".yml"]),
            (["train", "-conf", "./conf.json"], ["--conf-file=./conf.json", ".yml"]),
            (["train", "-conf", "json"], ["--conf-file=json", "hyperparams"]),
            (["tran"], ["tran", "train"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_is_one_line_and_leaves_nothing(
        self, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(atari.WorkerVecEnv, "__init__", _no_worker)
        run = run_main(*arguments, logs=tmp_path / "logs")
        _assert_one_line(run, *words)
        assert not (tmp_path / "logs").exists()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", ["conf.yml", "CartPole-v1:"]),
            ("- CartPole-v1\n- Acrobot-v1", ["conf.yml", "CartPole-v1:"]),
            ("CartPole-v1:", ["conf.yml", "CartPole-v1:"]),
            ("CartPole-v1: MlpPolicy", ["conf.yml", "CartPole-v1:"]),
            ("CartPole-v1: [MlpPolicy]", ["conf.yml", "CartPole-v1:"]),
            ("CartPole-v1: {policy: MlpPolicy", ["conf.yml", "CartPole-v1:", "line 1"]),
            (
                "CartPole-v1: {policy: MlpPolicy, n_timesteps: 400, learning_rate: 1e-3}",
                ["learning_rate='1e-3'", "0.001"],
            ),
            ("CartPole-v1: {policy: MlpPolicy, n_timesteps: many}", ["n_timesteps='many'"]),
            ("CartPole-v1: {policy: MlpPolicy, n_timesteps: 1e6}", ["n_timesteps='1e6'", "!!float 1e6"]),
        ],
    )
    @pytest.mark.parametrize("more", [[], ["-params", "gamma:0.9"]])
    def test_a_file_of_hyperparameters_that_cannot_be_read(
        self, text: str, words: list[str], more: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "conf.yml").write_text(text)
        flags = ["--env", "CartPole-v1", "-conf", str(tmp_path / "conf.yml"), *more]
        _assert_one_line(run_main("train", *flags, logs=tmp_path / "logs"), *words)
        assert not (tmp_path / "logs").exists()

    @pytest.mark.parametrize("kind", [ValueError, AssertionError, RuntimeError])
    def test_an_error_without_a_message_says_where_it_arose(
        self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise kind

        monkeypatch.setattr(zoo, "run_command", fail)
        line = fail.__code__.co_firstlineno + 1
        _assert_one_line(run_main("enjoy", "--env", "CartPole-v1"), kind.__name__, f"{Path(__file__).name}:{line}")

    @pytest.mark.parametrize("command", ["enjoy", "record_video", "export"])
    def test_a_run_that_failed_does_not_hide_the_one_before(self, command: str, tmp_path: Path) -> None:
        runs = [tmp_path / "per_ddqn" / f"CartPole-v1_{number}" for number in (1, 2, 9, 10)]
        for run_folder in runs:
            (run_folder / "CartPole-v1").mkdir(parents=True)
        for run_folder in runs[:3]:
            (run_folder / "CartPole-v1.zip").touch()
        arguments = [command, "--env", "CartPole-v1", *(["--to", str(tmp_path / "x")] if command == "export" else [])]
        run = run_main(*arguments, logs=tmp_path)
        _assert_one_line(run, str(runs[3] / "CartPole-v1.zip"), "--exp-id 9")
        assert "--resume" not in run.err

        (runs[3] / "checkpoints" / "step-000000000100").mkdir(parents=True)
        resume = f"sb3-per-dqn train --resume {runs[3]}"
        _assert_one_line(run_main(*arguments, logs=tmp_path), "--exp-id 9", resume)
        for run_folder in runs[:3]:
            shutil.rmtree(run_folder)
        run = run_main(*arguments, logs=tmp_path)
        _assert_one_line(run, resume)
        assert "--exp-id" not in run.err

    def test_a_length_that_is_missing(self, tmp_path: Path) -> None:
        (tmp_path / "conf.yml").write_text("CartPole-v1: {policy: MlpPolicy}")
        run = run_main("train", "--env", "CartPole-v1", "-conf", str(tmp_path / "conf.yml"), logs=tmp_path / "logs")
        _assert_one_line(run, "n_timesteps is missing")

    def test_a_length_that_is_given_need_not_be_in_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "conf.yml").write_text("CartPole-v1: {policy: MlpPolicy}")
        conf_file = ["-conf", str(tmp_path / "conf.yml"), "--eval-freq", "-1"]
        run = run_main("train", *SHORT_CARTPOLE, *conf_file, logs=tmp_path, env_id="CartPole-v1")
        assert run.status == 0, run.err
        assert PerDoubleDQN.load(run.folder / "CartPole-v1.zip").num_timesteps == 400

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda file: PPO("MlpPolicy", "CartPole-v1").save(file), ["ActorCriticPolicy", "another algorithm"]),
            (lambda file: QRDQN("MlpPolicy", "CartPole-v1").save(file), ["QRDQNPolicy", "another algorithm"]),
            (lambda file: file.write_text("no zip"), ["not a zip file", "no model"]),
            (lambda file: _save_with_a_bit_flipped(file), ["policy.pth", "damaged"]),
            (lambda file: PerDoubleDQN("MlpPolicy", "Acrobot-v1").save(file), ["Observation spaces do not match"]),
        ],
        ids=["PPO", "QRDQN", "text", "bit", "environment"],
    )
    def test_a_model_that_cannot_go_on(
        self, make: Callable[[Path], Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(tmp_path / "Acrobot.zip")
        run = run_main("train", *SHORT_CARTPOLE, "-i", str(tmp_path / "Acrobot.zip"), logs=tmp_path / "logs")
        _assert_one_line(run, *words)
        assert not list((tmp_path / "logs" / "per_ddqn").glob("CartPole*"))

    @pytest.mark.parametrize("flag", ["-f", "--log-folder", "-tb"])
    @pytest.mark.parametrize("env_id", ["CartPole-v1", BREAKOUT])
    def test_output_folder_that_cannot_be_written(
        self, flag: str, env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(atari.WorkerVecEnv, "__init__", _no_worker)
        (tmp_path / "file").write_text("in the way")
        monkeypatch.chdir(tmp_path)
        run = run_main("train", "--env", env_id, flag, str(tmp_path / "file" / "logs"))
        _assert_one_line(run, "output folder", str(tmp_path / "file"))
        assert os.listdir(tmp_path) == ["file"]

    def test_missing_rom(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Path:
            raise OSError(f"no {name}.bin")

        monkeypatch.setattr(atari.ale_py.roms, "get_rom_path", missing)
        _assert_one_line(run_main("train", logs=tmp_path / "logs"), "ROM", BREAKOUT)
        assert not (tmp_path / "logs").exists()

    def test_nothing_trained_yet(self, tmp_path: Path) -> None:
        _assert_one_line(run_main("enjoy", "--no-render", logs=tmp_path), str(tmp_path))

    def test_minatar_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "minatar", None)
        _assert_one_line(run_main("train", "--env", "MinAtar/Breakout-v0", logs=tmp_path), "pip install")

    def test_a_run_too_short_for_its_joints_is_warned_of(self) -> None:
        model = PerDoubleDQN("MlpPolicy", "CartPole-v1", learning_starts=16383, exploration=[[0, 1], [0.5, 0.01]])
        with pytest.warns(UserWarning, match=r"epsilon is down from 1 to 0\.01 when learning starts, at step 16383"):
            warn_of_early_joints(model, 20_000)

    @pytest.mark.parametrize("error", [MemoryError("std::bad_alloc"), OSError(28, "No space left on device")])
    def test_what_runs_out_while_training_is_said_with_the_way_on(
        self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run_out(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(PerDoubleDQN, "train", run_out)
        flags = [*SHORT_CARTPOLE, "-f", str(tmp_path), "--eval-freq", "-1", "-P", *CARTPOLE_PARAMS]
        monkeypatch.setattr(sys, "argv", ["sb3-per-dqn", "train", *flags])
        with pytest.raises(type(error)):
            main()
        folder = tmp_path / "per_ddqn" / "CartPole-v1_1"
        said = f"training failed at step 104; sb3-per-dqn train --resume {folder} goes on from step 0."
        assert said in capsys.readouterr().err

    def test_an_error_of_training_itself_keeps_its_traceback(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def diverge(*_: Any, **__: Any) -> None:
            raise ValueError("a NaN")

        monkeypatch.setattr(PerDoubleDQN, "train", diverge)
        with pytest.raises(ValueError, match="a NaN"):
            run_main("train", *SHORT_CARTPOLE, *CARTPOLE_PARAMS, "--eval-freq", "-1", "-P", logs=tmp_path)


class TestArguments:
    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_help_lists_the_commands(self, arguments: list[str]) -> None:
        run = run_main(*arguments)
        assert run.status == 0
        assert all(command in run.out for command in COMMANDS)

    @pytest.mark.parametrize("command", ["train", "enjoy", "record_video"])
    def test_help_of_a_command_is_the_zoos_and_names_our_defaults(self, command: str) -> None:
        run = run_main(command, "--help")
        assert run.status == 0
        assert f"usage: sb3-per-dqn {command}" in run.out
        assert "--algo per_ddqn" in run.out

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ([], {"algo": "per_ddqn", "env": BREAKOUT, "log_folder": "logs", "tensorboard_log": "logs/tensorboard"}),
            ([], {"vec_env": "subproc", "progress": True}),
            (["--env", "ALE/Pong-v5"], {"env": "ALE/Pong-v5", "vec_env": "subproc", "progress": True}),
            (["--env=CartPole-v1"], {"env": "CartPole-v1", "vec_env": "dummy", "progress": False}),
            (["--vec-env", "dummy"], {"vec_env": "dummy"}),
            (["--vec-env=dummy", "--algo=dqn"], {"vec_env": "dummy", "algo": "dqn", "env": BREAKOUT}),
            (["-f", "x"], {"log_folder": "x", "tensorboard_log": "x/tensorboard"}),
            (["-fx"], {"log_folder": "x", "tensorboard_log": "x/tensorboard"}),
            (["--log-folder=x"], {"log_folder": "x", "tensorboard_log": "x/tensorboard"}),
            (["--log-folder", "x", "-tb", "y"], {"log_folder": "x", "tensorboard_log": "y"}),
            (["--tensorboard-log=y"], {"log_folder": "logs", "tensorboard_log": "y"}),
            (["-n", "5", "--seed", "7", "--device=cpu"], {"n_timesteps": 5, "seed": 7, "device": "cpu"}),
        ],
        ids=str,
    )
    def test_what_the_user_gives_comes_before_our_defaults(
        self, given: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = {}

        class Stop(Exception):
            pass

        def capture(args: Any, *_: Any, **__: Any) -> None:
            seen.update(vars(args))
            raise Stop

        monkeypatch.setattr(rl_zoo3.train, "ExperimentManager", capture)
        run_main("train", *given)
        assert {key: seen[key] for key in expected} == expected

    def test_watching_an_atari_game_is_deterministic(self) -> None:
        assert "--deterministic" in with_defaults("enjoy", [])
        assert "--deterministic" in with_defaults("record_video", ["--env=ALE/Pong-v5"])
        assert "--deterministic" not in with_defaults("enjoy", ["--env", "CartPole-v1"])
        assert "--deterministic" not in with_defaults("enjoy", ["--algo", "dqn"])  # its games have no random actions

    def test_a_slash_behind_the_folder_is_one(self, tmp_path: Path) -> None:
        run = run_main("train", *SHORT_CARTPOLE, "--eval-freq", "-1", *CARTPOLE_PARAMS, "-f", f"{tmp_path}/")
        assert run.status == 0, run.err
        assert f"{tmp_path}/per_ddqn/CartPole-v1_1" in run.out
        assert f"{tmp_path}/tensorboard" in run.out
        assert f"{tmp_path}//" not in run.out

    def test_values_are_evaluated_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "counting.py").write_text("calls = []\ndef size():\n    calls.append(1)\n    return 1000\n")
        monkeypatch.syspath_prepend(tmp_path)
        counted = "buffer_size:__import__('counting').size()"
        flags = [*SHORT_CARTPOLE, "--eval-freq", "-1", *CARTPOLE_PARAMS, counted]
        run = run_main("train", *flags, logs=tmp_path / "logs")
        assert run.status == 0, run.err
        assert len(sys.modules["counting"].calls) == 1
        assert rl_zoo3.train.StoreDict is rl_zoo3.utils.StoreDict
        assert rl_zoo3.utils.StoreDict.__module__ == "rl_zoo3.utils"  # for others it is as it was

    def test_import_is_enough_and_harmless_twice(self) -> None:
        zoo.register()
        assert rl_zoo3.ALGOS["per_ddqn"] is rl_zoo3.utils.ALGOS["per_ddqn"] is PerDoubleDQN
        assert rl_zoo3.train.ExperimentManager is zoo.RunManager

    def test_yaml_names_replay_memory_on_the_device(self, tmp_path: Path) -> None:
        arguments = {"policy": "MlpPolicy", "learning_starts": 100, "n_timesteps": 400}
        arguments["replay_buffer_class"] = "DeviceReplayBuffer"
        conf_file = tmp_path / "conf.yml"
        conf_file.write_text(yaml.safe_dump({"CartPole-v1": arguments}))
        run = run_main("train", *SHORT_CARTPOLE, "--conf-file", str(conf_file), logs=tmp_path, env_id="CartPole-v1")
        assert run.status == 0
        model = PerDoubleDQN.load(run.folder / "CartPole-v1.zip")
        assert model.replay_buffer_class is DeviceReplayBuffer
        assert model._n_updates > 0

    def test_evaluation_of_one_trial_leaves_the_training_of_another_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with ``-optimize --n-jobs 2``: another thread makes its environments while one makes its evaluation's."""
        manager = zoo.RunManager(None, "per_ddqn", BREAKOUT, str(tmp_path))
        manager.env_wrapper, manager.evaluation_wrapper = "training", "evaluation"
        seen = []
        other = Thread(target=manager.create_envs, args=(1,))

        def create_envs(self: Any, n_envs: int, eval_env: bool, no_log: bool) -> Any:
            seen.append((eval_env, self.env_wrapper))
            if eval_env:
                other.start()
                other.join(0.2)  # it waits for us; without waiting it would be through

        monkeypatch.setattr(ExperimentManager, "create_envs", create_envs)
        manager.create_envs(1, eval_env=True)
        other.join()
        assert seen == [(True, "evaluation"), (False, "training")]
        assert manager.env_wrapper == "training"

    def test_nothing_of_the_zoos_own_files_is_refused(self) -> None:
        checked = 0
        for file in sorted((Path(rl_zoo3.__file__).parent / "hyperparams").glob("*.yml")):
            if (algorithm := rl_zoo3.ALGOS.get(file.stem)) is None:
                continue  # her.yml, of a class that SB3 no longer has
            for hyperparams in yaml.safe_load(file.read_text()).values():
                check_keys(hyperparams, algorithm, length_is_given=False)
                names = {"policy_kwargs", "replay_buffer_kwargs", "replay_buffer_class"} & hyperparams.keys()
                values = {name: hyperparams[name] for name in names}
                evaluated = {
                    name: eval(value, vars(rl_zoo3.exp_manager)) if isinstance(value, str) else value
                    for name, value in values.items()
                }
                check_kwargs({"policy": hyperparams["policy"], **evaluated}, algorithm)
                checked += 1
        assert checked > 100

    @pytest.mark.parametrize(("name", "base"), [("policy", MlpPolicy), ("replay_buffer", ReplayBuffer)])
    def test_a_class_of_the_users_own_may_read_what_it_likes(self, name: str, base: Any) -> None:
        class Own(base):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.mine = kwargs.pop("mine")
                super().__init__(*args, **kwargs)

        key = name if name == "policy" else f"{name}_class"
        check_kwargs({"policy": "MlpPolicy", key: Own, f"{name}_kwargs": {"mine": 1}}, PerDoubleDQN)

    def test_other_wrappers_stay_as_they_are(self) -> None:
        hyperparams = {"env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"], "frame_stack": 4}
        assert in_evaluation_mode(hyperparams) is hyperparams
        assert in_evaluation_mode({}) == {}


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


def _assert_one_line(run: Run, *words: str) -> None:
    assert run.status == 2
    (line,) = run.err.strip().splitlines()
    assert line.startswith("sb3-per-dqn: error: ")
    for word in words:
        assert word in line


def _save_with_a_bit_flipped(file: Path) -> None:
    PerDoubleDQN("MlpPolicy", "CartPole-v1").save(file)
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        data[archive.getinfo("policy.pth").header_offset + 5000] ^= 1  # within the weights
    file.write_bytes(data)


def _no_worker(*_: Any, **__: Any) -> None:
    raise AssertionError("a worker was started")


def _has_rows(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open(newline="") as file:
        return len(list(csv.reader(file))) > 1
