"""``train --resume`` from the command line: preempted runs, what they leave, and what is refused."""

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import rl_zoo3.train
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.callbacks import RunRecorder
from sb3_per_dqn.checkpoint import CheckpointError, RunCheckpoints
from sb3_per_dqn.run_settings import RunSettings, parse_settings
from sb3_per_dqn.zoo import RunManager
from tests.command_line import assert_one_line, run_main
from tests.test_checkpoint import fingerprint

ARGUMENTS = ["--env", "CartPole-v1", "-n", "6000", "--seed", "3", "--device", "cpu", "--num-threads", "1"]
ARGUMENTS += ["-params", "learning_starts:100", "train_freq:8", "gradient_steps:2", "buffer_size:1000", "n_envs:2"]
COMMAND = [sys.executable, "-m", "sb3_per_dqn", "train"]


def command(logs: Path, *arguments: str) -> list[str]:
    return [*COMMAND, *ARGUMENTS, "-f", str(logs), "-tb", str(logs / "tb"), "--checkpoint-every", "400", *arguments]


def rows(path: Path, columns: list[str]) -> list[list[str]]:
    with path.open(newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    return [[row[column] for column in columns] for row in csv.DictReader(lines)]


def curve(folder: Path) -> list[tuple[int, float]]:
    (run,) = folder.iterdir()
    events = EventAccumulator(str(run)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    logs: Path = tmp_path_factory.mktemp("whole")
    subprocess.run(command(logs), check=True, capture_output=True)
    return logs


def wait_for_checkpoint(folder: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*[1-9]*")):  # beyond that of step 0
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_preempted_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    """The same weights, curves and files, each line once."""
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "per_ddqn" / "CartPole-v1_1"
    wait_for_checkpoint(folder, process)
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == status
    stopped_at = max(folder.glob("checkpoints/step-*")).name
    folder = folder.rename(tmp_path / "per_ddqn" / "moved")
    resumed = subprocess.run([*COMMAND, "--resume", str(folder)], capture_output=True, text=True, check=True)
    assert "score: " in resumed.stdout
    assert stopped_at < max(folder.glob("checkpoints/step-*")).name

    ours = whole / "per_ddqn" / "CartPole-v1_1"
    weights = [fingerprint(PerDoubleDQN.load(path / "CartPole-v1.zip", device="cpu")) for path in (ours, folder)]
    assert weights[0] == weights[1]
    for name, columns in {
        "progress.csv": ["time/total_timesteps", "train/loss", "rollout/ep_rew_mean", "rollout/exploration_rate"],
        "episodes.csv": ["timesteps", "r", "l"],
        "0.monitor.csv": ["r", "l"],
        "1.monitor.csv": ["r", "l"],
    }.items():
        assert rows(folder / name, columns) == rows(ours / name, columns), name
    assert curve(tmp_path / "tb" / "CartPole-v1") == curve(whole / "tb" / "CartPole-v1")
    assert [path.name for path in (tmp_path / "per_ddqn").iterdir()] == ["moved"]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path / "per_ddqn" / "CartPole-v1_1", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    assert not [child for child in psutil.process_iter(["ppid"]) if child.info["ppid"] == process.pid]


def test_two_at_the_same_time_are_refused(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "-n", "100000"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "per_ddqn" / "CartPole-v1_1"
    try:
        wait_for_checkpoint(folder, process)
        second = subprocess.run([*COMMAND, "--resume", str(folder)], capture_output=True, text=True, check=False)
    finally:
        process.kill()
        process.communicate()
    assert second.returncode == 2
    assert "another run that is still alive" in second.stderr.splitlines()[-1]


def test_what_cannot_be_resumed_is_said_in_a_line(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole / "per_ddqn" / "CartPole-v1_1", folder)
    for arguments, words in {
        ("--resume", str(tmp_path / "nothing")): "no run of this package",
        ("--resume", str(folder), "--env", "Pong-v4"): "a run goes on with its own arguments",
        (f"--resume={folder}", "-P"): "a run goes on with its own arguments",
        ("--checkpoint-every", "-1"): "--checkpoint-every=-1 must be",
    }.items():
        run = run_main("train", *arguments)
        assert run.status == 2
        assert words in run.err.strip().splitlines()[-1]
    without = json.loads((folder / "run.json").read_text()) | {"every": 0}
    (folder / "run.json").write_text(json.dumps(without))
    with pytest.raises(ValueError, match="has no checkpoints"):
        parse_settings(["--resume", str(folder)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *[("{", "line 1"), ("[" * 100_000, "recursion"), ("[]", "list"), ("{}", "arguments=None"), (b"\xff", "0xff")],
        *[({name: 1}, f"{name}=1") for name in ("arguments", "folder", "conf", "tensorboard", "ray_address")],
        *[({"arguments": given}, f"arguments={given!r}") for given in ({"a": 1}, "x", [1])],
        *[({"every": "x"}, "every='x'"), ({"conf": "../conf.yml"}, "conf='../conf.yml'")],
    ],
)
@pytest.mark.parametrize("command", [["train", "--resume"], ["export", "--env", "CartPole-v1", "--to", "model", "-f"]])
def test_a_damaged_run_file_is_named(
    content: object, words: str, command: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "per_ddqn" / "CartPole-v1_1"
    shutil.copytree(whole / "per_ddqn" / "CartPole-v1_1", folder, ignore=shutil.ignore_patterns("checkpoints", "*.mp4"))
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / "run.json").read_text()) | content)
    (folder / "run.json").write_bytes(content if isinstance(content, bytes) else str(content).encode())
    run = run_main(*command, str(folder if command[0] == "train" else tmp_path))
    assert_one_line(run, str(folder / "run.json"), "is damaged", words, "put back a copy")
    assert not (tmp_path / "model").exists()


def test_a_run_that_was_moved_with_all_logs_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was neither moved nor interrupted, also when it went on from a model of a relative name."""
    monkeypatch.chdir(tmp_path)
    PerDoubleDQN("MlpPolicy", "CartPole-v1", seed=1).save("agent.zip")
    more = ["-n", "800", "--checkpoint-every", "400", "-i", "agent.zip", "-f", "logs"]
    run = run_main("train", *ARGUMENTS, *more)
    assert run.status == 0, run.err
    before = curve(tmp_path / "logs" / "tensorboard" / "CartPole-v1")
    (tmp_path / "logs").rename("results")
    folder = tmp_path / "results" / "per_ddqn" / "CartPole-v1_1"
    shutil.rmtree(max(folder.glob("checkpoints/step-*")))
    monkeypatch.chdir(tmp_path / "results")
    resumed = run_main("train", "--resume", "per_ddqn/CartPole-v1_1")
    assert resumed.status == 0, resumed.err
    assert before
    assert curve(tmp_path / "results" / "tensorboard" / "CartPole-v1") == before
    assert {path.name for path in tmp_path.iterdir()} == {"agent.zip", "results"}


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([], "new/per_ddqn/run/tensorboard"),
        (["new/tb"], "new/tb"),
        (["old/tb"], "old/tb"),
        (["old/tb", "new/tb"], "old/tb"),
        (["old/tb", "new/per_ddqn/run/tensorboard"], "new/per_ddqn/run/tensorboard"),
        (["old/tb", "new/tb", "old/per_ddqn/run"], "new/per_ddqn/run/tensorboard"),  # a copy
    ],
)
def test_curves_go_on_where_they_are(there: list[str], chosen: str, tmp_path: Path) -> None:
    """Of a run in new, which was begun in old, that may be on another machine."""
    folder = tmp_path / "new" / "per_ddqn" / "run"
    folder.mkdir(parents=True)
    for place in there:
        (tmp_path / place / "CartPole-v1").mkdir(parents=True)
    old = tmp_path / "old"
    run = {"folder": str(old / "per_ddqn" / "run"), "tensorboard": str(old / "tb" / "CartPole-v1")}
    (folder / "run.json").write_text(json.dumps({"arguments": [], "every": 1, **run}))
    _, arguments = parse_settings(["--resume", str(folder)])
    assert arguments == ["-tb", str(tmp_path / chosen)]


@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        ("study.log", "{}/study.log"),
        ("sqlite:///a/study.db", "sqlite:///{}/a/study.db"),
        ("sqlite:////a/study.db", "sqlite:////a/study.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("mysql://user@host/study", "mysql://user@host/study"),
    ],
)
def test_the_study_of_a_trial_is_found_from_another_folder(
    storage: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--storage", storage])
    manager = argparse.Namespace(
        save_path=str(tmp_path), config="json", tensorboard_log=None, algo="per_ddqn", checkpoints=True,
        env_name=argparse.Namespace(gym_id="CartPole-v1"), seed=1, trained_agent="", storage=storage,
    )  # fmt: skip
    RunSettings().save(manager)
    _, arguments = parse_settings(["--resume", str(tmp_path)])
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage")
    assert parser.parse_known_args(arguments)[0].storage == kept.format(tmp_path)


def test_a_copy_leaves_the_original_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_main(
        "train", *ARGUMENTS, "-n", "800", "--checkpoint-every", "400", logs=tmp_path / "logs", env_id="CartPole-v1"
    )
    assert run.status == 0
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    shutil.rmtree(max(copy.glob("checkpoints/step-*")))
    before = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()}
    assert run_main("train", "--resume", str(copy)).status == 0
    after = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()}
    assert after == before
    assert list(copy.glob("tensorboard/CartPole-v1/*/events*"))


@pytest.mark.parametrize("conf_file", ["settings_of_mine.py", "settings_of_mine"])
def test_settings_in_python_are_found_again(conf_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is kept, as it may change; a module stays where it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = tmp_path / "settings_of_mine.py"
    settings.write_text(
        'hyperparams = {"CartPole-v1": dict(policy="MlpPolicy", n_timesteps=10, prioritized_replay_eps=0.5)}'
    )
    short = ["-n", "300", "--eval-freq", "-1", "--conf-file", conf_file]
    run = run_main("train", *ARGUMENTS, *short, logs=tmp_path / "logs", env_id="CartPole-v1")
    assert run.status == 0, run.err
    if conf_file == settings.name:
        settings.unlink()
    (run.folder / "CartPole-v1.zip").unlink()
    resumed = run_main("train", "--resume", str(run.folder))
    assert resumed.status == 0, resumed.err
    assert PerDoubleDQN.load(run.folder / "CartPole-v1.zip").prioritized_replay_eps == 0.5


def test_a_run_of_ones_own_script_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the zoo's defaults, which are others than the command line's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", "--algo", "per_ddqn", "-n", "300", "--eval-freq", "-1"])
    rl_zoo3.train.train()
    model = tmp_path / "logs" / "per_ddqn" / "CartPole-v1_1" / "CartPole-v1.zip"
    model.unlink()
    resumed = run_main("train", "--resume", str(model.parent))
    assert resumed.status == 0, resumed.err
    assert model.exists()
    assert RunManager.settings == RunSettings()  # the next run in this process begins anew


def test_a_run_without_curves_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = [*ARGUMENTS, "-n", "800", "--checkpoint-every", "400", "-tb", ""]
    run = run_main("train", *short, logs=tmp_path / "logs", env_id="CartPole-v1")
    assert run.status == 0
    resumed = run_main("train", "--resume", str(run.folder))
    assert resumed.status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_without_checkpoints_there_are_none(tmp_path: Path) -> None:
    run = run_main("train", *ARGUMENTS, "-n", "300", "--checkpoint-every", "0", logs=tmp_path, env_id="CartPole-v1")
    assert run.status == 0
    assert not (run.folder / "checkpoints").exists()


def test_a_recorder_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    """Also with a key that comes up later."""
    model = PerDoubleDQN("MlpPolicy", "CartPole-v1")
    for resumes, values in ((False, {"a": 1.0, "b": 2.0}), (True, {"a": 3.0, "c": 4.0})):
        recorder = RunRecorder(str(tmp_path), resumes)
        model.set_logger(configure(None, []))
        recorder.init_callback(model)
        recorder.on_training_start({}, {})
        for name, value in values.items():
            model.logger.record(name, value)
        model.logger.dump(1)
        recorder.on_training_end()
    assert rows(tmp_path / "progress.csv", ["a", "b", "c"]) == [["1.0", "2.0", ""], ["3.0", "", "4.0"]]


@pytest.mark.parametrize("missing", ["progress.csv", "episodes.csv"])
def test_a_recorder_empties_no_file_because_another_is_gone(tmp_path: Path, missing: str) -> None:
    texts = {"progress.csv": "a\n1.0\n", "episodes.csv": "timesteps,r,l\n9,9.0,9\n"}
    (kept,) = texts.keys() - {missing}
    (tmp_path / kept).write_text(texts[kept])
    model = PerDoubleDQN("MlpPolicy", "CartPole-v1")
    recorder = RunRecorder(str(tmp_path), resumes=True)
    model.set_logger(configure(None, []))
    recorder.init_callback(model)
    recorder.on_training_start({}, {})
    recorder.on_training_end()
    assert (tmp_path / kept).read_text() == texts[kept]
    assert (tmp_path / missing).read_text().strip() == ("timesteps,r,l" if missing == "episodes.csv" else "")


def test_a_run_killed_before_its_first_interval_is_over_goes_on(tmp_path: Path) -> None:
    logs = {name: tmp_path / name for name in ("whole", "killed")}
    often = ["--checkpoint-every", "100000", "-n", "2000", "--save-freq", "1000", "--eval-freq", "1000"]
    subprocess.run(command(logs["whole"], *often), check=True, capture_output=True)
    process = subprocess.Popen(
        command(logs["killed"], *often), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    folder = logs["killed"] / "per_ddqn" / "CartPole-v1_1"
    deadline = time.monotonic() + 120
    while not (folder / "episodes.csv").exists() or len((folder / "episodes.csv").read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    subprocess.run([*COMMAND, "--resume", str(folder)], check=True, capture_output=True)
    whole = logs["whole"] / "per_ddqn" / "CartPole-v1_1"
    weights = [fingerprint(PerDoubleDQN.load(path / "CartPole-v1.zip", device="cpu")) for path in (whole, folder)]
    assert weights[0] == weights[1]
    assert rows(folder / "episodes.csv", ["timesteps", "r"]) == rows(whole / "episodes.csv", ["timesteps", "r"])
    assert curve(logs["killed"] / "tb" / "CartPole-v1") == curve(logs["whole"] / "tb" / "CartPole-v1")
    assert {path.name for path in whole.glob("*.zip")} == {path.name for path in folder.glob("*.zip")}


def test_runs_that_begin_together_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that fails removes no other's."""
    try_out = RunManager._try_out

    def begin_another(self: RunManager) -> None:
        try_out(self)
        other = tmp_path / "per_ddqn" / "CartPole-v1_1"
        if not other.exists():
            other.mkdir(parents=True)
            (other / "mine").touch()
            if fails:
                raise ValueError("something is wrong")

    monkeypatch.setattr(RunManager, "_try_out", begin_another)
    for fails in (True, False):
        shutil.rmtree(tmp_path / "per_ddqn", ignore_errors=True)
        run = run_main("train", *ARGUMENTS, "-n", "300", logs=tmp_path, env_id="CartPole-v1")
        assert run.status == (2 if fails else 0), run.err
        assert [path.name for path in (tmp_path / "per_ddqn" / "CartPole-v1_1").iterdir()] == ["mine"]
        assert (tmp_path / "per_ddqn" / "CartPole-v1_2" / "run.json").exists() is not fails


def test_each_run_has_a_folder_where_the_zoo_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for runs by glob, to which the folder's name is a pattern; a script of one's own may choose such."""
    monkeypatch.chdir(tmp_path)
    flags = ["--algo", "per_ddqn", "-n", "300", "--eval-freq", "-1", "-f", "logs[1]", "-P"]
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    looked = []

    def see_none(*_: object) -> int:
        looked.append(1)
        assert len(looked) < 10, "it looks for ever"
        return 0

    monkeypatch.setattr("sb3_per_dqn.zoo.manager.get_latest_run_id", see_none)
    for _ in range(3):
        rl_zoo3.train.train()
    runs = {path.name for path in (tmp_path / "logs[1]" / "per_ddqn").iterdir()}
    assert runs == {f"CartPole-v1_{number}" for number in (1, 2, 3)}


def test_a_run_has_its_folder_until_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is over, and its score is being measured."""
    said = []

    def resume_meanwhile(self: RunManager, model: PerDoubleDQN) -> str:
        with pytest.raises(CheckpointError) as refusal:
            RunCheckpoints(Path(self.save_path) / "checkpoints").resume(model)
        said.append(str(refusal.value))
        return "none"

    monkeypatch.setattr(RunManager, "_score", resume_meanwhile)
    run = run_main("train", *ARGUMENTS, "-n", "300", logs=tmp_path, env_id="CartPole-v1")
    assert run.status == 0
    assert "another run that is still alive" in said[0]
    monkeypatch.undo()
    assert run_main("train", "--resume", str(run.folder)).status == 0


def test_another_algorithm_has_no_checkpoints(tmp_path: Path) -> None:
    dqn = ["--algo", "dqn", "-n", "300", "--seed", "1", "--env", "CartPole-v1", "-params", "policy:'MlpPolicy'"]
    assert run_main("train", *dqn, logs=tmp_path).status == 0
    resumed = run_main("train", "--resume", str(tmp_path / "dqn" / "CartPole-v1_1"))
    assert resumed.status == 2
    assert "the run has no checkpoints" in resumed.err
