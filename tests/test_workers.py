"""Worker processes that end, hang or raise, and numbers that are none: what is said, and that nothing is left."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from sb3_per_dqn import PerDoubleDQN, make_atari_vec_env
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.checkpoint.files import CheckpointFolder
from sb3_per_dqn.workers import WorkerError, WorkerVecEnv


class Faulty(gym.Env[Any, int]):
    """Does something at the fifth step."""

    observation_space: Any = spaces.Box(-10, 10, (2,))
    action_space: Any = spaces.Discrete(2)

    def __init__(self, fault: Callable[[], Any] | None = None) -> None:
        self.fault, self.steps = fault, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        answer = self.fault() if self.steps == 5 and self.fault is not None else None
        obs, reward = answer or (np.zeros(2, np.float32), 1.0)
        return obs, reward, False, False, {}


def raise_error() -> None:
    raise KeyError("the simulator has lost its mind")


def cannot_be_made() -> gym.Env[Any, int]:
    raise RuntimeError("no licence")


def workers(fault: Any, **kwargs: Any) -> WorkerVecEnv:
    return WorkerVecEnv([Faulty, partial(Faulty, fault)], **kwargs)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_error, r"Worker 1 of 2 has ended with exit code 1. Its own traceback:(.|\n)*lost its mind"),
        (partial(os._exit, 7), "Worker 1 of 2 has ended with exit code 7"),
        (partial(signal.raise_signal, signal.SIGKILL), r"exit code -9 \(killed, perhaps for want of memory\)"),
        (partial(time.sleep, 1000), "Worker 1 has not answered for 1.5 seconds: it hangs"),
    ],
)
def test_what_became_of_a_worker_is_said(fault: Any, message: str) -> None:
    before = set(multiprocessing.active_children())
    env = workers(fault, timeout=1.5)
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.raises(WorkerError, match=message):
        model.learn(100)
    assert model.num_timesteps == 8  # those that were made
    env.close()
    assert set(multiprocessing.active_children()) == before


class Counting(gym.Env[Any, int]):
    """
    Observations tell which reset and which step they are of; a fault occurs once, at the seventh step of all.

    :param fault: what happens then
    :param once: a file that says that it has happened
    """

    observation_space: Any = spaces.Box(0, np.inf, (2,), np.float64)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, fault: Callable[[], Any] | None = None, once: Path | None = None) -> None:
        self.fault, self.once, self.steps = fault, once, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.obs = np.array([self.np_random.integers(1, 2**40), 0.0])
        return self.obs, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 7 and self.fault is not None and self.once is not None and not self.once.exists():
            self.once.touch()
            self.fault()
        self.obs = self.obs + np.array([0, 1])
        return self.obs, float(self.obs[1]), False, bool(self.obs[1] == 5), {}


def monitored(path: str, **kwargs: Any) -> gym.Env[Any, int]:
    return Monitor(Counting(**kwargs), path, allow_early_resets=False)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(
    "fault", [raise_error, partial(signal.raise_signal, signal.SIGKILL), partial(time.sleep, 1000)]
)
def test_a_worker_is_replaced(fault: Any, n_steps: int, tmp_path: Path) -> None:
    """The broken episode ends with the step before the one that was lost: nothing is invented, nothing else is lost."""
    before = set(multiprocessing.active_children())
    makers = [partial(monitored, str(tmp_path / "0")), partial(monitored, str(tmp_path / "1"))]
    makers[1] = partial(makers[1], fault=fault, once=tmp_path / "once")
    env = WorkerVecEnv(makers, timeout=1.5, restarts=1)
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, n_steps=n_steps, device="cpu", seed=3)
    with pytest.warns(UserWarning, match=r"Worker 1 (.|\n)*It is replaced \(1 of 1 restarts\)"):
        model.learn(40)
    env.close()
    assert set(multiprocessing.active_children()) == before
    assert model.num_timesteps == 40
    buffer: Any = model.replay_buffer
    drawn = buffer._get_samples(np.flatnonzero(buffer._priorities.values))
    obs, next_obs = drawn.observations.numpy(), drawn.next_observations.numpy()
    assert len(obs) == 40 - 1 - (n_steps - 1)  # the last windows of environment 1 are open when the run ends
    assert (obs[:, 0] == next_obs[:, 0]).all()  # of one episode
    steps = next_obs[:, 1] - obs[:, 1]
    assert ((steps >= 1) & (steps <= n_steps)).all()
    assert (drawn.dones == 0).all()
    # the seventh step of environment 1 was the second of an episode; then a whole new one, with other random numbers
    lengths = [np.loadtxt(tmp_path / f"{i}.monitor.csv", delimiter=",", skiprows=2)[:, 1].tolist() for i in range(2)]
    assert lengths == [[5, 5, 5, 5], [5, 5, 5]]
    assert len(np.unique(obs[:, 0])) == 4 + 5  # the broken episode has one step, and the last has three


class KillAWorker(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 20:
            self.model.get_env().unwrapped.processes[0].kill()  # type: ignore[union-attr]
        return True


def test_atari_goes_on_with_frames_kept_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    env = make_atari_vec_env(
        "BreakoutNoFrameskip-v4", 2, seed=0, monitor_dir=str(tmp_path), vec_env_kwargs={"restarts": 1}
    )
    model = PerDoubleDQN("CnnPolicy", env, buffer_size=200, learning_starts=70, batch_size=4, device="cpu")
    model.learn(104, callback=KillAWorker())
    env.close()
    assert ["It is replaced" in str(warning.message) for warning in recwarn] == [True]
    buffer: Any = model.replay_buffer
    assert len(np.flatnonzero(buffer._priorities.values)) == 103
    assert buffer.layouts[0] == [0, 4]
    drawn = buffer._get_samples(np.flatnonzero(buffer._priorities.values))
    assert th.equal(drawn.observations[:, 1:], drawn.next_observations[:, :-1])


def test_closing_leaves_no_pipe_open() -> None:
    env = workers(None)
    env.close()
    assert [remote.closed for remote in env.remotes] == [True, True]


def test_one_restart_too_few(tmp_path: Path) -> None:
    env = workers(raise_error, restarts=1)  # its replacement raises the same
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.warns(UserWarning, match="It is replaced"), pytest.raises(WorkerError, match="lost its mind"):
        model.learn(100)
    assert model.num_timesteps == 2 * (4 + 1 + 4)
    env.close()


def test_a_worker_that_dies_between_two_steps() -> None:
    env = workers(None)
    env.reset()
    env.step(np.zeros(2, int))
    env.processes[1].kill()
    env.processes[1].join()
    with pytest.raises(WorkerError, match=r"Worker 1 of 2 has ended with exit code -9"):
        env.step(np.zeros(2, int))
    env.close()


def test_a_worker_that_cannot_be_replaced(tmp_path: Path) -> None:
    env = WorkerVecEnv([Faulty, partial(made_once, tmp_path / "once")], restarts=3)
    env.reset()
    env.processes[1].kill()
    with (
        pytest.warns(UserWarning, match="It is replaced"),
        pytest.raises(WorkerError, match=r"replaced(.|\n)*no licence"),
    ):
        env.step(np.zeros(2, int))
    env.close()


def made_once(once: Path) -> gym.Env[Any, int]:
    if once.exists():
        raise RuntimeError("no licence for two")
    once.touch()
    return Faulty()


@pytest.mark.parametrize("kwargs", [{"restarts": -1}, {"restarts": 0.5}, {"timeout": 0}])
def test_arguments_that_make_no_sense(kwargs: dict[str, Any]) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}={next(iter(kwargs.values()))} must be"):
        workers(None, **kwargs)
    assert set(multiprocessing.active_children()) == before


def test_memory_that_cannot_leave_out_a_step() -> None:
    env = workers(None, restarts=1)
    model = PerDoubleDQN("MlpPolicy", env, prioritized_replay=False, device="cpu")
    with pytest.raises(ValueError, match="restarts=1: ReplayBuffer cannot leave out the step"):
        model.learn(10)
    env.close()


@pytest.mark.parametrize("first", [True, False])
def test_an_environment_that_cannot_be_made(first: bool) -> None:
    before = set(multiprocessing.active_children())

    def make_and_reset() -> None:
        env = WorkerVecEnv([cannot_be_made, Faulty] if first else [Faulty, cannot_be_made])
        try:
            env.reset()
        finally:
            env.close()

    with pytest.raises(WorkerError, match=r"Worker [01] of 2 has ended with exit code 1(.|\n)*no licence"):
        make_and_reset()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number(bad: float) -> None:
    """TRAPS 15: where it comes from, before it is stored."""
    env = workers(lambda: (np.zeros(2, np.float32), bad))
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match=f"At step 10, the reward of environment 1 is {bad}"):
        model.learn(100)
    assert model.replay_buffer is not None
    assert model.replay_buffer.pos == 4
    env.close()


def test_an_observation_that_is_no_number() -> None:
    env = workers(lambda: (np.array([0, math.nan], np.float32), 1.0))
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match="At step 10, an observation of environment 1 is NaN"):
        model.learn(100)
    env.close()


class Secretive(Faulty):
    """From the fifth step on it holds what no state tells."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 4:
            self.hidden = iter([])
        return super().step(action)


def test_a_state_that_cannot_be_read_any_more_ends_no_worker(tmp_path: Path) -> None:
    env = WorkerVecEnv([Secretive, Secretive])
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, train_freq=1, device="cpu")
    with pytest.warns(UserWarning, match="No checkpoint at step 16.*hidden is a list_iterator"):
        model.learn(30, callback=RunCheckpoints(tmp_path, every=8))
    assert model.num_timesteps == 30
    env.close()


LEFT_OPEN = """
from sb3_per_dqn.workers import WorkerVecEnv
from tests.test_workers import Faulty

if __name__ == "__main__":
    env = WorkerVecEnv([Faulty, Faulty])
    env.reset()
    print(*(process.pid for process in env.processes))
"""


def test_a_script_that_closes_nothing_ends(tmp_path: Path) -> None:
    """And so do its workers, though they ignore SIGTERM, by which Python ends children."""
    (tmp_path / "script.py").write_text(LEFT_OPEN)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    script = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0
    assert len(done.stdout.split()) == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in done.stdout.split())


def sleeping(report: Path) -> gym.Env[Any, int]:
    """Tells its process and, as one that ignores signals, never ends by itself."""
    written = report.with_suffix(".part")
    written.write_text(str(os.getpid()))
    written.replace(report)
    time.sleep(1000)
    return Faulty()


def awake_at_first(once: Path, report: Path) -> gym.Env[Any, int]:
    if once.exists():
        return sleeping(report)
    once.touch()
    return Faulty()


class NotPickled:
    """An environment function that is refused once the worker before it sleeps."""

    def __init__(self, report: Path) -> None:
        self.report = report

    def __call__(self) -> gym.Env[Any, int]:
        return Faulty()

    def __reduce__(self) -> Any:
        wait_for(self.report)
        raise TypeError("a licence cannot be pickled")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.05)


def interrupted_while_made(folder: Path) -> None:
    WorkerVecEnv([partial(sleeping, folder / "pid"), Faulty])


def refused_while_made(folder: Path) -> None:
    WorkerVecEnv([partial(sleeping, folder / "pid"), NotPickled(folder / "pid")])


def interrupted_while_replaced(folder: Path) -> None:
    env = WorkerVecEnv([Faulty, partial(awake_at_first, folder / "once", folder / "pid")], restarts=1)
    env.reset()
    env.processes[1].kill()
    env.step(np.zeros(2, int))


HALF_MADE = """
import sys
from pathlib import Path
from tests import test_workers

if __name__ == "__main__":
    getattr(test_workers, sys.argv[1])(Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (interrupted_while_made, "KeyboardInterrupt"),
        (refused_while_made, "a licence cannot be pickled"),
        (interrupted_while_replaced, "KeyboardInterrupt"),
    ],
)
def test_a_script_ends_whose_workers_were_not_all_made(how: Callable[[Path], None], error: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(HALF_MADE)
    script = [sys.executable, str(tmp_path / "script.py"), how.__name__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen(script, stderr=subprocess.PIPE, text=True, env=environment)
    worker: int | None = None
    try:
        wait_for(tmp_path / "pid")
        worker = int((tmp_path / "pid").read_text())
        if error == "KeyboardInterrupt":
            parent.send_signal(signal.SIGINT)
        _, said = parent.communicate(timeout=60)
        assert error in said
        assert parent.returncode != 0
        assert not psutil.pid_exists(worker)
    finally:
        parent.kill()
        if worker is not None and psutil.pid_exists(worker):
            os.kill(worker, signal.SIGKILL)


def stop(env: WorkerVecEnv, worker: int, signum: int) -> None:
    os.kill(env.processes[worker].pid, signum)
    if signum == signal.SIGKILL:
        env.processes[worker].join()


@pytest.mark.parametrize(("signum", "message"), [(signal.SIGSTOP, "it hangs"), (signal.SIGKILL, "exit code -9")])
def test_workers_are_missed_at_a_reset_and_at_a_question(signum: int, message: str) -> None:
    env = workers(None, timeout=1.5)
    env.reset()
    stop(env, 1, signum)
    for ask in (env.reset, lambda: env.env_method("why_not_captured")):
        with pytest.raises(WorkerError, match=message):
            ask()
    env.close()


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_worker_that_dies_before_a_checkpoint(restarts: int, tmp_path: Path) -> None:
    """There is none; the next step finds it dead, and reads no other worker's answer to the question as its own."""

    class Killing(RunCheckpoints):
        def _save(self) -> None:
            if not killed:
                killed.append(self.num_timesteps)
                stop(self.training_env, 1, signal.SIGKILL)  # type: ignore[arg-type]
            super()._save()

    killed: list[int] = []
    env = workers(None, restarts=restarts)
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, buffer_size=100, device="cpu")
    ending = (
        nullcontext() if restarts else pytest.raises(WorkerError, match="Worker 1 of 2 has ended with exit code -9")
    )
    with pytest.warns(UserWarning, match=r"No checkpoint at step 8: .*exit code -9"), ending:
        model.learn(40, callback=Killing(tmp_path, 8))
    assert CheckpointFolder(tmp_path).steps == ([24, 32] if restarts else [])
    assert env.restarted == restarts
    env.close()
