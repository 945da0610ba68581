"""The model card: what the Hub shows, and a program that makes the environment of the run again."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_sb3.push_to_hub import _generate_metadata
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn import PerDoubleDQN, atari, export_model, load_model, make_atari_vec_env, zoo
from sb3_per_dqn.minatar import MinAtarPolicy
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing import EnvironmentSettings, ModelFolderError, card
from tests.command_line import run_main
from tests.shared_models import SCORE, assert_same, breakout, cartpole, make, minatar, normalized
from tests.shared_models import corridors as corridors  # a fixture
from tests.shared_models import exported as exported  # a fixture
from tests.shared_models import folder as folder  # a fixture

ROOT = Path(__file__).parents[1]


def test_the_card_is_what_the_hub_shows(exported: Path) -> None:
    """Held against the metadata that huggingface_sb3 itself writes."""
    ours = ModelCard.load(exported / "README.md").data.to_dict()
    theirs = _generate_metadata("PerDoubleDQN", "CartPole-v1", SCORE.mean, SCORE.std).to_dict()
    assert ours["library_name"] == theirs["library_name"] == "stable-baselines3"
    assert set(theirs["tags"]) <= set(ours["tags"])
    assert ours["model-index"] == theirs["model-index"]
    assert ours["model-index"][0]["results"][0]["metrics"][0]["value"].startswith("12.3")


def test_a_card_without_score_has_none(tmp_path: Path) -> None:
    folder = export_model(make(), tmp_path / "shared", env_id="CartPole-v1")
    loaded = ModelCard.load(folder / "README.md")
    assert "model-index" not in loaded.data.to_dict()
    assert loaded.data.library_name == "stable-baselines3"
    assert "Score" not in loaded.text


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("env_id", "make_env", "policy"),
    [
        ("CartPole-v1", cartpole, "MlpPolicy"),
        ("CartPole-v1", normalized, "MlpPolicy"),
        ("MinAtar/Breakout-v0", minatar, MinAtarPolicy),
        ("BreakoutNoFrameskip-v4", breakout, "CnnPolicy"),
    ],
)
def test_the_cards_lines_run(
    env_id: str, make_env: Callable[[], VecEnv], policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 200)
    model = make(make_env, policy)
    folder = export_model(model, tmp_path / "shared", env_id=env_id, score=SCORE)
    code = re.search(r"```python\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    printed: list[Any] = []
    variables: dict[str, Any] = {"print": printed.append}
    exec(code[1], variables)
    assert_same(model, variables["model"])
    ((mean, std),) = printed
    assert np.isfinite([mean, std]).all()
    assert variables["games"] == 3
    normalization = variables["model"].get_vec_normalize_env()
    if normalization is not None:
        assert normalization.ret_rms.count == model.get_vec_normalize_env().ret_rms.count  # it was only watched


def run_usage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """
    :return: the variables of the card's program
    """
    code = re.search(r"```python\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {}
    exec(code[1], variables)
    return variables


def test_the_environment_of_a_run_can_be_made_again(
    corridors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf.py").write_text("""
import corridors

hyperparams = {"Corridor-v0": {
    "policy": "MlpPolicy", "n_timesteps": 300, "learning_starts": 100, "buffer_size": 1000, "frame_stack": 2,
    "env_wrapper": [{"corridors.Scaled": {"factor": 3.0}}, "gymnasium.wrappers.FlattenObservation"],
    "vec_env_wrapper": {corridors.Shifted: {"by": -0.25}},
}}
""")
    flags = ["--env", "Corridor-v0", "--gym-packages", corridors]
    kwargs = ["length:7", "bounds:(-1, float('inf'))", "title:'say \"hello\"'", "none:None"]
    train = [*flags, "--conf-file", str(tmp_path / "conf.py"), "--eval-freq", "-1", "--device", "cpu"]
    run = run_main("train", *train, "--env-kwargs", *kwargs, "--eval-env-kwargs", *kwargs, "length:9", logs=tmp_path)
    assert run.status == 0, run.err
    to = tmp_path / "shared"
    exported = run_main("export", *flags, "--device", "cpu", "--to", str(to), logs=tmp_path)
    assert exported.status == 0, exported.err

    made = json.loads((to / "config.json").read_text())["environment"]
    assert made["packages"] == ["corridors"]
    assert made["kwargs"]["length"] == 7
    assert made["wrappers"] == [
        {"name": "corridors.Scaled", "kwargs": {"factor": 3.0}},
        {"name": "gymnasium.wrappers.FlattenObservation", "kwargs": {}},
    ]
    assert made["vec_wrappers"] == [{"name": "corridors.Shifted", "kwargs": {"by": -0.25}}]
    assert "import corridors  # which is not of sb3_per_dqn\n" in (to / "README.md").read_text()
    env = run_usage(to, monkeypatch)["env"]
    said = {
        "length": 9,
        "bounds": (-1, float("inf")),
        "title": 'say "hello"',
        "none": None,
        "render_mode": "rgb_array",  # SB3's
    }
    assert env.unwrapped.get_attr("said") == [said]
    np.testing.assert_array_equal(env.reset(), [[0, 0, -0.25, 26.75]])
    np.testing.assert_array_equal(env.step([1])[0], [[-0.25, 26.75, 2.75, 26.75]])


def test_a_game_of_atari_is_played_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what evaluation changes."""
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 200)
    small = {"screen_size": 42, "noop_max": 3, "terminal_on_life_loss": True}
    kwargs = {"repeat_action_probability": 0.5}

    def game() -> VecEnv:
        return make_atari_vec_env(
            "BreakoutNoFrameskip-v4", 1, frame_stack=2, wrapper_kwargs=small, env_kwargs=kwargs,
            vec_env_cls=atari.DummyVecEnv,
        )  # fmt: skip

    environment = EnvironmentSettings(kwargs=kwargs, wrappers=((zoo.GAME_WRAPPER, small),), frame_stack=2)
    more = (*environment.wrappers, ("gymnasium.wrappers.DtypeObservation", {"dtype": "uint8"}))
    for name, settings in {"alone": environment, "and": replace(environment, wrappers=more)}.items():
        model = make(game, "CnnPolicy", policy_kwargs={"features_extractor_class": FlattenExtractor})
        folder = export_model(model, tmp_path / name, env_id="BreakoutNoFrameskip-v4", environment=settings)
        env = run_usage(folder, monkeypatch)["env"]
        (emulator,) = env.unwrapped.envs
        assert emulator.unwrapped.spec.kwargs["repeat_action_probability"] == 0.5
        assert env.get_attr("evaluation") == [True]
        assert not env.env_is_wrapped(EpisodicLifeEnv)[0]
        assert env.observation_space.shape == (42, 42, 2)


def test_what_cannot_be_said_of_an_environment_is_refused(tmp_path: Path) -> None:
    model = make()
    for bad, words in (
        (EnvironmentSettings(packages=("os; import this",)), "packages: 'os; import this' is no name"),
        (EnvironmentSettings(wrappers=(("walk.class", {}),)), r"env_wrapper: 'walk\.class' is no name"),
        (EnvironmentSettings(kwargs={"goal": Path()}), r"env_kwargs\['goal'\]=.*no plain data"),
        (EnvironmentSettings(kwargs={"goal": int}), r"env_kwargs=\{'goal': <class 'int'>\} is no plain data"),
    ):
        with pytest.raises(ModelFolderError, match=words):
            export_model(model, tmp_path / "shared", env_id="CartPole-v1", environment=bad)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packages": "gymnasium"}, "packages='gymnasium' must be a sequence"),
        ({"frame_stack": "4"}, "frame_stack='4' must be"),
        ({"wrappers": ("a.B",)}, "env_wrapper: 'a.B' must be a pair"),
    ],
)
def test_settings_of_an_environment_are_checked(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = PerDoubleDQN("MlpPolicy", "CartPole-v1", buffer_size=100)
    with pytest.raises(ModelFolderError, match=message):
        export_model(model, tmp_path / "m", env_id="CartPole-v1", environment=EnvironmentSettings(**settings))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_an_earlier_version_is_read(folder: Path) -> None:
    """Which said nothing of the environment."""
    config = json.loads((folder / "config.json").read_text())
    del config["environment"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder, cartpole(), "cpu").num_timesteps == 64
    assert "env = make_vec_env(" in card.usage(config)


@pytest.mark.parametrize(
    ("env_id", "make_env", "policy", "extra"),
    [
        ("CartPole-v1", cartpole, "MlpPolicy", ""),
        ("MinAtar/Breakout-v0", minatar, MinAtarPolicy, "minatar"),
        ("BreakoutNoFrameskip-v4", breakout, "CnnPolicy", "atari"),
    ],
)
def test_the_card_says_where_the_package_comes_from(
    env_id: str, make_env: Callable[[], VecEnv], policy: Any, extra: str, tmp_path: Path
) -> None:
    """As the README does, from a checkout; with an extra that is there."""
    folder = export_model(PerDoubleDQN(policy, make_env(), buffer_size=10), tmp_path / "shared", env_id=env_id)
    found = re.search(r"`pip install (\.|\"\.\[(\w+)\]\")`", ModelCard.load(folder / "README.md").text)
    assert found is not None
    assert (found[2] or "") == extra
    assert not extra or extra in metadata.metadata("sb3-per-dqn").get_all("Provides-Extra")
    assert 'pip install ".[' in (ROOT / "README.md").read_text()


def test_one_game_is_one() -> None:
    assert str(Score.of([2.0], True, 1)).endswith("over 1 full game")
    assert str(Score.of([2.0, 3.0], True, 1)).endswith("over 2 full games")


def test_names_in_the_card_stay_names() -> None:
    env_id = "x', \", __import__('os').system('touch hacked'), \"\n"
    config = {"env_id": env_id, "observation_space": {}, "policy": None, "arguments": {}, "vec_normalize": None}
    calls = [line for line in card.usage(config).splitlines() if line.startswith("env = ")]
    made: list[str] = []
    exec(calls[0], {"make_vec_env": made.append})
    assert made == [env_id]
