"""Files that are there as a whole or not at all: models, replay buffers, settings of runs, scores."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import DQN

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.run_settings import RunSettings
from sb3_per_dqn.score import Score

SCORE = Score(mean=1.0, std=0.5, games=2, deterministic=True, steps=3)


def make(seed: int = 0) -> PerDoubleDQN:
    return PerDoubleDQN("MlpPolicy", "CartPole-v1", buffer_size=10, seed=seed, device="cpu")


def save_model(folder: Path) -> None:
    make().save(folder / "model.zip")


def save_replay_buffer(folder: Path) -> None:
    make().save_replay_buffer(folder / "buffer")


def save_score(folder: Path) -> None:
    SCORE.write(folder)


def save_settings(folder: Path) -> None:
    (folder / "original.yml").write_text("CartPole-v1: {}")
    RunSettings().save(
        argparse.Namespace(
            save_path=str(folder), config=str(folder / "original.yml"), tensorboard_log=None, algo="per_ddqn",
            env_name=argparse.Namespace(gym_id="CartPole-v1"), seed=1, checkpoints=None, trained_agent="",
            storage=None,
        )
    )  # fmt: skip


WRITERS = {
    "model.zip": save_model,
    "buffer.pkl": save_replay_buffer,
    "score.json": save_score,
    "run.json": save_settings,
    "conf.yml": save_settings,
}


@pytest.fixture(params=WRITERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_file_is_on_the_disk_before_it_has_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its contents before the rename, its name in the folder after it."""
    events: list[Any] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def note_replace(source: Any, target: Any, **kwargs: Any) -> None:
        events.append(Path(target).name)
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    WRITERS[name](tmp_path)
    at = events.index(name)
    assert (tmp_path / name).stat().st_ino in events[:at]
    assert tmp_path.stat().st_ino in events[at:]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_was_there_stays_when_writing_fails(
    failing: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("before")
    (tmp_path / "original.yml").touch()
    there = sorted(os.listdir(tmp_path))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](tmp_path)
    assert (tmp_path / name).read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == there


def test_a_folder_with_the_name_of_a_model_stands_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``model`` is a folder, and what is written is ``model.zip``."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model.zip").write_text("before")
    seen: list[str] = []
    at_the_end_of_writing(monkeypatch, lambda: seen.append((tmp_path / "model.zip").read_text("latin-1")))
    make().save(tmp_path / "model")
    assert seen == ["before"]
    assert PerDoubleDQN.load(tmp_path / "model.zip", device="cpu").num_timesteps == 0
    assert sorted(os.listdir(tmp_path)) == ["model", "model.zip"]


def test_a_folder_in_the_place_of_a_model_stays(tmp_path: Path) -> None:
    (tmp_path / "model.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        make().save(tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == ["model.zip", "model.zip_2"]


def at_the_end_of_writing(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Once, when SB3 has written a model, and before it has its name."""
    save, todo = DQN.save, [meanwhile]

    def save_and_do(self: DQN, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        if todo:
            todo.pop()()

    monkeypatch.setattr(DQN, "save", save_and_do)


def test_two_that_save_to_one_path_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another saves there from beginning to end, while the first one has not finished."""
    first, second, path = make(1), make(2), tmp_path / "model.zip"
    seen: list[PerDoubleDQN] = []

    def save_another() -> None:
        second.save(path)
        seen.append(PerDoubleDQN.load(path, device="cpu"))

    at_the_end_of_writing(monkeypatch, save_another)
    first.save(path)
    for model, loaded in ((second, seen[0]), (first, PerDoubleDQN.load(path, device="cpu"))):
        weights = loaded.policy.state_dict()
        assert all(th.equal(value, weights[key]) for key, value in model.policy.state_dict().items())
    assert os.listdir(tmp_path) == ["model.zip"]


def test_settings_of_a_run_can_be_read_again(tmp_path: Path) -> None:
    save_settings(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["conf"] == "conf.yml"
    assert (tmp_path / "conf.yml").read_text() == "CartPole-v1: {}"
    assert sorted(os.listdir(tmp_path)) == ["conf.yml", "original.yml", "run.json"]
