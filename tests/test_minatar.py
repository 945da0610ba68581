"""MinAtar: registration, the channel-first view, the extractor and policy, and that Breakout is learned."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import QNetwork

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.minatar import ChannelFirst, MinAtarCNN, MinAtarPolicy, register_minatar
from sb3_per_dqn.policies import DuelingQNetwork
from sb3_per_dqn.zoo import hyperparams_folder

register_minatar()
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # v1 has fewer actions, no more

GAMES = ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
CHANNELS = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}


def make(n_envs: int, game: str = "Breakout", seed: int = 0) -> VecEnv:
    return make_vec_env(f"MinAtar/{game}-v0", n_envs, seed, wrapper_class=ChannelFirst)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)


# ---------------------------------------------------------------- registration


def test_registering_twice_changes_nothing() -> None:
    before = {id_: spec for id_, spec in gym.registry.items() if id_.startswith("MinAtar/")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # gymnasium warns of an id that is overridden
        register_minatar()
    after = {id_: spec for id_, spec in gym.registry.items() if id_.startswith("MinAtar/")}
    assert set(after) == {f"MinAtar/{game}-{version}" for game in GAMES for version in ("v0", "v1")}
    assert all(after[id_] is spec for id_, spec in before.items())


def test_registering_imports_nothing() -> None:
    """MinAtar imports seaborn under a bare except, which takes seconds and would swallow a Ctrl-C."""
    code = "import sys, sb3_per_dqn.minatar as m; m.register_minatar(); sys.exit('seaborn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_can_be_seen() -> None:
    raw = gym.make("MinAtar/Breakout-v0", render_mode="rgb_array")
    env = ChannelFirst(raw)
    env.reset(seed=0)
    fractions, picture = np.asarray(raw.render()), env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (160, 160, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 3  # paddle and bricks on the ground
    for row, column in np.ndindex(10, 10):
        square = picture[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert (square == np.rint(255 * fractions[row, column])).all()


@pytest.mark.parametrize(("version", "n_actions"), [("v0", 6), ("v1", 3)])
def test_full_and_minimal_action_sets(version: str, n_actions: int) -> None:
    assert gym.make(f"MinAtar/Breakout-{version}").action_space == spaces.Discrete(n_actions)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("minatar.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(ModuleNotFoundError, match=r"MinAtar is not installed: pip install .*\[minatar\]"):
        register_minatar()


# ---------------------------------------------------------------- channel-first view


@pytest.mark.parametrize("game", GAMES)
def test_the_view_is_the_raw_state_with_channels_first(game: str) -> None:
    env = ChannelFirst(gym.make(f"MinAtar/{game}-v0"))
    raw_game: Any = env.unwrapped.game  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=4)
    rng = np.random.default_rng(4)
    for _ in range(100):
        raw = raw_game.state()
        assert raw.shape == (10, 10, CHANNELS[game])
        np.testing.assert_array_equal(observation, np.moveaxis(raw, -1, 0))
        assert observation.dtype == raw.dtype
        assert observation.flags["C_CONTIGUOUS"]
        assert env.observation_space.contains(observation)
        observation, _, terminated, truncated, _ = env.step(int(rng.integers(6)))
        if terminated or truncated:
            observation, _ = env.reset()


@pytest.mark.parametrize("game", GAMES)
def test_sb3_accepts_the_environment(game: str) -> None:
    env: gym.Env[Any, Any] = ChannelFirst(gym.make(f"MinAtar/{game}-v0"))
    if game == "SpaceInvaders":  # MinAtar itself pays there with NumPy's integers, which check_env refuses
        env = gym.wrappers.TransformReward(env, float)
    check_env(env, warn=False)


def test_the_view_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="three dimensions, got Box"):
        ChannelFirst(gym.make("CartPole-v1"))


def play(seed: int) -> list[Any]:
    env = ChannelFirst(gym.make("MinAtar/Breakout-v0"))
    history: list[Any] = [env.reset(seed=seed)[0].tolist()]
    rng = np.random.default_rng(0)
    for _ in range(200):
        observation, reward, terminated, _, _ = env.step(int(rng.integers(6)))
        history.append((observation.tolist(), reward, terminated))
        if terminated:
            history.append(env.reset()[0].tolist())
    return history


def test_games_repeat_under_a_seed() -> None:
    """Sticky actions and the ball's start are random, and both come from the seed."""
    assert play(0) == play(0)
    assert play(0) != play(1)


# ---------------------------------------------------------------- network


@pytest.mark.parametrize("game", GAMES)
def test_the_extractor_is_minatars_published_network(game: str) -> None:
    space = spaces.Box(0, 1, (CHANNELS[game], 10, 10))
    extractor = MinAtarCNN(space)
    assert extractor(th.zeros(3, *space.shape)).shape == (3, extractor.features_dim) == (3, 128)
    assert [tuple(parameter.shape) for parameter in extractor.parameters()] == [
        (16, CHANNELS[game], 3, 3),
        (16,),
        (128, 16 * 8 * 8),
        (128,),
    ]
    assert MinAtarCNN(space, features_dim=32)(th.zeros(2, *space.shape)).shape == (2, 32)


def test_the_extractor_reads_rows_and_columns_where_they_are() -> None:
    """Against a convolution written out as a sum."""
    extractor = MinAtarCNN(spaces.Box(0, 1, (4, 10, 10)))
    observation = th.rand(1, 4, 10, 10)
    convolution, linear = extractor.body[0], extractor.body[3]
    weight, bias = convolution.parameters()
    filters = th.zeros(16, 8, 8)
    for row in range(8):
        for column in range(8):
            patch = observation[0, :, row : row + 3, column : column + 3]
            filters[:, row, column] = (weight * patch).sum(dim=(1, 2, 3)) + bias
    expected = th.relu(linear(th.relu(filters).flatten()))
    th.testing.assert_close(extractor(observation)[0], expected)


@pytest.mark.parametrize("dueling", [True, False])
def test_the_policy_is_the_extractor_and_one_layer(dueling: bool) -> None:
    env = make(1)
    policy = MinAtarPolicy(env.observation_space, env.action_space, lambda _: 1e-3, dueling=dueling)
    assert isinstance(policy.q_net.features_extractor, MinAtarCNN)
    assert isinstance(policy.q_net, QNetwork)
    assert isinstance(policy.q_net, DuelingQNetwork) == dueling
    body = sum(parameter.numel() for parameter in policy.q_net.features_extractor.parameters())
    heads = 7 if dueling else 6  # a value and six advantages, or six action values
    assert sum(parameter.numel() for parameter in policy.q_net.parameters()) == body + heads * (128 + 1)
    observation = th.as_tensor(env.reset())
    assert policy.q_net(observation).shape == (1, 6)


# ---------------------------------------------------------------- with the algorithm


@pytest.mark.parametrize(
    ("game", "dueling"), [*((game, True) for game in GAMES), ("Breakout", False)], ids=lambda value: str(value)
)
def test_trains_saves_and_loads(game: str, dueling: bool, tmp_path: Path, one_thread: None) -> None:
    env = make(4, game)
    settings: dict[str, Any] = {"buffer_size": 400, "learning_starts": 100, "train_freq": 1, "seed": 0}
    model = PerDoubleDQN(MinAtarPolicy, env, policy_kwargs={"dueling": dueling}, **settings)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(300)
    assert any(not th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    model.save(tmp_path / "model")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=env)
    assert isinstance(loaded.policy, MinAtarPolicy)
    assert isinstance(loaded.q_net, DuelingQNetwork) == dueling
    for name, value in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], value)
    observation = np.asarray(env.reset())
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


def random_return(n_games: int) -> float:
    """Mean return of uniformly random actions."""
    env = make(1, seed=77)
    env.reset()
    rng = np.random.default_rng(77)
    returns: list[float] = []
    while len(returns) < n_games:
        infos = env.step(rng.integers(6, size=1))[3]
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    return float(np.mean(returns))


@pytest.mark.slow
def test_learns_breakout(one_thread: None) -> None:
    """The settings of the run of 300,000 frames, cut to 40,000; the schedules are fractions and shrink with it."""
    settings = yaml.safe_load((hyperparams_folder() / "minatar_300k.yml").read_text())["MinAtar/Breakout-v0"]
    for name in ("env_wrapper", "policy", "n_timesteps"):
        del settings[name]
    model = PerDoubleDQN(MinAtarPolicy, make(settings.pop("n_envs")), seed=0, **settings)
    model.learn(40_000)
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) == 100
    learned = np.mean([episode["r"] for episode in model.ep_info_buffer])
    by_chance = random_return(300)
    print(f"last 100 games {learned:.2f}, random actions {by_chance:.2f}")
    assert learned > by_chance + 1.0  # measured: 2.91 and 0.41
