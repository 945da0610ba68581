"""Learning while the environments step, against a loop written out by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.overlap import OverlappedVecEnv

SETTINGS: dict[str, Any] = {
    "learning_starts": 40,
    "batch_size": 16,
    "buffer_size": 400,
    "target_update_interval": 24,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 7,
}


class Spy(VecEnvWrapper):
    """Writes down what happens to the environments, and what the model has learned by then."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.events: list[tuple[str, int]] = []
        self.model: Any = None

    def note(self, what: str) -> None:
        self.events.append((what, self.model._n_updates if self.model else 0))

    def reset(self) -> Any:
        self.note("reset")
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.note("async")
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        self.note("wait")
        return self.venv.step_wait()


def cartpole(n_envs: int = 4, vec_env_cls: Any = DummyVecEnv) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs, seed=3, vec_env_cls=vec_env_cls)


def weights(model: PerDoubleDQN) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.q_net.parameters()])


def by_hand(env: VecEnv, rollouts: int, train_freq: int, gradient_steps: int) -> PerDoubleDQN:
    """Act, send, learn, receive, store: the gradient steps that a rollout earns are shared out over the next one."""
    model: Any = PerDoubleDQN("MlpPolicy", env, **SETTINGS)
    total = rollouts * train_freq * env.num_envs
    model._setup_learn(total)
    owed = 0
    for _ in range(rollouts):
        model.policy.set_training_mode(False)
        share = math.ceil(owed / train_freq)
        for _ in range(train_freq):
            actions, buffer_actions = model._sample_action(model.learning_starts, n_envs=env.num_envs)
            model.env.step_async(actions)
            if min(share, owed):
                model.train(min(share, owed), model.batch_size)
                owed -= min(share, owed)
            new_obs, rewards, dones, infos = model.env.step_wait()
            model.num_timesteps += env.num_envs
            model._store_transition(model.replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
            model._update_current_progress_remaining(model.num_timesteps, total)
            model._on_step()
        if model.num_timesteps > model.learning_starts:
            owed += gradient_steps
    model.train(owed, model.batch_size)
    return model


@pytest.mark.parametrize(("train_freq", "gradient_steps"), [(1, 1), (1, 3), (4, 8), (4, 5), (5, 2)])
def test_it_is_the_loop_by_hand(train_freq: int, gradient_steps: int) -> None:
    model = PerDoubleDQN(
        "MlpPolicy",
        cartpole(),
        train_freq=train_freq,
        gradient_steps=gradient_steps,
        train_while_stepping=True,
        **SETTINGS,
    )
    model.learn(30 * train_freq * 4)
    reference = by_hand(cartpole(), 30, train_freq, gradient_steps)
    assert model._n_updates == reference._n_updates > 0
    assert th.equal(weights(model), weights(reference))


@pytest.mark.parametrize("gradient_steps", [3, -1])
def test_gradient_steps_come_between_sending_and_receiving(gradient_steps: int) -> None:
    spy = Spy(cartpole())
    model = PerDoubleDQN(
        "MlpPolicy", spy, train_freq=2, gradient_steps=gradient_steps, train_while_stepping=True, **SETTINGS
    )
    spy.model = model
    model.learn(200)
    assert spy.events[0][0] == "reset"
    learned = 0
    for (first, before), (second, after) in zip(spy.events[1::2], spy.events[2::2], strict=True):
        assert (first, second) == ("async", "wait")
        assert before == learned  # nothing was learned between receiving and sending
        learned = after
    rollouts = sum(steps > SETTINGS["learning_starts"] for steps in range(8, 201, 8))
    assert model._n_updates == rollouts * (gradient_steps if gradient_steps > 0 else 8)


def test_a_seed_gives_one_result_with_worker_processes() -> None:
    ends = []
    for vec_env_cls in (SubprocVecEnv, SubprocVecEnv, DummyVecEnv):
        env = cartpole(2, vec_env_cls)
        model = PerDoubleDQN("MlpPolicy", env, train_freq=2, train_while_stepping=True, **SETTINGS).learn(200)
        env.close()
        ends.append(weights(model))
    assert th.equal(ends[0], ends[1])
    assert th.equal(ends[0], ends[2])


def test_episodic_training_works() -> None:
    model = PerDoubleDQN(
        "MlpPolicy", cartpole(1), train_freq=(1, "episode"), gradient_steps=4, train_while_stepping=True, **SETTINGS
    )
    model.learn(300)
    assert model._n_updates > 0
    assert model._n_updates % 4 == 0


def test_an_error_while_learning_leaves_the_workers_in_step() -> None:
    """The workers' answers to the step under way are read; the next learn() starts from a reset."""
    env = cartpole(2, SubprocVecEnv)
    model = PerDoubleDQN("MlpPolicy", env, train_while_stepping=True, **SETTINGS)
    model.learn(60)
    good = {name: value.clone() for name, value in model.policy.state_dict().items()}
    next(iter(model.q_net.parameters())).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="Training diverged at step"):
        model.learn(60, reset_num_timesteps=False)
    model.policy.load_state_dict(good)
    model.learn(60, reset_num_timesteps=False)
    env.close()


def test_outside_of_learn_training_is_at_once(tmp_path: Path) -> None:
    """Also in a model that was saved in the middle of a run."""
    model = PerDoubleDQN("MlpPolicy", cartpole(), train_while_stepping=True, gradient_steps=8, **SETTINGS)
    model.learn(100, callback=CheckpointCallback(17, str(tmp_path), name_prefix="m"))
    updates = model._n_updates
    model.train(2, 16)
    assert model._n_updates == updates + 2
    loaded = PerDoubleDQN.load(tmp_path / "m_68_steps", env=cartpole())
    assert loaded._owed_gradient_steps == 0  # its buffer is not that of the run that owed some
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(configure(None, []))
    updates = loaded._n_updates
    loaded.train(2, 16)
    assert loaded._n_updates == updates + 2


def test_a_new_run_owes_nothing() -> None:
    """Also after an error in the middle of a rollout that had earned gradient steps."""
    model = PerDoubleDQN("MlpPolicy", cartpole(), train_while_stepping=True, gradient_steps=8, **SETTINGS)

    def stop(locals_: Any, globals_: Any) -> bool:
        if model.num_timesteps == 68:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=stop)
    assert model._owed_gradient_steps == 6  # of a rollout's 8, two in each of four steps
    updates = model._n_updates
    model.learn(32)
    assert model._n_updates == updates
    model.learn(16, reset_num_timesteps=False)
    assert model._n_updates == updates + 8


def test_hindsight_replay_is_refused() -> None:
    """It asks the environments for rewards, whose answers would be taken for those to the step under way."""
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=4), 2)
    model = PerDoubleDQN(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        prioritized_replay=False,
        train_while_stepping=True,
    )
    with pytest.raises(ValueError, match=r"^train_while_stepping=True: HerReplayBuffer asks"):
        model.learn(100)


def test_the_first_error_is_the_one_that_is_raised() -> None:
    class Gone(Spy):
        def step_wait(self) -> Any:
            raise EOFError("the workers are gone")

    def interrupted() -> None:
        raise KeyboardInterrupt

    env = OverlappedVecEnv(Gone(cartpole()), interrupted)
    env.reset()
    env.step_async(np.zeros(4, dtype=np.int64))
    with pytest.raises(KeyboardInterrupt):
        env.step_wait()


def test_a_callback_that_stops_leaves_nothing_undone() -> None:
    model = PerDoubleDQN("MlpPolicy", cartpole(), train_while_stepping=True, **SETTINGS)
    model.learn(4000, callback=CallbackList([StopTrainingOnMaxEpisodes(12)]))
    assert model.num_timesteps < 4000
    assert model._owed_gradient_steps == 0
    assert model._n_updates == model.num_timesteps // 16 - SETTINGS["learning_starts"] // 16


def test_normalization_works() -> None:
    env = VecNormalize(cartpole())
    model = PerDoubleDQN("MlpPolicy", env, train_while_stepping=True, **SETTINGS).learn(200)
    assert model._n_updates > 0
    assert np.isfinite(env.obs_rms.mean).all()  # type: ignore[union-attr]
