"""ALE's native emulators as a Stable-Baselines3 ``VecEnv``: one thread of C++ for each game, no worker process."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_per_dqn import atari

NOOP, FIRE, SECOND = 0, 1, 2  # what AtariWrapper presses to start a game or a life, as indices of the action
NO_LIMIT = 2**30  # frames
PROCESSES = "or choose emulators='processes'."


@dataclass(frozen=True)
class GameSettings:
    """
    What an id, ``gymnasium.make`` and :class:`~sb3_per_dqn.atari.AtariGameWrapper` mean for a native emulator.

    :param env_id: an Atari id
    :param id_kwargs: arguments of ``AtariEnv``: the id's own, and the user's
    :param evaluation: as for the wrapper, and so are the others
    """

    env_id: str
    id_kwargs: dict[str, Any]
    evaluation: bool
    terminal_on_life_loss: bool
    clip_reward: bool
    noop_max: int = 30
    frame_skip: int = 4
    screen_size: int = 84

    @property
    def id_frame_skip(self) -> int:
        """Frames that the id skips by itself. ``Monitor`` and the wrapper's no-ops count in these."""
        skip: int = self.id_kwargs["frameskip"]
        return skip

    @property
    def max_frames(self) -> int:
        """Frames after which a game is cut."""
        limit = self.id_kwargs["max_num_frames_per_episode"] or NO_LIMIT
        return min(limit, atari.EVALUATION_MAX_FRAMES) if self.evaluation else limit


def game_settings(
    env_id: str, evaluation: bool, wrapper_kwargs: dict[str, Any] | None, env_kwargs: dict[str, Any] | None
) -> GameSettings:
    """
    :param env_id: an Atari id
    :param evaluation: whole, unclipped games with some random actions
    :param wrapper_kwargs: further arguments of :class:`~sb3_per_dqn.atari.AtariGameWrapper`
    :param env_kwargs: arguments for ``gymnasium.make``
    :return: the settings
    :raises ValueError: for what a native emulator cannot do as the wrapper does
    """
    id_kwargs = gym.spec(env_id).kwargs
    _refuse_unknown("env_kwargs", env_kwargs or {}, [name for name in id_kwargs if name != "game"])
    known = [name for name in GameSettings.__dataclass_fields__ if name not in ("env_id", "id_kwargs")]
    _refuse_unknown("wrapper_kwargs", wrapper_kwargs or {}, known)
    chosen = {"evaluation": evaluation, **(wrapper_kwargs or {})}
    for_training = not chosen["evaluation"]
    chosen = {"terminal_on_life_loss": for_training, "clip_reward": for_training, **chosen}
    settings = GameSettings(env_id, {**id_kwargs, **(env_kwargs or {})}, **chosen)
    for name, lowest in (("noop_max", 0), ("frame_skip", 1), ("screen_size", 1)):
        value = getattr(settings, name)
        if not isinstance(value, (int, np.integer)) or value < lowest:
            raise ValueError(f"{name}={value!r} must be a whole number, {lowest} or more.")
    _check_frame_skip(settings)
    return settings


def _refuse_unknown(argument: str, given: dict[str, Any], known: Sequence[str]) -> None:
    unknown = {name: value for name, value in given.items() if name not in known}
    if unknown:
        raise ValueError(f"{argument}={unknown}: native emulators take {', '.join(known)}; leave it out, {PROCESSES}")


def _check_frame_skip(settings: GameSettings) -> None:
    skip = settings.id_frame_skip
    if not isinstance(skip, int):
        raise ValueError(
            f"env_id={settings.env_id!r} draws a frame skip in {skip} for each action, and a native emulator has one "
            f"for all: choose a NoFrameskip or an ALE/-v5 id, {PROCESSES}"
        )
    if skip not in (1, settings.frame_skip):
        raise ValueError(
            f"frame_skip={settings.frame_skip}: {settings.env_id} skips {skip} frames by itself, and a native emulator "
            f"cannot skip again: pass frame_skip={skip}, choose a NoFrameskip id, {PROCESSES}"
        )


class NativeGame:
    """
    One game on one native emulator, played as ``Monitor`` and ``AtariGameWrapper`` play it.

    The emulator skips frames, takes the maximum of two, makes them gray and small; everything else is here, in the
    order of SB3's wrappers. It has a thread of its own, so that what is pressed to start one game or life (no-ops,
    FIRE) takes nothing from another.

    :param settings: what to play, and how
    :param monitor_file: path of the file to write as ``Monitor`` writes it, or ``None`` for no file
    :param override_existing: begin that file anew if it is there, or go on with it
    """

    render_mode = "rgb_array"

    def __init__(self, settings: GameSettings, monitor_file: str | None = None, override_existing: bool = True) -> None:
        self.settings = settings
        self.spec = gym.spec(settings.env_id)
        self.evaluation = settings.evaluation
        self._noops_by_emulator = settings.id_frame_skip == 1  # it counts them in single frames
        self._emulator = self._make_emulator()
        meanings = self.get_action_meanings()
        self._fires = "FIRE" in meanings
        self.n_actions = len(meanings)
        self._t_start = time.time()
        self._results_writer: ResultsWriter | None = None
        if monitor_file is not None:
            header: dict[str, float | str] = {"t_start": self._t_start, "env_id": settings.env_id}
            self._results_writer = ResultsWriter(monitor_file, header, override_existing=override_existing)
        self._next_seed: int | None = None
        self._rng = np.random.default_rng()
        self._is_playing = False
        self.frame = np.zeros((settings.screen_size, settings.screen_size), dtype=np.uint8)
        self.terminated = True  # there is no game yet
        self.truncated = self.life_lost = False
        self.score = self.reward = self.lives = 0
        self.info: dict[str, Any] = {}

    def _make_emulator(self) -> AtariVectorEnv:
        settings, id_kwargs = self.settings, self.settings.id_kwargs
        return AtariVectorEnv(
            id_kwargs["game"],
            num_envs=1,
            num_threads=1,
            stack_num=1,
            max_num_frames_per_episode=NO_LIMIT,  # it would end in the middle of an action, with an old picture
            repeat_action_probability=id_kwargs["repeat_action_probability"],
            full_action_space=id_kwargs["full_action_space"],
            img_height=settings.screen_size,
            img_width=settings.screen_size,
            frameskip=int(settings.frame_skip),
            maxpool=settings.frame_skip > settings.id_frame_skip,
            noop_max=settings.noop_max + 1 if self._noops_by_emulator else 0,  # it draws from 0 to noop_max - 1
            reward_clipping=False,  # it would lose the score
            use_fire_reset=False,  # it would press for one frame, at the start of a game only
        )

    def get_action_meanings(self) -> list[str]:
        """
        :return: names of the actions
        """
        return [action.name for action in self._emulator.ale.get_action_set()]

    @property
    def is_over(self) -> bool:
        """Whether the game has ended, by itself or by the limit of frames."""
        return self.terminated or self.truncated

    @property
    def is_done(self) -> bool:
        """Whether the agent's episode has ended: the game, or a life where that counts."""
        return self.is_over or self.life_lost

    def finish(self) -> None:
        """Wait for the end of an action that nobody waited for."""
        if self._is_playing:
            self.step_wait()

    def seed(self, seed: int) -> None:
        """
        Let the next episode begin with a new game from this seed. It is spread as ``AtariEnv`` spreads it.

        :param seed: 0 or more
        """
        own, emulators = np.random.SeedSequence(seed).generate_state(2)
        self._rng = np.random.default_rng(int(own))
        self._next_seed = int(emulators) % 2**31  # the emulator ignores negative ones
        self.terminated = True

    def step_async(self, action: int) -> None:
        """
        Begin the agent's action, or a random one in its place.

        :param action: index of the action
        """
        if self.evaluation and self._rng.random() < atari.EVALUATION_EPSILON:
            action = int(self._rng.integers(self.n_actions))
        self._press(action)

    def _press(self, action: int) -> None:
        if self._is_playing:  # the emulator would mix up the two answers
            raise RuntimeError("step_async() was called again without step_wait() or reset().")
        try:
            self._emulator.send(np.array([action]))
            self._is_playing = True
        except BaseException:
            self._abandon_emulator()
            raise

    def step_wait(self) -> None:
        """Wait for the end of the action that was begun."""
        if not self._is_playing:  # the emulator would wait for ever
            raise RuntimeError("step_wait() was called without step_async().")
        try:
            frames, rewards, terminations, _, numbers = self._emulator.recv()
            self._is_playing = False
        except BaseException:
            self._abandon_emulator()
            raise
        lives_before = self.lives
        self._look(frames, numbers)
        self.reward = int(rewards[0])
        self.score += self.reward
        self.terminated = bool(terminations[0])
        self.truncated = self.info["episode_frame_number"] >= self.settings.max_frames
        self.life_lost = self.settings.terminal_on_life_loss and 0 < self.lives < lives_before
        if self.is_over:
            self._report_game()

    def _abandon_emulator(self) -> None:
        # Ctrl-C, say: whether it still owes an answer is not known, and to ask for one that it does not would never end
        self._emulator = self._make_emulator()
        self._next_seed = int(self._rng.integers(2**31))
        self._is_playing = False
        self.terminated = True

    def _look(self, frames: Any, numbers: dict[str, Any]) -> None:
        self.frame = frames[0, 0]
        self.info = {name: int(numbers[name][0]) for name in ("lives", "episode_frame_number", "frame_number")}
        self.lives = self.info["lives"]

    def _report_game(self) -> None:
        """What ``Monitor`` says of a whole game, with its length in the id's own steps, as ``Monitor`` counts it."""
        length = -(-self.info["episode_frame_number"] // self.settings.id_frame_skip)
        result = {"r": float(self.score), "l": length, "t": round(time.time() - self._t_start, 6)}
        self.info["episode"] = result
        if self._results_writer is not None:
            self._results_writer.write_row(result)

    def begin_episode(self) -> None:
        """Go on to the next episode, a game or a life, as ``FireResetEnv`` does."""
        self._go_on()
        if self._fires:
            for action in (FIRE, SECOND):
                self._play(action)
                if self.is_done:
                    self._go_on()
        self.life_lost = False

    def _go_on(self) -> None:
        """``EpisodicLifeEnv.reset``: a new game when the last one is over, else a no-op."""
        if self.settings.terminal_on_life_loss and not self.is_over:
            self._play(NOOP)
            if not self.is_over:
                return
        self._new_game()

    def _new_game(self) -> None:
        """``NoopResetEnv.reset``."""
        self._restart()
        if self.settings.noop_max and not self._noops_by_emulator:
            for _ in range(self._rng.integers(1, self.settings.noop_max + 1)):
                self._play(NOOP)
                if self.is_over:
                    self._restart()

    def _restart(self) -> None:
        self._look(*self._emulator.reset(seed=self._next_seed))
        self._next_seed = None
        self.terminated = self.truncated = self.life_lost = False
        self.score = 0

    def _play(self, action: int) -> None:
        self._press(action)
        self.step_wait()

    def render(self) -> np.ndarray:
        """
        :return: the newest frame as the agent sees it, gray, shape (screen_size, screen_size, 3), uint8
        """
        return np.repeat(self.frame[..., None], 3, axis=-1)

    def close(self) -> None:
        """Close the monitor file; the emulator ends with the last reference to it."""
        if self._results_writer is not None:
            self._results_writer.close()


class NativeAtariVecEnv(VecEnv):
    """
    Atari games on ALE's native emulators, preprocessed and reported as by ``Monitor``,
    :class:`~sb3_per_dqn.atari.AtariGameWrapper` and ``VecFrameStack``, with the channels first.

    Each game is an ``AtariVectorEnv`` of one, with a thread of its own: what is pressed to start a game or the next
    life of one takes no step from the others and no action from the agent. Games of one ``AtariVectorEnv`` would all
    step together, and its own modes for lives restart the game or press no FIRE. :meth:`step_async` starts all
    threads and returns.

    What differs from the process emulators:

    - Frames are gray by ALE's palette, and the maximum of two is taken when they are gray.
    - With a NoFrameskip id ALE draws the no-ops at the start of a game, 0 to ``noop_max`` (not 1 to ``noop_max``), from
      its own generator, so that a seed begins with another position; their points, if any, are not in the score.
    - Every second seed gives other sticky actions, as native emulators take only 31 bits of it; and all do, once a game
      has ended in the middle of an action.
    - A limit of frames is looked at after an action, not within: a game may be cut up to ``frame_skip - 1`` frames
      later, and its last observation is whole.
    - The last observation of a game that ended by itself (which no target uses) may be another old frame.
    - :meth:`reset` after :meth:`seed` begins a new game, where ``EpisodicLifeEnv`` would go on with the old one.
    - Pictures are what the agent sees: gray, ``screen_size`` squared.
    - ``reset_infos`` has the numbers of frames and lives for games with FIRE as well.

    :param env_id: an Atari id with one frame skip for all actions
    :param n_envs: number of games
    :param seed: seed of the first game; the others get the numbers after it
    :param evaluation: whole unclipped games with some random actions
    :param frame_stack: number of frames in an observation
    :param monitor_dir: folder for files like ``Monitor``'s, or ``None`` for no files
    :param monitor_kwargs: of ``Monitor``'s arguments, ``override_existing``
    :param wrapper_kwargs: further arguments of ``AtariGameWrapper``
    :param env_kwargs: arguments for ``gymnasium.make``
    :raises ValueError: for what native emulators cannot do as the processes do
    """

    def __init__(
        self,
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
    ) -> None:
        settings = game_settings(env_id, evaluation, wrapper_kwargs, env_kwargs)
        _refuse_unknown("monitor_kwargs", monitor_kwargs or {}, ["override_existing"])
        files = [None if monitor_dir is None else os.path.join(monitor_dir, str(rank)) for rank in range(n_envs)]
        self.games = [NativeGame(settings, file, **(monitor_kwargs or {})) for file in files]
        shape = frame_stack, settings.screen_size, settings.screen_size
        super().__init__(n_envs, spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(self.games[0].n_actions))
        self._stacks = np.zeros((n_envs, *shape), dtype=np.uint8)
        self.seed(seed)

    def reset(self) -> np.ndarray:
        """
        Begin an episode in each game. Without a new seed, and where a lost life ends an episode, a game that is not
        over goes on, as with ``EpisodicLifeEnv``.

        :return: observations, shape (n_envs, frame_stack, screen_size, screen_size), uint8
        """
        self._stacks = np.zeros_like(self._stacks)
        for rank, (game, seed) in enumerate(zip(self.games, self._seeds, strict=True)):
            game.finish()
            if seed is not None:
                game.seed(seed)
            self._begin_episode(rank)
        self._reset_seeds()
        self._reset_options()
        return self._stacks

    def _begin_episode(self, rank: int) -> None:
        """As ``VecFrameStack`` does: nothing but the newest frame."""
        game = self.games[rank]
        game.begin_episode()
        self._stacks[rank] = 0
        self._stacks[rank, -1] = game.frame
        self.reset_infos[rank] = game.info

    def step_async(self, actions: np.ndarray) -> None:
        """
        Start an action in each game and return.

        :param actions: indices of the actions, shape (n_envs,)
        :raises ValueError: if one of them is no action (an emulator would never answer)
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not all(self.action_space.contains(action) for action in actions):
            raise ValueError(f"actions={actions} must be {self.num_envs} of {self.action_space}.")
        for game, action in zip(self.games, actions, strict=True):
            game.step_async(int(action))

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for all games.

        :return: observations as from :meth:`reset`, rewards (n_envs,), dones (n_envs,), infos
        """
        stacks = np.empty_like(self._stacks)  # what was handed out is never written again
        stacks[:, :-1] = self._stacks[:, 1:]
        self._stacks = stacks
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        dones = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = []
        for rank, game in enumerate(self.games):
            game.step_wait()
            stacks[rank, -1] = game.frame
            rewards[rank] = np.sign(game.reward) if game.settings.clip_reward else game.reward
            dones[rank] = game.is_done
            info = {**game.info, "TimeLimit.truncated": game.truncated and not (game.terminated or game.life_lost)}
            if game.is_done:
                info["terminal_observation"] = stacks[rank].copy()
                self._begin_episode(rank)
            infos.append(info)
        return self._stacks, rewards, dones, infos

    def close(self) -> None:
        """End the emulators and their threads, and close the monitor files."""
        for game in self.games:
            game.close()
        self.games.clear()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: for each game its newest frame as the agent sees it, shape (screen_size, screen_size, 3), uint8
        """
        return [game.render() for game in self.games]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute of :class:`NativeGame`, such as ``lives``, ``spec`` or ``evaluation``
        :param indices: which games; all by default
        :return: its value in each of the games
        """
        return [getattr(self.games[rank], attr_name) for rank in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of :class:`NativeGame`
        :param value: its new value
        :param indices: which games; all by default
        """
        for rank in self._get_indices(indices):
            setattr(self.games[rank], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: name of a method of :class:`NativeGame`, such as ``get_action_meanings``
        :param method_args: its arguments
        :param indices: which games; all by default
        :param method_kwargs: its arguments by keyword
        :return: what it returns in each of the games
        """
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        No game is wrapped, but each does what ``Monitor`` and ``AtariGameWrapper`` do, and tools such as
        ``evaluate_policy`` ask for these by class to know what they may read in ``info``.

        :param wrapper_class: class of a wrapper
        :param indices: which games; all by default
        :return: whether each of the games does what that wrapper does
        """
        does = wrapper_class in (Monitor, AtariWrapper, atari.AtariGameWrapper)
        return [does for _ in self._get_indices(indices)]
