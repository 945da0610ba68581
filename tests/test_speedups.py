"""Faster arithmetic against the plain one: the same numbers within the precision asked for, and nothing lost."""

import copy
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_per_dqn import PerDoubleDQN, speedups
from sb3_per_dqn.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_per_dqn.speedups import FLUSH_INTERVAL, NEGLIGIBLE, Speedups, _in_channels_last, clip_gradients

CPU = th.device("cpu")
VECTOR = spaces.Box(-1, 1, (4,))
FRAMES = spaces.Box(0, 255, (4, 84, 84), dtype=np.uint8)
DICT = spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8), "vector": VECTOR})
EACH_POLICY = pytest.mark.parametrize(
    ("policy", "space"),
    [("MlpPolicy", VECTOR), ("CnnPolicy", FRAMES), ("MultiInputPolicy", DICT)],
    ids=["mlp", "cnn", "dict"],
)


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    th.compiler.reset()


class RandomEnv(gym.Env[Any, int]):
    """Random observations and rewards; an episode lasts seven steps."""

    action_space: Any = spaces.Discrete(3)

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        self.observation_space: Any = observation_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.steps == 7, False, {}


def make(policy: str, space: spaces.Space[Any], speed: Any, **kwargs: Any) -> PerDoubleDQN:
    """A model with forty transitions, and a target network that differs from the online one."""
    settings = {"buffer_size": 100, "batch_size": 16, "learning_starts": 1000, "seed": 5, **kwargs}
    model = PerDoubleDQN(policy, RandomEnv(space), speedups=speed, **settings)
    model.learn(40)
    th.manual_seed(1)
    for parameter in model.q_net_target.parameters():
        parameter.data += 0.02 * th.randn_like(parameter)
    return model


def loss_and_gradients(model: PerDoubleDQN) -> tuple[float, dict[str, th.Tensor]]:
    np.random.seed(3)
    data: Any = model.replay_buffer.sample(16, beta=0.7)  # type: ignore[union-attr, call-arg]
    model.policy.set_training_mode(True)
    loss, *_ = model._loss_and_errors(model._batch(data), data.weights)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in model.q_net.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.q_net.parameters()))
    return loss.item(), gradients


def assert_equal_networks(mine: DQN, other: DQN) -> None:
    ours, theirs = mine.q_net.state_dict(), other.q_net.state_dict()
    assert list(ours) == list(theirs)
    assert all(th.equal(ours[name], theirs[name]) for name in ours)


def distance(mine: th.Tensor, other: th.Tensor) -> float:
    return float((mine - other).norm() / other.norm())


@EACH_POLICY
@pytest.mark.parametrize(("name", "tolerance"), [("channels_last", 1e-5), ("compile", 1e-5), ("bf16", 0.15)])
def test_loss_and_gradients_are_those_of_the_plain_path(
    policy: str, space: spaces.Space[Any], name: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 has 8 bits: each product is off by up to 0.4%, sums that nearly cancel by more."""
    if name == "compile" and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(speedups, "_has_bf16", lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a compiler that fails would warn
        loss, gradients = loss_and_gradients(make(policy, space, [name]))
    expected_loss, expected = loss_and_gradients(make(policy, space, "none"))
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    for key, gradient in expected.items():
        assert distance(gradients[key], gradient) < tolerance, key
    if name == "bf16":
        assert any(distance(gradients[key], gradient) > 1e-5 for key, gradient in expected.items())


@EACH_POLICY
def test_training_with_the_safe_ones_stays_by_the_plain_path(policy: str, space: spaces.Space[Any]) -> None:
    plain, safe = make(policy, space, "none"), make(policy, space, "safe")
    for model in (plain, safe):
        np.random.seed(3)
        model.train(gradient_steps=20, batch_size=16)
    start = make(policy, space, "none").q_net.state_dict()
    for name, value in plain.q_net.state_dict().items():
        moved, apart = (value - start[name]).norm(), (value - safe.q_net.state_dict()[name]).norm()
        assert moved > 0
        assert apart < 0.01 * moved, name


@EACH_POLICY
@pytest.mark.parametrize("dueling", [True, False])
def test_the_whole_of_forward_and_loss_is_one_graph(policy: str, space: spaces.Space[Any], dueling: bool) -> None:
    model = make(policy, space, "none", policy_kwargs={"dueling": dueling})
    data: Any = model.replay_buffer.sample(16, beta=0.7)  # type: ignore[union-attr, call-arg]
    compiled = th.compile(model._td_loss, fullgraph=True, backend="eager")  # an error where the graph breaks
    loss, *_ = compiled(model._batch(data), data.weights)
    assert loss.item() == pytest.approx(model._td_loss(model._batch(data), data.weights)[0].item(), rel=1e-6)


@pytest.mark.parametrize("policy_class", [MlpPolicy, CnnPolicy, MultiInputPolicy])
def test_channels_last_leaves_the_weights_in_their_order(policy_class: Any) -> None:
    space = {MlpPolicy: VECTOR, CnnPolicy: FRAMES, MultiInputPolicy: DICT}[policy_class]
    model = make(policy_class, space, "safe")
    model.train(gradient_steps=2, batch_size=16)
    assert all(parameter.is_contiguous() for parameter in model.policy.parameters())
    vector = model.policy.parameters_to_vector()  # torch's own function wants them so
    assert vector.size == sum(parameter.numel() for parameter in model.policy.parameters())


@given(st.floats(-30, 30), st.sampled_from([1e-3, 0.5, 10.0, np.inf]), st.sampled_from([0.0, 1.0, np.nan, np.inf]))
def test_gradients_are_clipped_as_torch_does(exponent: float, max_norm: float, extra: float) -> None:
    """At, above and below the limit, and with what is no number among them."""
    rng = np.random.default_rng(0)
    numbers = [np.append(rng.normal(size=n) * 2.0**exponent, extra).astype(np.float32) for n in (5, 3)]
    ours, theirs = ([nn.Parameter(th.zeros(len(n))) for n in numbers] + [nn.Parameter(th.zeros(2))] for _ in range(2))
    for parameters in (ours, theirs):  # the last of them has no gradient
        for parameter, number in zip(parameters, numbers, strict=False):
            parameter.grad = th.from_numpy(number.copy())
    clip_gradients(ours, max_norm)
    th.nn.utils.clip_grad_norm_(theirs, max_norm)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_array_equal(mine.grad, other.grad)


def test_images_are_handed_over_in_channels_last_and_nothing_else_changes() -> None:
    images, vectors = th.randint(0, 255, (5, 4, 8, 8), dtype=th.uint8), th.randn(5, 3)
    arranged: Any = Speedups("safe", CPU).arrange({"images": images, "vectors": vectors})
    assert arranged["images"].is_contiguous(memory_format=th.channels_last)
    assert not images.is_contiguous(memory_format=th.channels_last)
    assert th.equal(arranged["images"], images)
    assert arranged["vectors"] is vectors
    assert arranged["images"].dtype == images.dtype
    of_a_block = th.randint(0, 256, (2, 5, 9, 7), dtype=th.uint8)[:, :-1]  # as replay memory hands them out
    assert th.equal(_in_channels_last(of_a_block), of_a_block)
    assert _in_channels_last(arranged["images"]) is arranged["images"]
    assert Speedups("none", CPU).arrange(images) is images


def optimizer_after(weights: th.Tensor, speed: Any, gradients: list[th.Tensor], **kwargs: Any) -> th.optim.Adam:
    parameter = nn.Parameter(weights.clone())
    optimizer, fast = th.optim.Adam([parameter], lr=1e-3, **kwargs), Speedups(speed, CPU)
    for update, gradient in enumerate(gradients, start=1):
        fast.prepare(optimizer)
        parameter.grad = gradient.clone()
        optimizer.step()
        fast.flush_denormals(optimizer, update)
    return optimizer


def denormal(value: th.Tensor) -> th.Tensor:
    return (value != 0) & (value.abs() < th.finfo(th.float32).tiny)


def test_flush_keeps_denormal_numbers_out_of_adam() -> None:
    """A unit that dies: its gradient is zero from then on. (The others go on, and are the same, bit for bit.)"""
    th.manual_seed(0)
    alive = th.arange(200) < 100
    gradients = [th.randn(200) if step < 50 else th.randn(200) * alive for step in range(1500)]
    weights = th.randn(200)
    plain, flushed = (optimizer_after(weights, speed, gradients, fused=True) for speed in ("none", ["flush"]))
    (before,), (after,) = plain.state.values(), flushed.state.values()
    assert denormal(before["exp_avg"])[100:].any()  # they do not go away by themselves
    assert not denormal(after["exp_avg"]).any()
    assert not after["exp_avg"][100:].any()
    for name in ("exp_avg", "exp_avg_sq"):
        kept = before[name].abs() >= NEGLIGIBLE
        assert kept[:100].all()
        assert th.equal(before[name][kept], after[name][kept])
    assert before["step"] == after["step"] == 1500
    ends = [optimizer.param_groups[0]["params"][0] for optimizer in (plain, flushed)]
    assert th.equal(*ends)  # what was lost is below the rounding of the weights


def test_flush_comes_before_anything_can_be_denormal() -> None:
    """From NEGLIGIBLE to the first denormal number at 0.9 a step."""
    assert th.finfo(th.float32).tiny < NEGLIGIBLE * 0.9**FLUSH_INTERVAL


def test_fused_adam_steps_as_adam_does() -> None:
    th.manual_seed(0)
    weights, gradients = th.randn(50), [th.randn(50) for _ in range(30)]
    plain, fused = (optimizer_after(weights, speed, gradients) for speed in ("none", ["fused"]))
    assert not plain.param_groups[0]["fused"]
    assert fused.param_groups[0]["fused"]
    (mine,), (other,) = fused.param_groups[0]["params"], plain.param_groups[0]["params"]
    assert th.allclose(mine, other, rtol=1e-5, atol=1e-7)
    assert not th.equal(mine, weights)


@pytest.mark.parametrize(
    ("optimizer_class", "arguments", "fused"),
    [
        (th.optim.Adam, {}, True),
        (th.optim.AdamW, {}, True),
        (th.optim.Adam, {"foreach": True}, None),
        (th.optim.Adam, {"fused": False}, False),
        (th.optim.RMSprop, {}, "has none"),
    ],
)
def test_fused_respects_what_the_optimizer_was_made_with(optimizer_class: Any, arguments: Any, fused: Any) -> None:
    kwargs = {"optimizer_class": optimizer_class, "optimizer_kwargs": arguments}
    model = make("MlpPolicy", VECTOR, "safe", policy_kwargs=kwargs)
    model.train(gradient_steps=2, batch_size=16)
    assert model.policy.optimizer.param_groups[0].get("fused", "has none") is fused


@pytest.mark.parametrize(("saved_with", "loaded_with"), [("none", "safe"), ("safe", "none"), ("max", "safe")])
def test_a_saved_model_goes_on_with_other_speedups(saved_with: str, loaded_with: str, tmp_path: Path) -> None:
    model = make("MlpPolicy", VECTOR, saved_with)
    model.train(gradient_steps=3, batch_size=16)
    model.save(tmp_path / "model")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=RandomEnv(VECTOR), speedups=loaded_with)
    assert loaded.speedups == loaded_with
    assert PerDoubleDQN.load(tmp_path / "model").speedups == saved_with
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    loaded.train(gradient_steps=3, batch_size=16)
    assert bool(loaded.policy.optimizer.param_groups[0]["fused"]) is (loaded_with == "safe")
    state = next(iter(loaded.policy.optimizer.state.values()))
    assert state["step"] == 6


def test_a_model_goes_on_in_sb3(tmp_path: Path) -> None:
    model = make("CnnPolicy", FRAMES, "safe", policy_kwargs={"dueling": False})
    model.train(gradient_steps=3, batch_size=16)
    model.save(tmp_path / "model")
    theirs = DQN("CnnPolicy", RandomEnv(FRAMES), buffer_size=100, learning_starts=10)
    theirs.set_parameters(str(tmp_path / "model"))
    assert_equal_networks(model, theirs)
    theirs.learn(30)


class View(BaseFeaturesExtractor):
    """Works on images in the usual memory order alone."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, int(np.prod(observation_space.shape)))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.view(len(observations), -1)


def test_an_extractor_that_cannot_take_channels_last_goes_on_without_it() -> None:
    arguments = {"policy_kwargs": {"features_extractor_class": View}}
    with pytest.warns(UserWarning, match="going on without channels_last, as the network says: view size") as caught:
        model = make("CnnPolicy", FRAMES, "safe", **arguments)
    assert len(caught) == 1
    model.train(gradient_steps=2, batch_size=16)
    assert model._speedups.fused
    make("CnnPolicy", FRAMES, "none", **arguments).train(gradient_steps=2, batch_size=16)


@EACH_POLICY
def test_random_numbers_of_the_environments_spaces_are_as_without(policy: str, space: spaces.Space[Any]) -> None:
    """(SB3's own extractor for images draws a sample.)"""
    drawn = []
    for speed in ("none", "safe"):
        space.seed(0)
        PerDoubleDQN(policy, RandomEnv(space), speedups=speed, buffer_size=100)
        sample = space.sample()
        drawn.append(sample if isinstance(sample, dict) else {"": sample})
    assert all(np.array_equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@pytest.mark.parametrize("speed", ["none", "safe", "compile"])
def test_a_copy_learns_by_itself(speed: str) -> None:
    model = make("MlpPolicy", VECTOR, speed)
    model.train(gradient_steps=2, batch_size=16)
    before = [parameter.clone() for parameter in model.q_net.parameters()]
    twin = copy.deepcopy(model)
    model.policy.optimizer.zero_grad()
    twin.train(gradient_steps=2, batch_size=16)
    assert all(th.equal(now, then) for now, then in zip(model.q_net.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.q_net.parameters())
    assert not any(th.equal(now, then) for now, then in zip(twin.q_net.parameters(), before, strict=True))


def test_training_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("CnnPolicy", FRAMES, "safe")
    orders, updates = [], []
    forward, flush = model.q_net.forward, model._speedups.flush_denormals

    def seen(observations: th.Tensor) -> th.Tensor:
        orders.append(observations.is_contiguous(memory_format=th.channels_last))
        return forward(observations)

    monkeypatch.setattr(model.q_net, "forward", seen)
    monkeypatch.setattr(model._speedups, "flush_denormals", lambda *args: (updates.append(args[1]), flush(*args)))
    model.train(gradient_steps=3, batch_size=16)
    model.train(gradient_steps=1, batch_size=16)
    assert orders == [True] * 8  # the next observations and these, in each of four
    assert updates == [1, 2, 3, 4]
    assert model.policy.optimizer.param_groups[0]["fused"]


def test_deterministic_mode_works() -> None:
    th.use_deterministic_algorithms(True)
    try:
        ends = []
        for _ in range(2):
            model = make("CnnPolicy", FRAMES, "safe")
            np.random.seed(0)
            model.train(gradient_steps=5, batch_size=16)
            ends.append(th.cat([parameter.flatten() for parameter in model.q_net.parameters()]))
        assert th.equal(*ends)
    finally:
        th.use_deterministic_algorithms(False)


def test_each_of_many_models_is_compiled() -> None:
    """torch.compile gives up, without a word, after eight versions of the same code."""
    compiled = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        compile_ = th.compile
        patch.setattr(th, "compile", lambda method, **kwargs: compile_(method, backend=backend, **kwargs))
        for models in range(1, 12):
            make("MlpPolicy", VECTOR, "compile").train(gradient_steps=1, batch_size=16)
            assert len(compiled) == models


def test_without_a_compiler_it_says_so_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("\nNo working C++ compiler found in ('g++',)\nmore")

    monkeypatch.setattr(th, "compile", lambda function, **kwargs: no_compiler)
    model, plain = make("MlpPolicy", VECTOR, ["compile"]), make("MlpPolicy", VECTOR, "none")
    np.random.seed(3)
    with pytest.warns(UserWarning, match=r"torch.compile failed \(No working C\+\+ compiler found") as caught:
        model.train(gradient_steps=4, batch_size=16)
    assert len(caught) == 1
    np.random.seed(3)
    plain.train(gradient_steps=4, batch_size=16)
    assert_equal_networks(model, plain)


def test_an_error_of_the_network_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("MlpPolicy", VECTOR, ["compile"])

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("mine")

    model.q_net.forward = broken  # type: ignore[method-assign]
    monkeypatch.setattr(th, "compile", lambda function, **kwargs: function)
    with pytest.raises(ZeroDivisionError, match="mine"):
        model.train(gradient_steps=1, batch_size=16)


def test_without_bfloat16_it_says_so_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedups, "_has_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="no fast bfloat16") as caught:
        model = make("MlpPolicy", VECTOR, ["bf16"])
    assert len(caught) == 1
    model.train(gradient_steps=2, batch_size=16)
    assert not model._speedups.bf16


def test_bfloat16_is_asked_of_the_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several GPUs an old one may be the current one."""
    current = [th.device("cuda:0")]

    @contextmanager
    def device(chosen: th.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(th.cuda, "device", device)
    monkeypatch.setattr(th.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == th.device("cuda:1"))
    assert speedups._has_bf16(th.device("cuda:1"))
    assert not speedups._has_bf16(th.device("cuda:0"))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("fast", "speedups='fast' must be one of none, safe, max, or a list of fused, flush"),
        ("max ", "did you mean 'max'"),
        (["fused", "bf17"], r"speedups=\['fused', 'bf17'\].*did you mean 'bf16'\?"),
        (["safe"], r"speedups=\['safe'\] must be one of none, safe, max"),
        (3, "speedups=3 must be one of none, safe, max"),
        (True, "speedups=True must be"),
        (None, "speedups=None must be"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_built(wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerDoubleDQN("MlpPolicy", "CartPole-v1", speedups=wanted)


def test_names_and_presets() -> None:
    def switched(wanted: Any) -> list[bool]:
        speed = Speedups(wanted, CPU)
        return [speed.fused, speed.flush, speed.channels_last, speed.compile]

    assert switched("none") == [False] * 4 == switched([])
    assert switched("safe") == [True, True, True, False]
    assert switched("max") == [True] * 4
    assert switched(("compile",)) == switched("compile") == [False, False, False, True]
