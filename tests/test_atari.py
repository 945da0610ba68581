"""Atari games on the real emulator: against SB3's own preprocessing, and against what the emulator itself says."""

import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper, StickyActionEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecTransposeImage, VecVideoRecorder

from sb3_per_dqn import PerDoubleDQN, atari
from sb3_per_dqn.atari import AtariGameWrapper, check_atari_id, make_atari_vec_env
from sb3_per_dqn.workers import WorkerVecEnv

BREAKOUT = "BreakoutNoFrameskip-v4"
PACMAN = "MsPacmanNoFrameskip-v4"  # pays 10 for a pellet and 200 for a ghost, has three lives and no FIRE
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # the -v0 and -v4 ids


def make_here(env_id: str = BREAKOUT, n_envs: int = 1, seed: int | None = 0, **kwargs: Any) -> VecEnv:
    return make_atari_vec_env(env_id, n_envs, seed, vec_env_cls=DummyVecEnv, **kwargs)


def emulator_of(env: VecEnv) -> ale_py.AtariEnv:
    emulator = env.unwrapped.envs[0].unwrapped  # type: ignore[attr-defined]
    assert isinstance(emulator, ale_py.AtariEnv)
    return emulator


def count_scores(emulator: ale_py.AtariEnv, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sum what the emulator pays, beneath every wrapper. Returns the (growing) scores of the games that ended."""
    scores: list[float] = []
    score = 0.0
    step, reset = emulator.step, emulator.reset

    def counted_step(action: int) -> Any:
        nonlocal score
        result = step(action)
        score += result[1]
        if result[2] or result[3]:
            scores.append(score)
        return result

    def counted_reset(**kwargs: Any) -> Any:
        nonlocal score
        score = 0.0
        return reset(**kwargs)

    monkeypatch.setattr(emulator, "step", counted_step)
    monkeypatch.setattr(emulator, "reset", counted_reset)
    return scores


class Still:
    """A policy that never moves and never presses FIRE."""

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        return np.zeros(len(observation), dtype=int), None


# ---------------------------------------------------------------- frames and sticky actions


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "wrapper_kwargs", "frames", "sticky"),
    [
        (BREAKOUT, {}, {}, {4}, 0.0),
        ("ALE/Breakout-v5", {}, {}, {4}, 0.25),
        ("Breakout-v4", {}, {}, {2, 3, 4}, 0.0),  # the id's own random skip
        ("BreakoutNoFrameskip-v0", {}, {}, {4}, 0.25),
        (BREAKOUT, {}, {"frame_skip": 1}, {1}, 0.0),
        ("ALE/Breakout-v5", {}, {"frame_skip": 8}, {8}, 0.25),
        ("ALE/Breakout-v5", {"frameskip": 1}, {}, {4}, 0.25),
        ("ALE/Breakout-v5", {"repeat_action_probability": 0.0}, {}, {4}, 0.0),
    ],
)
@pytest.mark.parametrize("evaluation", [False, True])
def test_an_action_lasts_four_frames_and_sticks_as_the_id_says(
    env_id: str,
    env_kwargs: dict[str, Any],
    wrapper_kwargs: dict[str, Any],
    frames: set[int],
    sticky: float,
    evaluation: bool,
) -> None:
    env = make_here(env_id, evaluation=evaluation, env_kwargs=env_kwargs, wrapper_kwargs=wrapper_kwargs)
    emulator = emulator_of(env)
    assert emulator.ale.getFloat("repeat_action_probability") == sticky
    assert env.env_is_wrapped(StickyActionEnv) == [False]
    env.reset()
    lasted = set()
    for _ in range(40):
        before = emulator.ale.getEpisodeFrameNumber()
        _, _, dones, infos = env.step(np.array([2]))
        if not dones[0]:
            lasted.add(emulator.ale.getEpisodeFrameNumber() - before)
            assert infos[0]["episode_frame_number"] == emulator.ale.getEpisodeFrameNumber()
    assert lasted == frames
    env.close()


# ---------------------------------------------------------------- training: SB3's preprocessing


@pytest.mark.parametrize(("env_id", "n_steps"), [(BREAKOUT, 250), (PACMAN, 120)])
def test_training_equals_sb3s_own_preprocessing(env_id: str, n_steps: int) -> None:
    ours = make_here(env_id, n_envs=2, seed=5)
    theirs = VecFrameStack(make_atari_env(env_id, n_envs=2, seed=5), n_stack=4)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    lives_lost, games, rewarded = 0, 0, 0
    for _ in range(n_steps):
        actions = rng.integers(ours.action_space.n, size=2)  # type: ignore[attr-defined]
        our_obs, our_rewards, our_dones, our_infos = ours.step(actions)
        their_obs, their_rewards, their_dones, their_infos = theirs.step(actions)
        np.testing.assert_array_equal(our_obs, their_obs)
        np.testing.assert_array_equal(our_rewards, their_rewards)
        np.testing.assert_array_equal(our_dones, their_dones)
        for our_info, their_info in zip(our_infos, their_infos, strict=True):
            assert our_info["lives"] == their_info["lives"]
            assert our_info["TimeLimit.truncated"] == their_info["TimeLimit.truncated"]
            assert ("episode" in our_info) == ("episode" in their_info)
            if "episode" in our_info:
                assert our_info["episode"]["r"] == their_info["episode"]["r"]
                assert our_info["episode"]["l"] == their_info["episode"]["l"]
            if "terminal_observation" in our_info:
                np.testing.assert_array_equal(our_info["terminal_observation"], their_info["terminal_observation"])
            lives_lost += "terminal_observation" in our_info
            games += "episode" in our_info
        rewarded += int(our_rewards.sum())
    assert rewarded > 0  # the comparison saw rewards,
    if env_id == BREAKOUT:
        assert lives_lost > games > 0  # lost lives and whole games
    ours.close()
    theirs.close()


@pytest.mark.parametrize("evaluation", [False, True])
def test_the_logged_return_is_the_emulators_score_of_a_whole_game(
    evaluation: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_here(PACMAN, seed=1, evaluation=evaluation, monitor_dir=str(tmp_path))
    scores = count_scores(emulator_of(env), monkeypatch)
    env.reset()
    rng = np.random.default_rng(1)
    rewards: list[float] = []
    ends = 0
    info: dict[str, Any] = {}
    while "episode" not in info:
        _, reward, dones, infos = env.step(rng.integers(9, size=1))
        rewards.append(float(reward[0]))
        ends += int(dones[0])
        info = infos[0]
    assert [info["episode"]["r"]] == scores
    assert info["lives"] == 0
    assert load_results(str(tmp_path))["r"].tolist() == scores
    if evaluation:
        assert ends == 1
        assert sum(rewards) == scores[0]
        assert max(rewards) >= 10
    else:
        assert ends == 3
        assert set(rewards) == {0.0, 1.0}
        assert sum(rewards) < scores[0]
    env.close()


# ---------------------------------------------------------------- evaluation


def test_evaluation_plays_on_when_a_life_is_lost() -> None:
    env = make_here(evaluation=True)
    env.reset()
    rng = np.random.default_rng(0)
    lives = [5]
    done = False
    while not done:
        _, _, dones, infos = env.step(rng.integers(4, size=1))
        done = bool(dones[0])
        lives.append(infos[0]["lives"])
    assert sorted(set(lives)) == [0, 1, 2, 3, 4, 5]
    assert lives == sorted(lives, reverse=True)
    assert "episode" in infos[0]
    env.close()


@pytest.mark.parametrize("evaluation", [False, True])
def test_one_action_in_a_hundred_is_random_in_evaluation(evaluation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(AtariWrapper, "step", lambda self, action: taken.append(action), raising=False)
    env = AtariGameWrapper(gym.make(BREAKOUT), evaluation=evaluation)
    env.unwrapped.reset(seed=0)
    n_steps = 100_000
    for _ in range(n_steps):
        env.step(2)
    counts = Counter(taken)
    assert counts.total() == n_steps
    if not evaluation:
        assert counts == {2: n_steps}
        return
    # a random action is each of the four with the same probability, the chosen one included
    for other in (0, 1, 3):
        assert counts[other] == pytest.approx(n_steps * 0.01 / 4, abs=5 * (n_steps * 0.01 / 4) ** 0.5)


def play(env: VecEnv, n_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same actions each time; returns all observations, rewards and dones."""
    first = np.asarray(env.reset())
    rng = np.random.default_rng(2)
    steps = [env.step(rng.integers(4, size=env.num_envs)) for _ in range(n_steps)]
    observations, rewards, dones, _ = zip(*steps, strict=True)
    return np.stack([first, *map(np.asarray, observations)]), np.stack(rewards), np.stack(dones)


def test_evaluation_repeats_under_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "EVALUATION_EPSILON", 0.5)
    one, same, other = (play(make_here(evaluation=True, seed=seed), 40) for seed in (0, 0, 1))
    for ours, theirs in zip(one, same, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("evaluation", "asked", "limit"),
    [
        (False, 108_000, 108_000),
        (True, 108_000, 18_000),  # 108,000 is what the ids have
        (True, None, 18_000),
        (True, 500, 500),
    ],
)
def test_the_frame_limit(evaluation: bool, asked: int | None, limit: int) -> None:
    env = make_here(evaluation=evaluation, env_kwargs={"max_num_frames_per_episode": asked})
    env.reset()
    assert emulator_of(env).ale.getInt("max_num_frames_per_episode") == limit
    env.close()


@pytest.mark.parametrize("env_id", [BREAKOUT, "ALE/Breakout-v5", "Breakout-v4"])
def test_a_policy_that_never_fires_ends_at_the_frame_limit(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 400)
    env = make_here(env_id, evaluation=True)
    last_infos: list[dict[str, Any]] = []

    def remember(frame: dict[str, Any], _: dict[str, Any]) -> None:
        if frame["done"]:
            last_infos.append(frame["info"])

    evaluate_policy(Still(), env, 2, callback=remember)  # type: ignore[arg-type]
    assert len(last_infos) == 2
    for info in last_infos:
        assert 400 <= info["episode_frame_number"] < 404
        assert info["TimeLimit.truncated"]
        assert "episode" in info
    env.close()


def test_the_limit_holds_without_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vectorized environment always seeds its first reset, and the emulator then loads the game anew."""
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 200)
    env = AtariGameWrapper(gym.make(BREAKOUT), evaluation=True)
    env.reset()
    truncated = [env.step(0)[3] for _ in range(50)]
    assert any(truncated)
    env.close()


def test_eval_callback_and_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 120)
    train_env, eval_env = make_here(), VecTransposeImage(make_here(seed=9, evaluation=True))
    callback = EvalCallback(eval_env, n_eval_episodes=1, eval_freq=10, log_path=str(tmp_path), verbose=0)
    model = PerDoubleDQN("CnnPolicy", train_env, buffer_size=64, learning_starts=10, batch_size=4, seed=0)
    model.learn(20, callback=callback)
    assert callback.evaluations_timesteps == [10, 20]
    assert len(callback.evaluations_results) == 2

    recorder = VecVideoRecorder(eval_env, str(tmp_path), lambda step: step == 0, video_length=20)
    evaluate_policy(model, recorder, n_eval_episodes=1, deterministic=True)
    recorder.close()
    video = cv2.VideoCapture(recorder.video_path)
    frames = []
    while (answer := video.read())[0]:
        frames.append(answer[1])
    assert len(frames) >= 20
    assert {frame.shape for frame in frames} == {(210, 160, 3)}
    assert max(int(frame.max()) for frame in frames) > 100  # a picture, not darkness
    train_env.close()


# ---------------------------------------------------------------- workers


def test_workers_play_the_same_games_as_one_process_and_close_leaves_none() -> None:
    settings: dict[str, Any] = {"evaluation": True, "env_kwargs": {"max_num_frames_per_episode": 200}}
    env = make_atari_vec_env(BREAKOUT, 2, 3, **settings)
    workers = env.unwrapped
    assert isinstance(workers, WorkerVecEnv)
    try:
        for ours, theirs in zip(play(env, 60), play(make_here(n_envs=2, seed=3, **settings), 60), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert [image.shape for image in env.get_images() if image is not None] == [(210, 160, 3)] * 2
        _, lengths = evaluate_policy(Still(), env, 2, return_episode_rewards=True)  # type: ignore[arg-type]
        assert lengths == [200, 200]  # Monitor counts emulator frames here
    finally:
        env.close()
    assert not any(process.is_alive() for process in workers.processes)
    assert not set(workers.processes) & set(multiprocessing.active_children())
    env.close()  # again is harmless


PARENT = f"""
import multiprocessing.forkserver, signal
from sb3_per_dqn import make_atari_vec_env

interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append("caught"))
env = make_atari_vec_env("{BREAKOUT}", n_envs=2)
env.reset()
print(multiprocessing.forkserver._forkserver._forkserver_pid, *(p.pid for p in env.unwrapped.processes), flush=True)
while True:
    env.step([0, 0])
    if interrupts:
        env.step([0, 0])
        print(interrupts.pop(), flush=True)
"""


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="process groups and SIGKILL")
def test_workers_outlive_ctrl_c_and_not_their_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    children: list[int] = []
    try:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 3  # the fork server and two workers
        for _ in range(2):  # a terminal sends it to every process of the group
            os.killpg(parent.pid, signal.SIGINT)
            assert parent.stdout.readline() == "caught\n"
        assert all(is_running(pid) for pid in children)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 60
        while any(is_running(pid) for pid in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(is_running(pid) for pid in children)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for pid in filter(is_running, children):
            os.kill(pid, signal.SIGKILL)


def test_close_after_an_interrupted_step_does_not_wait_for_answers_already_read() -> None:
    env = WorkerVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    env.reset()
    env.step_async(np.zeros(2, dtype=int))
    env.remotes[0].recv()  # as far as step_wait() came
    closing = threading.Thread(target=env.close, daemon=True)
    closing.start()
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert not any(process.is_alive() for process in env.processes)


# ---------------------------------------------------------------- bad input


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process may start, not even one that ends at once."""

    def start(self: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"env_id": "BreakoutNoFrameskip-v5"}, "'BreakoutNoFrameskip-v5' is no Atari game.*BreakoutNoFrameskip-v4"),
        ({"env_id": "ALE/Brekout-v5"}, "'ALE/Brekout-v5' .*Did you mean ALE/Breakout-v5"),
        ({"env_id": "breakout"}, "Did you mean .*Breakout-v"),
        ({"env_id": "CartPole-v1"}, "'CartPole-v1' is no Atari game"),
        ({"env_id": ""}, "env_id='' is no Atari game"),
        ({"env_id": None}, "env_id=None is no Atari game"),
        ({"n_envs": 0}, "n_envs=0 must be a whole number"),
        ({"n_envs": -1}, "n_envs=-1"),
        ({"n_envs": 1.5}, r"n_envs=1\.5"),
        ({"n_envs": "2"}, "n_envs='2'"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"seed": "x"}, "seed='x'"),
        ({"seed": 1.0}, r"seed=1\.0"),
        ({"seed": True}, "seed=True"),
        ({"n_envs": True}, "n_envs=True"),
        ({"frame_stack": 0}, "frame_stack=0 must be a whole number"),
        ({"frame_stack": None}, "frame_stack=None"),
        ({"env_id": "ALE/Breakout-v5", "wrapper_kwargs": {"frame_skip": 3}}, "frame_skip=3 .*4.*ALE/Breakout-v5"),
        ({"env_id": "ALE/Breakout-v5", "wrapper_kwargs": {"frame_skip": 0}}, "frame_skip=0"),
        ({"wrapper_kwargs": {"frame_skip": 0}}, "frame_skip=0"),
    ],
)
def test_bad_arguments_before_any_process_starts(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_atari_vec_env(**{"env_id": BREAKOUT, "n_envs": 2, **kwargs})
    assert "\n" not in str(caught.value)


def test_numpys_whole_numbers_are_numbers() -> None:
    observations = [make_here(n_envs=np.int64(1), seed=seed).reset() for seed in (3, np.uint64(3))]  # type: ignore[arg-type]
    assert np.array_equal(*observations)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("kwargs", [{"wrapper_kwargs": {"frameskip": 4}}, {"env_kwargs": {"frame_skip": 4}}])
def test_misspelt_arguments_before_any_process_starts(kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        make_atari_vec_env(BREAKOUT, 2, **kwargs)


def test_a_library_that_opencv_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 says then that OpenCV is not installed."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"OpenCV.* cannot be loaded: .*cv2.*libgl1"):
        make_here()


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("rom", ["no folder", "no file", "wrong file"])
def test_missing_rom(rom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "roms"
    if rom != "no folder":
        folder.mkdir()
    if rom == "wrong file":
        (folder / "breakout.bin").write_bytes(b"not a game")
    monkeypatch.setenv("ALE_ROMS_DIR", str(folder))
    with pytest.raises(ValueError, match=f"env_id='{BREAKOUT}': no ROM for 'breakout'.*ALE_ROMS_DIR") as caught:
        make_atari_vec_env(BREAKOUT, 2)
    assert "\n" not in str(caught.value)


def test_every_id_that_the_emulator_registers_is_known() -> None:
    for env_id in (BREAKOUT, "Breakout-v0", "Breakout-v4", "ALE/Breakout-v5", "ALE/Pong-v5"):
        check_atari_id(env_id)


def test_the_wrapper_refuses_what_is_no_atari_game() -> None:
    with pytest.raises(ValueError, match=r"CartPole.* is no Atari game"):
        AtariGameWrapper(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"is no Atari game made by gymnasium\.make"):
        AtariGameWrapper(ale_py.AtariEnv("breakout"))
