"""
Replay memory on a device, which is the CPU here: ``tests/test_replay_exactness.py`` holds it against the naive one,
with the memory on the host; these tests are of what is different. Nothing of it was run on CUDA.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN, PrioritizedReplayBuffer, per_double_dqn
from sb3_per_dqn.cuda_graph import WARM_UP, RecordedStep, key_of
from sb3_per_dqn.replay import device_store, prioritized_buffer
from sb3_per_dqn.replay.device_store import pool_length
from sb3_per_dqn.speedups import Speedups
from tests.random_walk import SpoilWeights
from tests.test_training_with_replay import DictFrames, Frames, buffer_of, corridor, make, stacked_frames

SPACE, ACTIONS = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(5)
ENDED: list[dict[str, Any]] = [{}]


def vectors(make_buffer: type[PrioritizedReplayBuffer], size: int, count: int, **kwargs: Any) -> Any:
    """:return: a buffer of steps 0, 1, 2, ... of one environment"""
    buffer = make_buffer(size, SPACE, ACTIONS, "cpu", **kwargs)
    for step in range(count):
        obs, next_obs = np.full((1, 1), step, np.float32), np.full((1, 1), step + 1, np.float32)
        buffer.add(obs, next_obs, np.array([step % 5]), np.array([float(step)]), np.array([False]), ENDED)
    return buffer


# ------------------------------------------------------------------------------------------------- against the host's


def dict_frames() -> VecEnv:
    return make_vec_env(lambda: TimeLimit(DictFrames(Frames()), 6), 2, seed=0)


@pytest.mark.parametrize(("n_steps", "normalize_weights"), [(1, "memory"), (3, "memory"), (1, "batch")])
@pytest.mark.parametrize(
    ("make_env", "policy"),
    [(corridor, "MlpPolicy"), (stacked_frames, "CnnPolicy"), (dict_frames, "MultiInputPolicy")],
)
def test_training_is_the_same_with_either_memory(
    make_env: Callable[[], VecEnv],
    policy: str,
    n_steps: int,
    normalize_weights: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same random numbers: draws, returns, weights, priorities, and what is logged of them."""

    def rand(batch_size: int, **kwargs: Any) -> th.Tensor:
        return th.as_tensor(np.random.random(batch_size))

    monkeypatch.setattr(th, "rand", rand)
    monkeypatch.setattr(device_store, "SPARE", 1)  # these episodes are short, and their oldest would be forgotten
    models = []
    for replay_buffer_class in (PrioritizedReplayBuffer, DeviceReplayBuffer):
        model = make(
            make_env(),
            policy,
            n_steps=n_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs={"normalize_weights": normalize_weights},
            speedups="none",
        )
        models.append(model.learn(300))
    mine, other = models
    assert mine._n_updates == other._n_updates > 40
    for name, weights in mine.policy.state_dict().items():
        assert th.allclose(weights, other.policy.state_dict()[name], rtol=1e-4, atol=1e-6), name
    assert isinstance(mine.replay_buffer, PrioritizedReplayBuffer)
    assert isinstance(other.replay_buffer, DeviceReplayBuffer)
    ours, theirs = mine.replay_buffer, other.replay_buffer
    assert theirs._priorities.values == pytest.approx(ours._priorities.values, rel=1e-3)
    statistics, others = ours.statistics(), theirs.statistics()
    assert statistics.pop("gigabytes") > 0
    assert others.pop("gigabytes") > 0
    assert others == pytest.approx(statistics, rel=1e-3)
    assert ours.statistics().keys() == theirs.statistics().keys()  # nothing was drawn since


def test_transitions_are_drawn_in_proportion_to_their_priorities() -> None:
    buffer = vectors(DeviceReplayBuffer, 8, 8, alpha=1.0)
    th.manual_seed(0)
    buffer.update_priorities(th.arange(8), th.arange(8.0))
    draws = np.bincount(buffer.sample(200_000, beta=1.0).indices, minlength=8) / 200_000
    assert draws == pytest.approx(np.arange(8) / 28, abs=0.004)
    assert draws[0] < 1e-5


def test_a_seed_gives_one_series_of_draws() -> None:
    buffer = vectors(DeviceReplayBuffer, 100, 100)
    draws = []
    for _ in range(2):
        th.manual_seed(5)
        draws.append(buffer.sample(50).indices.tolist())
    assert draws[0] == draws[1]


# ---------------------------------------------------------------------------------------------------------- priorities


def test_the_last_of_several_updates_of_one_transition_counts() -> None:
    """TRAPS 5"""
    buffer = vectors(DeviceReplayBuffer, 4, 4, alpha=1.0, eps=1e-9)
    buffer.update_priorities(th.tensor([1, 2, 1, 3, 1]), th.tensor([9.0, 2.0, 8.0, 3.0, 1.0]))
    assert buffer._priorities.values == pytest.approx([1, 1, 2, 3])
    assert buffer.max_priority.item() == pytest.approx(3)


def test_updates_of_overwritten_transitions_are_dropped() -> None:
    """TRAPS 16; of two with the same slot, the one that is stored counts."""
    buffer = vectors(DeviceReplayBuffer, 4, 6, alpha=1.0, eps=1e-9)
    buffer.update_priorities(th.tensor([4, 0, 1]), th.tensor([5.0, 7.0, 7.0]))
    assert buffer._priorities.values == pytest.approx([5, 1, 1, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_error_that_is_not_finite_changes_no_priority(bad: float) -> None:
    """TRAPS 15"""
    buffer = vectors(DeviceReplayBuffer, 3, 3, alpha=1.0, eps=1e-9)
    buffer.update_priorities(th.tensor([0, 1, 0]), th.tensor([5.0, bad, bad]))
    assert buffer._priorities.values == pytest.approx([5, 1, 1])
    with pytest.raises(ValueError, match="2 elements for 3"):
        buffer.update_priorities(th.tensor([0, 1, 0]), th.tensor([5.0, 2.0]))


def test_updates_that_name_nothing() -> None:
    with pytest.raises(IndexError, match="never stored"):
        DeviceReplayBuffer(4, SPACE, ACTIONS, "cpu").update_priorities(th.tensor([0]), th.tensor([1.0]))
    buffer = vectors(DeviceReplayBuffer, 4, 6, alpha=1.0, eps=1e-9)
    buffer.update_priorities(th.tensor([4, 8, 1001, -1]), th.tensor([5.0, 7.0, 7.0, 7.0]))
    assert buffer._priorities.values == pytest.approx([5, 1, 1, 1])


def test_a_transition_whose_window_is_not_complete_stays_out() -> None:
    buffer = vectors(DeviceReplayBuffer, 6, 4, n_steps=3)
    buffer.update_priorities(th.tensor([3]), th.tensor([5.0]))
    assert (buffer._priorities.values > 0).tolist() == [True, True, False, False, False, False]


def test_training_says_so_when_it_diverges() -> None:
    """TRAPS 15, at the end of the call, as nobody waits for the device before."""
    model = make(make_vec_env(Frames, 2), "CnnPolicy", replay_buffer_class=DeviceReplayBuffer)
    with pytest.raises(ValueError, match=r"Training diverged at step 3\d, updates \d+ to \d+: .*learning_rate"):
        model.learn(100, callback=SpoilWeights())


# -------------------------------------------------------------------------------------------------------------- memory


def stacks(n_envs: int, rows: int, steps: int, ends: Callable[[int], bool]) -> tuple[Any, dict[int, Any]]:
    """:return: a buffer of truncated episodes whose first stacks are new frames, and observations by serial number"""
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (4, 6, 6), np.uint8)
    buffer = DeviceReplayBuffer(rows * n_envs, space, ACTIONS, "cpu", n_envs)
    seen = {}
    obs = rng.integers(1, 255, (n_envs, 4, 6, 6), dtype=np.uint8)
    for step in range(steps):
        newest = rng.integers(1, 255, (n_envs, 1, 6, 6), dtype=np.uint8)
        next_obs = np.concatenate([obs[:, 1:], newest], axis=1)
        done = np.full(n_envs, ends(step))
        infos = [{"TimeLimit.truncated": bool(done[0])}] * n_envs
        buffer.add(obs, next_obs, np.zeros(n_envs), np.zeros(n_envs), done, infos)
        seen.update({step * n_envs + env: (obs[env], next_obs[env]) for env in range(n_envs)})
        obs = rng.integers(1, 255, (n_envs, 4, 6, 6), dtype=np.uint8) if done[0] else next_obs
    return buffer, seen


@pytest.mark.parametrize(("every", "forgets"), [(2, True), (4, True), (1000, False)])
def test_where_frames_do_not_suffice_the_oldest_transitions_are_forgotten(every: int, forgets: bool) -> None:
    """What can still be drawn is right, and most of it is there; an update does not bring back what is gone."""
    n_envs, rows = 3, 400
    buffer, seen = stacks(n_envs, rows, 1000, lambda step: step % every == every - 1)
    slots = np.flatnonzero(buffer._priorities.values)
    serials = buffer._serial_numbers(slots)
    assert sorted(serials) == list(range(3000 - len(serials), 3000))
    assert (len(serials) < rows * n_envs) == forgets
    frames_a_step = 1 + 4 / every
    assert len(serials) >= min(rows * n_envs, pool_length(rows, n_envs, 4) / frames_a_step - 4 * n_envs)
    batch = buffer._get_samples(th.as_tensor(slots))
    for serial, obs, next_obs in zip(serials, batch.observations, batch.next_observations, strict=True):
        assert (obs.numpy() == seen[serial][0]).all()
        assert (next_obs.numpy() == seen[serial][1]).all()
    buffer.update_priorities(th.arange(1800, 3000), th.ones(1200))
    assert (np.flatnonzero(buffer._priorities.values) == slots).all()
    assert (np.flatnonzero(buffer._learned_priorities.values) == slots).all()


def test_a_stacked_frame_is_there_once_and_is_not_taken_before_the_first_add() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert DeviceReplayBuffer(10**9, space, ACTIONS, "cpu").nbytes == 0
    rng = np.random.default_rng(0)
    buffer = DeviceReplayBuffer(10_000, space, ACTIONS, "cpu", 2)
    obs = rng.integers(1, 255, (2, 4, 84, 84), dtype=np.uint8)
    next_obs = np.concatenate([obs[:, 1:], obs[:, :1]], axis=1)
    buffer.add(obs, next_obs, np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
    assert 7056 < buffer.nbytes / 10_000 < 7056 * 1.06


def test_memory_is_asked_for_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device gives it when it is asked for: also for a short run, and not again for the next one."""
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    rng = np.random.default_rng(0)
    obs = rng.integers(1, 255, (1, 4, 84, 84), dtype=np.uint8)
    next_obs = np.concatenate([obs[:, 1:], obs[:, :1]], axis=1)
    step = obs, next_obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}]
    buffer = DeviceReplayBuffer(2000, space, ACTIONS, "cpu")
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: 10**7)
    with pytest.raises(ValueError, match=r"needs 0\.0\d+ GB"):
        buffer.expect(100)
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: 2 * 10**7)
    buffer.add(*step)
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: 0)
    buffer.expect(10_000)
    buffer.add(*step)


def test_memory_that_will_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def available(device: Any) -> int:
        devices.append(device)
        return 10**9

    monkeypatch.setattr(prioritized_buffer, "available_memory", available)
    obs = np.zeros((1, 4, 84, 84), np.uint8)
    buffer = DeviceReplayBuffer(10**6, spaces.Box(0, 255, (4, 84, 84), np.uint8), ACTIONS, "cpu")
    with pytest.raises(ValueError, match=r"buffer_size=1000000 needs 7.* GB of memory, of which 1 GB are available"):
        buffer.add(obs, obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    assert buffer.nbytes == 0
    assert devices == [th.device("cpu")]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_as_the_original(copier: Any) -> None:
    """TRAPS 24"""
    buffer, _ = stacks(2, 30, 50, lambda step: step % 7 == 6)
    buffer.update_priorities(buffer.sample(16).indices, th.randn(16))
    copied = copier(buffer)
    copied.to(th.device("cpu"))
    batches = []
    for one in (buffer, copied):
        one.add(*[np.ones((2, 4, 6, 6), np.uint8)] * 2, np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
        th.manual_seed(0)
        batches.append(one.sample(64))
    for one, other in zip(*batches, strict=True):
        assert one is None or th.equal(one, other)
    assert copied.max_priority == buffer.max_priority


def test_a_buffer_from_a_file_moves_to_the_models_device(tmp_path: Path) -> None:
    model = make(stacked_frames(), "CnnPolicy", replay_buffer_class=DeviceReplayBuffer).learn(60)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    other = make(stacked_frames(), "CnnPolicy", replay_buffer_class=DeviceReplayBuffer)
    other.load_replay_buffer(tmp_path / "buffer.pkl")
    buffer: Any = other.replay_buffer
    buffer.to(th.device("meta"))
    parts = [buffer, buffer._priorities, buffer._learned_priorities, *(part.frames for part in buffer._parts.values())]
    for part in parts:
        assert all(value.device.type == "meta" for value in vars(part).values() if isinstance(value, th.Tensor))
    assert buffer.device == buffer._parts[""].frames._device == th.device("meta")


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_it_does_not_do_is_said() -> None:
    with pytest.raises(ValueError, match="compress_frames=True is for PrioritizedReplayBuffer"):
        DeviceReplayBuffer(10, SPACE, ACTIONS, compress_frames=True)
    with pytest.raises(ValueError, match="empty"):
        DeviceReplayBuffer(10, SPACE, ACTIONS, "cpu").sample(1)
    buffer = vectors(DeviceReplayBuffer, 4, 4)
    with pytest.raises(ValueError, match="batch_size=0"):
        buffer.sample(0)
    with pytest.raises(ValueError, match=r"beta=1\.5"):
        buffer.sample(1, beta=1.5)
    env = VecNormalize(VecFrameStack(make_vec_env(Frames, 2), 4), norm_obs=False)
    with pytest.raises(ValueError, match="does not normalize"):
        buffer.sample(1, env)
    with pytest.raises(ValueError, match="does not know VecNormalize"):
        make(env, "CnnPolicy", replay_buffer_class=DeviceReplayBuffer).learn(10)


# ---------------------------------------------------------------------------------------------------------- CUDA graph


@pytest.mark.parametrize("speedups", [["graph"], "graph"])
def test_without_cuda_a_graph_is_left_out_and_said(speedups: Any) -> None:
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        model = make(stacked_frames(), "CnnPolicy", replay_buffer_class=DeviceReplayBuffer, speedups=speedups)
    assert model.learn(60)._n_updates > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(corridor(), speedups=["fused"])


class FakeGraph:
    """Does at each replay what was done while it was recorded, with the tensors that were there then."""

    recorded: Callable[[], object]

    def replay(self) -> None:
        self.recorded()


class FakeCuda:
    """
    What ``torch.cuda`` keeps beside the tensors. Streams are of the current device; the one on which graphs are
    recorded if none is given is of the first device, here. Random numbers are recorded with a graph, and in PyTorch 2.8
    stay so when that is broken off.
    """

    def __init__(self) -> None:
        self.current: Any = 0
        self.recorded_on: list[Any] = []
        self.is_recording = self.are_draws_recorded = False
        self.replayed: Callable[[], object] = lambda: None

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, stream: Any = None) -> Iterator[None]:
        self.recorded_on.append(0 if stream is None else stream.device)
        self.is_recording = self.are_draws_recorded = True
        try:
            yield
        finally:
            self.is_recording = False
        self.are_draws_recorded = False
        graph.recorded = self.replayed

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        yield

    def draw(self) -> None:
        if self.are_draws_recorded and not self.is_recording:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    class Stream:
        def __init__(self) -> None:
            self.device = fake.current

        def wait_stream(self, other: Any) -> None:
            assert other.device == self.device

    for name in ("device", "graph", "stream"):
        monkeypatch.setattr(th.cuda, name, getattr(fake, name))
    for name, replacement in {"CUDAGraph": FakeGraph, "Stream": Stream, "current_stream": Stream}.items():
        monkeypatch.setattr(th.cuda, name, replacement)
    monkeypatch.setattr(th.cuda, "set_stream", lambda stream: None)
    return fake


def test_every_call_of_a_recorded_step_does_one_step(cuda: FakeCuda) -> None:
    """The bookkeeping alone, with a graph that is none: ordinary steps first, then one recording, then replays."""
    done: list[float] = []
    result = th.zeros(())

    def step(argument: th.Tensor) -> tuple[th.Tensor, ...]:
        if not cuda.is_recording:  # nothing runs meanwhile
            done.append(argument.item())
            result.copy_(argument)
        return (result,)

    recorded_step = RecordedStep(step, "key", th.device("cpu"))
    cuda.replayed = lambda: step(recorded_step._argument)
    results = [recorded_step(float(call))[0] for call in range(WARM_UP + 5)]
    assert done == list(range(WARM_UP + 5))
    assert [value.item() for value in results[WARM_UP:]] == list(range(WARM_UP, WARM_UP + 5))  # copies, not one tensor
    copied = copy.deepcopy(recorded_step)
    assert copied.key is None


def test_a_step_is_recorded_on_its_own_device(cuda: FakeCuda) -> None:
    """With ``device="cuda:1"``, the current device is another, whose graph would be empty, and its replays as well."""
    currents: list[Any] = []

    def step(argument: th.Tensor) -> tuple[th.Tensor, ...]:
        currents.append(cuda.current)
        return (argument.clone(),)

    device = th.device("cpu")
    recorded_step = RecordedStep(step, "key", device)
    for _ in range(WARM_UP + 2):
        recorded_step(0.0)
    assert currents == [device] * (WARM_UP + 1)
    assert cuda.recorded_on == [device]
    assert cuda.current == 0


def test_another_step_is_recorded_where_the_optimizer_is_another() -> None:
    weight = th.nn.Parameter(th.zeros(3))
    optimizer = th.optim.Adam([weight], lr=th.tensor(0.1))
    keys = [key_of((), [weight], optimizer)]
    optimizer.param_groups[0]["lr"].fill_(0.01)  # which the recorded step reads
    assert key_of((), [weight], optimizer) == keys[0]
    optimizer.param_groups[0]["betas"] = 0.5, 0.9
    keys.append(key_of((), [weight], optimizer))
    optimizer.state[weight]["exp_avg"] = th.zeros(3)
    keys.append(key_of((), [weight], optimizer))
    assert len(set(keys)) == 3


def test_where_recording_fails_steps_go_on(cuda: FakeCuda) -> None:
    done: list[float] = []

    def step(argument: th.Tensor) -> tuple[th.Tensor, ...]:
        cuda.draw()
        if cuda.is_recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        done.append(argument.item())
        return (argument.clone(),)

    recorded_step = RecordedStep(step, "key", th.device("cpu"))
    with pytest.warns(UserWarning, match="could not be recorded") as caught:
        results = [recorded_step(float(call))[0] for call in range(WARM_UP + 3)]
    assert len(caught) == 1
    assert done == [value.item() for value in results] == list(range(WARM_UP + 3))
    assert recorded_step.failed


def test_an_optimizer_made_fit_for_a_graph_goes_back() -> None:
    """A model that was trained on CUDA with a graph, loaded on a CPU: Adam's usual kernels would refuse to go on."""
    model: PerDoubleDQN = make(corridor(), speedups="none").learn(60)
    for group in model.policy.optimizer.param_groups:
        group["capturable"], group["lr"] = True, th.tensor(1e-3)
    assert model.learn(60, reset_num_timesteps=False)._n_updates > 20
    assert not any(group["capturable"] for group in model.policy.optimizer.param_groups)


def graph_model(**kwargs: Any) -> PerDoubleDQN:
    """A model that believes in CUDA graphs; Adam's fused kernel does not mind on a CPU."""
    model = make(stacked_frames(), "CnnPolicy", replay_buffer_class=DeviceReplayBuffer, **kwargs)
    model._speedups.graph = True
    return model


class Recorded(RecordedStep):
    """What is done is done as it is; what would be recorded, and how often, is remembered."""

    made: ClassVar[list[Any]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made.append(self.key)

    def __call__(self, argument: float) -> tuple[th.Tensor, ...]:
        self._argument.fill_(argument)
        return self._step(self._argument)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(per_double_dqn, "RecordedStep", Recorded)
    monkeypatch.setattr(Recorded, "made", [])
    return Recorded.made


def test_a_step_is_recorded_once_as_long_as_nothing_moves(recordings: list[Any], tmp_path: Path) -> None:
    model = graph_model()
    model.learn(120)
    assert model._n_updates > 15
    assert len(recordings) == 1
    model.learn(60, reset_num_timesteps=False)
    assert len(recordings) == 1
    changes: list[Callable[[], Any]] = [
        lambda: model.set_parameters(copy.deepcopy(model.get_parameters())),  # another state of the optimizer
        lambda: setattr(model, "gamma", 0.5),
        lambda: setattr(model, "batch_size", 8),
        lambda: buffer_of(model).reset(),
        lambda: buffer_of(model).to(th.device("cpu")) or setattr(buffer_of(model), "eps", 1e-3),
    ]
    for count, change in enumerate(changes, start=2):
        change()
        model.learn(60, reset_num_timesteps=False)
        assert len(recordings) == count
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    model.learn(60, reset_num_timesteps=False)
    assert len(recordings) == len(changes) + 2


@pytest.mark.usefixtures("recordings")
def test_a_recorded_step_trains_as_any_other() -> None:
    """The learning rate and beta are tensors then; a schedule reaches both."""
    models = []
    for graph in (True, False):
        model = graph_model(learning_rate=lambda remaining: 1e-3 * remaining)
        model._speedups.graph = graph
        models.append(model.learn(200))
    one, other = models
    assert isinstance(one._recorded_step, Recorded)
    assert other._recorded_step is None
    for name, weights in one.policy.state_dict().items():
        assert th.allclose(weights, other.policy.state_dict()[name], rtol=1e-3, atol=1e-6), name
    assert float(one.policy.optimizer.param_groups[0]["lr"]) == pytest.approx(
        other.policy.optimizer.param_groups[0]["lr"]
    )


def test_what_cannot_be_recorded_is_not_tried_again(recordings: list[Any]) -> None:
    model = graph_model().learn(60)
    assert model._recorded_step is not None
    model._recorded_step.failed = True
    model.gamma = 0.5
    model.learn(60, reset_num_timesteps=False)
    assert len(recordings) == 1


def test_an_optimizer_that_cannot_be_recorded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(Speedups, "leave_out_graph", lambda self, reason: reasons.append(reason))
    policy_kwargs = {"net_arch": [8], "optimizer_class": th.optim.SGD}
    make(stacked_frames(), "CnnPolicy", replay_buffer_class=DeviceReplayBuffer, policy_kwargs=policy_kwargs)
    assert reasons == ["there are none on a CPU", "SGD has no argument capturable"]
