"""What the command line makes of its arguments: the user's, ours and the zoo's."""

import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import rl_zoo3
import rl_zoo3.train
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_per_dqn import DeviceReplayBuffer, MlpPolicy, PerDoubleDQN, zoo
from sb3_per_dqn.__main__ import COMMANDS, DEFAULT_ENV
from sb3_per_dqn.checks import check_keys, check_kwargs
from sb3_per_dqn.flags import with_defaults
from sb3_per_dqn.zoo.evaluation import in_evaluation_mode
from tests.command_line import BREAKOUT, CARTPOLE_PARAMS, SHORT_CARTPOLE, run_main


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
        assert "--deterministic" in with_defaults("enjoy", [], DEFAULT_ENV)
        assert "--deterministic" in with_defaults("record_video", ["--env=ALE/Pong-v5"], DEFAULT_ENV)
        assert "--deterministic" not in with_defaults("enjoy", ["--env", "CartPole-v1"], DEFAULT_ENV)
        assert "--deterministic" not in with_defaults("enjoy", ["--algo", "dqn"], DEFAULT_ENV)  # no random actions

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
