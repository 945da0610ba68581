"""Model folders that are damaged or hostile: refused in one line, and nothing of them runs."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch as th

from sb3_per_dqn import export_model, load_model
from sb3_per_dqn.sharing import ModelFolderError, model_folder
from tests import shared_models
from tests.shared_models import (
    HUGE,
    add,
    arguments_with,
    assert_same,
    cartpole,
    change_tensor,
    edit,
    make,
    replace_weights,
    truncate,
)
from tests.shared_models import exported as exported  # a fixture
from tests.shared_models import folder as folder  # a fixture
from tests.shared_models import nothing_runs as nothing_runs  # a fixture


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def poison(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net.value_net.0.weight"][0, 0] = float("nan")


def halve(tensors: dict[str, th.Tensor]) -> None:
    tensors["q_net.value_net.0.weight"] = tensors["q_net.value_net.0.weight"].half()


def lose(tensors: dict[str, th.Tensor]) -> None:
    del tensors["q_net_target.advantage_net.0.bias"]


def negative(tensors: dict[str, th.Tensor]) -> None:
    tensors["vec_normalize.returns.var"] = th.tensor(-1.0, dtype=th.float64)


def widen(tensors: dict[str, th.Tensor]) -> None:
    tensors["vec_normalize.observations.mean"] = th.zeros(5, dtype=th.float64)


def link_out(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


NAMED = {"~": "class", "name": "os.system"}
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[({name: "1"}, f"{name}='1' must be a number") for name in ("clip_obs", "clip_reward", "gamma", "epsilon")],
        *[({name: 1}, f"{name}=1 must be true or false") for name in ("training", "norm_obs", "norm_reward")],
        *[({"clip_obs": -1.0}, "clip_obs=-1.0"), ({"epsilon": {"~": "float", "value": "nan"}}, "epsilon=nan")],
        *[({"gamma": None}, "gamma=None"), ({"clip_obs": 10**400}, "too large"), ({"more": 1}, "nothing else")],
    ],
)
@pytest.mark.parametrize("make_env", [cartpole, lambda: None], ids=["cartpole", "none"])
def test_a_normalization_that_would_fail_at_the_first_step(
    changes: dict[str, Any], words: str, make_env: Callable[[], Any], folder: Path
) -> None:
    settings = json.loads((folder / "config.json").read_text())["vec_normalize"]
    edit(folder, vec_normalize={**settings, **changes})
    with pytest.raises(ModelFolderError, match=words):
        load_model(folder, make_env(), device="cpu")


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
    monkeypatch.chdir(tmp_path)
    shared_models.heard.clear()
    shared_models.listening = True
    pickle.loads(pickle.dumps(Payload()))
    shared_models.listening = False
    assert {"pickle.find_class", "os.system"} <= set(shared_models.heard)
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
