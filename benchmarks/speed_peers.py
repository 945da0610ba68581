"""
Other programs' Double + dueling + prioritized DQN on eight Breakouts, as contestants of a speed benchmark.

``PYTHON benchmarks/speed_peers.py NAME`` runs one of them with the interpreter beside which it is installed; this
package need not be there. All play the same: BreakoutNoFrameskip-v4, eight games in worker processes, NatureCNN with
dueling streams of 256, rounds of 32 environment steps (4 of each game) and then 8 gradient steps of 32 transitions,
drawn by priority (alpha 0.6, beta 0.4) from the last 16,384; Adam 2.5e-4, gradient norm at most 0.5, epsilon 0.1,
target network every 8,000 environment steps; on the CPU. What differs is said at each contestant.

- ``seed``: the loop of https://nn.labml.ai/rl/dqn, as the package ``labml-nn`` has it. Besides torch and numpy:
  ``pip install gymnasium ale-py opencv-python-headless pyyaml einops gitpython`` and
  ``pip install --no-deps labml==0.4.168 labml-nn`` (later ``labml`` lacks ``tracker.set_queue``, which ``labml-nn``
  calls; torchtext and fairscale, which that names, are not used here);
- ``tianshou``: ``pip install tianshou gymnasium ale-py opencv-python-headless``;
- ``torchrl``: ``pip install torchrl gymnasium ale-py opencv-python-headless``.

**Protocol.** When the games run, the buffer is full and the first gradient steps are made, the line ``ready`` is
printed. Each line of the input is a number of environment steps, a multiple of 32; they are played, and a line
``{"seconds": float, "env_steps": int, "gradient_steps": int}`` answers. The end of the input ends it. Whatever else the
libraries print goes to the standard error. What is not installed says so there, and exits with status 3.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import torch as th
from torch.optim.optimizer import register_optimizer_step_post_hook

ENV_ID = "BreakoutNoFrameskip-v4"
N_ENVS, STEPS_EACH = 8, 4
STEPS = N_ENVS * STEPS_EACH  # of the environment, in a round
GRADIENT_STEPS, BATCH = 8, 32  # in a round
SLOTS = 16_384
ALPHA, BETA, EPS = 0.6, 0.4, 1e-6
GAMMA, LEARNING_RATE, MAX_GRAD_NORM, EXPLORATION = 0.99, 2.5e-4, 0.5, 0.1
TARGET_ROUNDS = 8_000 // STEPS
WARM_UP_ROUNDS = 8
NOT_INSTALLED = 3


class DuelingNatureCNN(th.nn.Module):
    """The network of the seed, for libraries that have none with a layer before the two streams."""

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        nn = th.nn
        convolutions = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3)]
        self.features = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU())
        self.value = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1))
        self.advantage = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, n_actions))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: uint8, shape (..., 4, 84, 84)
        :return: Q-values, shape (..., n_actions)
        """
        features = self.features(obs.flatten(0, -4).float() / 255).unflatten(0, obs.shape[:-3])
        advantages = self.advantage(features)
        return self.value(features) + advantages - advantages.mean(-1, keepdim=True)  # type: ignore[no-any-return]


def register_games() -> None:
    """
    Make gymnasium know ALE's games, and ALE keep silent.

    :raises ImportError: if one of the two is missing
    """
    import ale_py
    import gymnasium

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)


class Contestant:
    """Eight running games, and what learns from them; made with a buffer full of steps played without learning."""

    def play(self, rounds: int) -> int:
        """
        Play and learn.

        :return: environment steps made, as the library counts them
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the worker processes."""
        raise NotImplementedError


class Seed(Contestant):
    """
    The program of https://nn.labml.ai/rl/dqn: ``Trainer.run_training_loop`` of ``labml_nn.rl.dqn.experiment``, with the
    package's own replay buffer, model, loss, games and workers.

    Replaced are: ``gym``, which no longer runs, by gymnasium behind the old calls (``_OldGym``); the schedules of
    epsilon and beta, by constants; the learning rate that can be changed from a web page, by a number. ``experiment``,
    which writes run files and calls a server, is not started (the tracker collects and prints as ever).

    It differs from the others in its game: a lost life restarts the whole game, there are neither no-ops nor FIRE at a
    start nor clipped rewards, the workers send their stacks as float64, and the two last frames are resized before
    their maximum is taken. The target network is updated at the start of each ``play``, too.
    """

    def __init__(self) -> None:
        register_games()  # the workers are forks
        gym = ModuleType("gym")
        gym.make = _OldGym  # type: ignore[attr-defined]
        sys.modules["gym"] = gym
        multiprocessing.set_start_method("fork")  # for the workers to know of it
        self.trainer = import_module("labml_nn.rl.dqn.experiment").Trainer(
            updates=1_000_000,  # its own number, for its schedules
            epochs=GRADIENT_STEPS,
            n_workers=N_ENVS,
            worker_steps=STEPS_EACH,
            mini_batch_size=BATCH,
            update_target_model=TARGET_ROUNDS,
            learning_rate=lambda: LEARNING_RATE,
        )
        self.trainer.exploration_coefficient = lambda update: EXPLORATION
        self.trainer.prioritized_replay_beta = lambda update: BETA
        assert (self.trainer.replay_buffer.capacity, self.trainer.replay_buffer.alpha) == (SLOTS, ALPHA)
        self.play(SLOTS // STEPS)  # it learns from a full buffer on, so in the last of these

    def play(self, rounds: int) -> int:
        buffer, self.trainer.updates = self.trainer.replay_buffer, rounds
        before = buffer.next_idx
        self.trainer.run_training_loop()
        assert (buffer.next_idx - before - rounds * STEPS) % SLOTS == 0
        return rounds * STEPS

    def close(self) -> None:
        self.trainer.destroy()
        for worker in self.trainer.workers:
            worker.process.join()


class _OldGym:
    """``gym.make`` as it was in 2021, on top of gymnasium."""

    def __init__(self, env_id: str) -> None:
        import gymnasium

        self.env = gymnasium.make(env_id)
        self.unwrapped = self.env.unwrapped
        self._seed: int | None = None

    def seed(self, seed: int) -> None:
        self._seed = seed

    def reset(self) -> Any:
        seed, self._seed = self._seed, None
        return self.env.reset(seed=seed)[0]

    def step(self, action: int) -> tuple[Any, float, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward), terminated or truncated, info


class Tianshou(Contestant):
    """
    Tianshou's ``examples/atari/atari_dqn.py``: its wrappers, subprocesses with shared memory, ``Collector``, frames
    once in the buffer, ``DQN`` (doubled by default) and ``OffPolicyTrainer``, of which an epoch is played.

    Other than in the example: the buffer is the prioritized one and n-step returns are of 1. The network is ours, for
    its own has no dueling streams. ``DQN`` has no bound for the gradient's norm, but the ``Optimizer`` it makes has.

    It differs from the others in its loss, weighted squares: with its Huber loss, the importance weights are dropped.
    The next stacks of a batch are put together twice, with the batch and for the targets. EnvPool is not used.
    """

    def __init__(self) -> None:
        algorithms, data = import_module("tianshou.algorithm"), import_module("tianshou.data")
        wrappers = import_module("tianshou.env.atari.atari_wrapper")
        register_games()

        class ClippedDQN(algorithms.DQN):  # type: ignore[misc, name-defined]
            def _create_policy_optimizer(self, optim: Any) -> Any:
                return self._create_optimizer(self.policy, optim, max_grad_norm=MAX_GRAD_NORM)

        class Buffer(data.PrioritizedVectorReplayBuffer):  # type: ignore[misc, name-defined]
            # After each collection the trainer copies all stacks of the buffer to look for NaN; there is no switch.
            # With this many slots it takes longer than the rest of a round, and frames of uint8 have none.
            def hasnull(self) -> bool:
                return False

        # Its own gives np.integer, which NumPy 2.4 refuses and earlier ones took for int64
        wrappers.get_space_dtype = lambda space: space.dtype  # type: ignore[attr-defined]
        factory = wrappers.AtariEnvFactory(ENV_ID, frame_stack=4, use_envpool_if_available=False)
        self.envs = factory.create_venv(N_ENVS, import_module("tianshou.highlevel.env").EnvMode.TRAINING, seed=0)
        actions = self.envs.action_space[0]
        policy = import_module("tianshou.algorithm.modelfree.dqn").DiscreteQLearningPolicy(
            model=_TianshouNet(actions.n), action_space=actions, eps_training=EXPLORATION, eps_inference=EXPLORATION
        )
        algorithm = ClippedDQN(
            policy=policy,
            optim=import_module("tianshou.algorithm.optim").AdamOptimizerFactory(lr=LEARNING_RATE),
            gamma=GAMMA,
            target_update_freq=TARGET_ROUNDS * GRADIENT_STEPS,
        )
        frames = {"ignore_obs_next": True, "save_only_last_obs": True, "stack_num": 4}
        buffer = Buffer(SLOTS, N_ENVS, alpha=ALPHA, beta=BETA, **frames)
        self.collector = data.Collector(algorithm, self.envs, buffer, exploration_noise=True)
        self.collector.reset()
        self.collector.collect(n_step=SLOTS)
        params = import_module("tianshou.trainer").OffPolicyTrainerParams(
            training_collector=self.collector,
            collection_step_num_env_steps=STEPS,
            update_step_num_gradient_steps_per_sample=GRADIENT_STEPS / STEPS,
            batch_size=BATCH,
            show_progress=False,
        )
        self.trainer = algorithm.create_trainer(params)
        self.trainer.reset(reset_collectors=False)

    def play(self, rounds: int) -> int:
        before = self.collector.collect_step
        self.trainer.params.epoch_num_steps = rounds * STEPS
        self.trainer.execute_epoch()
        return int(self.collector.collect_step - before)

    def close(self) -> None:
        self.envs.close()


class _TianshouNet(DuelingNatureCNN):
    """As Tianshou calls a network: with arrays, and a state and an info besides."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[th.Tensor, Any]:  # type: ignore[override]
        return super().forward(th.as_tensor(obs)), state


class TorchRL(Contestant):
    """
    TorchRL's ``sota-implementations/dqn/dqn_atari.py``: ``Collector``, ``EGreedyModule``, a ``TensorDict`` replay
    buffer of whole stacks, ``DQNLoss`` and ``HardUpdate``, neither compiled, as there by default.

    Other than there: the loss is doubled and smooth L1, the buffer is the prioritized one, in memory instead of mapped
    files, and there are eight games in a ``ParallelEnv``. They are preprocessed by gymnasium's wrappers and stay uint8
    up to the network: TorchRL's transforms know neither FIRE nor the maximum of two frames, and make float32 frames of
    full size, which would be slower. The network is ours, for its own dueling one has no layer before the two streams.

    It differs from the others in its priorities: ``DQNLoss`` reports squared errors. Gray is the emulator's own.
    """

    def __init__(self) -> None:
        register_games()  # here too, for a missing package to show
        data, modules, objectives = (import_module(f"torchrl.{name}") for name in ("data", "modules", "objectives"))
        env = import_module("torchrl.envs").ParallelEnv(
            N_ENVS, [partial(_torchrl_game, seed) for seed in range(N_ENVS)], shutdown_timeout=1.0
        )
        action_spec = env.full_action_spec_unbatched["action"]
        model = modules.QValueActor(
            DuelingNatureCNN(action_spec.space.n), spec=data.Composite(action=action_spec), in_keys=["observation"]
        )
        explorer = modules.EGreedyModule(model.spec, eps_init=EXPLORATION, eps_end=EXPLORATION, annealing_num_steps=1)
        policy = import_module("tensordict.nn").TensorDictSequential(model, explorer)
        collectors = import_module("torchrl.collectors")
        self.collector = collectors.Collector(env, policy, frames_per_batch=STEPS, total_frames=-1)
        self.batches = iter(self.collector)
        storage = data.LazyTensorStorage(SLOTS)
        self.buffer = data.TensorDictPrioritizedReplayBuffer(
            alpha=ALPHA, beta=BETA, eps=EPS, storage=storage, batch_size=BATCH
        )
        self.loss = objectives.DQNLoss(model, loss_function="smooth_l1", delay_value=True, double_dqn=True)
        self.loss.make_value_estimator(gamma=GAMMA)
        self.target = objectives.HardUpdate(self.loss, value_network_update_interval=TARGET_ROUNDS * GRADIENT_STEPS)
        self.optimizer = th.optim.Adam(self.loss.parameters(), lr=LEARNING_RATE)
        while len(self.buffer) < SLOTS:
            self._collect()

    def _collect(self) -> int:
        steps = next(self.batches).reshape(-1)
        self.buffer.extend(steps)
        return int(steps.numel())

    def _learn(self) -> None:
        samples = self.buffer.sample()
        loss = self.loss(samples)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(list(self.loss.parameters()), max_norm=MAX_GRAD_NORM)
        self.optimizer.step()
        self.target.step()
        self.buffer.update_tensordict_priority(samples)

    def play(self, rounds: int) -> int:
        env_steps = 0
        for _ in range(rounds):
            env_steps += self._collect()
            for _ in range(GRADIENT_STEPS):
                self._learn()
            self.collector.update_policy_weights_()
        return env_steps

    def close(self) -> None:
        self.collector.shutdown()


def _torchrl_game(seed: int) -> Any:
    """Make a game in its worker process."""
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward

    class LifeFromFire(gymnasium.Wrapper[Any, Any, Any, Any]):
        """A lost life ends an episode; the next one goes on in the same game, as in SB3's wrappers, and serves."""

        lives, over = 0, True

        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.over = terminated or truncated
            lives, self.lives = self.lives, self.unwrapped.ale.lives()  # type: ignore[attr-defined]
            return obs, reward, terminated or self.lives < lives, truncated, info

        def reset(self, **kwargs: Any) -> Any:
            if self.over:
                self.env.reset(**kwargs)
            obs, _, _, _, info = self.step(1)  # FIRE
            return obs, info

    register_games()
    game = LifeFromFire(AtariPreprocessing(gymnasium.make(ENV_ID), terminal_on_life_loss=False))
    stacked = FrameStackObservation(TransformReward(game, lambda reward: float(np.sign(float(reward)))), 4)
    env = import_module("torchrl.envs").GymWrapper(stacked, categorical_action_encoding=True)
    env.set_seed(seed)
    return env


CONTESTANTS = {"seed": Seed, "tianshou": Tianshou, "torchrl": TorchRL}


class Learning:
    """What the optimizers of this process do, whichever library calls them."""

    def __init__(self) -> None:
        self.gradient_steps = 0
        self._checksum = 0.0
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer: th.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.gradient_steps += 1
        self._optimizer = optimizer

    def check(self) -> None:
        """
        :raises RuntimeError: if the weights are not finite, as after a loss that was not, or are those of the last call
        """
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        checksum = sum(weight.detach().double().abs().sum().item() for weight in weights)
        if not np.isfinite(checksum) or checksum == self._checksum:
            raise RuntimeError(f"does not learn: the sum of its absolute weights was {self._checksum}, is {checksum}")
        self._checksum = checksum


def timed_turn(contestant: Contestant, learning: Learning, env_steps: int) -> dict[str, float]:
    """
    :return: seconds, environment steps and gradient steps, both as counted
    """
    rounds, rest = divmod(env_steps, STEPS)
    if rest or rounds < 1:
        raise ValueError(f"env_steps={env_steps} must be a multiple of {STEPS}.")
    before, start = learning.gradient_steps, time.perf_counter()
    played = contestant.play(rounds)
    seconds = time.perf_counter() - start
    learning.check()
    counts = played, learning.gradient_steps - before
    if counts != (env_steps, rounds * GRADIENT_STEPS):
        raise RuntimeError(f"made {counts} environment and gradient steps for {env_steps} asked")
    return {"seconds": seconds, "env_steps": counts[0], "gradient_steps": counts[1]}


def serve(contestant: Contestant, learning: Learning, answers: TextIO) -> None:
    timed_turn(contestant, learning, WARM_UP_ROUNDS * STEPS)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed_turn(contestant, learning, int(line))), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTESTANTS)
    name = parser.parse_args().name
    # The answers get a descriptor of their own, so that what libraries and workers print cannot get between them
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it takes its workers along
    learning = Learning()
    try:
        contestant = CONTESTANTS[name]()
        serve(contestant, learning, answers)
        contestant.close()
    except ImportError as error:
        print(f"{name} is not installed beside {sys.executable}: {error}", file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    finally:
        for worker in multiprocessing.active_children():  # after an error; the interpreter would wait for them
            worker.terminate()


if __name__ == "__main__":
    main()
