"""Checkpoints: runs that go on exactly, files that are damaged or hostile, two runs in one folder, full disks."""

import contextlib
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan, VecEnv, VecNormalize

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN, make_atari_vec_env
from sb3_per_dqn.checkpoint import CheckpointError, RunCheckpoints, files, run
from sb3_per_dqn.checkpoint.environments import captured_environments, restore_environments
from sb3_per_dqn.checkpoint.files import CheckpointFolder
from sb3_per_dqn.checkpoint.state import StateError, captured
from sb3_per_dqn.minatar import register_minatar
from sb3_per_dqn.replay.frame_ring import RawFrames
from sb3_per_dqn.workers import WorkerVecEnv
from tests.test_training_with_replay import DictFrames, Frames


def fingerprint(model: PerDoubleDQN) -> str:
    """Of the weights, both networks."""
    digest = hashlib.sha256()
    for tensor in model.policy.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def cartpole(**kwargs: Any) -> VecEnv:
    return make_vec_env("CartPole-v1", 2, seed=3, **kwargs)


def normalized() -> VecEnv:
    return VecNormalize(cartpole())


def checked() -> VecEnv:
    return VecCheckNan(cartpole())  # which holds actions only once there were some


def normalized_elsewhere() -> VecEnv:
    return VecNormalize(cartpole(vec_env_cls=SubprocVecEnv))


def minatar_game() -> gym.Env[Any, Any]:
    register_minatar()  # in the worker
    return gym.make("MinAtar/Breakout-v0")


def minatar() -> VecEnv:
    return make_vec_env(minatar_game, 2, seed=3, vec_env_cls=WorkerVecEnv)


def breakout() -> VecEnv:
    return make_atari_vec_env("BreakoutNoFrameskip-v4", 2, seed=3)


def breakout_of_eight() -> VecEnv:
    return make_atari_vec_env("BreakoutNoFrameskip-v4", 8, seed=3)


def sticky() -> VecEnv:
    return make_atari_vec_env("ALE/Breakout-v5", 2, seed=3)


def native() -> VecEnv:
    return make_atari_vec_env("BreakoutNoFrameskip-v4", 2, seed=3, emulators="native")


def dicts() -> VecEnv:
    return make_vec_env(lambda: TimeLimit(DictFrames(Frames()), 9), 2, seed=3)


def goals() -> VecEnv:
    return make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=False, max_steps=4), 2, seed=3)


def make(make_env: Callable[[], VecEnv], **kwargs: Any) -> PerDoubleDQN:
    policy = dict.fromkeys((cartpole, checked, normalized, normalized_elsewhere, minatar), "MlpPolicy")
    policy |= {dicts: "MultiInputPolicy", goals: "MultiInputPolicy"}
    arguments: dict[str, Any] = {
        "learning_starts": 40,
        "buffer_size": 240,
        "batch_size": 8,
        "train_freq": 4,
        "gradient_steps": 2,
        "target_update_interval": 50,
        "exploration_fraction": 0.5,
        "policy_kwargs": {"net_arch": [16]},
        "seed": 3,
        "device": "cpu",
        **kwargs,
    }
    return PerDoubleDQN(policy.get(make_env, "CnnPolicy"), make_env(), **arguments)


STEPS, EVERY = 480, 104


@pytest.mark.parametrize(
    ("make_env", "kwargs"),
    [
        (cartpole, {}),
        (cartpole, {"n_steps": 3, "replay_buffer_kwargs": {"single_frames": False}}),
        (cartpole, {"replay_buffer_kwargs": {"normalize_weights": "batch"}}),
        (cartpole, {"prioritized_replay": False}),
        (cartpole, {"prioritized_replay": False, "n_steps": 3}),
        (cartpole, {"replay_buffer_class": DeviceReplayBuffer}),
        (checked, {}),
        (normalized, {}),
        (dicts, {}),
        (goals, {"prioritized_replay": False, "replay_buffer_class": HerReplayBuffer}),
        (minatar, {"train_while_stepping": True}),
        (breakout, {}),
        (breakout, {"replay_buffer_class": DeviceReplayBuffer, "n_steps": 2}),
        (sticky, {"replay_buffer_kwargs": {"compress_frames": True}}),
    ],
)
def test_a_resumed_run_ends_as_one_that_never_stopped(
    make_env: Callable[[], VecEnv], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """TRAPS 24: the same weights, bit for bit, from any checkpoint."""
    model = make(make_env, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that environments start anew, say
        model.learn(STEPS, callback=RunCheckpoints(tmp_path / "a", EVERY, keep=99))
    model.get_env().close()
    steps = CheckpointFolder(tmp_path / "a").steps
    assert len(steps) == 4
    for step in (steps[0], steps[2]):
        shutil.copytree(tmp_path / "a", tmp_path / str(step))
        other = make(make_env, **kwargs)
        checkpoints = RunCheckpoints(tmp_path / str(step), EVERY)
        left = checkpoints.resume(other, step)
        assert other.num_timesteps == step
        assert left == STEPS - step
        other.learn(left, callback=checkpoints, reset_num_timesteps=False)
        other.get_env().close()
        assert fingerprint(other) == fingerprint(model)
        assert (other.num_timesteps, other._n_updates, other._n_calls) == (
            model.num_timesteps,
            model._n_updates,
            model._n_calls,
        )
        assert [info["r"] for info in other.ep_info_buffer] == [info["r"] for info in model.ep_info_buffer]


@pytest.mark.parametrize("make_env", [native, lambda: cartpole(vec_env_cls=SubprocVecEnv)])
def test_environments_whose_state_cannot_be_read_start_anew_in_both_runs(
    make_env: Callable[[], VecEnv], tmp_path: Path
) -> None:
    def run(folder: Path, resume: bool) -> PerDoubleDQN:
        policy = "CnnPolicy" if make_env is native else "MlpPolicy"
        env = make_env()
        settings: dict[str, Any] = {"learning_starts": 40, "buffer_size": 240, "batch_size": 8, "gradient_steps": 2}
        model = PerDoubleDQN(policy, env, seed=3, policy_kwargs={"net_arch": [16]}, device="cpu", **settings)
        checkpoints = RunCheckpoints(folder, EVERY, keep=99)
        left = checkpoints.resume(model, checkpoints.steps[1]) if resume else STEPS
        with pytest.warns(UserWarning, match="state of the environments cannot be saved .* start anew"):
            model.learn(left, callback=checkpoints, reset_num_timesteps=not resume)
        env.close()
        return model

    first = run(tmp_path, False)
    second = run(tmp_path, True)
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.filterwarnings("ignore:The state of the environments cannot be saved")
def test_statistics_go_on_where_environments_start_anew(tmp_path: Path) -> None:
    """Those of ``VecNormalize`` are of the whole run, and a ``reset()`` does not begin them anew."""
    model = make(normalized_elsewhere)
    model.learn(STEPS, callback=RunCheckpoints(tmp_path, EVERY, keep=99))
    other, checkpoints = make(normalized_elsewhere), RunCheckpoints(tmp_path, EVERY, keep=99)
    left = checkpoints.resume(other, checkpoints.steps[1])
    other.learn(left, callback=checkpoints, reset_num_timesteps=False)
    ours, theirs = (vars(each.get_vec_normalize_env()) for each in (model, other))
    for name in ("obs_rms", "ret_rms"):
        for part in ("count", "mean", "var"):
            np.testing.assert_array_equal(getattr(theirs[name], part), getattr(ours[name], part))
    assert fingerprint(other) == fingerprint(model)
    for each in (model, other):
        each.get_env().close()


class Counting(BaseCallback):
    """Counts, and has something that no state holds."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.file = open(os.devnull, "w")  # noqa: SIM115

    def _on_step(self) -> bool:
        self.seen += 1
        return True

    def _on_training_end(self) -> None:
        self.file.close()


def test_callbacks_and_logs_go_on(tmp_path: Path) -> None:
    """What a logger collected before the checkpoint counts in its next line; TensorBoard has no double."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def curve(folder: Path) -> list[tuple[int, float]]:
        (run,) = folder.iterdir()
        events = EventAccumulator(str(run)).Reload()
        return [(event.step, event.value) for event in events.Scalars("train/loss")]

    model = make(cartpole, tensorboard_log=str(tmp_path / "tb"))
    model.learn(STEPS, callback=[Counting(), RunCheckpoints(tmp_path / "a", EVERY, keep=99)], log_interval=3)
    whole = curve(tmp_path / "tb")
    assert len(whole) > 3
    for _ in range(2):  # the second time, what the first one wrote is removed
        other = make(cartpole, tensorboard_log=str(tmp_path / "tb"))
        counting, checkpoints = Counting(), RunCheckpoints(tmp_path / "a", EVERY, keep=99)
        left = checkpoints.resume(other, checkpoints.steps[1])
        with pytest.warns(UserWarning, match="Counting.file begins anew: state is a TextIOWrapper"):
            other.learn(left, callback=[counting, checkpoints], log_interval=3, reset_num_timesteps=False)
        assert counting.seen == STEPS // 2
        assert curve(tmp_path / "tb") == whole


def test_logs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Each is cut back to where it was; a list in which they cannot be found again is refused before."""
    logs = [tmp_path / name / "0.monitor.csv" for name in ("train", "eval")]
    for log, lines in zip(logs, (9, 2), strict=True):
        log.parent.mkdir()
        log.write_text("1,2\n" * lines)
    make(cartpole).learn(EVERY + 2, callback=RunCheckpoints(tmp_path / "a", EVERY, logs=logs))
    for log in logs:
        log.write_text(log.read_text() + "3,4\n" * 5)
    other = RunCheckpoints(tmp_path / "a", logs=logs[:1])
    with pytest.raises(CheckpointError, match=r"logs named \['0.monitor.csv', '0.monitor.csv'\].* the same order"):
        other.resume(make(cartpole))
    other.let_go()
    assert [len(log.read_text().splitlines()) for log in logs] == [14, 7]
    RunCheckpoints(tmp_path / "a", logs=logs).resume(make(cartpole))
    assert [log.read_text() for log in logs] == ["1,2\n" * 9, "1,2\n" * 2]


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, WorkerVecEnv])
def test_evaluations_go_on(vec_env_cls: Any, tmp_path: Path) -> None:
    """The best score, all scores so far, and the place at which the evaluation's own environments stood."""

    def evaluated(name: str) -> tuple[EvalCallback, Path]:
        env = make_vec_env("CartPole-v1", 2, seed=9, vec_env_cls=vec_env_cls)
        log = tmp_path / name
        return EvalCallback(env, n_eval_episodes=3, eval_freq=40, log_path=str(log), verbose=0), log

    callback, whole = evaluated("whole")
    make(cartpole).learn(STEPS, callback=[callback, RunCheckpoints(tmp_path / "a", 64, keep=99)])
    callback.eval_env.close()
    for step in (64, 320):  # before the first evaluation, and between two
        other, again = make(cartpole), RunCheckpoints(tmp_path / "a", 64, keep=99)
        left = again.resume(other, step)
        callback, log = evaluated(str(step))
        other.learn(left, callback=[callback, again], reset_num_timesteps=False)
        callback.eval_env.close()
        for name in ("timesteps", "results", "ep_lengths"):
            ours, theirs = (np.load(path / "evaluations.npz")[name] for path in (log, whole))
            np.testing.assert_array_equal(ours, theirs)


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a short run."""
    folder: Path = tmp_path_factory.mktemp("written")
    make(cartpole, buffer_size=80_000).learn(260, callback=RunCheckpoints(folder, 104))
    assert len(CheckpointFolder(folder).steps) == 2
    assert list((folder / "blocks").iterdir())
    return folder


def attempt(folder: Path) -> str:
    """:return: what is said when a run is to go on from there; nothing if it can"""
    model = make(cartpole, buffer_size=80_000)
    checkpoints = RunCheckpoints(folder)
    try:
        checkpoints.resume(model)
    except CheckpointError as error:
        return str(error)
    finally:
        checkpoints._lock.release()
    return ""


def test_what_was_written_can_be_read(written: Path) -> None:
    assert attempt(written) == ""
    assert {path.suffix for path in written.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".npy",
        ".lock",
        "",
    }
    assert b"\x80\x04" not in b"".join(
        path.read_bytes()[:2] for path in written.rglob("*") if path.is_file()
    )  # pickle's


def damaged(file: bytes, rng: random.Random) -> bytes:
    kind = rng.choice(["cut", "flip", "zeros", "insert", "swap"])
    at = rng.randrange(len(file))
    if kind == "cut":
        return file[:at]
    if kind == "flip":
        return file[:at] + bytes([file[at] ^ 1 << rng.randrange(8)]) + file[at + 1 :]
    if kind == "zeros":
        return file[:at] + bytes(min(64, len(file) - at)) + file[at + 64 :]
    if kind == "insert":
        return file[:at] + rng.randbytes(7) + file[at:]
    return file[at:] + file[:at]


def test_a_thousand_damaged_files(written: Path, tmp_path: Path) -> None:
    """Each is noticed and named; nothing crashes, and nothing that was not written is ever believed."""
    rng = random.Random(0)
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    _, whole = folder.read()
    newest = folder.path(folder.steps[-1])
    blocks = list(files._blocks_of(folder._read_tree(folder.steps[-1])["tree"]))
    targets = [newest / "tree.json", newest / "arrays.safetensors", folder.folder / "blocks" / f"{blocks[0]}.npy"]
    for _ in range(1000):
        target = rng.choice(targets)
        original = target.read_bytes()
        changed = damaged(original, rng)
        target.write_bytes(changed)
        try:
            if changed == original:
                continue
            with pytest.raises(CheckpointError, match=r"damaged|version|no checkpoint|missing"):
                folder.read()
        finally:
            target.write_bytes(original)
    assert json.dumps(whole, default=repr) == json.dumps(folder.read()[1], default=repr)


def signed(content: dict[str, Any]) -> bytes:
    text = json.dumps(content).encode()
    head = {"format": files.FORMAT, "version": files.VERSION, "sha256": hashlib.sha256(text).hexdigest()}
    return json.dumps(head).encode() + b"\n" + text


def hostile(part: Any, rng: random.Random) -> Any:
    """The same with one or more of its parts replaced by something else."""
    if rng.random() < 0.01:
        return rng.choice(
            [None, -1, 10**30, 1e400, "__import__('os').system('touch hacked')", [], {}, {"~": "object"}, "../../x"]
        )
    if isinstance(part, dict):
        return {key: hostile(value, rng) for key, value in part.items()}
    if isinstance(part, list):
        return [hostile(value, rng) for value in part]
    return part


def test_hostile_trees_with_the_right_checksum(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write files can write checksums: it is refused, or it is only numbers. No code of it runs."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(1)
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    step = folder.steps[-1]
    content = folder._read_tree(step)
    refused = 0
    model = make(cartpole, buffer_size=80_000)
    for _ in range(150):
        (folder.path(step) / "tree.json").write_bytes(signed(hostile(content, rng)))
        checkpoints = RunCheckpoints(folder.folder)
        try:
            checkpoints.resume(model)
        except CheckpointError:
            refused += 1
        finally:
            checkpoints._lock.release()
    assert refused > 75
    assert not (tmp_path / "hacked").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize("name", ["step_wait", "class_attributes"])
def test_a_state_puts_nothing_in_the_place_of_a_wrappers_method(name: str) -> None:
    env = checked()
    env.reset()
    env.step(np.zeros(env.num_envs, np.int64))
    tree = captured_environments(env)
    names = tree["layers"][0]["keys"]
    names[names.index("_actions")] = name
    with pytest.raises(StateError, match=r"VecCheckNan holds venv, .*, and the state is of something else"):
        restore_environments(checked(), tree)


@pytest.mark.parametrize("others", [[], ["touch hacked"] * 2])
def test_no_environment_is_put_away(others: list[Any]) -> None:
    env = make_vec_env("CartPole-v1", 2)
    env.reset()
    tree = captured_environments(env)
    games = list(env.envs)  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="there are 2 environments, and the state is of others"):
        restore_environments(env, {**tree, "games": {**tree["games"], "items": others}})
    assert env.envs == games  # type: ignore[attr-defined]
    restore_environments(env, tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(step=1), "is of another step"),
        (lambda content: content["tree"]["fit"].update(n_envs="7"), "is of another run: its n_envs is 7"),
        (lambda content: content["tree"].update(fit=None), "no checkpoint of a run"),
        (lambda content: content["tree"]["model"].update(learn=1), "learn is no part of a run"),
    ],
)
def test_what_is_wrong_is_said(written: Path, tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    content = folder._read_tree(folder.steps[-1])
    change(content)
    (folder.path(folder.steps[-1]) / "tree.json").write_bytes(signed(content))
    assert message in attempt(tmp_path / "copy")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 64, "/etc/passwd", "A" * 64])
def test_blocks_lie_in_the_folder(written: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    content = folder._read_tree(folder.steps[-1])
    text = json.dumps(content).replace(next(files._blocks_of(content["tree"])), name)
    (folder.path(folder.steps[-1]) / "tree.json").write_bytes(signed(json.loads(text)))
    assert "no name of a block" in attempt(tmp_path / "copy") or "missing" in attempt(tmp_path / "copy")


def test_a_block_of_another_shape(written: Path, tmp_path: Path) -> None:
    """It would be spread over all rows."""
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    content = folder._read_tree(folder.steps[-1])
    text = json.dumps(content).replace(next(files._blocks_of(content["tree"])), folder._write_block(np.zeros((1, 1))))
    (folder.path(folder.steps[-1]) / "tree.json").write_bytes(signed(json.loads(text)))
    assert "a block of shape (1, 1)" in attempt(tmp_path / "copy")


def test_links_are_not_followed(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "copy")
    file = CheckpointFolder(tmp_path / "copy").path(CheckpointFolder(tmp_path / "copy").steps[-1]) / "tree.json"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert "no ordinary file" in attempt(tmp_path / "copy")


@pytest.mark.parametrize("shape", [[], [0], [-1], [2.0], ["2"], {}])
def test_an_array_without_a_sound_shape_is_refused(tmp_path: Path, shape: Any) -> None:
    part = {"~": "large", "shape": shape, "dtype": "<f4", "rows": 1, "blocks": []}
    with pytest.raises(CheckpointError, match="an array of shape"):
        CheckpointFolder(tmp_path)._read_large(part)


@pytest.mark.parametrize("name", ["blocks", "step"])
def test_links_to_folders_are_not_followed(written: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    place = folder.folder / "blocks" if name == "blocks" else folder.path(folder.steps[-1])
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in attempt(tmp_path / "copy")


@pytest.mark.parametrize("name", ["blocks", ".lock"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Nor removed, and no step is made first."""
    (tmp_path / "elsewhere").mkdir()
    mine = tmp_path / "elsewhere" / "thesis.tex"
    mine.write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "elsewhere" if name == "blocks" else mine)
    model = make(cartpole)
    with pytest.raises(CheckpointError, match=f"{name} is a link: remove it"):
        model.learn(STEPS, callback=RunCheckpoints(folder, EVERY))
    with pytest.raises(CheckpointError, match=f"{name} is a link: remove it"):
        CheckpointFolder(folder).write(0, {})
    assert model.num_timesteps == 0
    assert mine.read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_damaged_block_says_what_to_do(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "copy")
    first, last = CheckpointFolder(tmp_path / "copy").steps
    for block in (tmp_path / "copy" / "blocks").iterdir():
        block.write_bytes(b"")
    said = attempt(tmp_path / "copy")
    assert "is damaged" in said
    assert f"{last:012d} to resume from step {first}" in said


@pytest.mark.parametrize("name", ["tree.json", "arrays.safetensors"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_missing_file_says_what_to_do(written: Path, tmp_path: Path, name: str, linked: bool) -> None:
    shutil.copytree(written, tmp_path / "copy")
    folder = CheckpointFolder(tmp_path / "copy")
    first, last = folder.steps
    file = (folder.path(last) / name).rename(tmp_path / "elsewhere")
    if linked:
        (folder.path(last) / name).symlink_to(file)
    said = attempt(tmp_path / "copy")
    assert f"{name} is missing, or no ordinary file. Delete {folder.path(last)} to resume from step {first}." in said


def test_an_older_version_and_another_format(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "copy")
    file = CheckpointFolder(tmp_path / "copy").path(CheckpointFolder(tmp_path / "copy").steps[-1]) / "tree.json"
    original = file.read_bytes()
    file.write_bytes(original.replace(f'"version": {files.VERSION}'.encode(), b'"version": 0', 1))
    assert f"format version 0, and this package reads {files.VERSION}" in attempt(tmp_path / "copy")
    file.write_bytes(original.replace(b"sb3-per-dqn checkpoint", b"something else", 1))
    assert "no checkpoint of sb3-per-dqn" in attempt(tmp_path / "copy")


def test_a_zip_of_sb3s_and_a_pickle_are_no_checkpoints(tmp_path: Path) -> None:
    model = make(cartpole)
    model.learn(60)
    folder = tmp_path / "checkpoints" / "step-000000000060"
    folder.mkdir(parents=True)
    model.save(folder / "model")
    (folder / "model.zip").rename(folder / "tree.json")
    assert "damaged" in attempt(tmp_path / "checkpoints")
    (folder / "tree.json").unlink()
    model.save_replay_buffer(folder / "buffer")
    (folder / "buffer.pkl").rename(folder / "tree.json")
    assert "damaged" in attempt(tmp_path / "checkpoints")
    assert "no checkpoint here" in attempt(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("kwargs", "what"),
    [
        ({"buffer_size": 300}, "replay_buffer"),
        ({"policy_kwargs": {"net_arch": [8]}}, "weights"),
        ({"prioritized_replay": False}, "replay_buffer"),
        ({"n_steps": 2}, "replay_buffer"),
    ],
)
def test_another_model_is_refused(written: Path, kwargs: dict[str, Any], what: str) -> None:
    model = make(cartpole, **{"buffer_size": 80_000, **kwargs})
    checkpoints = RunCheckpoints(written)
    with pytest.raises(CheckpointError, match=f"is of another run: its {what} is"):
        checkpoints.resume(model)
    checkpoints._lock.release()


def test_a_copy_of_the_weights_can_be_had_from_sb3s_zip_without_pickle(tmp_path: Path) -> None:
    """``set_parameters`` reads tensors alone, as the security notes say."""
    import torch as th

    model, other = make(cartpole), make(cartpole, seed=4)
    model.save(tmp_path / "model.zip")
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.zip") as archive, archive.open("policy.pth") as file:
        other.policy.load_state_dict(th.load(file, weights_only=True))
    assert fingerprint(other) == fingerprint(model)


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_run_on_the_cpu_leaves_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for the state of its generator would make CUDA ready, which takes memory, and in a fork is an error."""
    model = make(cartpole)
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "get_rng_state_all", lambda: pytest.fail("CUDA was made ready"))
    assert run._captured_random(model)["cuda"] == []


def test_generators_of_the_devices_that_are_there_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has fewer of them than the one before."""
    model, states = make(cartpole), [th.arange(16, dtype=th.uint8), th.arange(16, 32, dtype=th.uint8)]
    restored = {}
    with monkeypatch.context() as patch:
        patch.setattr(th.cuda, "is_available", lambda: True)
        patch.setattr(th.cuda, "is_initialized", lambda: True)
        patch.setattr(th.cuda, "get_rng_state_all", lambda: states)
        tree = run._captured_random(model)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(th.cuda, "set_rng_state", lambda state, device: restored.update({device: state.tolist()}))
    run._restore_random(model, tree)
    assert restored == {0: states[0].tolist()}


def test_old_checkpoints_go_and_so_do_their_blocks(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    ring, rng = np.zeros((1000, 5000), np.uint8), np.random.default_rng(0)
    written = 0
    for step in range(8):
        for _ in range(130):
            written += 1
            ring[written % 1000] = rng.integers(0, 255, 5000)
        ring[(written - 1) % 1000] = step  # rewritten, as the first frame of an episode is
        folder.write(step, {"~": "ring", "value": ring, "written": written})
        assert folder.steps == list(range(max(step - 1, 0), step + 1))
        assert (folder.read()[1]["value"] == ring).all()
        needed = {name for kept in folder.steps for name in files._blocks_of(folder._read_tree(kept)["tree"])}
        assert {path.stem for path in (tmp_path / "blocks").iterdir()} == needed


def test_what_is_no_block_stays_among_them(tmp_path: Path) -> None:
    folder, sha = CheckpointFolder(tmp_path), "0" * 64
    folder.write(0, {})
    blocks = tmp_path / "blocks"
    for name in ("thesis.tex", "thesis.npy", f"{sha}.npy", f".{sha}.7"):
        (blocks / name).touch()
    for name in ("notes", f"{'1' * 64}.npy"):
        (blocks / name).mkdir()
    folder.write(1, {})
    assert {path.name for path in blocks.iterdir()} == {"thesis.tex", "thesis.npy", "notes", f"{'1' * 64}.npy"}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_folder_for_checkpoints(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    model = make(cartpole)
    with pytest.raises(CheckpointError, match=f"{place} can hold no checkpoints .* choose another folder"):
        model.learn(STEPS, callback=RunCheckpoints(tmp_path / place))
    assert model.num_timesteps == 0


def test_of_a_large_ring_only_new_blocks_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 10_000)
    folder = CheckpointFolder(tmp_path)
    ring = np.random.default_rng(0).integers(0, 255, (1000, 2000), dtype=np.uint8)
    folder.write(0, {"~": "ring", "value": ring, "written": 5000})
    sizes = []
    monkeypatch.setattr(folder, "_write_block", lambda block: sizes.append(len(block)) or "0" * 64)
    for count in range(5001, 5101):
        ring[count % 1000] = 1
    folder.write(1, {"~": "ring", "value": ring, "written": 5100})
    assert 100 <= sum(sizes) <= 120


def test_a_row_that_ends_a_block_may_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 500)  # ten rows
    folder, rng = CheckpointFolder(tmp_path), np.random.default_rng(0)
    ring = RawFrames(100, 1, (50,), np.uint8)
    for step in range(120):  # a checkpoint after each row, so at the ends of blocks too
        ring.rewrite(step % 100, 0, rng.integers(0, 255, 50, dtype=np.uint8))
        ring.write((step + 1) % 100, rng.integers(0, 255, (1, 50), dtype=np.uint8))
        folder.write(step, captured(ring))
        assert (folder.read()[1]["value"]["value"] == ring._frames).all()


@pytest.mark.parametrize("kind", ["a reset between", "a store that moved"])
def test_no_old_block_is_taken_for_a_new_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were written anew, or that begin anywhere in the ring: what is read is what there is."""
    monkeypatch.setattr(files, "BLOCK", 2_000)
    folder, rng = CheckpointFolder(tmp_path), np.random.default_rng(0)
    ring = RawFrames(100, 1, (50,), np.uint8)
    at = 0 if kind == "a reset between" else 37
    for step, count in enumerate((60, 70, 5, 90, 230) if at == 0 else (120, 10, 15, 230)):
        if kind == "a reset between" and step == 1:
            ring = RawFrames(100, 1, (50,), np.uint8)
        for _ in range(count):
            at += 1
            ring.rewrite((at - 1) % 100, 0, rng.integers(0, 255, 50, dtype=np.uint8))
            ring.write(at % 100, rng.integers(0, 255, (1, 50), dtype=np.uint8))
        folder.write(step, captured(ring))
        assert (folder.read()[1]["value"]["value"] == ring._frames).all()


def test_a_full_disk_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, goes on, and tries again; the last checkpoint stays."""
    usage = namedtuple("usage", "free")
    room = iter([10**12, 5, 5, 10**12])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(next(room)))
    model = make(cartpole)
    with pytest.warns(UserWarning, match=r"No checkpoint at step 208: .* are free.*Going on; the last one is .*0104"):
        model.learn(STEPS, callback=RunCheckpoints(tmp_path, EVERY, keep=9))
    assert CheckpointFolder(tmp_path).steps == [104, 416]
    assert not list(tmp_path.glob(".step*"))


def test_a_state_that_cannot_be_read_ends_no_run(tmp_path: Path) -> None:
    model: Any = make(cartpole)
    model.replay_buffer.license = iter([])
    with pytest.warns(UserWarning, match=r"No checkpoint at step 104: \.license is a list_iterator"):
        model.learn(200, callback=RunCheckpoints(tmp_path, EVERY))
    assert model.num_timesteps == 200


class Spawning(gym.Env[Any, int]):
    """Makes objects as it goes on."""

    observation_space: Any = gym.spaces.Box(0, 1, (1,))
    action_space: Any = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.things: list[Any] = []
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.things.append(TimeLimit(self, 5))
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Finding(BaseCallback):
    """Has something only after a while."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Any = None

    def _on_step(self) -> bool:
        self.found = Spawning()
        return True


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, WorkerVecEnv])
def test_what_came_to_be_on_the_way_loses_no_run(vec_env_cls: Any, tmp_path: Path) -> None:
    """It cannot be made again: the environments, or that part of a callback, begin anew, and it is said."""

    def spawning() -> PerDoubleDQN:
        env = VecNormalize(make_vec_env(Spawning, 2, vec_env_cls=vec_env_cls))
        return PerDoubleDQN("MlpPolicy", env, batch_size=4, device="cpu")

    model: Any = spawning()
    model.learn(60, callback=[RunCheckpoints(tmp_path, 40), Finding()])
    other: Any = spawning()
    checkpoints = RunCheckpoints(tmp_path, 40)
    with pytest.warns(UserWarning, match=r"cannot be restored .*things\[0\] is a NoneType.* start anew here"):
        left = checkpoints.resume(other)
    with pytest.warns(UserWarning, match="Finding.found begins anew"):
        other.learn(left, callback=[checkpoints, Finding()], reset_num_timesteps=False)
    assert other.num_timesteps == model.num_timesteps
    counts = [each.get_vec_normalize_env().obs_rms.count for each in (model, other)]
    assert counts[1] == counts[0] + 2  # statistics go on; and two first observations more
    for each in (model, other):
        each.get_env().close()


def test_too_little_memory_for_a_checkpoint_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(files.safetensors.numpy, "save", too_little)
    with pytest.warns(UserWarning, match=r"No checkpoint at step 104: MemoryError\(\). Going on; there is none yet"):
        make(cartpole).learn(200, callback=RunCheckpoints(tmp_path, EVERY))
    assert not list(tmp_path.glob("*step*"))


def test_a_package_without_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from a checkout, say."""
    monkeypatch.setattr(run, "PACKAGES", ("no-such-package",))
    make(cartpole).learn(110, callback=RunCheckpoints(tmp_path, EVERY))
    assert RunCheckpoints(tmp_path).resume(make(cartpole)) == 6


def test_later_checkpoints_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while their files are removed, there is none that looks complete."""
    folder = CheckpointFolder(tmp_path, keep=9)
    for step in (1, 2):
        folder.write(step, {"x": np.zeros(3)})

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "tree.json").unlink()
            raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(SystemExit):
        folder.forget_after(1)
    assert folder.read()[0] == 1


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_an_error_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    model = make(cartpole)
    model.learn(220, callback=RunCheckpoints(tmp_path, EVERY))
    before = CheckpointFolder(tmp_path).read()[0]
    calls = 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")

    checkpoints = RunCheckpoints(tmp_path, EVERY)
    other = make(cartpole)
    left = checkpoints.resume(other)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.warns(UserWarning, match="No space left on device"):
        other.learn(min(left + 110, 200), callback=checkpoints, reset_num_timesteps=False)
    monkeypatch.undo()
    assert CheckpointFolder(tmp_path).read()[0] >= before
    assert not list(tmp_path.glob(".step*"))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    """Also one after the other, unless it is resumed."""
    first = RunCheckpoints(tmp_path, EVERY)
    first._claim()
    with pytest.raises(CheckpointError, match=r"another run that is still alive .* let_go\(\) of its RunCheckpoints"):
        make(cartpole).learn(100, callback=RunCheckpoints(tmp_path, EVERY))
    first._lock.release()
    make(cartpole).learn(220, callback=RunCheckpoints(tmp_path, EVERY))
    with pytest.raises(CheckpointError, match="holds the checkpoints of another run: resume it"):
        make(cartpole).learn(100, callback=RunCheckpoints(tmp_path, EVERY))


def test_a_model_learns_on_with_the_same_checkpoints(tmp_path: Path) -> None:
    """And a new run of it, from step 0, needs a folder of its own. Callbacks go on once."""
    model, checkpoints = make(cartpole), RunCheckpoints(tmp_path, EVERY, keep=9)
    model.learn(220, callback=checkpoints)
    model.learn(220, callback=checkpoints, reset_num_timesteps=False)
    assert checkpoints.steps == [104, 208, 312, 416]
    with pytest.raises(CheckpointError, match="of another run"):
        model.learn(220, callback=checkpoints)
    other, again, counting = make(cartpole), RunCheckpoints(tmp_path, EVERY, keep=9), Counting()
    left = again.resume(other, 312)
    other.learn(left, callback=[again], reset_num_timesteps=False)
    other.learn(100, callback=[again, counting], reset_num_timesteps=False)
    assert counting.seen == 52


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("every", True), ("every", 1.5), ("keep", 0), ("keep", "2")])
def test_bad_arguments(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r} must be a whole number"):
        RunCheckpoints(tmp_path / "x", **{name: value})
    assert not (tmp_path / "x").exists()


def test_whole_numbers_of_numpys_are_taken(tmp_path: Path) -> None:
    make(cartpole).learn(220, callback=RunCheckpoints(tmp_path, np.int64(104), keep=np.int64(1)))  # type: ignore[arg-type]
    assert CheckpointFolder(tmp_path).steps == [208]


def test_logs_may_be_texts(tmp_path: Path) -> None:
    log = tmp_path / "m.csv"
    log.write_text("1\n" * 3)
    make(cartpole).learn(EVERY + 2, callback=RunCheckpoints(tmp_path / "a", EVERY, logs=[str(log)]))
    log.write_text("1\n" * 7)
    RunCheckpoints(tmp_path / "a", logs=[str(log)]).resume(make(cartpole))
    assert log.read_text() == "1\n" * 3
    for one in (str(log), log):
        with pytest.raises(ValueError, match=r"^logs=.*m.csv.* must be a list of files: logs=\['.*m.csv'\]\.$"):
            RunCheckpoints(tmp_path / "b", logs=one)  # type: ignore[arg-type]


@pytest.mark.parametrize(("algorithm", "env_id"), [(SAC, "Pendulum-v1"), (PPO, "CartPole-v1")])
def test_other_algorithms_are_refused(tmp_path: Path, algorithm: Any, env_id: str) -> None:
    model, checkpoints = algorithm("MlpPolicy", env_id, device="cpu"), RunCheckpoints(tmp_path / "a")
    with pytest.raises(CheckpointError, match=f"for DQN and what is made like it, and not for {algorithm.__name__}"):
        model.learn(10, callback=checkpoints)
    with pytest.raises(CheckpointError, match="for DQN"):
        checkpoints.resume(model)
    assert model.num_timesteps == 0
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("listed", [False, True])
def test_inside_a_callback_that_tells_of_no_rollout_it_is_refused(tmp_path: Path, listed: bool) -> None:
    model, checkpoints = make(cartpole), RunCheckpoints(tmp_path, EVERY)
    inner = CallbackList([checkpoints]) if listed else checkpoints
    with pytest.raises(CheckpointError, match=r"in EveryNTimesteps, .* would write nothing: give it to learn\(\)"):
        model.learn(STEPS, callback=EveryNTimesteps(100, inner))
    assert model.num_timesteps == 0


class Failing(BaseCallback):
    """Ends training with an exception, as an environment may."""

    goes_on = False

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            raise RuntimeError("a cable was pulled")
        return True


def test_a_run_is_tried_again_in_one_process(tmp_path: Path) -> None:
    """Also while the first try, which nothing refers to any more, was not collected yet."""

    def run(fails_at: int) -> int:
        model, checkpoints = make(cartpole), RunCheckpoints(tmp_path, EVERY)
        resuming = bool(checkpoints.steps)
        left = checkpoints.resume(model) if resuming else STEPS
        model.learn(left, callback=[checkpoints, Failing(fails_at)], reset_num_timesteps=not resuming)
        return model.num_timesteps

    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            run(EVERY + 10)
        assert run(0) == STEPS
    finally:
        gc.enable()


def test_plain_dqn_has_checkpoints_too(tmp_path: Path) -> None:
    def dqn() -> DQN:
        return DQN("MlpPolicy", cartpole(), learning_starts=40, buffer_size=240, batch_size=8, seed=3, device="cpu")

    model: Any = dqn().learn(STEPS, callback=RunCheckpoints(tmp_path, EVERY, keep=9))
    other: Any = dqn()
    checkpoints = RunCheckpoints(tmp_path, EVERY)
    other.learn(checkpoints.resume(other, 208), callback=checkpoints, reset_num_timesteps=False)
    assert fingerprint(other) == fingerprint(model)


# --------------------------------------------------------------------------------------------------------------- kills

KILLS = int(os.environ.get("KILLS", "10"))
RUN = """
import sys
import torch as th
from tests import test_checkpoint
from sb3_per_dqn.checkpoint import RunCheckpoints

th.set_num_threads(1)
folder, game, buffer_size, steps, every = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = test_checkpoint.make(getattr(test_checkpoint, game), buffer_size=buffer_size)
checkpoints = RunCheckpoints(folder, every)
resuming = bool(checkpoints.steps)
left = checkpoints.resume(model) if resuming else steps
print("begins", flush=True)
model.learn(left, callback=checkpoints, reset_num_timesteps=not resuming)
print(test_checkpoint.fingerprint(model), flush=True)
model.get_env().close()
"""


@pytest.mark.parametrize(
    ("game", "sizes", "kills", "most_seconds"),
    [
        ("cartpole", (20_000, 6000, 96), KILLS, 0.6),
        ("minatar", (2000, 2000, 96), max(KILLS // 10, 1), 2.0),
        ("breakout_of_eight", (2000, 960, 160), max(KILLS // 10, 1), 4.0),
    ],
)
def test_kills_at_random_instants(
    game: str, sizes: tuple[int, ...], kills: int, most_seconds: float, tmp_path: Path
) -> None:
    """
    One run, killed again and again (often while a checkpoint is written), ends as one that was left alone, and its
    workers do not outlive it.
    """

    def command(folder: str) -> list[str]:
        return [sys.executable, "-c", RUN, str(tmp_path / folder), game, *map(str, sizes)]

    expected = subprocess.run(command("whole"), capture_output=True, text=True, check=True)
    rng = random.Random(0)
    killed = 0
    while True:
        process = subprocess.Popen(command("killed"), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        if killed == kills:
            break
        workers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(rng.uniform(0.0, most_seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert psutil.wait_procs(workers, timeout=20)[1] == []
        killed += 1
    assert process.communicate()[0].split() == expected.stdout.split()[1:]
    assert not list((tmp_path / "killed").glob(".step*"))
