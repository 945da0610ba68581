"""What an actor sends: some steps of its environments, with each frame once, and their TD errors."""

import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_per_dqn.replay.frame_store import FrameLayout, frame_layouts

Array = npt.NDArray[Any]
SAMPLE = 4  # steps by which a layout is guessed


class Version(NamedTuple):
    """
    Which weights act.

    ``number``: counts what was published. ``timesteps``, ``updates``: of the learner, then.
    """

    number: int
    timesteps: int
    updates: int


@dataclass
class PackedArray:
    """
    Observations of consecutive steps: those that slide on from the one before as their newest frames, others whole.

    :param slides: where they slide on, shape (steps, n_envs)
    :param whole: the others, step by step
    :param frames: the newest frames of those that slide on, step by step
    :param layout: how they are stacks, if any slides on
    """

    slides: Array
    whole: Array
    frames: Array
    layout: FrameLayout | None

    @property
    def nbytes(self) -> int:
        """Bytes to send."""
        return int(self.slides.nbytes + self.whole.nbytes + self.frames.nbytes)

    def unpacked(self) -> Array:
        """
        :return: shape (steps, n_envs, \\*obs_shape), bit by bit
        """
        n_steps, n_envs = self.slides.shape
        observations = np.empty((n_steps, n_envs, *self.whole.shape[1:]), self.whole.dtype)
        observations[~self.slides] = self.whole
        if self.layout is not None:
            ends = self.slides.sum(axis=1).cumsum()
            for step in np.flatnonzero(self.slides.any(axis=1)):
                on = self.slides[step]
                older = self.layout.split(observations[step - 1, on])[:, 1:]
                newest = self.frames[ends[step - 1] : ends[step], None]
                observations[step, on] = self.layout.join(np.concatenate([older, newest], axis=1))
        return observations


def packed(observations: Array, space: spaces.Space[Any]) -> PackedArray:
    """
    :param observations: shape (steps, n_envs, \\*obs_shape)
    :param space: of one of them
    :return: the same, to be sent
    """
    n_steps, n_envs = observations.shape[:2]
    slides = np.zeros((n_steps, n_envs), dtype=bool)
    layout = _likely_layout(observations, space)
    if layout is None:
        return PackedArray(slides, observations.reshape(-1, *observations.shape[2:]), observations[:0, :0], None)
    slides[1:] = ~_jumping(layout, observations).reshape(n_steps - 1, n_envs)
    return PackedArray(slides, observations[~slides], layout.split(observations[slides])[:, -1].copy(), layout)


def _jumping(layout: FrameLayout, observations: Array) -> Array:
    shape = observations.shape[2:]
    return layout.jumping(observations[:-1].reshape(-1, *shape), observations[1:].reshape(-1, *shape))


def _likely_layout(observations: Array, space: spaces.Space[Any]) -> FrameLayout | None:
    """The likeliest by which most of the first steps slide on. Whatever it is, what is unpacked is what was packed."""
    if len(observations) < 2:
        return None
    sample = observations[: SAMPLE + 1]
    return next((layout for layout in frame_layouts(space) if _jumping(layout, sample).mean() < 0.5), None)


@dataclass
class Fragment:
    """
    :param observations: before each step and after the last one, by the keys of a Dict (or of ``""``)
    :param actions: shape (steps, n_envs)
    :param rewards: likewise
    :param dones: likewise
    :param infos: of each step, one for each environment; pickled, as arrays that Ray unpickles cannot be written to
    :param version: of the weights that acted
    :param seconds: that each stage took
    """

    observations: dict[str, PackedArray]
    actions: Array
    rewards: Array
    dones: Array
    infos: bytes
    version: Version
    seconds: dict[str, float]

    def unpickled_infos(self) -> list[list[dict[str, Any]]]:
        """
        :return: of each step, one for each environment
        """
        infos: list[list[dict[str, Any]]] = pickle.loads(self.infos)
        return infos

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays (infos, of which those with a last observation are the large ones, not counted)."""
        of_observations = sum(part.nbytes for part in self.observations.values())
        return int(of_observations + self.actions.nbytes + self.rewards.nbytes + self.dones.nbytes)


def n_step_td_errors(
    rewards: Array, dones: Array, q_values: Array, next_values: Array, gamma: float, n_steps: int
) -> Array:
    """
    Of windows of n steps, or of fewer where an episode or the fragment ends.

    :param rewards: shape (steps, n_envs)
    :param dones: whether the episode ended, likewise
    :param q_values: of the actions, likewise
    :param next_values: what is bootstrapped from after each step (0 after a true end), likewise
    :param gamma: discount factor
    :param n_steps: rewards to sum
    :return: target minus Q-value, likewise
    """
    one_step = rewards + gamma * next_values
    targets = one_step.copy()
    for _ in range(n_steps - 1):
        targets[:-1] = np.where(dones[:-1], one_step[:-1], rewards[:-1] + gamma * targets[1:])
    errors: Array = targets - q_values
    return errors
