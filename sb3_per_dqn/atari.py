"""Atari games as a Stable-Baselines3 ``VecEnv``, preprocessed alike for training, evaluation and the zoo."""

import difflib
import os
import tempfile
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import AtariStepReturn
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from sb3_per_dqn.arguments import check_whole
from sb3_per_dqn.checkpoint.state import handle
from sb3_per_dqn.workers import WorkerVecEnv

try:
    import ale_py
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Atari games need ale-py: pip install 'sb3-per-dqn[atari]'", name="ale_py") from error

gym.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # AtariEnv does so too, but after the banner


def _captured_emulator(ale: ale_py.ALEInterface) -> np.ndarray:
    return np.frombuffer(ale.cloneState(include_rng=True).serialize(), dtype=np.uint8)


def _restore_emulator(ale: ale_py.ALEInterface, state: np.ndarray) -> None:
    ale.restoreState(ale_py.ALEState(state.tobytes()))


handle(ale_py.ALEInterface, _captured_emulator, _restore_emulator)

EVALUATION_EPSILON = 0.01
# Five minutes at 60 frames a second, the limit of Mnih et al. (2015): a policy that never presses FIRE ends there.
EVALUATION_MAX_FRAMES = 18_000


class AtariGameWrapper(AtariWrapper):
    """
    SB3's ``AtariWrapper`` for every Atari id, with a mode for evaluation.

    An action lasts ``frame_skip`` emulator frames in all. ``BreakoutNoFrameskip-v4`` skips none, so the wrapper skips
    them (and takes the maximum of the last two); ``ALE/Breakout-v5`` skips four by itself, so the wrapper skips none.
    Sticky actions stay as the id defines them: none for ``-v4``, probability 0.25 for ``-v5``.

    In evaluation mode an episode is a whole game with the game's own score, one action in a hundred is random
    (so that a deterministic policy neither replays one game nor stands still for ever), and a game is cut after
    ``EVALUATION_MAX_FRAMES`` emulator frames, or at the environment's own limit where that is lower. The cut is made
    by the emulator, below ``Monitor``, so that the episode's score is reported. The randomness is in the environment,
    so that ``evaluate_policy(model, env)``, ``EvalCallback`` and ``VecVideoRecorder`` see the same for every model:
    call them with ``deterministic=True``.

    :param env: an Atari environment made by ``gymnasium.make``
    :param evaluation: whole, unclipped games with ``EVALUATION_EPSILON`` random actions
    :param frame_skip: emulator frames for one action
    :param kwargs: further arguments of SB3's ``AtariWrapper`` (``noop_max``, ``screen_size``,
        ``terminal_on_life_loss``, ``clip_reward``, ``action_repeat_probability``)
    :raises ValueError: if ``env`` is no Atari game, or already skips frames that ``frame_skip`` is no multiple of
    :raises ImportError: if OpenCV cannot be loaded
    """

    def __init__(self, env: gym.Env[Any, Any], evaluation: bool = False, frame_skip: int = 4, **kwargs: Any) -> None:
        emulator = env.unwrapped
        if not isinstance(emulator, ale_py.AtariEnv) or emulator.spec is None:
            raise ValueError(f"env={env} is no Atari game made by gymnasium.make: AtariGameWrapper needs one.")
        _check_opencv()
        self.evaluation = evaluation
        if evaluation:
            kwargs = {"terminal_on_life_loss": False, "clip_reward": False, **kwargs}
            limit = emulator.ale.getInt("max_num_frames_per_episode") or EVALUATION_MAX_FRAMES  # 0 is no limit
            # the emulator reads it when it loads the game
            emulator.ale.setInt("max_num_frames_per_episode", min(limit, EVALUATION_MAX_FRAMES))
            emulator.load_game()
        super().__init__(env, frame_skip=_remaining_skip(emulator, frame_skip), **kwargs)

    def step(self, action: int) -> AtariStepReturn:
        """
        :param action: index of the action
        :return: observation, reward, terminated, truncated, info
        """
        if self.evaluation and self.np_random.random() < EVALUATION_EPSILON:
            action = int(self.np_random.integers(self.action_space.n))  # type: ignore[attr-defined]
        return super().step(action)


def _check_opencv() -> None:
    """Where a library is missing that OpenCV needs, SB3 says that OpenCV is not installed."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"OpenCV, which Atari games are seen through, cannot be loaded: {error}. If it is there, it lacks a "
            "library of the system: on Debian and Ubuntu, apt install libgl1 libglib2.0-0.",
            name="cv2",
        ) from error


def _remaining_skip(emulator: ale_py.AtariEnv, frame_skip: int) -> int:
    """
    :return: the frames that the wrapper has to skip so that an action lasts ``frame_skip`` in all
    """
    assert emulator.spec is not None
    skipped = emulator.spec.kwargs.get("frameskip", 4)  # 4 is AtariEnv's own default
    if not isinstance(skipped, int):  # a range, drawn anew for each action, as in Breakout-v4: the id's own affair
        return 1
    if frame_skip < 1 or frame_skip % skipped != 0:
        raise ValueError(
            f"frame_skip={frame_skip} is no multiple of the {skipped} frames that {emulator.spec.id} skips: "
            f"pass a multiple of {skipped}, or a NoFrameskip id."
        )
    return frame_skip // skipped


def make_atari_vec_env(
    env_id: str,
    n_envs: int = 8,
    seed: int | None = None,
    *,
    evaluation: bool = False,
    frame_stack: int = 4,
    monitor_dir: str | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] = WorkerVecEnv,
    vec_env_kwargs: dict[str, Any] | None = None,
    emulators: str = "processes",
) -> VecEnv:
    """
    Atari games, preprocessed by :class:`AtariGameWrapper` in worker processes, or likewise by ALE's native emulators in
    threads of this one, with stacked frames.

    ``Monitor`` stands directly around the emulator: ``info["episode"]["r"]`` and ``rollout/ep_rew_mean`` are the
    unclipped scores of whole games, whatever the wrapper clips or ends above it.

    Worker processes import the program that starts them: in a script, call this under ``if __name__ == "__main__":``.

    :param env_id: an Atari id, such as ``BreakoutNoFrameskip-v4`` or ``ALE/Breakout-v5``
    :param n_envs: number of games, each in a process (or thread) of its own
    :param seed: seed of the first game; the others get the numbers after it
    :param evaluation: whole unclipped games with 1% random actions, see :class:`AtariGameWrapper`
    :param frame_stack: number of frames in an observation
    :param monitor_dir: folder for ``Monitor``'s files, or ``None`` for no files
    :param monitor_kwargs: its arguments; ``override_existing=False`` goes on with the files that are there
    :param wrapper_kwargs: further arguments of :class:`AtariGameWrapper`
    :param env_kwargs: arguments for ``gymnasium.make``
    :param vec_env_cls: ``DummyVecEnv`` runs the games in this process
    :param vec_env_kwargs: its arguments, such as ``restarts`` of :class:`~sb3_per_dqn.workers.WorkerVecEnv`
    :param emulators: ``"processes"``, or ``"native"`` for :class:`~sb3_per_dqn.native_atari.NativeAtariVecEnv`, whose
        docstring names the differences
    :return: observations of shape (n_envs, 84, 84, frame_stack), uint8 (SB3 moves the channels first by itself), or
        (n_envs, frame_stack, 84, 84) from native emulators
    :raises ValueError: for an unknown id (with the nearest known ones), no ROM, a count below 1, a ``frame_skip``
        that does not fit the id, or what native emulators cannot do, before any process starts
    :raises OSError: if ``monitor_dir`` cannot be made or written in, likewise
    """
    check_atari_id(env_id)
    for name, count in (("n_envs", n_envs), ("frame_stack", frame_stack)):
        check_whole(name, count, 1)
    if seed is not None:
        if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seed={seed!r} must be a whole number, 0 or more, or None.")
        seed = int(seed)  # gymnasium takes no other
    if emulators not in ("processes", "native"):
        raise ValueError(f"emulators={emulators!r} must be 'processes' or 'native'.")
    if monitor_dir is not None:
        os.makedirs(monitor_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=monitor_dir).close()
    if emulators == "native":
        if vec_env_cls is not WorkerVecEnv:
            raise ValueError(f"vec_env_cls={vec_env_cls.__name__} is for emulators='processes': leave it out.")
        if vec_env_kwargs:
            raise ValueError(f"vec_env_kwargs={vec_env_kwargs!r} is for emulators='processes': leave it out.")
        from sb3_per_dqn.native_atari import NativeAtariVecEnv  # here, as it builds on this module

        return NativeAtariVecEnv(
            env_id,
            n_envs,
            seed,
            evaluation=evaluation,
            frame_stack=frame_stack,
            monitor_dir=monitor_dir,
            monitor_kwargs=monitor_kwargs,
            wrapper_kwargs=wrapper_kwargs,
            env_kwargs=env_kwargs,
        )
    wrapper_kwargs = {"evaluation": evaluation, **(wrapper_kwargs or {})}
    _try_out(env_id, env_kwargs or {}, wrapper_kwargs)
    env = make_vec_env(
        env_id,
        n_envs=n_envs,
        seed=seed,
        monitor_dir=monitor_dir,
        monitor_kwargs=monitor_kwargs,
        wrapper_class=AtariGameWrapper,
        wrapper_kwargs=wrapper_kwargs,
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls,
        vec_env_kwargs=vec_env_kwargs,
    )
    return VecFrameStack(env, n_stack=frame_stack)


def _try_out(env_id: str, env_kwargs: dict[str, Any], wrapper_kwargs: dict[str, Any]) -> None:
    """Play one step here, so that what is wrong with an argument is said here, and not by a worker's broken pipe."""
    with closing(gym.make(env_id, **env_kwargs)) as game:
        env = AtariGameWrapper(game, **wrapper_kwargs)
        env.reset()
        env.step(0)


def check_atari_id(env_id: str) -> None:
    """
    :param env_id: id of a game
    :raises ValueError: if no Atari game has that id, with the nearest ones that exist, or if its ROM is missing
    """
    atari_ids = [id_ for id_, spec in gym.registry.items() if "AtariEnv" in str(spec.entry_point)]
    if env_id not in atari_ids:
        near = difflib.get_close_matches(str(env_id), atari_ids, n=3, cutoff=0.3)
        raise ValueError(f"env_id={env_id!r} is no Atari game known here. Did you mean {', '.join(near) or 'another'}?")
    game = gym.spec(env_id).kwargs["game"]
    try:
        ale_py.roms.get_rom_path(game)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"env_id={env_id!r}: no ROM for {game!r} ({reason}). Reinstall ale-py, or mend ALE_ROMS_DIR."
        ) from None
