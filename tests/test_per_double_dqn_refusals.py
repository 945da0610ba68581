"""
What the buffer holds after a run, and what is refused before it could spoil that: bad numbers, and bad arguments.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import copy
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_per_dqn import PerDoubleDQN, PrioritizedReplayBuffer
from tests.random_walk import RandomWalk, SpoilWeights, buffer_of, make, walks


class NanReward(RandomWalk):
    """The reward of the thirtieth step is NaN."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, math.nan if len(self.record) == 30 else reward, *rest


# --------------------------------------------------------------------------------- what the buffer holds after a run


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_buffer_holds_what_the_environments_did(n_envs: int, normalize: bool) -> None:
    """
    TRAPS 17, 19, 20, 22: each transition is one that its own environment recorded, none is missing among the newest,
    and done tells the end from the time limit, whose last observation is there bit for bit.
    """
    env = walks(n_envs)
    wrapped = VecNormalize(env) if normalize else env
    model = make(wrapped, buffer_size=60 * n_envs, prioritized_replay_alpha=0.0)  # so that each is soon drawn
    model.learn(100 * n_envs)
    buffer = buffer_of(model)
    batch: Any = buffer.sample(3000 * n_envs)
    assert set(batch.indices) == set(range(40 * n_envs, 100 * n_envs))
    records = env.get_attr("record")
    time_limits = 0
    for i, serial in enumerate(batch.indices.tolist()):
        record, at = records[serial % n_envs], serial // n_envs
        obs, action, reward, next_obs, terminated = record[at]
        goes_on = at + 1 < len(record) and np.array_equal(next_obs, record[at + 1][0])
        time_limits += not goes_on and not terminated
        assert batch.actions[i].item() == action
        assert batch.rewards[i].item() == pytest.approx(reward, rel=1e-6)
        assert batch.dones[i].item() == terminated
        assert np.array_equal(batch.observations[i].numpy(), obs)
        if goes_on or not normalize:  # SB3 computes an episode's last observation back from the normalized one
            assert np.array_equal(batch.next_observations[i].numpy(), next_obs)
    assert time_limits > 10


def test_a_td_error_that_is_no_number_names_the_step() -> None:
    """TRAPS 15: nothing of the tree is lost, and the message says where, which and what to do."""
    model = make(walks(), learning_starts=28, train_freq=1, batch_size=100)
    with pytest.raises(ValueError, match=r"step (30|31).*not finite.*smaller"):
        model.learn(60, callback=SpoilWeights())
    buffer = buffer_of(model)
    assert np.isfinite(buffer.max_priority)
    assert th.isfinite(buffer.sample(50).weights).all()


class SpoiledLater(PrioritizedReplayBuffer):
    """The seventh batch's rewards are beyond what a float32 can hold."""

    batches = 0

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        batch = super().sample(*args, **kwargs)
        return batch._replace(rewards=batch.rewards + math.inf) if self.batches == 7 else batch


def test_the_update_that_diverged_is_named() -> None:
    """The second of the second call: those before it were made, and count."""
    model = make(walks(), replay_buffer_class=SpoiledLater, learning_starts=28, train_freq=1, gradient_steps=5)
    with pytest.raises(ValueError, match=r"diverged at step \d+, update 7: .*not finite"):
        model.learn(60)
    assert model._n_updates == 6


def test_a_nan_reward_names_the_step() -> None:
    """TRAPS 15: before it is stored."""
    model = make(walks(env=NanReward), learning_starts=28, train_freq=1, batch_size=100)
    with pytest.raises(ValueError, match=r"At step (30|31), the reward of environment 0 is nan"):
        model.learn(60)
    buffer = buffer_of(model)
    assert np.isfinite(buffer.max_priority)
    assert th.isfinite(buffer.sample(50).weights).all()
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_a_reward_beyond_float32_names_the_step() -> None:
    """Worker processes hand on rewards in float64; replay memory keeps float32, in which this one is infinite."""
    env = walks(2)
    step = env.step_wait

    def with_huge_reward() -> Any:
        obs, _, dones, infos = step()
        return obs, np.array([0.0, 1e39]), dones, infos

    env.step_wait = with_huge_reward  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"At step 2, the reward of environment 1 is 1e\+39"):
            make(env).learn(60)


class NanAtTheEnd(RandomWalk):
    """The last observation of each episode is NaN."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, *rest = super().step(action)
        return np.full_like(obs, math.nan) if terminated else obs, reward, terminated, *rest


class NanAtTheEndOfADict(NanAtTheEnd):
    observation_space: Any = spaces.Dict({"plain": spaces.Box(-1, 1, (2,)), "number": spaces.Discrete(3)})

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, *rest = RandomWalk.step(self, action)
        obs = {**obs, "plain": np.full((2,), math.nan, np.float32)} if terminated else obs
        return obs, reward, terminated, *rest


@pytest.mark.parametrize(("env", "policy"), [(NanAtTheEnd, "MlpPolicy"), (NanAtTheEndOfADict, "MultiInputPolicy")])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_nan_in_an_episodes_last_observation_names_the_step(
    env: type[RandomWalk], policy: str, normalize: bool
) -> None:
    """It stands in the info alone, as the environment was reset."""
    games = walks(2, env, max_steps=100)
    model = make(VecNormalize(games, norm_obs=False) if normalize else games, policy, learning_starts=1000)
    with pytest.raises(ValueError, match=r"At step \d+, an observation of environment [01] is NaN"):
        model.learn(200)
    assert model.num_timesteps == 2 * max(len(record) for record in games.get_attr("record"))


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("prioritized_replay_alpha", value) for value in (-0.1, 1.5, math.nan, "high")),
        *(("prioritized_replay_eps", value) for value in (0.0, -1.0, math.inf, math.nan)),
        *(("prioritized_replay_normalize_weights", value) for value in ("all", True, None)),
        *(("prioritized_replay_beta", value) for value in (-0.1, 1.5, math.nan, [[0, 0.4], [1, 2.0]], [], "high")),
        *(("exploration", value) for value in (-0.1, 1.5, math.nan, [[0.5, 1.0], [0.2, 0.1]], lambda left: 2.0)),
        *(("gamma", value) for value in (math.nan, math.inf, "0.99", None)),
        *(("learning_rate", value) for value in (math.nan, -math.inf, "fast", None)),
        *(("max_grad_norm", value) for value in (math.nan, None)),
        *(("tau", value) for value in (math.nan,)),
        *(("learning_starts", value) for value in (math.nan, math.inf)),
        *(("target_update_interval", value) for value in (math.nan, "often")),
        *(("buffer_size", value) for value in (math.nan, 1e3, 0)),
        *(("batch_size", value) for value in (math.nan, 2.5, "32", 0, -3)),
        *(("gradient_steps", value) for value in (math.nan, -2)),
        *(("n_steps", value) for value in (math.nan, 0)),
        *(("train_freq", value) for value in (0, -1, 2.5, "4", None, (0, "step"), (1, "foo"), (1, []), (1, "step", 2))),
        ("gamma", abs),
        *(("exploration_fraction", value) for value in (math.nan,)),
        *(("exploration_initial_eps", value) for value in (math.nan, math.inf)),
        *(("exploration_final_eps", value) for value in (math.nan, "small")),
    ],
)
def test_bad_arguments_are_named_with_their_value(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        make(**{argument: value})
    message = str(error.value)
    assert "\n" not in message
    assert str(value) in message or repr(value) in message


def test_a_bad_argument_at_load_is_refused(tmp_path: Path) -> None:
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match="prioritized_replay_alpha=7"):
        PerDoubleDQN.load(tmp_path / "model", device="cpu", prioritized_replay_alpha=7)


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte counts: since Python 3.13 zipfile compares no checksum of what PyTorch, which jumps about, reads."""
    seek = zipfile.ZipExtFile.seek

    def seek_as_it_is_now(file: zipfile.ZipExtFile, offset: int, whence: int = 0) -> int:
        position = seek(file, offset, whence)
        file._expected_crc = None  # type: ignore[attr-defined]
        return position

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", seek_as_it_is_now)
    path, model = tmp_path / "model.zip", make()
    model.save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        begin, size = archive.getinfo("policy.pth").header_offset, archive.getinfo("policy.pth").compress_size
    weights = copy.deepcopy(model.get_parameters())
    for at in np.linspace(begin + 100, begin + size, 20).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=rf"path=.*{path.name}: policy.pth .*the file is damaged"):
            PerDoubleDQN.load(path, device="cpu")
        with path.open("rb") as file, pytest.raises(ValueError, match="the file is damaged"):
            PerDoubleDQN.load(file, device="cpu")
        with pytest.raises(ValueError, match="the file is damaged"):
            model.set_parameters(tmp_path / "model", device="cpu")  # as SB3 names it
    for name, tensor in weights["policy"].items():
        assert th.equal(model.get_parameters()["policy"][name], tensor), name


def spoil_compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", "x" * 1000)
    whole = path.read_bytes()
    begin = whole.index(b"data") + len(b"data")
    path.write_bytes(whole[:begin] + bytes([0b111]) + whole[begin + 1 :])  # a kind of block that there is not


def spoil_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dät", "x")  # which sets the flag of UTF-8
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff"))


def make_no_model(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{}")


@pytest.mark.parametrize("spoil", [spoil_compressed, spoil_name, make_no_model])
def test_a_file_that_is_no_model_is_refused_by_name(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    spoil(path)
    for read in (PerDoubleDQN.load, make().set_parameters):
        with pytest.raises(ValueError, match=rf"path=.*{path.name}: .*(file is damaged|is no model)"):
            read(path, device="cpu")


def test_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    """What zipfile says then is of many kinds: no such method, a password, another version, the end of the file."""
    path, model = tmp_path / "model.zip", make()
    model.save(path)
    whole, refusals = path.read_bytes(), []
    for at in range(whole.index(b"PK\x01\x02"), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            model.set_parameters(path, device="cpu")  # dates and the like do not matter
        except ValueError as error:  # and nothing else; SB3's own where names of parameters are gone
            refusals.append(str(error))
    assert len([refusal for refusal in refusals if "the file is damaged" in refusal]) > 100


def test_a_continuous_action_space_is_refused() -> None:
    """In SB3's words, which name the space."""
    with pytest.raises(AssertionError, match=r"Box\(-2.0, 2.0, \(1,\)"):
        PerDoubleDQN("MlpPolicy", "Pendulum-v1")


def test_actions_that_do_not_start_at_zero_are_refused() -> None:
    """SB3's networks number actions from 0, so a random action would be none of theirs."""
    with pytest.raises(ValueError, match=r"Discrete\(3, start=1\).*start=0"):
        make(walks(env=lambda: RandomWalk(first_action=1)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=1),
        spaces.Dict({"number": spaces.Discrete(3, start=1)}),
        spaces.MultiDiscrete([3, 2], start=[0, 1]),
    ],
)
def test_observations_that_do_not_start_at_zero_are_refused(space: spaces.Space[Any]) -> None:
    """SB3's networks see one-hot vectors, which have no place for the last one."""

    class Numbered(RandomWalk):
        observation_space = space

    with pytest.raises(ValueError, match=r"observation_space=.*start=.* must be numbered from 0 on"):
        make(walks(env=Numbered), "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy")


def test_episodes_of_several_environments_are_refused() -> None:
    model = PerDoubleDQN("MlpPolicy", make_vec_env("CartPole-v1", 2), train_freq=(1, "episode"))
    with pytest.raises(ValueError, match=r"^train_freq=\(1, 'episode'\) is for one environment, and there are 2"):
        model.learn(100)


def test_a_buffer_smaller_than_a_batch_is_refused_when_training_starts() -> None:
    env = walks(2)
    model = make(env, buffer_size=15)
    with pytest.raises(ValueError, match=r"^buffer_size=15 holds 14 transitions, fewer than batch_size=16"):
        model.learn(100)
    assert env.get_attr("record") == [[], []]
    make(walks(2), buffer_size=16).learn(40)
