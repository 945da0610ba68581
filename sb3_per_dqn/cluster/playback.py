"""What was asked of an actor, and its fragment, played back step by step."""

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from sb3_per_dqn.cluster.fragment import Fragment


@dataclass
class Request:
    """
    A fragment that is asked for.

    :param actor: who is to play it
    :param stream: counts actors, with those that replace others, and resets: what is played without a break
    :param place: of the fragment in its stream
    :param finished: whether it was seen to be there (or lost)
    """

    actor: int
    stream: int
    place: int
    finished: bool = False


class Playback:
    """
    A fragment, step by step.

    :param request: by which it was asked for
    :param fragment: that is played back
    """

    def __init__(self, request: Request, fragment: Fragment) -> None:
        self.request = request
        self._fragment = fragment
        self._observations = {key: part.unpacked() for key, part in fragment.observations.items()}
        self._infos = fragment.unpickled_infos()
        self._step = 0

    @property
    def ended(self) -> bool:
        """Whether all of it was played."""
        return self._step == len(self._fragment.actions)

    def follows(self, other: "Playback | None") -> bool:
        """
        :param other: that was played before it
        :return: whether nothing is between the two
        """
        return other is not None and self.request == replace(other.request, place=other.request.place + 1)

    @property
    def observations(self) -> Any:
        """Before the next step (or after the last one)."""
        now = {key: part[self._step] for key, part in self._observations.items()}
        return now.get("", now)

    @property
    def actions(self) -> npt.NDArray[Any]:
        """Of the next step."""
        actions: npt.NDArray[Any] = self._fragment.actions[self._step]
        return actions

    def step(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """
        :return: what the next step gave: observations, rewards, dones, infos
        """
        fragment, step = self._fragment, self._step
        self._step += 1
        return self.observations, fragment.rewards[step], fragment.dones[step], self._infos[step]
