"""Small model folders, and the command that plays a folder: what it shows, and whose code it runs."""

import copy
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch as th
from huggingface_hub import ModelCard
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_per_dqn import PerDoubleDQN, atari, export_model, load_model, watch
from sb3_per_dqn.minatar import MinAtarPolicy
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing import EnvironmentSettings, ModelFolderError
from sb3_per_dqn.sharing.small import MOST_PICTURE, round_weights
from sb3_per_dqn.sharing.trust import trusted_environment
from sb3_per_dqn.zoo import GAME_WRAPPER, finished
from tests.command_line import Run, assert_one_line, frames, run_main
from tests.shared_models import (
    HUGE,
    add,
    arguments_with,
    breakout,
    cartpole,
    change_tensor,
    corridors,
    dicts,
    edit,
    export,
    make,
    minatar,
    nothing_runs,
    observations,
    trained,
    truncate,
)

__all__ = ["corridors", "nothing_runs", "trained"]  # fixtures
BREAKOUT = "BreakoutNoFrameskip-v4"
OF_BREAKOUT = EnvironmentSettings(wrappers=((GAME_WRAPPER, {}),), frame_stack=4)


def rounded(model: PerDoubleDQN) -> dict[str, th.Tensor]:
    """What comes back, by another way than the package's."""
    weights = {name: th.from_numpy(value.numpy().astype(np.float16).astype(np.float32))
               for name, value in model.q_net.state_dict().items()}  # fmt: skip
    return {f"{network}.{name}": value for network in ("q_net", "q_net_target") for name, value in weights.items()}


# ------------------------------------------------------------------------------------------------------------ the files

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": (cartpole, {}),
    "not dueling": (cartpole, {"policy_kwargs": {"dueling": False}}),
    "multi-input": (dicts, {"policy": "MultiInputPolicy"}),
    "minatar": (minatar, {"policy": MinAtarPolicy}),
}


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_small_folder_is_the_model_rounded(name: str, tmp_path: Path) -> None:
    make_env, arguments = MODELS[name]
    model = make(make_env, **arguments)
    before = copy.deepcopy(model.policy.state_dict())
    folder = export_model(model, tmp_path / "small", env_id="some-env", small=True)
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    assert tensors.keys() == {f"q_net.{name}" for name in model.q_net.state_dict()}
    assert {value.dtype for value in tensors.values()} == {th.float16}
    assert json.loads((folder / "config.json").read_text())["small"] is True

    loaded, expected = load_model(folder, make_env(), "cpu"), rounded(model)
    weights = loaded.policy.state_dict()
    assert weights.keys() == expected.keys()
    assert {value.dtype for value in weights.values()} == {th.float32}
    assert all(th.equal(weights[name], expected[name]) for name in expected)
    assert any(not th.equal(weights[name], before[name]) for name in expected)
    model.policy.load_state_dict(expected)
    seen = observations(model)
    actions = model.predict(seen, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], actions)
    loaded.learn(64)
    assert loaded._n_updates > model._n_updates


def test_rounding_a_model_is_what_loading_does(tmp_path: Path) -> None:
    model = make()
    expected = rounded(model)
    round_weights(model.policy)
    assert all(th.equal(expected[name], value) for name, value in model.policy.state_dict().items())
    assert model.q_net.state_dict().keys() == model.q_net_target.state_dict().keys()
    online, target = (next(network.parameters()) for network in (model.q_net, model.q_net_target))
    assert online.data_ptr() != target.data_ptr()


def picture(path: Path) -> Path:
    """Of more than is let through: dots of many colours."""
    dots = np.random.default_rng(0).integers(0, 255, (800, 1500, 3), np.uint8)
    Image.fromarray(dots).save(path)
    return path


def test_breakout_in_four_megabytes(tmp_path: Path) -> None:
    model = PerDoubleDQN("CnnPolicy", breakout(), buffer_size=10, policy_kwargs={"net_arch": [256]}, device="cpu")
    score = Score(mean=1.0, std=0.0, games=10, deterministic=True, steps=32_000_000)
    curve = picture(tmp_path / "curve.png")
    settings = {"env_id": BREAKOUT, "environment": OF_BREAKOUT, "score": score, "curve": curve, "small": True}
    folder = export_model(model, tmp_path / "small", **settings)
    assert sum(value.numel() for value in model.q_net.parameters()) == 1_948_069
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    assert curve.stat().st_size > 10 * MOST_PICTURE >= 10 * (folder / "learning_curves.png").stat().st_size
    shown = cv2.imread(str(folder / "learning_curves.png"))
    assert shown is not None
    assert shown.shape[0] / shown.shape[1] == pytest.approx(800 / 1500, rel=0.01)
    assert "half precision" in ModelCard.load(folder / "README.md").text
    curve.write_text("no picture")
    with pytest.raises(ModelFolderError, match=r"curve=.*is no picture"):
        export_model(model, tmp_path / "other", **settings)
    assert sorted(os.listdir(tmp_path)) == ["curve.png", "small"]


@pytest.mark.parametrize("value", [65520.0, -1e5, float("nan"), float("inf")])
def test_what_float16_cannot_hold_is_refused(value: float, tmp_path: Path) -> None:
    model = make()
    with th.no_grad():
        model.q_net.value_net[0].bias[0] = value
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(ModelFolderError, match=r"q_net\.value_net\.0\.bias"):
        export_model(model, tmp_path / "small", env_id="CartPole-v1", small=True)
    with pytest.raises(ModelFolderError, match=r"small: q_net\.value_net\.0\.bias .* 65504: leave small out"):
        round_weights(model.policy)
    for name, weights in model.policy.state_dict().items():
        np.testing.assert_array_equal(weights, before[name])
    assert os.listdir(tmp_path) == []
    if np.isfinite(value):
        assert export_model(model, tmp_path / "full", env_id="CartPole-v1").is_dir()


def widen_dtype(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net.value_net.0.weight"] = tensors["q_net.value_net.0.weight"].float()


def poison(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net.value_net.0.weight"][0, 0] = float("nan")


def lose(tensors: dict[str, th.Tensor]) -> None:
    del tensors["q_net.advantage_net.0.bias"]


def add_target(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net_target.value_net.0.weight"] = tensors["q_net.value_net.0.weight"].clone()


DAMAGES: dict[str, tuple[Any, str]] = {
    "truncated": (truncate, "is damaged: its checksum"),
    "a float32": (lambda f: change_tensor(f, widen_dtype), r"q_net\.value_net\.0\.weight is .*float32.*float16"),
    "not finite": (lambda f: change_tensor(f, poison), r"q_net\.value_net\.0\.weight is not finite"),
    "one too few": (lambda f: change_tensor(f, lose), r"q_net\.advantage_net\.0\.bias is missing"),
    "one too many": (lambda f: change_tensor(f, add), "more is .* and nothing"),
    "a target network": (lambda f: change_tensor(f, add_target), r"q_net_target\.value_net\.0\.weight is .*nothing"),
    "said to be whole": (lambda f: edit(f, small=False), r"q_net.* is .*float16.*float32"),
    "neither": (lambda f: edit(f, small="yes"), "small='yes' is neither true nor false"),
    "a huge network": (lambda f: arguments_with(f, policy_kwargs={"net_arch": HUGE}), r"\(1000000"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_of_a_small_folder_is_refused(name: str, tmp_path: Path, nothing_runs: None) -> None:
    damage, words = DAMAGES[name]
    folder = export_model(make(), tmp_path / "small", env_id="CartPole-v1", small=True)
    damage(folder)
    with pytest.raises(ModelFolderError, match=words):
        load_model(folder, cartpole(), device="cpu")


def test_a_whole_folder_is_not_said_to_be_small(tmp_path: Path) -> None:
    folder = export_model(make(), tmp_path / "whole", env_id="CartPole-v1")
    edit(folder, small=True)
    with pytest.raises(ModelFolderError, match="float32"):
        load_model(folder, cartpole(), "cpu")


def test_the_score_of_a_small_folder_is_its_own(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured with the weights that are written."""
    scored = []
    measured = finished.measured

    def remember(model: PerDoubleDQN, *args: Any, **kwargs: Any) -> Score:
        scored.append(copy.deepcopy(model.policy.state_dict()))
        return measured(model, *args, **kwargs)

    monkeypatch.setattr("sb3_per_dqn.export.measured", remember)
    run = export(trained, tmp_path / "small", "--small", "--games", "2")
    assert run.status == 0, run.err
    weights = load_model(tmp_path / "small", device="cpu").policy.state_dict()
    assert all(th.equal(scored[0][name], weights[name]) for name in weights)
    files = ["README.md", "config.json", "learning_curves.png", "model.safetensors", "results.json"]
    assert sorted(os.listdir(tmp_path / "small")) == files
    size = sum(file.stat().st_size for file in (tmp_path / "small").iterdir()) / 1e6
    assert f"({size:.2f} MB)" in run.out
    assert run.out.strip().endswith("video: none")
    assert export(trained, tmp_path / "film", "--small", "--with-video", "--games", "1").status == 0
    assert sorted([*files, "replay.mp4"]) == sorted(os.listdir(tmp_path / "film"))


# ------------------------------------------------------------------------------------------------------------- watching


def watched(folder: Path, *arguments: str) -> Run:
    return run_main("watch", str(folder), "--device", "cpu", *arguments)


def returns(run: Run) -> list[float]:
    assert run.status == 0, run.err
    *games, last = run.out.strip().splitlines()
    found = [float(line.split(": ")[1]) for line in games if line.startswith("game ")]
    word, _, mean = last.partition(": ")
    assert word == "mean"
    assert f"{np.mean(found):.2f} +/- {np.std(found):.2f} over {len(found)} full game" in mean
    return found


def models_that_are_loaded(monkeypatch: pytest.MonkeyPatch) -> list[PerDoubleDQN]:
    models = []

    def load(*args: Any, **kwargs: Any) -> PerDoubleDQN:
        models.append(load_model(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr(watch, "load_model", load)
    return models


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(make(), tmp_path_factory.mktemp("pole") / "shared", env_id="CartPole-v1", small=True)


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"env_id": BREAKOUT, "environment": OF_BREAKOUT, "small": True}
    return export_model(make(breakout, "CnnPolicy"), tmp_path_factory.mktemp("game") / "shared", **settings)


def test_games_are_told_and_their_mean(pole: Path) -> None:
    found = returns(watched(pole, "--no-render", "--games", "4"))
    assert len(found) == 4
    model = load_model(pole, cartpole(), "cpu", seed=7)
    env = watch.create_evaluation_env("CartPole-v1", seed=7, should_render=False)
    expected, _ = evaluate_policy(model, env, 4, return_episode_rewards=True)
    seven = returns(watched(pole, "--no-render", "--games", "4", "--seed", "7"))
    assert seven == expected == returns(watched(pole, "--no-render", "--games", "4", "--seed", "7"))
    assert seven != found


def test_breakout_is_filmed(game: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 200)
    loaded = models_that_are_loaded(monkeypatch)
    video = tmp_path / "new" / "game.mp4"
    run = watched(game, "--video", str(video), "--games", "2")
    assert len(returns(run)) == 2
    assert run.out.strip().endswith(f"; video: {video}")
    assert os.listdir(tmp_path / "new") == ["game.mp4"]
    assert 20 <= frames(video) <= 52  # 200 emulator frames of the first game, less those before the first action
    first = cv2.VideoCapture(str(video)).read()[1]
    assert first.shape == (210, 160, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 5  # bricks
    assert loaded[0].buffer_size == 1
    assert loaded[0].get_env().get_attr("evaluation") == [True]


def test_a_video_is_there_as_a_whole_or_not(pole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.mp4").write_text("old")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "measured", interrupt)
    assert watched(pole, "--video", str(tmp_path / "old.mp4")).status == 130
    assert (tmp_path / "old.mp4").read_text() == "old"
    monkeypatch.undo()
    monkeypatch.setattr(watch.shutil, "copyfile", lambda source, to: (Path(to).write_text("half"), 1 / 0))
    assert watched(pole, "--video", str(tmp_path / "old.mp4"), "--games", "1").status == 2
    assert os.listdir(tmp_path) == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_text() == "old"


def test_a_window(pole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in watch.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert_one_line(watched(pole), "no display", "--no-render", "--video FILE.mp4")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    modes = []
    make_env = watch.create_evaluation_env

    def remember(*args: Any, **kwargs: Any) -> Any:
        env = make_env(*args, **kwargs)
        modes.append(env.render_mode)
        return env

    monkeypatch.setattr(watch, "create_evaluation_env", remember)
    assert len(returns(watched(pole, "--games", "1"))) == 1
    assert modes == ["human"]


def test_normalization_is_the_folders_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(lambda: VecNormalize(cartpole(), norm_reward=True))
    folder = export_model(model, tmp_path / "shared", env_id="CartPole-v1")
    loaded = models_that_are_loaded(monkeypatch)
    found = returns(watched(folder, "--no-render"))
    assert all(value == int(value) >= 8 for value in found)  # a pole's steps, and no normalized rewards
    mine, other = model.get_vec_normalize_env(), loaded[0].get_vec_normalize_env()
    assert mine is not None
    assert other.obs_rms.count == mine.obs_rms.count


def test_bad_arguments_are_one_line(pole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for arguments, words in (
        (["--games", "0"], "--games=0 must be 1 or more"),
        (["--seed", "-1"], "--seed=-1 must be from 0 to 4294967295"),
        (["--device", "nonsense"], "--device=nonsense is no device"),
        (["--video", "game.gif"], "--video=game.gif must be the name of a file that ends in .mp4"),
        (["--video", str(tmp_path / "folder.mp4")], "must be the name of a file"),
        (["--video", str(tmp_path / "file" / "x.mp4")], "choose another with --video"),
        (["--video", "x.mp4", "--no-render"], "leave one out"),
        (["--gym-packages", "no_such_package"], "no_such_package"),
    ):
        assert_one_line(watched(pole, *(["--no-render"] if "--video" not in arguments else []), *arguments), words)
    assert_one_line(watched(tmp_path, "--no-render"), "config.json is missing")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


# ----------------------------------------------------------------------------------------------------------- whose code


def shared(folder: Path, env_id: str = "CartPole-v1", **settings: Any) -> Path:
    return export_model(make(), folder, env_id=env_id, environment=EnvironmentSettings(**settings))


def test_others_environments_and_wrappers_are_the_users_decision(
    corridors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(corridors)
    model = make(lambda: make_vec_env(module.Corridor, 2))
    environment = EnvironmentSettings(
        packages=(corridors,), kwargs={"length": 7, "bounds": (0, 1)}, wrappers=(("corridors.Scaled", {"factor": 3.0}),)
    )
    folder = export_model(model, tmp_path / "shared", env_id="Corridor-v0", environment=environment)
    spec = gym.registry.pop("Corridor-v0")
    monkeypatch.delitem(sys.modules, corridors)
    assert_one_line(
        watched(folder, "--no-render"), "'Corridor-v0' is not known", "--gym-packages corridors", "README.md"
    )
    assert corridors not in sys.modules
    gym.registry["Corridor-v0"] = spec
    assert_one_line(
        watched(folder, "--no-render"), "an environment of 'corridors'", "--gym-packages corridors", "README.md"
    )
    edit(folder, env_id="CartPole-v1")
    assert_one_line(
        watched(folder, "--no-render"), "the wrapper 'corridors.Scaled'", "--gym-packages corridors", "README.md"
    )
    assert corridors not in sys.modules
    edit(folder, env_id="Corridor-v0")
    assert len(returns(watched(folder, "--no-render", "--games", "2", "--gym-packages", corridors))) == 2
    assert_one_line(
        watched(folder, "--video", str(tmp_path / "x.mp4"), "--gym-packages", corridors), "no render_mode 'rgb_"
    )
    for name in ("corridors.VecEnvWrapper", "corridors.gym", "corridors.Nothing", "corridors.Corridor"):
        record = json.loads((folder / "config.json").read_text())["environment"]
        edit(folder, environment={**record, "wrappers": [{"name": name, "kwargs": {}}]})
        assert_one_line(watched(folder, "--no-render", "--gym-packages", corridors), f"{name!r} is no Wrapper")


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a module in the id": ({"env_id": "antigravity:CartPole-v1"}, "is not known to gymnasium"),
    "no id": ({"env_id": ["CartPole-v1"]}, "is not known to gymnasium"),
    "a module for a wrapper": ({"wrappers": [{"name": "antigravity.x", "kwargs": {}}]}, "the wrapper 'antigravity.x'"),
    "a function": ({"wrappers": [{"name": "os.system", "kwargs": {}}]}, "the wrapper 'os.system'"),
    "one that writes": (
        {"wrappers": [{"name": "gymnasium.wrappers.RecordVideo", "kwargs": {"video_folder": "hacked"}}]},
        "the wrapper 'gymnasium.wrappers.RecordVideo'",
    ),
    "one that logs": (
        {"vec_wrappers": [{"name": "stable_baselines3.common.vec_env.vec_monitor.VecMonitor", "kwargs": {}}]},
        "VecMonitor",
    ),
    "one of the other kind": (
        {"vec_wrappers": [{"name": GAME_WRAPPER, "kwargs": {}}]}, "AtariGameWrapper' is not among"
    ),
    "no list": ({"wrappers": "os.system"}, "nothing that this package writes"),
    "no name": ({"wrappers": [{"name": "a b", "kwargs": {}}]}, "is no name"),
    "more than it has": ({"wrappers": [{"name": "a.b", "kwargs": {}, "more": 1}]}, "nothing that this package writes"),
    "a class": ({"kwargs": {"x": {"~": "class", "name": "os.system"}}}, "os.system"),
    "a kind of ours": ({"kwargs": {"x": {"~": "class", "name": "ReLU"}}}, "'ReLU'"),
    "a schedule": (
        {"kwargs": {"x": {"~": "schedule", "endpoints": [[0, 1], [1, 0]], "outside_value": None}}}, "schedule in it"
    ),
    "an argument that it has not": ({"kwargs": {"goal": 1}}, "CartPole-v1 cannot be made as config.json says"),
    "a huge stack": ({"frame_stack": 10**9}, "frame_stack=1000000000"),
    "no number": ({"frame_stack": True}, "nothing that this package writes"),
    "a text": ({"frame_stack": "4"}, "frame_stack='4' must be None or a whole number"),
    "no record": ({"environment": 3}, "nothing that this package writes"),
    "no space": ({"environment": None, "observation_space": 3}, "nothing that this package writes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_one_line(
    name: str, pole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_runs: None
) -> None:
    changes, words = HOSTILE[name]
    folder = shared(tmp_path / "shared")
    record = json.loads((folder / "config.json").read_text())["environment"]
    top = {key: value for key, value in changes.items() if key not in record}
    inside = {key: value for key, value in changes.items() if key in record}
    edit(folder, **{"environment": {**record, **inside}, **top})
    monkeypatch.chdir(tmp_path)
    assert_one_line(watched(folder, "--no-render", "--games", "1"), words, str(folder))
    assert os.listdir() == ["shared"]
    assert "antigravity" not in sys.modules


@pytest.fixture
def record(pole: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((pole / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    "name",
    [
        "gymnasium.wrappers.FlattenObservation",
        "gymnasium.wrappers.transform_observation.FlattenObservation",
        "stable_baselines3.common.atari_wrappers.ClipRewardEnv",
        "sb3_per_dqn.minatar.ChannelFirst",
    ],
)
def test_names_that_are_followed(name: str, record: dict[str, Any]) -> None:
    settings = EnvironmentSettings(wrappers=((name, {}),), kwargs={"x": (1, float("inf"))}, frame_stack=4)
    plain = json.loads(json.dumps(settings.to_plain()))
    assert EnvironmentSettings.from_plain(plain) == settings
    assert trusted_environment({**record, "environment": plain}) == ("CartPole-v1", settings)


def test_a_wrapper_of_gymnasium_is_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = models_that_are_loaded(monkeypatch)
    folder = shared(tmp_path / "shared", wrappers=(("gymnasium.wrappers.ReshapeObservation", {"shape": (4,)}),))
    assert len(returns(watched(folder, "--no-render"))) == 3
    env = loaded[0].get_env()
    assert env is not None
    assert env.env_is_wrapped(gym.wrappers.ReshapeObservation) == [True]


@pytest.mark.parametrize("name", ["TimeLimit", "RecordEpisodeStatistics", "TransformObservation"])
def test_others_of_gymnasium_are_not_taken(name: str, record: dict[str, Any]) -> None:
    """A limit above Monitor would end games that it never counts, and the last game would never be over."""
    plain = EnvironmentSettings(wrappers=((f"gymnasium.wrappers.{name}", {}),)).to_plain()
    with pytest.raises(ModelFolderError, match=f"the wrapper 'gymnasium.wrappers.{name}' is not among"):
        trusted_environment({**record, "environment": plain})


@pytest.mark.parametrize("folder", sorted(Path(__file__).parents[1].glob("agents/*")), ids=lambda folder: folder.name)
def test_the_agents_of_this_repository_play(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    assert {file.suffix for file in folder.iterdir()} == {".md", ".json", ".png", ".safetensors"}  # no pickle
    low = (
        float(ModelCard.load(folder / "README.md").data.eval_results[0].metric_value.split()[0]) / 10
    )  # random play: 1 or 2
    mean = float(watch.watch_model([str(folder), "--games", "2", "--no-render"]).split()[1])
    assert mean > low
