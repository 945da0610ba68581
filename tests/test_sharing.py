"""Model folders: exact round trips, with normalization, and the arguments and spaces that are written there."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch as th
from gymnasium import spaces
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage
from stable_baselines3.dqn import policies as dqn_policies

from sb3_per_dqn import MlpPolicy, PerDoubleDQN, PiecewiseSchedule, export_model, load_model
from sb3_per_dqn.minatar import MinAtarPolicy
from sb3_per_dqn.sharing import ModelFolderError
from sb3_per_dqn.sharing.model_folder import ARGUMENTS
from sb3_per_dqn.sharing.plain import as_endpoints
from sb3_per_dqn.sharing.plain_spaces import space_from_plain, space_to_plain
from tests.shared_models import SCORE, assert_same, cartpole, dicts, make, minatar, normalized
from tests.test_training_with_replay import Corridor, Frames


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


def one_cartpole() -> VecEnv:
    return make_vec_env("CartPole-v1", 1, seed=3)


def corridor() -> VecEnv:
    return make_vec_env(Corridor, 2)


def frames() -> VecEnv:
    return make_vec_env(Frames, 2, seed=3)


def stacked() -> VecEnv:
    return VecFrameStack(frames(), 2)


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
