"""Ray in one process, with a clock of its own: faults that take hours, and who waits for whom, in no time."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from stable_baselines3.common.monitor import Monitor

from sb3_per_dqn.cluster import actors, remote_actors
from sb3_per_dqn.workers import WorkerError


class Ref:
    """What comes of a call."""

    def __init__(self) -> None:
        self.finished = False
        self.value: Any = None
        self.error: Exception | None = None


class Handle:
    """
    An actor, that does what it is asked for at once, if there is room for it and it does not hang.

    :param make: makes it
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.actor: Any = None
        self.hangs = self.is_dead = False
        self.calls: list[tuple[Ref, str, tuple[Any, ...]]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any) -> Ref:
            ref = Ref()
            self.calls.append((ref, method, args))
            self.go_on()
            return ref

        return SimpleNamespace(remote=remote)

    def begin(self) -> None:
        self.actor = self._make()
        self.go_on()

    def go_on(self) -> None:
        while self.calls and (self.is_dead or (self.actor is not None and not self.hangs)):
            ref, method, args = self.calls.pop(0)
            ref.finished = True
            try:
                if self.is_dead:
                    raise RayActorError
                ref.value = getattr(self.actor, method)(*args)
            except RayActorError as error:
                ref.error = error
            except Exception as error:
                ref.error = RayTaskError(method, str(error), WorkerError(str(error)))


class PretendRay:
    """
    The functions of Ray that are used here.

    :param room: for how many actors there is room
    """

    def __init__(self, room: int) -> None:
        self.now = 0.0
        self.room = room
        self.handles: list[Handle] = []
        self.is_far = False  # whether what actors send is on another node

    def monotonic(self) -> float:
        return self.now

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.available_resources()}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1000.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, actor_class: type[Any]) -> Any:
        def make(*args: Any) -> Handle:
            self.handles.append(Handle(lambda: actor_class(*args)))
            self.make_room(self.room)
            return self.handles[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def make_room(self, room: int) -> None:
        self.room = room
        for handle in self.handles:
            begun = sum(each.actor is not None and not each.is_dead for each in self.handles)
            if handle.actor is None and not handle.is_dead and begun < self.room:
                handle.begin()

    def get(self, ref: Ref, timeout: float) -> Any:
        if not ref.finished:
            self.now += timeout
            raise GetTimeoutError("late")
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(
        self, refs: Sequence[Ref], num_returns: int = 1, timeout: float = 0.0, fetch_local: bool = True
    ) -> tuple[list[Ref], list[Ref]]:
        there = [ref for ref in refs if ref.finished]
        if self.is_far and fetch_local:  # as in Ray 2.60: it has to come here first, and then it counts
            there = there[:num_returns] if timeout else []
            self.now += min(timeout, 0.1)
        if len(there) < min(num_returns, len(refs)):
            self.now += timeout
        return there[:num_returns], []

    def kill(self, handle: Handle) -> None:
        handle.is_dead = True
        handle.go_on()
        self.make_room(self.room)


@pytest.fixture
def pretend_ray(monkeypatch: pytest.MonkeyPatch) -> PretendRay:
    there = PretendRay(room=1000)
    for module in (actors, remote_actors):
        monkeypatch.setattr(module, "ray", there)
    monkeypatch.setattr(remote_actors, "monotonic", there.monotonic)
    monkeypatch.setattr(Monitor, "__init__", Monitor.__init__)  # a replaced actor changes it, for its own process
    return there
