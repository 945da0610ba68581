"""Model folders: exact round trips, files that are damaged or hostile, the model card, and the command."""

import json
import os
import pickle
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch as th
from gymnasium import spaces
from huggingface_hub import ModelCard
from huggingface_sb3.push_to_hub import _generate_metadata
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage
from stable_baselines3.dqn import policies as dqn_policies

from sb3_per_dqn import (
    MlpPolicy,
    PerDoubleDQN,
    PiecewiseSchedule,
    atari,
    export_model,
    load_model,
    make_atari_vec_env,
    zoo,
)
from sb3_per_dqn.minatar import ChannelFirst, MinAtarPolicy, register_minatar
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing import EnvironmentSettings, ModelFolderError, card, model_folder
from sb3_per_dqn.sharing.model_folder import ARGUMENTS
from sb3_per_dqn.sharing.plain import as_endpoints
from sb3_per_dqn.sharing.plain_spaces import space_from_plain, space_to_plain
from sb3_per_dqn.whole_files import sha256
from tests.command_line import CARTPOLE_PARAMS, SHORT_CARTPOLE, Run, run_main
from tests.test_training_with_replay import Corridor, DictFrames, Frames

ROOT = Path(__file__).parents[1]
SCORE = Score(mean=12.345, std=1.5, games=3, deterministic=True, steps=64)


class TwoLayers(FlattenExtractor):
    """An extractor that the package does not have."""

    def __init__(self, space: spaces.Box, width: int = 5) -> None:
        super().__init__(space)
        self._features_dim = width
        self.layers = th.nn.Sequential(th.nn.Linear(4, width), th.nn.Sigmoid())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.layers(observations)
        return features


class MyPolicy(MlpPolicy):
    """A policy that the package does not have."""


def cartpole() -> VecEnv:
    return make_vec_env("CartPole-v1", 2, seed=3)


def one_cartpole() -> VecEnv:
    return make_vec_env("CartPole-v1", 1, seed=3)


def minatar() -> VecEnv:
    register_minatar()
    return make_vec_env("MinAtar/Breakout-v0", 2, seed=3, wrapper_class=ChannelFirst)


def corridor() -> VecEnv:
    return make_vec_env(Corridor, 2)


def frames() -> VecEnv:
    return make_vec_env(Frames, 2, seed=3)


def stacked() -> VecEnv:
    return VecFrameStack(frames(), 2)


def dicts() -> VecEnv:
    return make_vec_env(lambda: DictFrames(Frames()), 2, seed=3)


def make(make_env: Callable[[], VecEnv] = cartpole, policy: Any = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    """A model that has learned a little, so that both networks and all counters are its own."""
    settings = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "seed": 1, "target_update_interval": 20}
    model = PerDoubleDQN(policy, make_env(), **{**settings, "device": "cpu", **kwargs})
    return model.learn(64)


MODELS: dict[str, tuple[Callable[[], VecEnv], dict[str, Any]]] = {
    "mlp": (cartpole, {}),
    "mlp, not dueling": (cartpole, {"policy_kwargs": {"dueling": False}}),
    "mlp, all its arguments": (
        one_cartpole,
        {
            "policy_kwargs": {
                "net_arch": [16, 8], "activation_fn": th.nn.Tanh,
                "optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"betas": (0.8, 0.99), "fused": True},
            },
            "learning_rate": np.float64(3e-4), "train_freq": (1, "episode"), "max_grad_norm": float("inf"),
            "exploration": PiecewiseSchedule([(0.0, 0.5), (0.5, 0.1)], outside_value=0.2), "speedups": ["fused"],
            "prioritized_replay_beta": [[0, 0.5], [1, 0.9]], "replay_buffer_kwargs": {"n_steps": 2}, "double_q": False,
            "train_while_stepping": True, "verbose": 0, "tau": 0.5, "per_env_exploration": False,
        },
    ),
    "SB3's own policy and memory": (cartpole, {"policy": dqn_policies.MlpPolicy, "prioritized_replay": False}),
    "discrete observations": (corridor, {}),
    "cnn": (frames, {"policy": "CnnPolicy"}),
    "cnn, not dueling": (
        stacked,
        {"policy": "CnnPolicy", "policy_kwargs": {
            "dueling": False, "features_extractor_class": NatureCNN, "features_extractor_kwargs": {"features_dim": 24},
        }},
    ),
    "multi-input": (dicts, {"policy": "MultiInputPolicy"}),
    "minatar": (minatar, {"policy": MinAtarPolicy}),
    "minatar, not dueling": (minatar, {"policy": MinAtarPolicy, "policy_kwargs": {"dueling": False}}),
}  # fmt: skip


def observations(model: PerDoubleDQN, number: int = 64) -> Any:
    """Random ones, and not only such as the environment would give."""
    space = model.observation_space
    space.seed(0)
    samples: list[Any] = [space.sample() for _ in range(number)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


def assert_same(model: PerDoubleDQN, other: PerDoubleDQN) -> None:
    weights, others = model.policy.state_dict(), other.policy.state_dict()
    assert list(weights) == list(others)
    assert all(th.equal(weights[name], others[name]) for name in weights)
    seen = observations(model)
    tensors, _ = model.policy.obs_to_tensor(seen)
    with th.no_grad():
        q_values = model.q_net(tensors)
        assert q_values.std() > 0
        assert th.equal(q_values, other.q_net(tensors))
        assert th.equal(model.q_net_target(tensors), other.q_net_target(tensors))
    np.testing.assert_array_equal(
        model.predict(seen, deterministic=True)[0], other.predict(seen, deterministic=True)[0]
    )
    for name in (
        "num_timesteps",
        "_n_updates",
        "exploration_rate",
        "observation_space",
        "action_space",
        "policy_class",
    ):
        assert getattr(model, name) == getattr(other, name), name


def argument(model: PerDoubleDQN, name: str) -> Any:
    value = getattr(model, {"stats_window_size": "_stats_window_size"}.get(name, name))
    pairs = name in ("exploration", "prioritized_replay_beta") and isinstance(value, (list, tuple))
    return [tuple(pair) for pair in value] if pairs else value


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_is_exact_and_training_goes_on(name: str, tmp_path: Path) -> None:
    make_env, arguments = MODELS[name]
    model = make(make_env, **arguments)
    export_model(model, tmp_path / "shared", env_id="some-env")
    assert_same(model, load_model(tmp_path / "shared", device="cpu"))
    loaded = load_model(tmp_path / "shared", make_env(), device="cpu")
    assert_same(model, loaded)
    for name in ARGUMENTS:
        assert argument(loaded, name) == argument(model, name), name
        assert type(argument(loaded, name)) is type(argument(model, name)) or name == "learning_rate"
    before = [weight.clone() for weight in loaded.q_net.parameters()]
    loaded.learn(64)
    assert loaded._n_updates > model._n_updates
    assert any(not th.equal(old, new) for old, new in zip(before, loaded.q_net.parameters(), strict=True))


def test_what_is_in_the_files_is_what_others_read_there(tmp_path: Path) -> None:
    model = make()
    folder = export_model(model, tmp_path / "new" / "shared", env_id="CartPole-v1", score=SCORE)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors", "results.json"]
    assert os.listdir(tmp_path / "new") == ["shared"]
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    expected = {
        f"{network}.{name}": value
        for network in ("q_net", "q_net_target")
        for name, value in getattr(model, network).state_dict().items()
    }
    assert tensors.keys() == expected.keys()
    assert all(th.equal(tensors[name], expected[name]) for name in expected)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((folder / "config.json").read_text(), parse_constant=refuse)
    results = json.loads((folder / "results.json").read_text())
    assert results == {
        "mean_reward": 12.345, "std_reward": 1.5, "is_deterministic": True, "n_eval_episodes": 3, "num_timesteps": 64
    }  # fmt: skip


def test_an_argument_can_be_changed_when_loading(tmp_path: Path) -> None:
    export_model(make(), tmp_path / "shared", env_id="CartPole-v1")
    model = load_model(tmp_path / "shared", "CartPole-v1", "cpu", buffer_size=7, learning_rate=0.5)
    assert (model.buffer_size, model.learning_rate) == (7, 0.5)
    assert model.replay_buffer is not None
    assert model.replay_buffer.buffer_size == 7
    with pytest.raises(ModelFolderError, match="no_such_argument"):
        load_model(tmp_path / "shared", "CartPole-v1", "cpu", no_such_argument=1)


# --------------------------------------------------------------------------------------------------------- VecNormalize


def normalized() -> VecEnv:
    return VecNormalize(cartpole(), clip_obs=3.0, gamma=0.9, norm_reward=False)


def normalized_dicts() -> VecEnv:
    return VecNormalize(VecTransposeImage(dicts()), norm_obs_keys=["speed"], epsilon=1e-4)


def normalized_pictures() -> VecEnv:
    return VecNormalize(VecTransposeImage(frames()), norm_obs=False)


@pytest.mark.parametrize(
    ("make_env", "make_bare", "policy"),
    [
        (normalized, cartpole, "MlpPolicy"),
        (normalized_dicts, dicts, "MultiInputPolicy"),
        (normalized_pictures, frames, "CnnPolicy"),
    ],
)
def test_normalization_comes_along(
    make_env: Callable[[], VecEnv], make_bare: Callable[[], VecEnv], policy: str, tmp_path: Path
) -> None:
    model = make(make_env, policy)
    export_model(model, tmp_path / "shared", env_id="some-env")
    loaded = load_model(tmp_path / "shared", make_bare(), device="cpu")
    assert_same(model, loaded)
    mine, other = model.get_vec_normalize_env(), loaded.get_vec_normalize_env()
    assert mine is not None
    assert other is not None
    for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "training", "norm_obs_keys"):
        assert getattr(mine, name) == getattr(other, name), name
    space = mine.venv.observation_space
    space.seed(2)
    raw: Any = space.sample()
    for value, expected in zip(*(_values(env.normalize_obs(raw)) for env in (mine, other)), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert mine.normalize_reward(np.array([1.7])) == other.normalize_reward(np.array([1.7]))
    assert mine.ret_rms.count == other.ret_rms.count > 50
    loaded.learn(64)
    assert other.ret_rms.count > mine.ret_rms.count


def _values(observation: Any) -> list[np.ndarray]:
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def test_normalization_that_nothing_is_done_with_is_said(tmp_path: Path) -> None:
    export_model(make(normalized), tmp_path / "shared", env_id="CartPole-v1")
    with pytest.warns(UserWarning, match="VecNormalize: pass env"):
        load_model(tmp_path / "shared", device="cpu")
    with pytest.raises(ModelFolderError, match="env has a VecNormalize"):
        load_model(tmp_path / "shared", normalized(), device="cpu")


def test_normalization_inside_another_wrapper_is_refused(tmp_path: Path) -> None:
    model = PerDoubleDQN("MlpPolicy", VecFrameStack(normalized(), 2))
    with pytest.raises(ModelFolderError, match="VecNormalize is inside VecFrameStack"):
        export_model(model, tmp_path / "shared", env_id="CartPole-v1")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------- arguments and spaces


def test_classes_of_others_must_be_given(tmp_path: Path) -> None:
    model = make(policy=MyPolicy, policy_kwargs={"features_extractor_class": TwoLayers})
    folder = export_model(model, tmp_path / "shared", env_id="CartPole-v1")
    with pytest.raises(ModelFolderError, match=r"policy is the class 'MyPolicy'.*classes="):
        load_model(folder, device="cpu")
    with pytest.raises(ModelFolderError, match=r"features_extractor_class.*'TwoLayers'"):
        load_model(folder, device="cpu", classes=[MyPolicy])
    assert_same(model, load_model(folder, device="cpu", classes=[MyPolicy, TwoLayers]))
    assert "classes=[MyPolicy, TwoLayers]" in ModelCard.load(folder / "README.md").text


def test_a_class_with_a_name_of_ours_is_refused(tmp_path: Path) -> None:
    impostor = type("MlpPolicy", (MlpPolicy,), {})
    with pytest.raises(ModelFolderError, match="name of another class"):
        export_model(make(policy=impostor), tmp_path / "shared", env_id="CartPole-v1")
    folder = export_model(make(), tmp_path / "shared", env_id="CartPole-v1")
    with pytest.raises(ModelFolderError, match="name of another class"):
        load_model(folder, classes=[impostor])


def test_what_is_no_plain_data_is_refused(tmp_path: Path) -> None:
    model = make()
    model.replay_buffer_kwargs = {"n_steps": Path()}
    with pytest.raises(ModelFolderError, match=r"replay_buffer_kwargs\['n_steps'\]=.*no plain data"):
        export_model(model, tmp_path / "shared", env_id="CartPole-v1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("schedule", "joints"),
    [(lambda p: 1e-3 * p, 2), (lambda p: 1e-3 if p > 0.5 else p * 2e-3, 3), (lambda p: p * p, 101)],
)
def test_callables_become_endpoints(schedule: Callable[[float], float], joints: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        endpoints = as_endpoints(schedule, "learning_rate")
    assert len(endpoints.endpoints) == joints
    for progress in np.linspace(0, 1, 101):
        assert endpoints(progress) == pytest.approx(schedule(progress), abs=1e-12)
    assert len(caught) == (joints == 101)


def test_a_constant_callable_is_a_number_and_one_that_fails_is_refused() -> None:
    assert as_endpoints(lambda _: 0.5, "exploration") == 0.5
    assert as_endpoints([(0, 1.0), (1, 0.5)], "exploration") == [[0, 1.0], [1, 0.5]]
    for bad in (lambda _: 1 / 0, lambda _: float("nan"), lambda _: "much"):
        with pytest.raises(ModelFolderError, match=r"exploration=<function.*endpoints"):
            as_endpoints(bad, "exploration")


def boxes() -> st.SearchStrategy[spaces.Space[Any]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)

    def box(dtype: Any, shape: tuple[int, ...], data: Any) -> spaces.Space[Any]:
        floats = {"allow_nan": False} if dtype().dtype.kind == "f" else {}
        values = hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), **floats))
        one, other = data.draw(values), data.draw(values)
        return spaces.Box(np.minimum(one, other), np.maximum(one, other), shape, dtype)

    dtypes = st.sampled_from([np.float32, np.float64, np.uint8, np.int8, np.int32, np.int64, np.uint64])
    return st.builds(box, dtypes, shapes, st.data())


numbers = st.integers(1, 9)
simple = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), numbers, st.integers(-3, 3)),
    st.builds(spaces.MultiBinary, st.one_of(numbers, st.lists(numbers, min_size=1, max_size=2))),
    st.builds(spaces.MultiDiscrete, st.lists(numbers, min_size=1, max_size=4)),
    boxes(),
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium's, of bounds at the ends of their dtype
@given(st.one_of(simple, st.builds(spaces.Dict, st.dictionaries(st.text(min_size=1), simple, min_size=1, max_size=3))))
def test_spaces_come_back(space: spaces.Space[Any]) -> None:
    back = space_from_plain(json.loads(json.dumps(space_to_plain(space), allow_nan=False)))
    assert back == space
    assert repr(back) == repr(space)
    if isinstance(space, spaces.Box):
        assert isinstance(back, spaces.Box)
        np.testing.assert_array_equal(back.low, space.low)
        np.testing.assert_array_equal(back.high, space.high)


def test_pictures_have_two_bounds_and_not_one_for_each_pixel() -> None:
    plain = space_to_plain(spaces.Box(0, 255, (4, 84, 84), np.uint8))
    assert plain == {"type": "Box", "shape": [4, 84, 84], "dtype": "uint8", "low": 0, "high": 255}


# -------------------------------------------------------------------------------------------------- damaged and hostile

WATCHED = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec")
heard: list[str] = []
listening = False


def hear(event: str, _: Any) -> None:
    if listening and event in WATCHED:
        heard.append(event)


sys.addaudithook(hear)


@pytest.fixture
def nothing_runs() -> Iterator[None]:
    """Python itself says whether something is unpickled or started."""
    global listening
    heard.clear()
    listening = True
    yield
    listening = False
    assert heard == []


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make(normalized, policy_kwargs={"net_arch": [8]}, replay_buffer_kwargs={"n_steps": 2})
    home = tmp_path_factory.mktemp("exported")
    model.save(home / "sb3.zip")
    return export_model(model, home / "shared", env_id="CartPole-v1", score=SCORE)


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path / "shared")
    shutil.copy(exported.parent / "sb3.zip", tmp_path)
    return tmp_path / "shared"


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def replace_weights(folder: Path, data: bytes) -> None:
    """With the right checksum, which anybody can write."""
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, sha256=sha256(data))


def change_tensor(folder: Path, change: Callable[[dict[str, th.Tensor]], None]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    replace_weights(folder, safetensors.torch.save(tensors))


def poison(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net.value_net.0.weight"][0, 0] = float("nan")


def halve(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net.value_net.0.weight"] = tensors["q_net.value_net.0.weight"].half()


def lose(tensors: dict[str, th.Tensor]) -> None:
    del tensors["q_net_target.advantage_net.0.bias"]


def add(tensors: dict[str, th.Tensor]) -> None:
    tensors["more"] = th.zeros(2)


def negative(tensors: dict[str, th.Tensor]) -> None:
    tensors["vec_normalize.returns.var"] = th.tensor(-1.0, dtype=th.float64)


def widen(tensors: dict[str, th.Tensor]) -> None:
    tensors["vec_normalize.observations.mean"] = th.zeros(5, dtype=th.float64)


def arguments_with(folder: Path, **changes: Any) -> None:
    edit(folder, arguments={**json.loads((folder / "config.json").read_text())["arguments"], **changes})


def link_out(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


NAMED = {"~": "class", "name": "os.system"}
HUGE = [10**6, 10**6, 10**6]
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "another version": (lambda f: edit(f, version=2), "format version 2, and this package reads 1"),
    "another format": (lambda f: edit(f, format="x"), "of no model of sb3-per-dqn"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is damaged"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "of no model"),
    "a deep one": (lambda f: (f / "config.json").write_text("[" * 10**6), "is damaged"),
    "bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "is damaged|of no model"),
    "truncated weights": (truncate, "is damaged: its checksum"),
    "no safetensors": (lambda f: replace_weights(f, b"\xff" * 100), "is no safetensors file"),
    "empty weights": (lambda f: replace_weights(f, b""), "is no safetensors file"),
    "a pickle": (lambda f: replace_weights(f, pickle.dumps(Payload())), "is no safetensors file"),
    "a pickle for a configuration": (
        lambda f: (f / "config.json").write_bytes(pickle.dumps(Payload(), 0)), "is damaged"
    ),
    "torch's pickle": (lambda f: th.save({"x": Payload()}, f / "model.safetensors"), "is damaged"),
    "SB3's .zip": (lambda f: replace_weights(f, (f.parent / "sb3.zip").read_bytes()), "is no safetensors file"),
    "not finite": (lambda f: change_tensor(f, poison), r"q_net\.value_net\.0\.weight is not finite"),
    "another dtype": (lambda f: change_tensor(f, halve), r"q_net\.value_net\.0\.weight is .*float16.* in model"),
    "a tensor too few": (lambda f: change_tensor(f, lose), r"q_net_target\.advantage_net\.0\.bias is missing"),
    "a tensor too many": (lambda f: change_tensor(f, add), "more is .* and nothing"),
    "no variance": (lambda f: change_tensor(f, negative), r"vec_normalize\.returns is no statistics"),
    "other statistics": (lambda f: change_tensor(f, widen), "would be normalized by"),
    "another network": (lambda f: arguments_with(f, policy_kwargs={"net_arch": [9]}), r"q_net.* is \(\(8"),
    "a huge network": (lambda f: arguments_with(f, policy_kwargs={"net_arch": HUGE}), r"\(1000000"),
    "an unknown policy": (lambda f: edit(f, policy=NAMED), r"policy is the class 'os\.system'"),
    "no policy": (lambda f: edit(f, policy={"~": "class", "name": "Adam"}), "is no policy"),
    "a text for a policy": (lambda f: edit(f, policy="MlpPolicy"), "is no policy"),
    "an unknown extractor": (
        lambda f: arguments_with(f, policy_kwargs={"features_extractor_class": NAMED}), "features_extractor_class"
    ),
    "an unknown argument": (lambda f: arguments_with(f, tensorboard_log="/etc"), "tensorboard_log"),
    "an unknown kind": (lambda f: arguments_with(f, seed={"~": "object"}), "nothing that this package writes"),
    "a huge space": (
        lambda f: edit(f, observation_space={"type": "Box", "shape": [10**9], "dtype": "uint8", "low": 0, "high": 1}),
        "larger than",
    ),
    "a huge number of actions": (
        lambda f: edit(f, action_space={"type": "Discrete", "n": 10**15, "start": 0, "dtype": "int64"}), "larger than"
    ),
    "an object dtype": (
        lambda f: edit(f, observation_space={"type": "Box", "shape": [1], "dtype": "O", "low": 0, "high": 1}), "dtype"
    ),
    "a link that leads elsewhere": (link_out, "link that leads out"),
    "wrong values": (lambda f: arguments_with(f, gamma="x"), "gamma"),
    "no probability": (lambda f: edit(f, exploration_rate="nan"), "exploration_rate='nan' is no probability"),
    "a negative count": (lambda f: edit(f, num_timesteps=-1), "no number of steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_line(name: str, folder: Path, nothing_runs: None) -> None:
    damage, words = DAMAGES[name]
    damage(folder)
    env = cartpole()
    with pytest.raises(ModelFolderError, match=words) as caught:
        load_model(folder, env, device="cpu")
    assert "shared" in str(caught.value)
    assert not Path("hacked").exists()


def test_the_payload_would_be_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global listening
    monkeypatch.chdir(tmp_path)
    heard.clear()
    listening = True
    pickle.loads(pickle.dumps(Payload()))
    listening = False
    assert {"pickle.find_class", "os.system"} <= set(heard)
    assert Path("hacked").exists()


def test_a_file_in_place_of_the_folder(folder: Path, nothing_runs: None) -> None:
    for name, data in (("model.zip", b"PK"), ("model.pkl", pickle.dumps(Payload()))):
        Path(name).write_bytes(data)
        with pytest.raises(ModelFolderError, match=f"{name} is no folder"):
            load_model(name)
    with pytest.raises(ModelFolderError, match=r"config\.json is missing"):
        load_model(".")


def test_an_environment_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="normalized by"):
        load_model(folder, "MountainCar-v0", "cpu")
    edit(folder, vec_normalize=None)
    with pytest.raises(ModelFolderError, match=r"Observation spaces do not match|Action spaces do not match"):
        load_model(folder, "MountainCar-v0", "cpu")


def test_the_hubs_cache_may_be_links(folder: Path, tmp_path: Path) -> None:
    """As snapshot_download lays it out: models--USER--NAME with blobs, and links to these in snapshots/REVISION."""
    home = tmp_path / "models--user--name"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots" / "0f").mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(home / "blobs" / str(i))
        (home / "snapshots" / "0f" / file.name).symlink_to(Path("../../blobs") / str(i))
    assert load_model(home / "snapshots" / "0f", cartpole(), "cpu").num_timesteps == 64
    (home / "snapshots").rename(home / "others")
    with pytest.raises(ModelFolderError, match="link that leads out"):
        load_model(home / "others" / "0f", cartpole(), "cpu")


STRANGE = [
    *(None, True, -1, 0, 10**15, 10**30, 1e308, "", "x", "../../x", "__import__('os').system('touch hacked')"),
    *([], {}, [[]], {"~": None}, NAMED, {"~": "class"}, {"~": "class", "name": []}, {"~": "tuple", "items": 3}),
    *({"~": "float", "value": "nan"}, {"~": "schedule", "endpoints": [[0, 1e9]], "outside_value": None}),
    *({"~": "class", "name": name} for name in ("NatureCNN", "Adam", "HerReplayBuffer", "DictReplayBuffer", "ReLU")),
]


def mutated(part: Any, rng: random.Random, rate: float) -> Any:
    """The same with some of its parts replaced by something else."""
    if rng.random() < rate:
        return rng.choice(STRANGE)
    if isinstance(part, dict):
        return {rng.choice(("x", key, *part)) if rng.random() < rate else key: mutated(value, rng, rate)
                for key, value in part.items()}  # fmt: skip
    if isinstance(part, list):
        return [mutated(value, rng, rate) for value in part]
    return part


@pytest.mark.filterwarnings("ignore")
def test_hundreds_of_hostile_configurations(folder: Path, nothing_runs: None) -> None:
    """Each is refused by the one error, or gives a model with the weights that were written."""
    rng = random.Random(0)
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    env, outcomes = cartpole(), {"refused": 0, "loaded": 0}
    for i in range(400):
        head = {name: config[name] for name in ("format", "version", "sha256")}
        parts = {name: mutated(part, rng, (0.005, 0.02, 0.1)[i % 3]) for name, part in config.items()}
        changed = {**parts, **head}
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            model = load_model(folder, env, "cpu")
        except ModelFolderError:
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            assert all(th.equal(weights[name], value) for name, value in model.policy.state_dict().items())
    assert min(outcomes.values()) >= 40, outcomes
    assert sorted(os.listdir()) == ["sb3.zip", "shared"]


def test_hundreds_of_damaged_weights(folder: Path, nothing_runs: None) -> None:
    rng = random.Random(0)
    original = (folder / "model.safetensors").read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(original)
        at = rng.randrange(rng.choice((8, 400, len(data))))
        data[at : at + rng.choice((0, 1, 8))] = rng.randbytes(rng.choice((0, 1, 4)))
        replace_weights(folder, bytes(data))
        try:
            load_model(folder, cartpole(), "cpu")
        except ModelFolderError:
            refused += 1
    assert 50 <= refused < 300  # another number is a number, too


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    model = make()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "full/mine.txt", "link"):
        with pytest.raises(ModelFolderError, match=f"{name}.*not empty"):
            export_model(model, tmp_path / name, env_id="CartPole-v1")
    for argument in ("curve", "video"):
        with pytest.raises(ModelFolderError, match=f"{argument}=.*nowhere"):
            export_model(model, tmp_path / "empty", env_id="CartPole-v1", **{argument: tmp_path / "nowhere"})
    assert sorted(os.listdir(tmp_path)) == ["empty", "full", "link"]
    export_model(model, tmp_path / "empty", env_id="CartPole-v1")
    assert_same(model, load_model(tmp_path / "empty", device="cpu"))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "README.md"])
def test_an_error_while_writing_leaves_nothing(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file = model_folder.write_file

    def fail(path: Path, data: Any) -> None:
        if path.name == file:
            raise OSError(28, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(model_folder, "write_file", fail)
    with pytest.raises(OSError, match="No space left"):
        export_model(make(), tmp_path / "shared", env_id="CartPole-v1")
    assert os.listdir(tmp_path) == []


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = make()
    with th.no_grad():
        next(model.q_net.parameters()).fill_(float("inf"))
    with pytest.raises(ModelFolderError, match="not finite"):
        export_model(model, tmp_path / "shared", env_id="CartPole-v1")


# ------------------------------------------------------------------------------------------------------------- the card


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


def breakout() -> VecEnv:
    return make_atari_vec_env("BreakoutNoFrameskip-v4", 1, vec_env_cls=atari.DummyVecEnv)


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


CORRIDORS = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnvWrapper


class Corridor(gym.Env):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, length=5, bounds=(0, 1), **others):
        self.said = {"length": length, "bounds": bounds, **others}
        self.length, self.place = length, 0

    def observed(self):
        return np.array([self.place, self.length], np.float32)

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return self.observed(), {}

    def step(self, action):
        self.place += 1
        return self.observed(), float(action), self.place >= self.length, False, {}


class Scaled(gym.ObservationWrapper):
    def __init__(self, env, factor=1.0):
        super().__init__(env)
        self.factor = factor

    def observation(self, observation):
        return observation * np.float32(self.factor)


class Shifted(VecEnvWrapper):
    def __init__(self, venv, by):
        super().__init__(venv)
        self.by = by

    def reset(self):
        return self.venv.reset() + np.float32(self.by)

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"] + np.float32(self.by)
        return observations + np.float32(self.by), rewards, dones, infos


gym.register("Corridor-v0", Corridor)
"""


@pytest.fixture
def corridors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module that registers an environment and has wrappers for it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "corridors.py").write_text(CORRIDORS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "corridors", raising=False)
    yield "corridors"
    gym.registry.pop("Corridor-v0", None)


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


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    logs = tmp_path_factory.mktemp("trained")
    run = run_main("train", *SHORT_CARTPOLE, "--eval-freq", "-1", *CARTPOLE_PARAMS, logs=logs, env_id="CartPole-v1")
    assert run.status == 0, run.err
    return run


def export(run: Run, to: Path, *arguments: str) -> Run:
    return run_main("export", "--env", "CartPole-v1", "--device", "cpu", "--to", str(to), *arguments, logs=run.logs)


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
    _one_line(export(run, tmp_path / "other"), "score.json", "damaged")


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
    _one_line(export(trained, tmp_path / "full"), "full", "not empty")
    _one_line(export(trained, tmp_path / "full" / "mine" / "shared"), "--to", "mine")
    _one_line(export(trained, tmp_path / "shared", "--games", "0"), "--games=0")
    _one_line(export(trained, tmp_path / "shared", "--exp-id", "9"), "CartPole-v1_9")
    _one_line(run_main("export", "--env", "CartPole-v2", "--to", "x", logs=trained.logs), "CartPole-v2")
    assert run_main("export", logs=trained.logs).status == 2
    assert sorted(os.listdir(tmp_path)) == ["full"]


def _one_line(run: Run, *words: str) -> None:
    assert run.status == 2
    (line,) = run.err.strip().splitlines()
    assert line.startswith("sb3-per-dqn: error: ")
    for word in words:
        assert word in line


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
