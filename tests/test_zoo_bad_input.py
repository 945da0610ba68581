"""The command line with bad input: one line that says what is wrong, and nothing is left behind."""

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import QRDQN
from stable_baselines3 import PPO

from sb3_per_dqn import PerDoubleDQN, atari, zoo
from sb3_per_dqn.__main__ import main
from sb3_per_dqn.checks import warn_of_early_joints
from sb3_per_dqn.flags import with_defaults
from tests.command_line import BREAKOUT, CARTPOLE_PARAMS, SHORT_CARTPOLE, assert_one_line, run_main

STUDY = ["--env", "CartPole-v1", "-optimize", "--study-name", "one", "--storage"]
WRAPPED = "--env CartPole-v1 -params env_wrapper:'{}'"


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["train", "--env", "BreakoutNoFramskip-v4"], ["--env", "BreakoutNoFramskip-v4", BREAKOUT]),
            (["enjoy", "--env=CartPole-v11"], ["CartPole-v11", "CartPole-v1"]),
            (["record_video", "--env", "CartPoll-v1"], ["CartPoll-v1", "CartPole-v1", "--gym-packages"]),
            (["train", "--env", "MyOwnPuzzle-v0"], ["--env='MyOwnPuzzle-v0'", "--gym-packages"]),
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
            (["train", *STUDY, "nowhere"], ["--storage=nowhere", "sqlite:///study.db", ".log"]),
            (
                ["train", *STUDY, "sqlite:////no/such/study.db"],
                ["--storage=sqlite:////no/such/study.db", "unable to open"],
            ),
            (["train", *STUDY, "mysql://user@host/study"], ["--storage=mysql://user@host/study"]),
            (["train", *STUDY, "/dev/null/study.log"], ["--storage", "/dev/null"]),
            (
                ["train", "--env", "CartPole-v1", "--trial-id", "0", "--study-name", "one", "--storage", "nowhere"],
                ["--storage=nowhere"],
            ),
            (
                ["train", "--env", "CartPole-v1", "-params", "policy_kwargs:dict(net_arch='x')"],
                ["policy_kwargs: net_arch='x'", "[256, 256]"],
            ),
            (
                ["train", "--env", "CartPole-v1", "-params", "policy_kwargs:dict(net_arch=[64, 0])"],
                ["policy_kwargs: net_arch=[64, 0]", "1 or more"],
            ),
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
            (
                ["train", "--env", "CartPole-v1", "-params", "env_kwargs:'dict(size=4)'"],
                ["env_kwargs='dict(size=4)'", "env_kwargs:dict(size=4)"],
            ),
            (["train", "--env", "CartPole-v1", "-params", "env_kwargs:[4]"], ["env_kwargs=[4]", "a dictionary"]),
            (["train", "--env", "CartPole-v1", "-params", "env_kwargs:{4: 1}"], ["env_kwargs={4: 1}", "a dictionary"]),
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
            (["plot_from_file", "-o", "x.svg"], ["-i FILE", "all_plots -o FILE"]),
            (["all_plots", "-e", "CartPole-v1", "--no-display"], ["-f", "logs", "no folder"]),
            (["plot_train", "-e", "CartPole-v1"], ["-f", "logs", "no folder"]),
            (["record_video", "--env", "CartPole-v1", "-n", "0"], ["-n 0", "1 or more"]),
            (["enjoy", "--env", "CartPole-v1", "--no-render", "--n-timesteps", "-3"], ["-n -3", "1 or more"]),
            (["train", "--env", "CartPole-v1", "--seed", "4294967296"], ["--seed=4294967296", "4294967295"]),
            (
                ["train", "--env", "MinAtar/Breakout-v0", "--seed", "4294967290", "-params", "n_envs:8"],
                ["--seed=4294967290", "4294967288", "8 environments"],
            ),
            (
                ["train", "--env", "CartPole-v1", "--seed", "4294967295", "--n-eval-envs", "5"],
                ["4294967291", "5 environments"],
            ),  # to evaluate
            (["enjoy", "--env", "CartPole-v1", "--seed", "4294967295", "--n-envs", "2"], ["4294967294", "2 envir"]),
            (["enjoy", "--env", "CartPole-v1", "--seed", "-2"], ["--seed=-2", "4294967295"]),
            (["enjoy", "--env", "CartPole-v1", "--n-envs", "0"], ["--n-envs=0"]),
            (["record_video", "--env", "CartPole-v1", "--n-envs", "0"], ["--n-envs=0"]),
            (["train", "--env", "CartPole-v1", "--device", "gpu"], ["--device=gpu", "cuda"]),
            (["enjoy", "--env", "CartPole-v1", "--device", "gpu"], ["--device=gpu", "cuda"]),
            (["export", "--env", "CartPole-v1", "--to", "x", "--device", "gpu"], ["--device=gpu", "cuda"]),
            (["train", "--env", "CartPole-v1", "-i", "nowhere.zip"], ["--trained-agent=nowhere.zip", ".zip"]),
            (["train", "--env", "CartPole-v1", "-params", "seed:3"], ["seed=3", "--seed"]),
            (["train", "--env", "CartPole-v1", "-params", "verbose:1"], ["verbose=1", "--verbose"]),
            (["train", "--env", "CartPole-v1", "-params", "normalize:{'norm_ob':True}"], ["norm_ob'", "norm_obs?"]),
            (
                ["train", "--env", "CartPole-v1", "-params", "monitor_kwargs:{'info_keyword':()}"],
                ["monitor_kwargs", "info_keywords?"],
            ),
            (["train", "--env", "CartPole-v1", "-optimize", "--n-trials", "0"], ["--n-trials=0"]),
            (["train", "--env", "CartPole-v1", "-optimize", "--n-evaluations", "0"], ["--n-evaluations=0"]),
            (["train", "--env", "CartPole-v1", "-optimize", "--n-jobs", "0"], ["--n-jobs=0"]),
            (["train", "--env", "CartPole-v1", "-optimize", "--n-startup-trials", "-1"], ["--n-startup-trials=-1"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_is_one_line_and_leaves_nothing(
        self, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(atari.WorkerVecEnv, "__init__", _no_worker)
        run = run_main(*arguments, logs=tmp_path / "logs")
        assert_one_line(run, *words)
        assert not (tmp_path / "logs").exists()

    @pytest.mark.parametrize("command", ["plot_train", "all_plots"])
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-e", "CartPol-v1"], ["-e CartPol-v1", "CartPole-v1_1"]),
            (["-e", "CartPole-v1", "Acrobot-v1"], ["-e Acrobot-v1", "CartPole-v1_1"]),
            (["-e", "CartPole-v1", "-a", "per_dqn"], ["per_dqn", "did you mean per_ddqn?"]),
            (["-e", "CartPole-v1", "-f", ""], ["-f=''"]),
        ],
    )
    def test_a_plot_of_no_run(self, command: str, arguments: list[str], words: list[str], tmp_path: Path) -> None:
        (tmp_path / "per_ddqn" / "CartPole-v1_1").mkdir(parents=True)
        assert_one_line(run_main(command, "-f", str(tmp_path), *arguments), *words)

    @pytest.mark.parametrize(
        "algo", ["PER_DDQN", "her"]
    )  # the zoo takes either case here, and folders of old algorithms
    def test_a_plot_of_what_the_zoo_would_plot(self, algo: str, tmp_path: Path) -> None:
        (tmp_path / algo.lower() / "CartPole-v1_1").mkdir(parents=True)
        arguments = ["-a", algo, "-e", "CartPole-v1", "-f", str(tmp_path)]
        assert with_defaults("all_plots", arguments, "CartPole-v1")[-6:] == arguments

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
        assert_one_line(run_main("train", *flags, logs=tmp_path / "logs"), *words)
        assert not (tmp_path / "logs").exists()

    @pytest.mark.parametrize("kind", [ValueError, AssertionError, RuntimeError])
    def test_an_error_without_a_message_says_where_it_arose(
        self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise kind

        monkeypatch.setattr(zoo, "run_command", fail)
        line = fail.__code__.co_firstlineno + 1
        assert_one_line(run_main("enjoy", "--env", "CartPole-v1"), kind.__name__, f"{Path(__file__).name}:{line}")

    @pytest.mark.parametrize("command", ["enjoy", "record_video", "export"])
    def test_a_run_that_failed_does_not_hide_the_one_before(self, command: str, tmp_path: Path) -> None:
        runs = [tmp_path / "per_ddqn" / f"CartPole-v1_{number}" for number in (1, 2, 9, 10)]
        for run_folder in runs:
            (run_folder / "CartPole-v1").mkdir(parents=True)
        for run_folder in runs[:3]:
            (run_folder / "CartPole-v1.zip").touch()
        arguments = [command, "--env", "CartPole-v1", *(["--to", str(tmp_path / "x")] if command == "export" else [])]
        run = run_main(*arguments, logs=tmp_path)
        assert_one_line(run, str(runs[3] / "CartPole-v1.zip"), "--exp-id 9")
        assert "--resume" not in run.err

        (runs[3] / "checkpoints" / "step-000000000100").mkdir(parents=True)
        resume = f"sb3-per-dqn train --resume {runs[3]}"
        assert_one_line(run_main(*arguments, logs=tmp_path), "--exp-id 9", resume)
        for run_folder in runs[:3]:
            shutil.rmtree(run_folder)
        run = run_main(*arguments, logs=tmp_path)
        assert_one_line(run, resume)
        assert "--exp-id" not in run.err

    @pytest.mark.parametrize("command", ["enjoy", "record_video"])
    def test_a_model_that_was_not_kept_on_the_way(self, command: str, tmp_path: Path) -> None:
        run_folder = tmp_path / "per_ddqn" / "CartPole-v1_1"
        (run_folder / "CartPole-v1").mkdir(parents=True)
        (run_folder / "CartPole-v1.zip").touch()
        (run_folder / "checkpoints" / "step-000000000100").mkdir(parents=True)
        arguments = [command, "--env", "CartPole-v1", *(["--no-render"] if command == "enjoy" else [])]
        run = run_main(*arguments, "--load-checkpoint", "100", logs=tmp_path)
        assert_one_line(run, "rl_model_100_steps.zip", "none was kept", "--save-freq")
        for steps in (50, 1000, "x", 200):
            (run_folder / f"rl_model_{steps}_steps.zip").touch()
        run = run_main(*arguments, "--load-checkpoint", "100", logs=tmp_path)
        assert_one_line(run, "rl_model_100_steps.zip", "--load-checkpoint 50, 200, 1000")
        run = run_main(*arguments, "--load-best", logs=tmp_path)
        assert_one_line(run, "best_model.zip", "--eval-freq")
        assert "--resume" not in run.err

    def test_a_length_that_is_missing(self, tmp_path: Path) -> None:
        (tmp_path / "conf.yml").write_text("CartPole-v1: {policy: MlpPolicy}")
        run = run_main("train", "--env", "CartPole-v1", "-conf", str(tmp_path / "conf.yml"), logs=tmp_path / "logs")
        assert_one_line(run, "n_timesteps is missing")

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
        assert_one_line(run, *words)
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
        assert_one_line(run, "output folder", str(tmp_path / "file"))
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("command", ["train", "enjoy", "record_training"])
    def test_no_folder_is_not_the_root(self, command: str) -> None:
        assert_one_line(run_main(command, "--env", "CartPole-v1", "-n", "100", "-f", ""), "-f=''", "no folder")

    @pytest.mark.parametrize(
        "command", ["train", "enjoy", "record_video", "record_training", "export", "plot_train", "all_plots"]
    )
    @pytest.mark.parametrize("name", ["logs[1]", "lo?s", "logs*"])
    def test_a_folder_in_which_no_run_would_be_found(
        self, command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        more = ["--to", "x"] if command == "export" else []
        env = ["-e" if "plot" in command else "--env", "CartPole-v1"]
        assert_one_line(run_main(command, *env, "-f", name, *more), f"-f={name!r}", "choose another")
        assert not list(tmp_path.iterdir())

    def test_missing_rom(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Path:
            raise OSError(f"no {name}.bin")

        monkeypatch.setattr(atari.ale_py.roms, "get_rom_path", missing)
        assert_one_line(run_main("train", logs=tmp_path / "logs"), "ROM", BREAKOUT)
        assert not (tmp_path / "logs").exists()

    def test_nothing_trained_yet(self, tmp_path: Path) -> None:
        assert_one_line(run_main("enjoy", "--no-render", logs=tmp_path), str(tmp_path))

    def test_minatar_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "minatar", None)
        assert_one_line(run_main("train", "--env", "MinAtar/Breakout-v0", logs=tmp_path), "pip install")

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


def _save_with_a_bit_flipped(file: Path) -> None:
    PerDoubleDQN("MlpPolicy", "CartPole-v1").save(file)
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        data[archive.getinfo("policy.pth").header_offset + 5000] ^= 1  # within the weights
    file.write_bytes(data)


def _no_worker(*_: Any, **__: Any) -> None:
    raise AssertionError("a worker was started")
