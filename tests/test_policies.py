"""The dueling network against its equation by hand, and the policies against SB3's."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.dqn import policies as sb3_policies
from torch import nn

from sb3_per_dqn import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_per_dqn.policies import DuelingQNetwork, PlainQNetwork

VECTOR = spaces.Box(-1, 1, (3,))
FRAMES = spaces.Box(0, 255, (4, 84, 84), dtype=np.uint8)
DICT = spaces.Dict(
    {"image": spaces.Box(0, 255, (1, 36, 36), dtype=np.uint8), "vector": VECTOR, "room": spaces.Discrete(3)}
)
POLICIES: list[tuple[Any, Any, spaces.Space[Any]]] = [
    (MlpPolicy, sb3_policies.MlpPolicy, VECTOR),
    (CnnPolicy, sb3_policies.CnnPolicy, FRAMES),
    (MultiInputPolicy, sb3_policies.MultiInputPolicy, DICT),
]
EACH_POLICY = pytest.mark.parametrize(("policy_class", "sb3_class", "space"), POLICIES)


def make(policy_class: Any, space: spaces.Space[Any] = VECTOR, **kwargs: Any) -> Any:
    return policy_class(space, spaces.Discrete(4), lambda _: 1e-3, **kwargs)


def observations(policy: Any, batch: int = 5) -> Any:
    """A batch of random observations, preprocessed to tensors as the policy does it."""
    space = policy.observation_space
    space.seed(0)
    samples = [space.sample() for _ in range(batch)]
    if isinstance(space, spaces.Dict):
        raw: Any = {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in space.spaces}
    else:
        raw = np.stack(samples)
    return policy.obs_to_tensor(raw)[0]


def layers(network: nn.Module) -> list[str]:
    return [
        f"{type(layer).__name__} {tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else ''}".strip()
        for layer in network.children()
    ]


def test_forward_is_value_plus_advantage_minus_mean() -> None:
    """Wang et al. (2016), Eq. 9, with every layer in NumPy."""
    policy = make(MlpPolicy, net_arch=[6], activation_fn=nn.Tanh)
    parameters = {name: value.numpy().astype(float) for name, value in policy.q_net.state_dict().items()}
    obs = observations(policy).numpy().astype(float)

    def stream(name: str) -> np.ndarray:
        hidden = np.tanh(obs @ parameters[f"{name}.0.weight"].T + parameters[f"{name}.0.bias"])
        return np.asarray(hidden @ parameters[f"{name}.2.weight"].T + parameters[f"{name}.2.bias"])

    value, advantages = stream("value_net"), stream("advantage_net")
    assert value.shape == (5, 1)
    assert advantages.shape == (5, 4)
    expected = np.array([[value[i, 0] + advantages[i, a] - sum(advantages[i]) / 4 for a in range(4)] for i in range(5)])
    with th.no_grad():
        q_values = policy.q_net(observations(policy))
    np.testing.assert_allclose(q_values, expected, atol=1e-5)
    assert (policy._predict(observations(policy)).numpy() == expected.argmax(axis=1)).all()


@EACH_POLICY
def test_mean_q_value_is_the_value(policy_class: Any, sb3_class: Any, space: spaces.Space[Any]) -> None:
    """The advantages average to nothing, in every policy; so each stream sees the same features."""
    policy = make(policy_class, space)
    obs = observations(policy)
    with th.no_grad():
        q_values = policy.q_net(obs)
        value = policy.q_net.value_net(policy.q_net.extract_features(obs, policy.q_net.features_extractor))
    assert q_values.shape == (5, 4)
    assert q_values.std(dim=1).min() > 0
    assert th.allclose(q_values.mean(dim=1, keepdim=True), value, atol=1e-5)


def test_net_arch_256_gives_the_experiments_network() -> None:
    """https://nn.labml.ai/rl/dqn/model.html: 512 features, and a hidden layer of 256 in each of the two streams."""
    q_net = make(CnnPolicy, FRAMES, net_arch=[256]).q_net
    assert isinstance(q_net.features_extractor, NatureCNN)
    assert [tuple(p.shape) for p in q_net.features_extractor.parameters() if p.ndim > 1] == [
        (32, 4, 8, 8),
        (64, 32, 4, 4),
        (64, 64, 3, 3),
        (512, 64 * 7 * 7),
    ]
    assert layers(q_net.value_net) == ["Linear (256, 512)", "ReLU", "Linear (1, 256)"]
    assert layers(q_net.advantage_net) == ["Linear (256, 512)", "ReLU", "Linear (4, 256)"]


def test_default_net_arch_is_sb3s() -> None:
    assert layers(make(MlpPolicy).q_net.value_net) == [
        "Linear (64, 3)",
        "ReLU",
        "Linear (64, 64)",
        "ReLU",
        "Linear (1, 64)",
    ]
    assert layers(make(CnnPolicy, FRAMES).q_net.advantage_net) == ["Linear (4, 512)"]


@EACH_POLICY
def test_every_parameter_is_used_and_optimized(policy_class: Any, sb3_class: Any, space: spaces.Space[Any]) -> None:
    """SB3's own head is gone: no parameter is left that the loss does not reach or the optimizer does not have."""
    policy = make(policy_class, space)
    assert type(policy.q_net) is type(policy.q_net_target) is DuelingQNetwork
    assert not any(name.startswith("q_net") for name in policy.q_net.state_dict())
    policy.q_net(observations(policy)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.q_net.parameters())
    optimized = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in policy.q_net.parameters()}


@EACH_POLICY
def test_target_network_is_an_equal_network_of_its_own(
    policy_class: Any, sb3_class: Any, space: spaces.Space[Any]
) -> None:
    policy = make(policy_class, space)
    online, target = policy.q_net.state_dict(), policy.q_net_target.state_dict()
    assert online.keys() == target.keys()
    assert all(th.equal(online[name], target[name]) for name in online)
    assert not {p.data_ptr() for p in policy.q_net.parameters()} & {
        p.data_ptr() for p in policy.q_net_target.parameters()
    }
    assert not policy.q_net_target.training


@EACH_POLICY
@pytest.mark.parametrize("normalize_images", [True, False])
def test_without_dueling_the_network_is_sb3s(
    policy_class: Any, sb3_class: Any, space: spaces.Space[Any], normalize_images: bool
) -> None:
    th.manual_seed(0)
    ours = make(policy_class, space, dueling=False, normalize_images=normalize_images)
    th.manual_seed(0)
    theirs = make(sb3_class, space, normalize_images=normalize_images)
    assert type(ours.q_net) is PlainQNetwork
    assert type(theirs.q_net) is sb3_policies.QNetwork
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert all(th.equal(mine[name], other[name]) for name in other)
    given = observations(ours)
    kept = copy.deepcopy(given)
    with th.no_grad():
        assert th.equal(ours.q_net(given), theirs.q_net(kept))
        floats = {key: part.float() for key, part in given.items()} if isinstance(given, dict) else given.float()
        assert th.equal(ours.q_net(floats), theirs.q_net(copy.deepcopy(floats)))
        assert th.equal(ours.q_net(floats), theirs.q_net(floats))  # what was given has not been changed


@EACH_POLICY
@pytest.mark.parametrize("dueling", [True, False])
def test_saving_keeps_the_network(
    policy_class: Any, sb3_class: Any, space: spaces.Space[Any], dueling: bool, tmp_path: Path
) -> None:
    """Saved as SB3 saves a policy alone, without the algorithm."""
    policy = make(policy_class, space, dueling=dueling, net_arch=[7])
    policy.save(tmp_path / "policy")
    loaded = policy_class.load(tmp_path / "policy")
    assert loaded.dueling is dueling
    assert type(loaded.q_net) is type(policy.q_net)
    with th.no_grad():
        assert th.equal(loaded.q_net(observations(policy)), policy.q_net(observations(policy)))


@pytest.mark.parametrize("dueling", [True, False])
def test_pickling_keeps_the_network(dueling: bool) -> None:
    policy = MlpPolicy(VECTOR, spaces.Discrete(4), constant_learning_rate, dueling=dueling)
    loaded = pickle.loads(pickle.dumps(policy))
    assert type(loaded.q_net) is type(policy.q_net)
    with th.no_grad():
        assert th.equal(loaded.q_net(observations(policy)), policy.q_net(observations(policy)))


def constant_learning_rate(progress_remaining: float) -> float:
    return 1e-3


def test_a_feature_extractor_and_an_optimizer_of_ones_own() -> None:
    class Doubling(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            return 2 * super().forward(observations)

    policy = make(MlpPolicy, features_extractor_class=Doubling, optimizer_class=th.optim.SGD, net_arch=[])
    assert isinstance(policy.optimizer, th.optim.SGD)
    assert isinstance(policy.q_net.features_extractor, Doubling)
    assert policy.q_net.features_extractor is not policy.q_net_target.features_extractor
    assert layers(policy.q_net.value_net) == ["Linear (1, 3)"]
