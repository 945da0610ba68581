"""Acting in Ray actors: every transition really happened, priorities are those of the very policy, nothing stalls."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch as th
from gymnasium import spaces
from ray.cluster_utils import Cluster
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize
from test_ray_vec_env import environment_of_actors
from test_ray_vec_env import local_cluster as local_cluster  # a fixture

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN, PrioritizedReplayBuffer
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.cluster import RemoteActors, remote_actors
from sb3_per_dqn.cluster.acting_actor import ActingActor, Settings, epsilons
from sb3_per_dqn.cluster.fragment import Fragment, Version, n_step_td_errors, packed
from sb3_per_dqn.cluster.statistics import ActingStatistics
from sb3_per_dqn.replay.prioritized_buffer import TD_ERROR
from sb3_per_dqn.workers import WorkerError

GAMMA = 0.9
LENGTHS = (6, 7, 8, 9)
HALF_A_MEGABYTE = 2**19
Step = tuple[float, ...]


class Counting(gym.Env[Any, int]):
    """
    Observations tell the environment, its reset and step, and the last action, so that a transition that never happened
    shows. Of even numbers, episodes end, and of odd ones they are cut.

    :param number: of the environment
    :param as_dict: whether observations are a Dict
    :param fault: what happens at the 23rd step
    :param once: a file that says that it has happened
    """

    action_space: Any = spaces.Discrete(5)

    def __init__(
        self, number: int, as_dict: bool = False, fault: Callable[[], Any] | None = None, once: Path | None = None
    ) -> None:
        self.number, self.as_dict, self.fault, self.once = number, as_dict, fault, once
        self.steps = 0
        self.life = np.random.default_rng().integers(1, 2**20)  # another one for each that replaces it
        vector: Any = spaces.Box(0, 2**21, (5,), np.float64)
        self.observation_space = spaces.Dict(count=vector, twice=spaces.Box(0, 2**21, (1, 5))) if as_dict else vector

    def _obs(self, action: int) -> Any:
        count = np.array([self.number + 1, self.life, self.episode, self.t, action], np.float64)
        return {"count": count, "twice": 2 * count[None].astype(np.float32)} if self.as_dict else count

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.t = getattr(self, "episode", 0) + 1, 0
        return self._obs(0), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 23 and self.fault is not None and self.once is not None and not self.once.exists():
            self.once.touch()
            self.fault()
        self.t += 1
        ended = self.t == LENGTHS[self.number]
        return self._obs(action), float(self.t), ended and self.number % 2 == 0, ended and self.number % 2 == 1, {}


MAKERS: list[Any] = [partial(Counting, number) for number in range(4)]


def raise_error() -> None:
    raise KeyError("the simulator has lost its mind")


@pytest.fixture(scope="module")
def actors() -> RemoteActors:
    return RemoteActors(MAKERS, n_actors=2, envs_per_actor=2, fragment=5, num_cpus=0.1)


def learner(env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    settings: dict[str, Any] = {"learning_starts": 40, "batch_size": 8, "device": "cpu", "buffer_size": 4000}
    return PerDoubleDQN(policy, env, gamma=GAMMA, **{**settings, **kwargs})


def drawn_of(model: PerDoubleDQN) -> tuple[Any, Any]:
    buffer: Any = model.replay_buffer
    values = buffer._priorities.values
    slots = np.flatnonzero(values.cpu().numpy() if isinstance(values, th.Tensor) else values)
    return slots, buffer._get_samples(th.from_numpy(slots) if isinstance(buffer, DeviceReplayBuffer) else slots)


def check_transitions(model: PerDoubleDQN) -> dict[Step, int]:
    """
    :return: slots of what is stored, by observation
    """
    slots, drawn = drawn_of(model)
    obs, next_obs = drawn.observations, drawn.next_observations
    if isinstance(obs, dict):
        for part in (obs, next_obs):
            assert th.equal(part["twice"], 2 * part["count"].reshape(part["twice"].shape).float())
        obs, next_obs = obs["count"], next_obs["count"]
    obs, next_obs = obs.numpy(), next_obs.numpy()
    actions = drawn.actions.numpy()[:, 0]
    there: dict[Step, int] = {}
    for i, slot in enumerate(slots):
        (number, life, episode, t, _), (*whose, next_t, action) = obs[i, -5:], next_obs[i, -5:]
        length = LENGTHS[int(number) - 1]
        if drawn.dones[i, 0] and obs.shape[1] > 5:  # frames have nothing after a true end, which is multiplied by 0
            next_t, action = length, actions[i]
        else:
            assert whose == [number, life, episode]
        n = int(next_t - t)
        assert 1 <= n <= model.n_steps
        assert n > 1 or action == actions[i]
        assert next_t <= length
        assert drawn.dones[i, 0] == (next_t == length and number % 2 == 1)
        assert drawn.rewards[i, 0].item() == pytest.approx(sum(GAMMA**k * (t + k + 1) for k in range(n)))
        assert drawn.discounts is None or drawn.discounts[i, 0].item() == pytest.approx(GAMMA**n)
        assert (number, life, episode, t) not in there  # nothing twice
        there[number, life, episode, t] = slot
    for i in range(len(slots)):
        number, life, episode, t, _ = obs[i, -5:]
        follower = np.flatnonzero((obs[:, -5:-1] == [number, life, episode, t + 1]).all(axis=1))
        assert not len(follower) or obs[follower[0], -1] == actions[i]
        if obs.shape[1] > 5 and t > 1:  # stacks
            before = np.flatnonzero((obs[:, -5:-1] == [number, life, episode, t - 1]).all(axis=1))
            assert not len(before) or (obs[i, :-5] == obs[before[0], 5:]).all()
    return there


class Watch(BaseCallback):
    """Keeps the TD errors of infos, and the largest number of fragments that an actor was asked for."""

    def __init__(self, env: RemoteActors) -> None:
        super().__init__()
        self.env, self.most, self.errors = env, 0, {}  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        asked = Counter(request.actor for request in self.env._requests.values())
        self.most = max(self.most, *asked.values())
        obs: Any = self.model._last_obs
        for of_env, info in zip(obs, self.locals["infos"], strict=True):
            self.errors[tuple(of_env[:4])] = info[TD_ERROR]
        return True


@pytest.mark.parametrize("n_steps", [1, 3])
def test_all_that_is_stored_has_happened(actors: RemoteActors, n_steps: int) -> None:
    model = learner(actors, n_steps=n_steps, train_freq=2, gradient_steps=3)
    watch = Watch(actors)
    model.learn(400, callback=watch)
    assert model.num_timesteps == 400
    assert model._n_updates == 3 * ((400 - 40) // 8)  # the replay ratio is held
    there = check_transitions(model)
    assert 400 - 4 * (n_steps - 1) <= len(there) <= 400
    assert {key[0] for key in there} <= {1, 2, 3, 4}
    assert actors.max_pending - 1 <= watch.most <= actors.max_pending  # one was taken, or another actor's
    assert len({step[:3] for step in there}) > 4 * 400 / 4 / 9 - 4  # episodes


class UntilHeard(BaseCallback):
    """Stops when each of the four environments was heard: an actor that is slow to begin is not waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: set[float] = set()

    def _on_step(self) -> bool:
        obs: Any = self.model._last_obs
        self.heard.update(obs[:, 0].tolist())
        return len(self.heard) < 4


def test_every_actor_is_heard(actors: RemoteActors) -> None:
    until_heard = UntilHeard()
    learner(actors).learn(100_000, callback=until_heard)
    assert until_heard.heard == {1, 2, 3, 4}


@pytest.mark.parametrize("buffer", [PrioritizedReplayBuffer, DeviceReplayBuffer])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_transitions_enter_with_the_priorities_of_their_actors(actors: RemoteActors, buffer: Any, n_steps: int) -> None:
    model = learner(actors, n_steps=n_steps, learning_starts=1000, replay_buffer_class=buffer)
    watch = Watch(actors)
    model.learn(120, callback=watch)
    values: Any = model.replay_buffer._priorities.values  # type: ignore[union-attr]
    slots, drawn = drawn_of(model)
    assert len(slots) >= 120 - 4 * (n_steps - 1)
    for step, slot in zip(map(tuple, drawn.observations[:, :4].tolist()), slots, strict=True):
        assert float(values[slot]) == pytest.approx((abs(watch.errors[step]) + 0.01) ** 0.6)


def test_what_an_info_has_may_be_written_to(actors: RemoteActors) -> None:
    """Callbacks do. Arrays as Ray hands them out are read-only."""
    ended = []

    class Write(BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "terminal_observation" in info:
                    info["terminal_observation"][:] += 0
                    ended.append(info)
            return True

    learner(actors).learn(100, callback=Write())
    assert ended


def test_uniform_replay(actors: RemoteActors) -> None:
    model = learner(actors, prioritized_replay=False)
    model.learn(200)
    assert model._n_updates > 5
    buffer: Any = model.replay_buffer
    obs, next_obs = buffer.observations[:50].reshape(-1, 5), buffer.next_observations[:50].reshape(-1, 5)
    assert (obs[:, :3] == next_obs[:, :3]).all()
    assert (obs[:, 3] + 1 == next_obs[:, 3]).all()
    assert (buffer.actions[:50].reshape(-1) == next_obs[:, 4]).all()


def test_training_while_they_act(actors: RemoteActors) -> None:
    model = learner(actors, n_steps=3, train_while_stepping=True)
    model.learn(200)
    assert model._n_updates > 5
    check_transitions(model)


def test_stacks_in_a_dict() -> None:
    env = RemoteActors(
        [partial(Counting, number, as_dict=True) for number in range(2)],
        n_actors=1,
        envs_per_actor=2,
        fragment=7,
        vec_env_wrapper=partial(VecFrameStack, n_stack=3),
        num_cpus=0.1,
    )
    model = PerDoubleDQN(
        "MultiInputPolicy", env, n_steps=3, gamma=GAMMA, learning_starts=40, buffer_size=1000, device="cpu"
    )
    model.learn(160)
    assert len(check_transitions(model)) >= 160 - 2 * 2
    env.close()


def naive_errors(policy: Any, fragment: Any, n_steps: int) -> list[list[float]]:
    """One window after the other, from the definition."""
    obs = fragment.observations[""].unpacked()

    def values(one: Any) -> Any:
        with th.no_grad():
            return policy.q_net(th.as_tensor(one[None]).float())[0].numpy()

    n, n_envs = fragment.actions.shape
    infos = fragment.unpickled_infos()
    errors = [[0.0] * n_envs for _ in range(n)]
    for t in range(n):
        for e in range(n_envs):
            target, k = 0.0, 0
            while True:
                target += GAMMA**k * fragment.rewards[t + k, e]
                k += 1
                if fragment.dones[t + k - 1, e]:
                    info = infos[t + k - 1][e]
                    if info["TimeLimit.truncated"]:
                        target += GAMMA**k * values(info["terminal_observation"]).max()
                    break
                if k == n_steps or t + k == n:
                    target += GAMMA**k * values(obs[t + k, e]).max()
                    break
            errors[t][e] = target - values(obs[t, e])[fragment.actions[t, e]]
    return errors


@pytest.mark.parametrize("n_steps", [1, 3, 50])
def test_errors_are_those_of_the_very_policy(actors: RemoteActors, n_steps: int) -> None:
    policy = learner(actors).policy
    weights = {name: tensor.numpy() for name, tensor in policy.q_net.state_dict().items()}
    settings = Settings(1000 + n_steps, type(policy), {}, GAMMA, n_steps, 0)
    # in an actor: exploration and environments as they are
    fragment = ray.get(actors._actors[1].act.remote(settings, weights, Version(1000, 0, 0), 25))
    assert fragment.dones.any()
    infos = fragment.unpickled_infos()
    assert {info["TimeLimit.truncated"] for of_step in infos for info in of_step} == {False, True}
    given = [[info[TD_ERROR] for info in of_step] for of_step in infos]
    np.testing.assert_allclose(given, naive_errors(policy, fragment, n_steps), rtol=1e-4)


def test_windows_of_random_streams() -> None:
    rng = np.random.default_rng(1)
    rewards, q_values, next_values = rng.normal(size=(3, 30, 4))
    dones = rng.random((30, 4)) < 0.2
    errors = n_step_td_errors(rewards, dones, q_values, next_values, GAMMA, 5)
    for t in range(30):
        for e in range(4):
            last = next((k for k in range(t, min(t + 5, 30)) if dones[k, e]), min(t + 5, 30) - 1)
            target = sum(GAMMA ** (k - t) * rewards[k, e] for k in range(t, last + 1))
            target += GAMMA ** (last + 1 - t) * next_values[last, e]
            assert errors[t, e] == pytest.approx(target - q_values[t, e])


def test_the_ladder_of_epsilons() -> None:
    assert epsilons(1, 0.4, 7).tolist() == [0.4]
    np.testing.assert_allclose(epsilons(8, 0.4, 7), [0.4 ** (1 + 7 * i / 7) for i in range(8)])
    np.testing.assert_allclose(epsilons(256, 0.4, 7)[[0, -1]], [0.4, 0.4**8])


def test_actors_explore_by_the_ladder() -> None:
    """With epsilons 0 and 1: one environment is greedy, the other takes all actions; both do before learning starts."""
    actor = ActingActor(None, np.array([0.0, 1.0]), MAKERS[:2], range(2))
    model = learner(MAKERS[0]())
    weights = {name: tensor.numpy() for name, tensor in model.policy.q_net.state_dict().items()}
    settings = Settings(1, type(model.policy), {}, GAMMA, 1, learning_starts=100)
    for version, is_greedy in ((Version(1, 0, 0), False), (Version(2, 99, 0), False), (Version(3, 100, 0), True)):
        fragment = actor.act(settings, weights, version, 200)
        greedy, _ = model.policy.predict(fragment.observations[""].unpacked()[:-1, 0], deterministic=True)
        assert (fragment.actions[:, 0] == greedy).all() == is_greedy
        for of_env in range(is_greedy, 2):
            assert np.bincount(fragment.actions[:, of_env], minlength=5).min() > 15


def test_coins_are_not_the_first_environments() -> None:
    """Both have the same seed."""
    actor = ActingActor(None, np.array([1.0]), [lambda: gym.make("CartPole-v1")], range(1))
    actor.reset([5], [{}])
    assert (actor._random.random(4) != np.random.default_rng(5).random(4)).all()
    actor.reset([5], [{}])
    again = actor._random.random(4)
    actor.reset([5], [{}])
    assert (actor._random.random(4) == again).all()


@pytest.mark.parametrize(("max_pending", "age"), [(1, 0), (2, 20), (3, 40)])
def test_all_actors_have_weights_of_the_same_age(max_pending: int, age: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In environment steps, when a fragment begins to be played: a round of all of them is 20."""
    env = RemoteActors(MAKERS, n_actors=2, envs_per_actor=2, fragment=5, max_pending=max_pending, num_cpus=0.1)
    model = learner(env, train_freq=1)
    ages: list[int] = []
    ask = env._ask_for_more

    def ask_and_wait() -> None:  # nobody is late, so that each plays its own
        ask()
        ray.wait(list(env._requests), num_returns=len(env._requests))

    monkeypatch.setattr(env, "_ask_for_more", ask_and_wait)

    class AskForAges(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % env.fragment == 1:
                now = self.num_timesteps - env.num_envs
                ages.extend(now - playing._fragment.version.timesteps for playing in env._playing if playing)
            return True

    model.learn(200, callback=AskForAges())
    assert len(ages) == 2 * 10
    assert set(ages[2 * max_pending :]) == {age}
    env.close()


@pytest.mark.parametrize("publish_every", [None, 10**6])
def test_actions_are_random_until_learning_starts(publish_every: int | None) -> None:
    """As in SB3, and no longer if weights are rarely published. Nobody explores then, and nothing is learned."""
    env = RemoteActors(MAKERS, 2, 2, fragment=5, publish_every=publish_every, base_eps=0.0, num_cpus=0.1)
    model = learner(env, learning_starts=400, learning_rate=0.0)
    model.learn(1200)
    buffer = model.replay_buffer
    assert isinstance(buffer, PrioritizedReplayBuffer)
    drawn = buffer._get_samples(np.arange(1200))
    greedy, _ = model.policy.predict(drawn.observations.numpy(), deterministic=True)
    actions = drawn.actions.numpy()[:, 0]
    assert np.bincount(actions[:400], minlength=5).min() > 40
    for number in range(1, 5):  # an actor may be slow: each environment's own steps count
        own = drawn.observations[:, 0].numpy() == number
        late = own[:400].sum() + env.fragment * (env.max_pending + 2)  # what was asked for before
        assert (actions[own][late:] == greedy[own][late:]).all()
    model.learn(40, reset_num_timesteps=False)
    actions = buffer._get_samples(np.arange(1200, 1240)).actions.numpy()[:, 0]
    assert len(set(actions.tolist())) < 5  # it had started
    env.close()


@pytest.mark.parametrize("axis", [0, -1])
def test_frames_are_sent_once(axis: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (40, 3, 6, 6), dtype=np.uint8)
    stacks = np.stack([np.stack([frames[t + k] for k in range(4)], axis=1) for t in range(37)])  # (37, 3, 4, 6, 6)
    stacks[20:, 1] = np.stack([np.stack([frames[(7 * t + k) % 40, 1] for k in range(4)]) for t in range(20, 37)])
    if axis == -1:
        stacks = np.moveaxis(stacks, 2, -1)
    observations = np.ascontiguousarray(stacks)
    sent = packed(observations, spaces.Box(0, 255, observations.shape[2:], np.uint8))
    np.testing.assert_array_equal(sent.unpacked(), observations)
    assert sent.slides.sum() == 36 * 2 + 20
    assert sent.nbytes < 37 * 3 * 36 * 4 * 0.6


@pytest.mark.parametrize(
    "observations", [np.random.default_rng(0).normal(size=(9, 2, 4)), np.zeros((3, 1, 4)), np.ones((1, 2, 6, 6, 1))]
)
def test_other_observations_come_as_they_are(observations: Any) -> None:
    sent = packed(observations, spaces.Box(-9, 9, observations.shape[2:], observations.dtype.type))
    np.testing.assert_array_equal(sent.unpacked(), observations)


class After(BaseCallback):
    """Does something at a step, and stops when something is true (or after two minutes)."""

    def __init__(self, step: int, do: Callable[[], Any], until: Callable[[], bool]) -> None:
        super().__init__()
        self.step, self.do, self.until, self.since = step, do, until, time.monotonic()

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.do()
        if self.n_calls > self.step:
            time.sleep(0.01)
        return self.n_calls <= self.step or not (self.until() or time.monotonic() > self.since + 120)


def test_an_actor_is_killed() -> None:
    """Not before it was heard: what is to be found afterwards is of all lives."""
    env = RemoteActors(MAKERS, n_actors=2, envs_per_actor=2, fragment=5, num_cpus=0.1, restarts=1)
    env.seed(0)
    first = env._actors[0]
    came_back = Counter[int]()

    def is_back() -> bool:
        came_back.update(p.request.stream for p in env._playing if p is not None)
        return env.restarted > 0 and came_back[env._streams[0]] > 20

    model = learner(env, n_steps=3, buffer_size=60_000)  # nothing is forgotten while another one is started
    model.learn(10**6, callback=UntilHeard())
    with pytest.warns(UserWarning, match=r"Actor 0 of 2(.|\n)*It is replaced \(1 of 1 restarts\)"):
        model.learn(10**6, callback=After(30, lambda: ray.kill(first), is_back), reset_num_timesteps=False)
    there = check_transitions(model)
    assert len({key[1] for key in there}) == 6  # lives: four at first, and two that replaced
    lost = env.statistics()
    assert lost["replaced"] == 1
    assert 1 <= lost["lost_fragments"] <= env.max_pending
    assert lost["lost_steps"] == lost["lost_fragments"] * 5 * 2
    ray.kill(env._actors[1])
    with pytest.raises(WorkerError, match="Actor 1 of 2"):
        model.learn(10**6)
    env.close()


def test_an_environment_that_raises(tmp_path: Path) -> None:
    maker = partial(Counting, 0, fault=raise_error, once=tmp_path / "once")
    env = RemoteActors(maker, n_actors=1, fragment=5, num_cpus=0.1)
    model = learner(env)
    with pytest.warns(UserWarning, match=r"Environment 0 has raised(.|\n)*lost its mind(.|\n)*It is replaced"):
        model.learn(100)
    assert model.num_timesteps == 100
    assert len(check_transitions(model)) == 100
    # the fifth, and the one that was asked for after it, if that had not come before another actor was there
    assert env.statistics()["lost_fragments"] in (1, 2)
    env.close()


def test_a_learner_that_was_away_takes_nobody_to_hang(actors: RemoteActors, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(remote_actors, "monotonic", lambda: now[0])

    def be_away() -> None:
        ray.wait(list(actors._requests), num_returns=len(actors._requests))
        actors._notice(list(actors._requests))
        now[0] += 2 * actors.timeout

    model = learner(actors, train_freq=1)
    model.learn(80, callback=After(10, be_away, lambda: False))
    assert model.num_timesteps == 80
    assert actors.restarted == 0


def test_an_actor_that_hangs(tmp_path: Path) -> None:
    maker = partial(Counting, 0, fault=partial(time.sleep, 1000), once=tmp_path / "once")
    env = RemoteActors(maker, n_actors=1, fragment=5, num_cpus=0.1, restarts=0)
    model = learner(env, train_freq=1)
    model.learn(12)
    env.timeout = 5.0  # from now on: it is there, and has a policy
    with pytest.raises(WorkerError, match="Actor 0 has sent nothing for 5 seconds: it hangs"):
        model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps == 20
    env.close()


def test_checkpoint_and_resume(actors: RemoteActors, tmp_path: Path) -> None:
    model = learner(actors, n_steps=3, train_freq=1)
    with pytest.warns(UserWarning, match="their actors go on meanwhile"):
        model.learn(200, callback=RunCheckpoints(tmp_path / "run", every=100))
    resumed = learner(actors, n_steps=3, train_freq=1)
    checkpoints = RunCheckpoints(tmp_path / "run", every=100)
    left = checkpoints.resume(resumed)
    assert (resumed.num_timesteps, left) == (100, 100)
    before = set(check_transitions(resumed))
    assert len(before) >= 100 - 4 * 2
    with pytest.warns(UserWarning, match="their actors go on meanwhile"):
        resumed.learn(left, callback=checkpoints, reset_num_timesteps=False)
    assert resumed.num_timesteps == 200
    after = check_transitions(resumed)
    assert before < set(after)
    assert len(after) >= 200 - 4 * 2


def test_a_model_goes_on_saved_and_loaded(actors: RemoteActors, tmp_path: Path) -> None:
    model = learner(actors)
    model.learn(80)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=actors, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(80, reset_num_timesteps=False)
    assert len(check_transitions(loaded)) == 160


def test_what_does_not_compose(actors: RemoteActors) -> None:
    for wrapped in (VecNormalize(actors), VecMonitor(actors)):
        with pytest.raises(ValueError, match=f"{type(wrapped).__name__} around RemoteActors"):
            learner(wrapped).learn(10)
    for kwargs in ({"n_steps": 3}, {"optimize_memory_usage": True, "replay_buffer_kwargs": UNAWARE}):
        with pytest.raises(ValueError, match="does not notice where the streams of RemoteActors break off"):
            learner(actors, prioritized_replay=False, **kwargs).learn(10)
    with pytest.raises(ValueError, match="evaluate a policy in another environment"):
        evaluate_policy(learner(actors), actors, n_eval_episodes=1, warn=False)


UNAWARE = {"handle_timeout_termination": False}


def test_hindsight_does_not_compose(actors: RemoteActors, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learner(actors)
    monkeypatch.setattr(HerReplayBuffer, "__init__", lambda self: None)
    model.replay_buffer = HerReplayBuffer()  # type: ignore[call-arg]
    model.replay_buffer.buffer_size = model.replay_buffer.n_envs = 100
    with pytest.raises(ValueError, match="HerReplayBuffer asks environments for rewards"):
        model.learn(10)


def test_the_page_lists_what_is_logged(actors: RemoteActors) -> None:
    page = (Path(__file__).parents[1] / "docs" / "logged.md").read_text()
    listed = re.findall(r"`actors/(\w+)`", "".join(re.findall(r"^\|[^|]*\|", page, re.MULTILINE)))
    assert sorted(listed) == sorted(actors.statistics())


def test_a_dump_without_a_new_fragment_repeats_what_the_last_one_said() -> None:
    """Dumps may be more frequent than fragments: an age of 0 would be wrong, and a rate of none or of one burst."""
    statistics = ActingStatistics(n_actors=1)
    steps = np.zeros((5, 2))
    fragment = Fragment({}, steps, steps, steps, b"", Version(1, 100, 10), {"waiting": 2.0})
    statistics.record(fragment, timesteps=130, updates=14)
    first = statistics.summary()
    assert (first["weights_age"], first["weights_age_updates"], first["actor_waiting"]) == (30, 4, 2)
    time.sleep(0.2)
    statistics.lose(7)
    assert statistics.summary() == {**first, "lost_fragments": 1, "lost_steps": 7}
    statistics.record(fragment, timesteps=150, updates=14)
    third = statistics.summary()
    assert third["weights_age"] == 50
    assert 0 < third["steps_per_second"] < 10 / 0.2  # since the first


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_actors": 0}, "n_actors=0 must be a whole number, 1 or more"),
        ({"fragment": 0.5}, "fragment=0.5 must be"),
        ({"max_pending": 0}, "max_pending=0 must be"),
        ({"publish_every": 0}, "publish_every=0 must be"),
        ({"base_eps": 1.5}, r"base_eps=1.5 must be a number in \[0, 1\]"),
        ({"base_eps": "0.4"}, r"base_eps='0.4' must be a number in \[0, 1\]"),
        ({"eps_alpha": -1}, "eps_alpha=-1 must be a number, 0 or more"),
        ({"eps_alpha": float("inf")}, "eps_alpha=inf must be a number, 0 or more"),
        ({"env_fn": "CartPole-v1"}, "env_fn='CartPole-v1' must be a function"),
        ({"env_fn": MAKERS, "n_actors": 3}, "env_fn has 4 functions, for 3 actors with 1 environments each: give 3"),
    ],
)
def test_arguments_that_make_no_sense(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteActors(**{"env_fn": MAKERS[0], "n_actors": 1, **kwargs})


def test_statistics_of_each_actors_own_are_refused() -> None:
    with pytest.raises(WorkerError, match="vec_env_wrapper puts VecNormalize"):
        RemoteActors(MAKERS[0], 1, vec_env_wrapper=VecNormalize, num_cpus=0.1)


def test_nobody_acts_when_they_were_closed() -> None:
    env = RemoteActors(MAKERS[0], 1, fragment=5, num_cpus=0.1)
    model = learner(env).learn(50)
    env.close()
    for reset in (True, False):
        with pytest.raises(WorkerError, match=r"were closed.*make others"):
            model.learn(50, reset_num_timesteps=reset)
    assert env.restarted == 0


class Heavy(Counting):
    """Its observations have half a megabyte each that does not get less by packing."""

    def __init__(self, number: int) -> None:
        super().__init__(number, as_dict=True)
        parts: dict[str, Any] = {**self.observation_space, "load": spaces.Box(0, 255, (HALF_A_MEGABYTE,), np.uint8)}
        self.observation_space = spaces.Dict(parts)

    def _obs(self, action: int) -> Any:
        load = np.random.default_rng([self.life, self.episode, self.t]).bytes(HALF_A_MEGABYTE)
        return {**super()._obs(action), "load": np.frombuffer(load, np.uint8)}


class WithoutLoad(BaseFeaturesExtractor):
    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 5)

    def forward(self, observations: Any) -> th.Tensor:
        return observations["count"].float()  # type: ignore[no-any-return]


@pytest.fixture
def small_store() -> Iterator[int]:
    ray.shutdown()
    nbytes = 80 * 2**20  # Ray wants 75 at least
    with environment_of_actors():
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=nbytes)
    yield nbytes
    ray.shutdown()


def test_more_fragments_than_rays_memory_holds(small_store: int) -> None:
    """It has a cluster of its own. The learner is slow, so that actors fill the store, and Ray moves to the disk."""
    env = RemoteActors([partial(Heavy, number) for number in range(4)], 4, fragment=10, max_pending=6, num_cpus=0.5)
    assert 4 * env.max_pending * env.fragment * HALF_A_MEGABYTE > 1.4 * small_store
    policy_kwargs = {"features_extractor_class": WithoutLoad, "net_arch": [8]}
    model = learner(env, policy="MultiInputPolicy", policy_kwargs=policy_kwargs, buffer_size=400, batch_size=2)

    def wait_until_all_are_there() -> None:
        refs = list(env._requests)
        assert len(ray.wait(refs, num_returns=len(refs), timeout=60.0)[0]) == len(refs)

    model.learn(10**6, callback=After(10, wait_until_all_are_there, lambda: model.num_timesteps >= 400))
    assert model.num_timesteps == 400
    assert env.statistics()["lost_fragments"] == 0
    there = check_transitions(model)
    slots, drawn = drawn_of(model)
    assert len(there) > 300
    for i in range(0, len(slots), 25):
        _, life, episode, t, _ = map(int, drawn.observations["count"][i])
        assert drawn.observations["load"][i].numpy().tobytes() == np.random.default_rng([life, episode, t]).bytes(
            HALF_A_MEGABYTE
        )
    env.close()


@pytest.fixture
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    ray.shutdown()
    with environment_of_actors():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        node = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, node
    ray.shutdown()
    cluster.shutdown()


def test_a_node_is_lost(two_nodes: tuple[Cluster, Any]) -> None:
    """The last of this file: it has a cluster of its own. There is no room for another actor, and one goes on alone."""
    cluster, node = two_nodes
    env = RemoteActors(MAKERS, n_actors=2, envs_per_actor=2, fragment=5, restarts=1)
    steps_after: list[int] = []
    model = learner(env, n_steps=3)

    def went_on() -> bool:
        if env.restarted:
            steps_after.append(model.num_timesteps)
        return len(steps_after) > 50

    lose = After(30, lambda: cluster.remove_node(node, allow_graceful=False), went_on)
    with pytest.warns(UserWarning, match=r"It is replaced \(1 of 1 restarts\)"):
        model.learn(10**6, callback=lose)
    assert len(steps_after) > 50
    check_transitions(model)
    assert 1 <= env.statistics()["lost_fragments"] <= env.max_pending
    env.close()
