"""The command that makes a model folder of a run."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize

from sb3_per_dqn import PerDoubleDQN, load_model
from tests.command_line import CARTPOLE_PARAMS, SHORT_CARTPOLE, Run, assert_one_line, run_main
from tests.shared_models import assert_same, cartpole, export
from tests.shared_models import trained as trained  # a fixture


def test_a_run_is_exported(trained: Run, tmp_path: Path) -> None:
    run = export(trained, tmp_path / "shared")
    assert run.status == 0, run.err
    model = PerDoubleDQN.load(trained.folder / "CartPole-v1.zip", device="cpu")
    assert_same(model, load_model(tmp_path / "shared", "CartPole-v1", "cpu"))
    score = json.loads((trained.folder / "score.json").read_text())
    results = json.loads((tmp_path / "shared" / "results.json").read_text())
    assert (results["mean_reward"], results["n_eval_episodes"]) == (score["mean"], score["games"])
    said = trained.out.strip().splitlines()[-1]
    assert f"score: {results['mean_reward']:.2f} +/- {results['std_reward']:.2f} over 10 full games" in said
    assert f"score: {results['mean_reward']:.2f}" in run.out
    for name, original in (("learning_curves.png", "learning_curves.png"), ("replay.mp4", "videos/full-game.mp4")):
        assert (tmp_path / "shared" / name).read_bytes() == (trained.folder / original).read_bytes()
    assert "![learning curves](learning_curves.png)" in (tmp_path / "shared" / "README.md").read_text()


def test_the_score_can_be_measured_anew(trained: Run, tmp_path: Path) -> None:
    run = export(trained, tmp_path / "shared", "--games", "2")
    assert run.status == 0, run.err
    assert json.loads((tmp_path / "shared" / "results.json").read_text())["n_eval_episodes"] == 2


def test_a_run_without_score_curves_and_video(trained: Run, tmp_path: Path) -> None:
    """As one that was interrupted."""
    shutil.copytree(trained.logs, tmp_path / "logs")
    run = Run(0, "", "", tmp_path / "logs", "CartPole-v1")
    for name in ("score.json", "learning_curves.png", "videos/full-game.mp4"):
        (run.folder / name).unlink()
    done = export(run, tmp_path / "shared")
    assert done.status == 0, done.err
    assert "plot: none; video: none" in done.out
    assert sorted(os.listdir(tmp_path / "shared")) == ["README.md", "config.json", "model.safetensors", "results.json"]
    (run.folder / "score.json").write_text("{}")
    assert_one_line(export(run, tmp_path / "other"), "score.json", "damaged")


def test_a_normalized_run(tmp_path: Path) -> None:
    params = [*CARTPOLE_PARAMS, "normalize:True"]
    train = run_main(
        "train", *SHORT_CARTPOLE, "--eval-freq", "-1", *params, logs=tmp_path / "logs", env_id="CartPole-v1"
    )
    assert train.status == 0, train.err
    run = export(train, tmp_path / "shared")
    assert run.status == 0, run.err
    model = load_model(tmp_path / "shared", "CartPole-v1", "cpu")
    statistics = train.folder / "CartPole-v1" / "vecnormalize.pkl"
    original = VecNormalize.load(str(statistics), cartpole())
    mine = model.get_vec_normalize_env()
    assert mine is not None
    assert (mine.training, mine.norm_reward, mine.clip_obs) == (True, original.norm_reward, original.clip_obs)
    np.testing.assert_array_equal(mine.obs_rms.mean, original.obs_rms.mean)
    np.testing.assert_array_equal(mine.obs_rms.var, original.obs_rms.var)
    assert mine.obs_rms.count == original.obs_rms.count


def test_bad_arguments_are_one_line_and_leave_nothing(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert_one_line(export(trained, tmp_path / "full"), "full", "not empty")
    assert_one_line(export(trained, tmp_path / "full" / "mine" / "shared"), "--to", "mine")
    assert_one_line(export(trained, tmp_path / "shared", "--games", "0"), "--games=0")
    assert_one_line(export(trained, tmp_path / "shared", "--exp-id", "9"), "CartPole-v1_9")
    assert_one_line(run_main("export", "--env", "CartPole-v2", "--to", "x", logs=trained.logs), "CartPole-v2")
    assert run_main("export", logs=trained.logs).status == 2
    assert sorted(os.listdir(tmp_path)) == ["full"]
