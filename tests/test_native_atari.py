"""ALE's native emulators as a ``VecEnv``: held against ``AtariGameWrapper``, ``Monitor`` and ``VecFrameStack``."""

import gc
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import DQN
from stable_baselines3.common.atari_wrappers import AtariWrapper, NoopResetEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecTransposeImage, VecVideoRecorder

from sb3_per_dqn import PerDoubleDQN, PrioritizedReplayBuffer, atari, make_atari_vec_env, zoo
from sb3_per_dqn.atari import AtariGameWrapper
from sb3_per_dqn.native_atari import NativeAtariVecEnv, NativeGame, game_settings
from sb3_per_dqn.zoo.evaluation import native_wrapper_kwargs
from tests.command_line import BREAKOUT_PARAMS, closing_line, frames, run_main

BREAKOUT = "BreakoutNoFrameskip-v4"
PACMAN = "MsPacmanNoFrameskip-v4"  # pays 10 for a pellet and 200 for a ghost, has three lives and no FIRE
NO_NOOPS = {"noop_max": 0}  # NoFrameskip ids draw them from another generator
GRAY = 48  # levels by which ALE's gray may differ from OpenCV's; something in another place differs by far more
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # the -v0 and -v4 ids


def make_native(env_id: str = BREAKOUT, n_envs: int = 1, seed: int | None = 0, **kwargs: Any) -> NativeAtariVecEnv:
    env = make_atari_vec_env(env_id, n_envs, seed, emulators="native", **kwargs)
    assert isinstance(env, NativeAtariVecEnv)
    return env


def make_oracle(env_id: str = BREAKOUT, n_envs: int = 1, seed: int | None = 0, **kwargs: Any) -> VecTransposeImage:
    return VecTransposeImage(make_atari_vec_env(env_id, n_envs, seed, vec_env_cls=DummyVecEnv, **kwargs))


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[NativeAtariVecEnv, VecTransposeImage]]:
    """The arguments as parameters; both closed at the end."""
    kwargs = dict(request.param)
    native, oracle = make_native(**kwargs), make_oracle(**kwargs)
    yield native, oracle
    native.close()
    oracle.close()


class Comparison:
    """Both environments, given the same actions, must tell the same; counts what was seen."""

    def __init__(self, native: NativeAtariVecEnv, oracle: VecTransposeImage) -> None:
        self.native, self.oracle = native, oracle
        self.rng = np.random.default_rng(0)
        self.ends = self.games = self.cuts = 0
        self.rewards: set[float] = set()

    def reset(self) -> None:
        self.compare_observations(self.native.reset(), self.oracle.reset(), self.oracle.num_envs)

    def step(self, action: int | None = None, until_game_over: bool = False) -> bool:
        """Returns whether a game has ended."""
        n_actions = self.oracle.action_space.n  # type: ignore[attr-defined]
        actions = self.rng.integers(n_actions, size=self.oracle.num_envs)
        if action is not None:
            actions[:] = action
        ours, rewards, dones, infos = self.native.step(actions)
        theirs, their_rewards, their_dones, their_infos = self.oracle.step(actions)
        np.testing.assert_array_equal(rewards, their_rewards)
        np.testing.assert_array_equal(dones, their_dones)
        for info, their_info in zip(infos, their_infos, strict=True):
            self.compare_infos(info, their_info)
        if until_game_over and any("episode" in info for info in infos):
            return True
        self.compare_observations(ours, theirs, self.oracle.num_envs)
        self.rewards |= set(rewards.tolist())
        return any("episode" in info for info in infos)

    def compare_infos(self, info: dict[str, Any], their_info: dict[str, Any]) -> None:
        info, their_info = dict(info), dict(their_info)
        last, their_last = info.pop("terminal_observation", None), their_info.pop("terminal_observation", None)
        assert (last is None) == (their_last is None)
        for episode in (info.get("episode"), their_info.get("episode")):
            if episode is not None:
                assert episode.pop("t") > 0
        assert info == their_info
        if last is not None:
            self.ends += 1
            self.games += "episode" in info
            self.cuts += info["TimeLimit.truncated"]
            if "episode" not in info:  # the emulator stops in the middle of an action, and either shows an old frame
                self.compare_observations(last[None], their_last[None], 1)

    @staticmethod
    def compare_observations(ours: Any, theirs: Any, n_envs: int) -> None:
        assert ours.shape == theirs.shape == (n_envs, 4, 84, 84)
        assert ours.dtype == theirs.dtype == np.uint8
        np.testing.assert_array_equal(ours.any(axis=(2, 3)), theirs.any(axis=(2, 3)))  # the cleared frames of a stack
        assert np.abs(ours.astype(int) - theirs).max() <= GRAY


# ---------------------------------------------------------------- the same games as AtariWrapper's


@pytest.mark.parametrize(
    ("pair", "n_steps"),
    [
        ({"env_id": BREAKOUT, "n_envs": 2, "wrapper_kwargs": NO_NOOPS}, 300),
        ({"env_id": PACMAN, "n_envs": 2, "wrapper_kwargs": NO_NOOPS}, 400),
        ({"env_id": "SpaceInvadersNoFrameskip-v4", "wrapper_kwargs": NO_NOOPS}, 300),  # flickers
        ({"env_id": "FreewayNoFrameskip-v4", "wrapper_kwargs": NO_NOOPS}, 60),  # neither lives nor FIRE
        ({"env_id": "QbertNoFrameskip-v4", "wrapper_kwargs": {**NO_NOOPS, "clip_reward": False}}, 200),
        ({"env_id": BREAKOUT, "wrapper_kwargs": {**NO_NOOPS, "frame_skip": 1}}, 100),
        ({"env_id": BREAKOUT, "wrapper_kwargs": {**NO_NOOPS, "terminal_on_life_loss": False}}, 200),
    ],
    indirect=["pair"],
    ids=str,
)
def test_rewards_ends_lives_scores_and_stacks_are_the_wrappers(
    pair: tuple[NativeAtariVecEnv, VecTransposeImage], n_steps: int
) -> None:
    comparison = Comparison(*pair)
    assert pair[0].observation_space == pair[1].observation_space
    assert pair[0].action_space == pair[1].action_space
    comparison.reset()
    for _ in range(n_steps):
        comparison.step()
    env_id = pair[0].get_attr("spec")[0].id
    if n_steps == 300 and env_id == BREAKOUT:
        assert comparison.ends > comparison.games > 0  # lost lives and whole games
    if env_id in (BREAKOUT, PACMAN) and n_steps >= 300:
        assert comparison.rewards == {0.0, 1.0}
        assert comparison.ends > 1
    if env_id.startswith("Qbert"):
        assert max(comparison.rewards) >= 25


@pytest.mark.parametrize(
    "pair",
    [
        {"env_id": "ALE/Breakout-v5", "seed": 11},
        {"env_id": "ALE/SpaceInvaders-v5", "seed": 1},
        {"env_id": "ALE/MsPacman-v5", "seed": 4},
        {"env_id": "ALE/Breakout-v5", "seed": 1, "evaluation": True},
        {"env_id": BREAKOUT, "seed": 1, "evaluation": True, "wrapper_kwargs": NO_NOOPS},
        {"env_id": "BreakoutNoFrameskip-v0", "seed": 4, "wrapper_kwargs": NO_NOOPS},  # sticky, and the maximum of two
    ],
    indirect=True,
    ids=str,
)
def test_sticky_actions_no_ops_and_random_actions_are_the_wrappers(
    pair: tuple[NativeAtariVecEnv, VecTransposeImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything drawn agrees, up to the end of the first game, for seeds of which ALE keeps all bits."""
    monkeypatch.setattr(atari, "EVALUATION_EPSILON", 0.3)
    comparison = Comparison(*pair)
    comparison.reset()
    compared = 0
    while compared < 120 and not comparison.step(until_game_over=True):
        compared += 1
    assert compared >= 40
    if pair[0].games[0].spec == gym.spec("ALE/Breakout-v5") and not pair[0].games[0].evaluation:
        assert comparison.games == 1  # it ended in the middle of an action, which Monitor counts as a whole one


@pytest.mark.parametrize(
    ("pair", "cuts"),
    [
        ({"wrapper_kwargs": NO_NOOPS, "env_kwargs": {"max_num_frames_per_episode": 224}}, 1),
        ({"wrapper_kwargs": NO_NOOPS, "env_kwargs": {"max_num_frames_per_episode": 204}}, 0),  # and a life is lost
    ],
    indirect=["pair"],
)
def test_a_limit_that_ends_an_action_is_the_wrappers(
    pair: tuple[NativeAtariVecEnv, VecTransposeImage], cuts: int
) -> None:
    """TRAPS 20."""
    comparison = Comparison(*pair)
    comparison.rng = np.random.default_rng(3)
    comparison.reset()
    assert any(comparison.step() for _ in range(60))
    assert comparison.cuts == cuts


class Script:
    """Stands in for an emulator, and answers with these lives, one for each action; below 0 the game is over."""

    def __init__(self, lives: list[int]) -> None:
        self.lives = lives
        self.asked: list[int | str] = []

    def look(self, lives: int) -> tuple[np.ndarray, dict[str, list[int]]]:
        numbers = {"lives": [lives], "episode_frame_number": [100], "frame_number": [100]}
        return np.zeros((1, 1, 84, 84), dtype=np.uint8), numbers

    def reset(self, seed: int | None) -> tuple[np.ndarray, dict[str, list[int]]]:
        self.asked.append("reset")
        return self.look(5)

    def send(self, actions: np.ndarray) -> None:
        self.asked.append(int(actions[0]))

    def recv(self) -> tuple[Any, ...]:
        lives = self.lives.pop(0)
        frames, numbers = self.look(max(lives, 0))
        return frames, [0], [lives < 0], [False], numbers


def test_no_life_is_not_a_lost_life() -> None:
    """``EpisodicLifeEnv``: some games show no life for a while before they are over."""
    game = NativeGame(game_settings(BREAKOUT, False, None, None))
    game.begin_episode()
    game._emulator = Script([4, 4, 1, 0])  # type: ignore[assignment]
    ends = []
    for _ in range(4):
        game.step_async(0)
        game.step_wait()
        ends.append(game.is_done)
    assert ends == [True, False, True, False]


@pytest.mark.parametrize(
    ("lives", "asked"),
    [
        ([4, 4, 4], [0, 1, 2]),
        ([4, 3, 3, 3], [0, 1, 0, 2]),  # a life is lost while FIRE is pressed
        ([4, -1, 5], [0, 1, "reset", 2]),  # the game ends then
        ([-1, 5, 5], [0, "reset", 1, 2]),  # or before
    ],
)
def test_what_is_pressed_for_the_next_life_whatever_happens_meanwhile(
    lives: list[int], asked: list[int | str], tmp_path: Path
) -> None:
    """As ``FireResetEnv`` and ``EpisodicLifeEnv`` press; a game that ends then is in the file alone, as with them."""
    game = NativeGame(game_settings(BREAKOUT, False, None, None), str(tmp_path / "0"))
    game.begin_episode()
    script = Script([4, *lives])
    game._emulator = script  # type: ignore[assignment]
    game.step_async(3)
    game.step_wait()
    assert game.is_done
    game.begin_episode()
    assert script.asked == [3, *asked]
    assert not game.is_done
    assert not script.lives
    assert len(load_results(str(tmp_path))) == ("reset" in asked)


@pytest.mark.parametrize("pair", [{"evaluation": True, "wrapper_kwargs": NO_NOOPS}], indirect=True)
def test_evaluation_that_never_fires_stands_still_to_the_limit(
    pair: tuple[NativeAtariVecEnv, VecTransposeImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atari, "EVALUATION_EPSILON", 0.0)
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 800)
    native = pair[0]
    native.reset()
    for _ in range(250):
        *_, dones, infos = native.step(np.array([0]))
        if dones[0]:
            break
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["lives"] == 4  # FIRE is pressed at the start of the game, and not for the second ball
    assert infos[0]["episode"]["l"] == 800


def test_no_ops_at_the_start_of_a_game() -> None:
    """As in ``NoopResetEnv``, with 0 as well, and after them the same game."""
    native = make_native(PACMAN)
    numbers = []
    for seed in range(40):
        native.seed(seed)
        first = native.reset().copy()
        numbers.append(native.reset_infos[0]["episode_frame_number"])
    assert 0 <= min(numbers) < 8
    assert 22 < max(numbers) <= 30
    oracle = make_oracle(PACMAN)
    noops = unwrap_wrapper(oracle.unwrapped.envs[0], NoopResetEnv)  # type: ignore[attr-defined]
    assert isinstance(noops, NoopResetEnv)
    noops.override_num_noops = numbers[-1]  # type: ignore[assignment]
    Comparison.compare_observations(first, oracle.reset(), 1)
    comparison = Comparison(native, oracle)
    for _ in range(150):
        comparison.step()
    assert comparison.rewards == {0.0, 1.0}
    native.close()
    oracle.close()


@pytest.mark.parametrize("pair", [{"n_envs": 2, "wrapper_kwargs": NO_NOOPS}], indirect=True)
def test_reset_goes_on_with_the_game_as_the_wrapper_does(pair: tuple[NativeAtariVecEnv, VecTransposeImage]) -> None:
    comparison = Comparison(*pair)
    for _ in range(3):
        comparison.reset()
        for _ in range(25):
            comparison.step()


def test_monitor_files_are_monitors(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"n_envs": 2, "wrapper_kwargs": NO_NOOPS}
    comparison = Comparison(
        make_native(monitor_dir=str(tmp_path / "ours"), **kwargs),
        make_oracle(monitor_dir=str(tmp_path / "theirs"), **kwargs),
    )
    comparison.reset()
    while comparison.games < 3:
        comparison.step()
    ours, theirs = (load_results(str(tmp_path / who)) for who in ("ours", "theirs"))
    assert len(ours) == len(theirs) == comparison.games
    for column in ("r", "l"):
        np.testing.assert_array_equal(np.sort(ours[column]), np.sort(theirs[column]))
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["0.monitor.csv", "1.monitor.csv"]
    assert f'"env_id": "{BREAKOUT}"' in (tmp_path / "ours" / "0.monitor.csv").read_text()
    comparison.native.close()
    comparison.oracle.close()


# ---------------------------------------------------------------- what a replay buffer gets


@pytest.mark.parametrize("env_id", [BREAKOUT, "ALE/Breakout-v5"])
def test_a_time_limit_keeps_the_whole_last_observation(env_id: str) -> None:
    """TRAPS 20, against a game without the limit."""
    cut = make_native(env_id, wrapper_kwargs=NO_NOOPS, env_kwargs={"max_num_frames_per_episode": 222})
    endless = make_native(env_id, wrapper_kwargs=NO_NOOPS, env_kwargs={"max_num_frames_per_episode": None})
    np.testing.assert_array_equal(cut.reset(), endless.reset())
    rng = np.random.default_rng(3)
    games = 0
    for _ in range(60):
        actions = rng.integers(4, size=1)
        observation, reward, dones, (info,) = cut.step(actions)
        expected, expected_reward, expected_dones, (expected_info,) = endless.step(actions)
        assert reward == expected_reward
        if "episode" not in info:
            assert dones == expected_dones
            np.testing.assert_array_equal(observation, expected)
            continue
        games += 1
        assert info["TimeLimit.truncated"]
        assert dones[0]
        assert not expected_dones[0]  # the life goes on
        np.testing.assert_array_equal(info["terminal_observation"], expected[0])
        assert info["episode_frame_number"] == expected_info["episode_frame_number"] == 224
        assert info["episode"]["l"] == (224 if env_id == BREAKOUT else 56)
        assert not observation[0, :3].any()
        break
    assert games == 1
    cut.close()
    endless.close()


@pytest.mark.parametrize(("env_id", "pressed"), [(BREAKOUT, 3), (PACMAN, 1), ("ALE/Breakout-v5", 3)])
def test_no_frame_that_the_game_did_not_show(env_id: str, pressed: int) -> None:
    """TRAPS 21 and 22: each stack goes on from the last, and each step is one action of four frames."""
    env = make_native(env_id, n_envs=2, wrapper_kwargs=NO_NOOPS)
    before = env.reset()
    numbers = [info["episode_frame_number"] for info in env.reset_infos]
    rng = np.random.default_rng(0)
    lives = 0
    while lives < 4:
        after, _, dones, infos = env.step(rng.integers(env.action_space.n, size=2))  # type: ignore[attr-defined]
        for rank, info in enumerate(infos):
            last = info["terminal_observation"] if dones[rank] else after[rank]
            np.testing.assert_array_equal(last[:-1], before[rank, 1:])
            assert ("terminal_observation" in info) == dones[rank]
            if "episode" not in info:
                assert info["episode_frame_number"] == numbers[rank] + 4
                numbers[rank] += 4
            if dones[rank]:
                assert not after[rank, :-1].any()
                assert after[rank, -1].any()
                first = env.reset_infos[rank]["episode_frame_number"]
                if "episode" not in info:
                    lives += 1
                    assert first == numbers[rank] + 4 * pressed  # a no-op, and FIRE and another one where it is needed
                numbers[rank] = first
        before = after
    env.close()


def test_what_was_handed_out_never_changes() -> None:
    """TRAPS 23."""
    env = make_native(n_envs=2)
    rng = np.random.default_rng(0)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    last_ones = 0
    for step in range(120):
        if step % 40 == 0:
            first = env.reset()
            kept.append((first, first.copy()))
        observations, rewards, dones, infos = env.step(rng.integers(4, size=2))
        last = [info["terminal_observation"] for info in infos if "terminal_observation" in info]
        last_ones += len(last)
        kept += [(array, array.copy()) for array in (observations, rewards, dones, *last)]
    assert last_ones > 2
    env.close()
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


# ---------------------------------------------------------------- asynchrony


class Recorder:
    """Stands before an emulator and notes what it is asked."""

    def __init__(self, emulator: Any, calls: list[str]) -> None:
        self.emulator, self.calls = emulator, calls

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self.emulator, name)


def test_all_games_are_started_before_any_is_waited_for() -> None:
    env = make_native(n_envs=3)
    env.reset()
    calls: list[str] = []
    for game in env.games:
        game._emulator = Recorder(game._emulator, calls)  # type: ignore[assignment]
    env.step_async(np.zeros(3, dtype=int))
    assert calls == ["send"] * 3
    env.step_wait()
    assert calls == ["send"] * 3 + ["recv"] * 3
    env.close()


def test_steps_out_of_turn_are_errors_and_do_not_wait_for_ever() -> None:
    env = make_native(n_envs=2)
    env.reset()
    with pytest.raises(RuntimeError, match="without step_async"):
        env.step_wait()
    env.step_async(np.zeros(2, dtype=int))
    with pytest.raises(RuntimeError, match="again without step_wait"):
        env.step_async(np.zeros(2, dtype=int))
    env.seed(5)
    other = make_native(n_envs=2, seed=5)
    np.testing.assert_array_equal(env.reset(), other.reset())  # waits for the step, then begins anew
    env.step_async(np.zeros(2, dtype=int))
    env.close()  # in the middle of a step
    other.close()


@pytest.mark.parametrize("call", ["send", "recv"])
def test_an_interrupt_leaves_no_answer_behind(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when the emulator has been asked or has answered, and before that was noted."""
    env = make_native(n_envs=2)
    env.reset()
    env.step(np.zeros(2, dtype=np.int64))
    emulator = env.games[0]._emulator
    real = getattr(emulator, call)

    def interrupted(*args: Any) -> Any:
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(emulator, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(2, dtype=np.int64))
    env.reset()
    before = [info["episode_frame_number"] for info in env.reset_infos]
    for step in range(1, 6):
        infos = env.step(np.zeros(2, dtype=np.int64))[3]
        assert [info["episode_frame_number"] for info in infos] == [number + 4 * step for number in before]
    env.close()


def test_closing_ends_the_threads() -> None:
    gc.collect()
    before = psutil.Process().num_threads()
    env = make_native(n_envs=3)
    env.reset()
    assert psutil.Process().num_threads() == before + 3
    env.close()
    gc.collect()
    assert psutil.Process().num_threads() == before
    env.close()  # again is harmless


# ---------------------------------------------------------------- seeds


def stream(env: VecEnv, n_steps: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The same actions in all games; observations (n_steps, n_envs, ...) and frames played, from a reset on."""
    rng = np.random.default_rng(1)
    observations, numbers = [np.asarray(env.reset()).copy()], []
    for _ in range(n_steps):
        after, _, _, infos = env.step(np.full(env.num_envs, rng.integers(4)))
        observations.append(np.asarray(after).copy())
        numbers.append([info["episode_frame_number"] for info in infos])
    return np.stack(observations), np.array(numbers)


@pytest.mark.parametrize("env_id", [PACMAN, "ALE/Breakout-v5"])
def test_a_seed_gives_a_stream_and_each_game_its_own(env_id: str) -> None:
    env = make_native(env_id, n_envs=3, seed=7)
    observations, numbers = stream(env)
    env.seed(7)  # in the middle of a game
    for first, second in zip((observations, numbers), stream(env), strict=True):
        np.testing.assert_array_equal(first, second)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(observations[:, one], observations[:, other])
    third = make_native(env_id, seed=9)  # games get successive seeds
    np.testing.assert_array_equal(stream(third)[0][:, 0], observations[:, 2])
    unseeded = make_native(env_id, n_envs=3, seed=None)
    assert not np.array_equal(stream(unseeded)[0], observations)
    for each in (env, third, unseeded):
        each.close()


def test_the_largest_seed_is_taken() -> None:
    env = make_native(seed=2**32 - 1)
    env.reset()
    env.close()


# ---------------------------------------------------------------- SB3's tools


def test_per_double_dqn_trains_on_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 120)
    env, eval_env = make_native(n_envs=2), make_native(seed=9, evaluation=True)
    callback = EvalCallback(eval_env, n_eval_episodes=1, eval_freq=60, log_path=str(tmp_path), verbose=0)
    model = PerDoubleDQN("CnnPolicy", env, buffer_size=256, learning_starts=100, batch_size=8, seed=0)
    model.learn(200, callback=callback)
    assert model.env is env  # no wrapper, and no copy by one
    assert callback.evaluations_timesteps == [120]
    buffer = model.replay_buffer
    assert isinstance(buffer, PrioritizedReplayBuffer)
    assert buffer.nbytes < 256 * 2 * 4 * 84 * 84 / 6  # single frames, by itself: whole stacks would be 256 * 2 * 4
    assert model._n_updates > 0
    assert all(weights.isfinite().all() for weights in model.policy.parameters())
    model.learn(20, reset_num_timesteps=True)  # resets in the middle of a game
    env.close()
    eval_env.close()


def test_sb3s_dqn_trains_on_it_as_it_is() -> None:
    env = make_native(n_envs=2)
    model = DQN("CnnPolicy", env, buffer_size=200, learning_starts=20, batch_size=4).learn(60)
    assert model.env is env
    env.close()


def test_the_whole_games_are_what_evaluate_policy_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """With lives as episodes, and clipped rewards, scores still are of games."""
    kwargs: dict[str, Any] = {"env_id": PACMAN, "wrapper_kwargs": NO_NOOPS}

    class Right:
        def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
            return np.full(len(observation), 2), None

    results = []
    for env in (make_native(**kwargs), make_oracle(**kwargs)):
        results.append(evaluate_policy(Right(), env, 1, return_episode_rewards=True))  # type: ignore[arg-type]
        env.close()
    assert results[0] == results[1]
    assert results[0][0][0] > 50


def test_pictures_are_what_the_agent_sees(tmp_path: Path) -> None:
    env = make_native(n_envs=2)
    observation = env.reset()
    images = env.get_images()
    for rank, image in enumerate(images):
        assert image is not None
        for colour in range(3):
            np.testing.assert_array_equal(image[..., colour], observation[rank, -1])
    whole = env.render("rgb_array")
    assert whole is not None
    assert whole.shape == (168, 84, 3)
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=10)
    recorder.reset()
    for _ in range(11):
        recorder.step(np.zeros(2, dtype=int))
    recorder.close()
    assert frames(Path(recorder.video_path)) >= 10


def test_attributes_and_methods_of_the_games() -> None:
    env = make_native(n_envs=3, evaluation=True)
    env.reset()
    assert env.get_attr("evaluation") == [True] * 3
    assert env.get_attr("lives", [0, 2]) == [5, 5]
    assert env.get_attr("spec", 1)[0].id == BREAKOUT
    assert env.has_attr("render_mode")
    assert not env.has_attr("no_such_thing")
    env.set_attr("evaluation", False, 1)
    assert env.get_attr("evaluation") == [True, False, True]
    assert env.env_method("get_action_meanings", indices=0) == [["NOOP", "FIRE", "RIGHT", "LEFT"]]
    for wrapper in (Monitor, AtariWrapper, AtariGameWrapper):
        assert env.env_is_wrapped(wrapper) == [True] * 3
    assert env.env_is_wrapped(NoopResetEnv, [0]) == [False]
    settings = game_settings(BREAKOUT, True, None, None)
    assert pickle.loads(pickle.dumps(settings)) == settings
    env.close()


# ---------------------------------------------------------------- bad input


@pytest.fixture
def no_game(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("an emulator was started")

    monkeypatch.setattr(NativeGame, "__init__", start)


@pytest.mark.usefixtures("no_game")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"emulators": "threads"}, "emulators='threads' must be 'processes' or 'native'"),
        ({"emulators": None}, "emulators=None"),
        ({"vec_env_cls": SubprocVecEnv}, "vec_env_cls=SubprocVecEnv is for emulators='processes'"),
        ({"vec_env_cls": DummyVecEnv}, "vec_env_cls=DummyVecEnv"),
        ({"vec_env_kwargs": {"restarts": 1}}, "vec_env_kwargs={'restarts': 1} is for emulators='processes'"),
        ({"env_id": "Breakout-v4"}, r"'Breakout-v4' .*\(2, 5\).*NoFrameskip.*emulators='processes'"),
        ({"env_kwargs": {"frameskip": (2, 5)}}, r"\(2, 5\)"),
        ({"env_kwargs": {"mode": 4}}, r"env_kwargs={'mode': 4}.*emulators='processes'"),
        ({"env_kwargs": {"obs_type": "ram"}}, "obs_type"),
        ({"wrapper_kwargs": {"action_repeat_probability": 0.1}}, "action_repeat_probability.*emulators='processes'"),
        ({"wrapper_kwargs": {"frameskip": 4}}, "wrapper_kwargs={'frameskip': 4}.*frame_skip"),
        ({"wrapper_kwargs": {"frame_skip": 0}}, "frame_skip=0 must be a whole number, 1 or more"),
        ({"wrapper_kwargs": {"noop_max": -1}}, "noop_max=-1"),
        ({"wrapper_kwargs": {"screen_size": 8.5}}, r"screen_size=8\.5"),
        ({"env_id": "ALE/Breakout-v5", "wrapper_kwargs": {"frame_skip": 8}}, "frame_skip=8: ALE/Breakout-v5 skips 4"),
        ({"env_id": "ALE/Brekout-v5"}, "Did you mean ALE/Breakout-v5"),
        ({"n_envs": 0}, "n_envs=0"),
        ({"frame_stack": 0}, "frame_stack=0"),
        ({"seed": -1}, "seed=-1"),
    ],
    ids=str,
)
def test_bad_arguments_before_any_emulator_starts(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_atari_vec_env(**{"env_id": BREAKOUT, "n_envs": 2, "emulators": "native", **kwargs})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("actions", [[0, 4], [-1, 0], [0], [0, 0, 0], [0.0, 1.0], [[0, 0]]])
def test_what_is_no_action_is_an_error_and_does_not_wait_for_ever(actions: Any) -> None:
    env = make_native(n_envs=2)
    env.reset()
    with pytest.raises(ValueError, match=r"must be 2 of Discrete\(4\)"):
        env.step(np.array(actions))
    env.step(np.zeros(2, dtype=int))  # nothing was begun
    env.close()


def test_what_make_passes_on_is_honoured() -> None:
    wrapper_kwargs = {"screen_size": 42, "frame_skip": 2}
    env = make_native(wrapper_kwargs=wrapper_kwargs, env_kwargs={"full_action_space": True}, frame_stack=2)
    assert env.reset().shape == (1, 2, 42, 42)
    assert env.action_space.n == 18  # type: ignore[attr-defined]
    assert env.step(np.array([17]))[3][0]["episode_frame_number"] == env.reset_infos[0]["episode_frame_number"] + 2
    env.close()


# ---------------------------------------------------------------- the zoo


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose games are cut short, with the classes of all environments that it made."""
    logs = tmp_path_factory.mktemp("native")
    made: list[tuple[bool, str]] = []
    create_envs = ExperimentManager.create_envs

    def remember(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        env = create_envs(self, n_envs, eval_env, no_log)
        made.append((eval_env, type(env.unwrapped).__name__))
        return env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "EVALUATION_MAX_FRAMES", 300)
        patch.setattr(ExperimentManager, "create_envs", remember)
        flags = ["-n", "400", "--seed", "1", "--eval-freq", "300", "--device", "cpu"]
        run = run_main("train", *flags, *BREAKOUT_PARAMS, "emulators:'native'", logs=logs, env_id=BREAKOUT)
        assert run.status == 0, run.err
        assert "not of the same type" not in run.err
        result = closing_line(run)
        assert result["score"].endswith("over 10 full games")
        assert 40 <= frames(Path(result["video"])) <= 78
        assert made == [
            (False, "NativeAtariVecEnv"),  # the trial
            (True, "NativeAtariVecEnv"),  # EvalCallback's
            (False, "NativeAtariVecEnv"),
            (True, "NativeAtariVecEnv"),  # the score
            (True, "DummyVecEnv"),  # the video
        ]
        yield logs


def load_results_of(file: Path) -> list[tuple[str, ...]]:
    """Scores and lengths in a file of ``Monitor``'s."""
    _, header, *lines = file.read_text().splitlines()
    assert header == "r,l,t"
    return [tuple(line.split(",")[:2]) for line in lines]


class TestZoo:
    def test_a_run_leaves_its_choice_and_its_episodes(self, logs: Path) -> None:
        folder = logs / "per_ddqn" / f"{BREAKOUT}_1"
        config = yaml.load((folder / BREAKOUT / "config.yml").read_text(), yaml.UnsafeLoader)
        assert dict(config)["emulators"] == "native"
        assert len(load_results(str(folder))) >= 1
        lengths = np.load(folder / "evaluations.npz")["ep_lengths"]
        assert (lengths >= 280).all()
        assert (lengths < 304).all()

    def test_enjoy_and_record_video(self, logs: Path, tmp_path: Path) -> None:
        run = run_main("enjoy", "--no-render", "-n", "100", "--device", "cpu", logs=logs)
        assert run.status == 0, run.err
        run = run_main("record_video", "--env", BREAKOUT, "-n", "15", "-o", str(tmp_path), logs=logs)
        assert run.status == 0, run.err
        (video,) = tmp_path.glob("*.mp4")
        assert frames(video) >= 15

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["emulators:'threads'"], ["emulators='threads'"]),
            (["emulators:'native'", "env_wrapper:None"], ["emulators: native", "AtariGameWrapper"]),
            (["emulators:'native'", "env_wrapper:[]"], ["emulators: native"]),
            (["emulators:'native'", "normalize:True"], ["emulators: native", "normalize"]),
            (["emulators:'native'", "worker_restarts:1"], ["worker_restarts=1 is for worker processes"]),
            (["emulators:'native'", "env_kwargs:dict(mode=4)"], ["mode", "emulators='processes'"]),
        ],
    )
    def test_what_native_emulators_cannot_do_is_one_line(
        self, arguments: list[str], words: list[str], tmp_path: Path
    ) -> None:
        run = run_main("train", "-params", *arguments, logs=tmp_path / "logs")
        assert run.status == 2
        (line,) = run.err.strip().splitlines()
        assert all(word in line for word in words)
        assert not (tmp_path / "logs").exists()

    def test_a_resumed_run_goes_on_with_its_episodes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each game once, those before and those after."""
        monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 40)
        arguments = ["-n", "2400", "--seed", "1", "--device", "cpu", "--checkpoint-every", "800", "--eval-freq", "-1"]
        arguments += ["-params", "emulators:'native'", "n_envs:2", "learning_starts:10000", "buffer_size:1000"]
        run = run_main("train", *arguments, logs=tmp_path, env_id=BREAKOUT)
        assert run.status == 0, run.err
        files = [run.folder / f"{rank}.monitor.csv" for rank in range(2)]
        whole = [load_results_of(file) for file in files]
        assert all(len(games) > 2 for games in whole)
        shutil.rmtree(max(run.folder.glob("checkpoints/step-*")))
        assert run_main("train", "--resume", str(run.folder)).status == 0
        assert [load_results_of(file) for file in files] == whole

    def test_wrapper_arguments_reach_the_games(self) -> None:
        hyperparams: dict[str, Any] = {"env_wrapper": [{zoo.GAME_WRAPPER: {"noop_max": 3}}]}
        assert native_wrapper_kwargs(hyperparams) == {"noop_max": 3}
        assert native_wrapper_kwargs({"env_wrapper": zoo.GAME_WRAPPER}) == {}
