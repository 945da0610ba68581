"""Actors that hang, have no room, or whose environments raise an error: who waits for whom, and for how long."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pretend_ray import PretendRay
from pretend_ray import pretend_ray as pretend_ray  # a fixture
from stable_baselines3.common.callbacks import BaseCallback
from test_remote_actors import MAKERS, Counting, check_transitions, learner, raise_error

from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.cluster import RemoteActors, remote_actors
from sb3_per_dqn.workers import WorkerError

STEP = 2.0  # seconds that the learner takes
FRAGMENT = 5
IT_HANGS = "ignore:Actor . has sent nothing for 600 seconds"


class Clock(BaseCallback):
    """Keeps how long each step took, and stops after some seconds."""

    def __init__(self, ray: PretendRay, seconds: float) -> None:
        super().__init__()
        self.ray, self.until = ray, ray.now + seconds
        self.last = ray.now
        self.waits: list[float] = []

    def _on_step(self) -> bool:
        self.waits.append(self.ray.now - self.last)
        self.ray.now += STEP
        self.last = self.ray.now
        return self.ray.now < self.until


def actors(n_actors: int, **kwargs: Any) -> RemoteActors:
    return RemoteActors(MAKERS[:n_actors], n_actors, fragment=FRAGMENT, **kwargs)


def go_on(model: Any, ray: PretendRay, seconds: float) -> list[float]:
    clock = Clock(ray, seconds)
    model.learn(10**9, callback=clock, reset_num_timesteps=False)
    return clock.waits


def begun(env: RemoteActors) -> Any:
    return learner(env, train_freq=1, learning_starts=10**9, buffer_size=50_000).learn(200)


def test_a_step_that_an_error_cut_short_is_not_played_on(pretend_ray: PretendRay, tmp_path: Path) -> None:
    """The first environment has made it, the second has not, and the actor was asked for more already."""
    raising = partial(Counting, 1, fault=raise_error, once=tmp_path / "once")
    env = RemoteActors([MAKERS[0], raising], 1, 2, fragment=FRAGMENT, max_pending=3)
    model = learner(env, train_freq=1)
    with pytest.warns(UserWarning, match=r"Environment 1 has raised(.|\n)*lost its mind(.|\n)*It is replaced") as said:
        model.learn(100)
    assert len(said) == 1
    assert len(check_transitions(model)) == 100
    assert env.statistics()["lost_fragments"] == 3


def test_an_error_is_said_also_when_a_reset_comes_first(pretend_ray: PretendRay, tmp_path: Path) -> None:
    raising = partial(Counting, 1, fault=raise_error, once=tmp_path / "once")
    env = RemoteActors([MAKERS[0], raising], 1, 2, fragment=FRAGMENT, max_pending=6)
    model = learner(env, train_freq=1)
    model.learn(10)
    assert (tmp_path / "once").exists()  # it was asked for that far, and is to be reset now
    with pytest.warns(UserWarning, match=r"Environment 1 has raised(.|\n)*lost its mind(.|\n)*It is replaced"):
        model.learn(100)
    check_transitions(model)


@pytest.mark.parametrize("room", [1000, 4])
@pytest.mark.parametrize(("hung", "n_actors", "max_pending"), [(1, 2, 1), (1, 2, 2), (2, 3, 2), (3, 4, 2), (3, 4, 1)])
@pytest.mark.filterwarnings(IT_HANGS)
def test_the_learner_does_not_wait_for_those_that_hang(
    hung: int, n_actors: int, max_pending: int, room: int, pretend_ray: PretendRay
) -> None:
    env = actors(n_actors, max_pending=max_pending)
    model = begun(env)
    pretend_ray.room = min(room, n_actors - hung)  # no more room for others, or as much as one likes
    for handle in pretend_ray.handles[:hung]:
        handle.hangs = True
    waits = go_on(model, pretend_ray, 1500)
    patience = remote_actors.PATIENCE_SECONDS + 2 * env._longest + 2 * remote_actors.WAIT_SECONDS
    assert max(waits) <= patience
    assert sum(waits) <= 2 * patience  # once, and not in each round
    assert env.restarted == hung
    pretend_ray.make_room(1000)
    waits = go_on(model, pretend_ray, 100)
    assert env.statistics()["absent"] == 0
    lives = {key[1] for key in check_transitions(model)}
    assert len(lives) == n_actors + hung  # they are back


@pytest.mark.filterwarnings(IT_HANGS)
def test_one_that_has_no_room_is_replaced_once(pretend_ray: PretendRay) -> None:
    """It does not hang, however long it takes."""
    env = actors(4, restarts=1)
    model = begun(env)
    pretend_ray.room = 3
    pretend_ray.handles[0].hangs = True
    go_on(model, pretend_ray, 700)
    assert (env.restarted, env.statistics()["absent"]) == (1, 1)
    go_on(model, pretend_ray, 2500)
    assert (env.restarted, env.statistics()["absent"]) == (1, 1)
    pretend_ray.make_room(4)
    go_on(model, pretend_ray, 100)
    assert (env.restarted, env.statistics()["absent"]) == (1, 0)


@pytest.mark.filterwarnings(IT_HANGS)
def test_the_run_ends_when_nobody_is_there(pretend_ray: PretendRay) -> None:
    env = actors(2)
    model = begun(env)
    pretend_ray.room = 0
    for handle in pretend_ray.handles:
        handle.hangs = True
    begin = pretend_ray.now
    with pytest.raises(WorkerError, match=r"No actor has sent anything for 600 seconds: Ray has no room"):
        go_on(model, pretend_ray, 10**6)
    assert 1200 <= pretend_ray.now - begin < 1300  # they were taken to hang, and nobody came in their place
    assert env.restarted == 2


def test_a_slow_actor_keeps_its_turn(pretend_ray: PretendRay) -> None:
    """With ``max_pending=1`` all wait for each other, as long as nobody takes much longer than before."""
    env = actors(2, max_pending=1)
    model = begun(env)
    slow = pretend_ray.handles[0]
    played: list[int] = []
    waited: list[float] = []

    class Slow(BaseCallback):
        def _on_step(self) -> bool:
            slow.hangs = True
            played.extend(playing.request.actor for playing in env._playing if playing)
            return len(played) < 400

    wait = pretend_ray.wait

    def waking_wait(refs: Any, num_returns: int = 1, timeout: float = 0.0, fetch_local: bool = True) -> Any:
        waited.append(timeout)
        if sum(waited) >= remote_actors.PATIENCE_SECONDS / 2:
            waited.clear()
            slow.hangs = False
            slow.go_on()
        return wait(refs, num_returns, timeout, fetch_local)

    pretend_ray.wait = waking_wait  # type: ignore[method-assign]
    model.learn(10**6, callback=Slow(), reset_num_timesteps=False)
    assert played.count(0) == played.count(1)


@pytest.mark.filterwarnings("ignore:Actor 0 of 4")
@pytest.mark.filterwarnings(IT_HANGS)
def test_a_reset_goes_on_without_those_that_hang_or_have_no_room(pretend_ray: PretendRay) -> None:
    """As ``RunCheckpoints`` makes them."""
    env = actors(4, restarts=1)
    model = begun(env)
    pretend_ray.handles[0].hangs = True
    pretend_ray.room = 3
    begin = pretend_ray.now
    obs: Any = env.reset()
    assert obs.shape == (4, 5)
    assert pretend_ray.now - begin < 2 * env.timeout  # it hung, and was replaced
    assert env.restarted == 1
    begin = pretend_ray.now
    env.reset()
    assert pretend_ray.now == begin  # its place is empty
    assert max(go_on(model, pretend_ray, 100)) < 2 * remote_actors.PATIENCE_SECONDS
    pretend_ray.make_room(4)
    go_on(model, pretend_ray, 100)
    assert len({key[1] for key in check_transitions(model)}) == 5


@pytest.mark.filterwarnings(IT_HANGS)
@pytest.mark.filterwarnings("ignore:.*actors go on meanwhile")
def test_checkpoints_are_written_while_one_has_no_room(pretend_ray: PretendRay, tmp_path: Path) -> None:
    env = actors(3, restarts=1)
    model = learner(env, train_freq=1, learning_starts=10**9)
    checkpoints = RunCheckpoints(tmp_path / "run", every=300, keep=100)
    model.learn(301, callback=checkpoints)
    pretend_ray.handles[0].hangs = True
    pretend_ray.room = 2
    go_on(model, pretend_ray, 700)
    assert env.statistics()["absent"] == 1
    clock = Clock(pretend_ray, 2000)
    begin = pretend_ray.now
    model.learn(10**9, callback=[checkpoints, clock], reset_num_timesteps=False)
    assert sum(clock.waits) == 0
    assert pretend_ray.now - begin == pytest.approx(2000, abs=STEP)
    assert len(checkpoints.steps) > 5
    assert sum(len(handle.calls) for handle in pretend_ray.handles) < 10  # nothing piles up
    pretend_ray.make_room(3)
    go_on(model, pretend_ray, 100)
    assert (env.restarted, env.statistics()["absent"]) == (1, 0)
    check_transitions(model)


@pytest.mark.filterwarnings("ignore:Actor 0 of 1")
def test_who_was_asked_several_things_is_replaced_once(pretend_ray: PretendRay) -> None:
    env = RemoteActors(MAKERS, 1, 4, fragment=FRAGMENT)
    pretend_ray.kill(pretend_ray.handles[0])
    assert env.get_attr("number") == [0, 1, 2, 3]
    assert env.restarted == 1


def test_what_lies_on_another_node_is_there(pretend_ray: PretendRay) -> None:
    """A learner that was away for longer than the timeout finds it, and takes nobody to hang."""
    env = actors(2)
    model = begun(env)
    pretend_ray.is_far = True
    for _ in range(3):
        waits = go_on(model, pretend_ray, 100)
        assert env.restarted == 0
        assert max(waits) == 0
        pretend_ray.now += 2 * env.timeout
