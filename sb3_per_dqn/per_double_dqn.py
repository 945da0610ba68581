"""DQN with Double-Q targets, prioritized replay and a dueling network, each of which can be switched off."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    ReplayBufferSamples,
    RolloutReturn,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch.nn import functional as F

from sb3_per_dqn.acting import ActingVecEnv, check_acting
from sb3_per_dqn.arguments import check_arguments, check_going_together, check_restarts, check_step
from sb3_per_dqn.cuda_graph import RecordedStep, key_of
from sb3_per_dqn.overlap import OverlappedVecEnv
from sb3_per_dqn.persistence import PersistentDQN
from sb3_per_dqn.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_per_dqn.replay.arguments import check_priority_arguments
from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer
from sb3_per_dqn.schedules import ScheduleLike, as_schedule
from sb3_per_dqn.speedups import Speed, Speedups, clip_gradients

SelfPerDoubleDQN = TypeVar("SelfPerDoubleDQN", bound="PerDoubleDQN")


class PerDoubleDQN(PersistentDQN):
    """
    Deep Q-Network with Double-Q targets, proportional prioritized replay and a dueling network.

    Papers: https://arxiv.org/abs/1509.06461 (Double-Q), https://arxiv.org/abs/1511.05952 (prioritized replay),
    https://arxiv.org/abs/1511.06581 (dueling). The positional arguments are those of SB3's ``DQN``, with the same
    meanings and defaults. With ``double_q``, ``prioritized_replay`` and ``per_env_exploration`` off, ``exploration``
    left ``None``, ``policy_kwargs=dict(dueling=False)`` and ``speedups="none"``, training equals SB3's ``DQN`` bit
    for bit.

    Dueling belongs to the network: ``policy_kwargs=dict(dueling=True)`` is the default of the policies here.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: further arguments of SB3's ``DQN``
    :param double_q: let the online network choose the action whose target value is bootstrapped from
    :param prioritized_replay: draw transitions by priority, from a :class:`PrioritizedReplayBuffer`; ``False`` leaves
        the choice of a buffer to SB3. A ``replay_buffer_class`` that is given comes first (with a warning)
    :param prioritized_replay_alpha: how much prioritization is used, in [0, 1]; 0 draws uniformly
    :param prioritized_replay_beta: how far importance-sampling weights correct for it, in [0, 1]: a number, a schedule
        of ``progress_remaining``, or endpoints ``[(elapsed_fraction, value), ...]``; the paper's are
        ``[(0, 0.4), (1, 1.0)]``, with which chance counts for more than it is
    :param prioritized_replay_eps: added to every absolute TD error, above 0
    :param prioritized_replay_normalize_weights: by the largest of the ``"batch"``, or of the whole ``"memory"``
    :param exploration: probability of a random action, in [0, 1]: a number, a schedule of ``progress_remaining``, or
        endpoints ``[(elapsed_fraction, value), ...]``; ``None`` keeps SB3's linear decay
    :param per_env_exploration: decide for each environment whether it explores; SB3 tosses one coin for all of them
    :param speedups: faster arithmetic: ``"none"``, ``"safe"`` (float32, other rounding), ``"max"`` (compiled and in
        bfloat16 as well), or a list of names, see :class:`~sb3_per_dqn.speedups.Speedups`
    :param train_while_stepping: do the gradient steps that follow a rollout during the steps of the next one, between
        ``step_async`` and ``step_wait``: worker processes and the learner then work at the same time. Actions are
        chosen, and transitions seen by gradient steps, a little earlier or later than otherwise; there are as many
        gradient steps, the last ones after the callbacks' ``on_training_end``, and a seed gives one result
    :param kwargs: further arguments of SB3's ``DQN``
    :raises ValueError: if an argument is out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: GymEnv | str,
        *args: Any,
        double_q: bool = True,
        prioritized_replay: bool = True,
        prioritized_replay_alpha: float = 0.6,
        prioritized_replay_beta: ScheduleLike = 1.0,
        prioritized_replay_eps: float = 0.01,
        prioritized_replay_normalize_weights: str = "batch",
        exploration: ScheduleLike | None = None,
        per_env_exploration: bool = True,
        speedups: Speed = "safe",
        train_while_stepping: bool = False,
        **kwargs: Any,
    ) -> None:
        # Stored as given and turned into objects in _setup_model(): SB3's load() writes to __dict__ and calls that
        self.double_q = double_q
        self.prioritized_replay = prioritized_replay
        self.prioritized_replay_alpha = prioritized_replay_alpha
        self.prioritized_replay_beta = prioritized_replay_beta
        self.prioritized_replay_eps = prioritized_replay_eps
        self.prioritized_replay_normalize_weights = prioritized_replay_normalize_weights
        self.exploration = exploration
        self.per_env_exploration = per_env_exploration
        self.speedups = speedups
        self.train_while_stepping = train_while_stepping
        self._deferring = False
        self._owed_gradient_steps = 0
        self._overlapped: OverlappedVecEnv | None = None
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        check_arguments(self)
        check_priority_arguments(
            self.prioritized_replay_alpha,
            self.prioritized_replay_eps,
            self.prioritized_replay_normalize_weights,
            prefix="prioritized_replay_",
        )
        self._speedups = Speedups(self.speedups, self.device)
        self._loss_and_errors = self._speedups.compiled(self._td_loss)
        self.beta_schedule: Schedule = as_schedule(self.prioritized_replay_beta, "prioritized_replay_beta")
        # What was asked for is kept, and not what came of it: load() may switch prioritized_replay
        given = self.replay_buffer_class, self.replay_buffer_kwargs, self.n_steps
        self._choose_replay_buffer()
        super()._setup_model()
        self.replay_buffer_class, self.replay_buffer_kwargs, self.n_steps = given
        self._speedups.probe(self.policy)
        self._recorded_step: RecordedStep | None = None
        if not isinstance(self.replay_buffer, DeviceReplayBuffer):
            self._speedups.leave_out_graph("it needs replay_buffer_class=DeviceReplayBuffer")
        if "capturable" not in self.policy.optimizer.defaults:
            self._speedups.leave_out_graph(f"{type(self.policy.optimizer).__name__} has no argument capturable")
        if self.exploration is not None:
            self.exploration_schedule = as_schedule(self.exploration, "exploration")

    def _choose_replay_buffer(self) -> None:
        if self.prioritized_replay and self.replay_buffer_class is None:
            self.replay_buffer_class = PrioritizedReplayBuffer
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)  # SB3 adds to it
        if self.replay_buffer_class is None:
            return
        if not issubclass(self.replay_buffer_class, PrioritizedReplayBuffer):
            if self.prioritized_replay:
                warnings.warn(
                    f"replay_buffer_class={self.replay_buffer_class.__name__} takes the place of prioritized replay; "
                    "pass prioritized_replay=False to say so.",
                    stacklevel=5,
                )
            return
        self.replay_buffer_kwargs = {
            "alpha": self.prioritized_replay_alpha,
            "eps": self.prioritized_replay_eps,
            "normalize_weights": self.prioritized_replay_normalize_weights,
            "n_steps": self.n_steps,
            "gamma": self.gamma,
            **self.replay_buffer_kwargs,
        }
        self.n_steps = 1  # SB3 would say that it ignores them

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_going_together(self, self.train_while_stepping)
        if self._acting is None:
            check_restarts(self)
        else:
            check_acting(self)
        if reset_num_timesteps:
            self._owed_gradient_steps = 0
        if isinstance(self.replay_buffer, PrioritizedReplayBuffer):
            self.replay_buffer.expect(total_timesteps)
            if reset_num_timesteps or self._last_obs is None:  # SB3 resets the environments
                self.replay_buffer.end_segments()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    @property
    def _acting(self) -> ActingVecEnv | None:
        """The environments, if these choose their actions themselves."""
        games = None if self.env is None else self.env.unwrapped
        return games if isinstance(games, ActingVecEnv) else None

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        games = self._acting
        if games is None:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        self._last_obs, actions, broken = games.acted(self)  # type: ignore[assignment]  # a tuple is no space of DQN's
        if isinstance(self.replay_buffer, PrioritizedReplayBuffer) and broken.any():
            self.replay_buffer.end_segments(broken)
        return actions, actions

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        *args: Any,
        **kwargs: Any,
    ) -> RolloutReturn:
        """
        SB3's, with gradient steps meanwhile if ``train_while_stepping``.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param train_freq: How much experience to collect
        :param replay_buffer: where transitions are stored
        :param args: further arguments of SB3's method
        :param kwargs: further arguments of SB3's method
        :return: what was collected
        """
        if self._deferring:
            steps = train_freq.frequency if train_freq.unit == TrainFrequencyUnit.STEP else 1
            share = math.ceil(self._owed_gradient_steps / steps)
            meanwhile = partial(self._pay_gradient_steps, share)
            if self._overlapped is None or self._overlapped.venv is not env:
                self._overlapped = OverlappedVecEnv(env, meanwhile)  # which asks the environments a question
            self._overlapped.meanwhile = meanwhile
            env = self._overlapped
        try:
            rollout = super().collect_rollouts(env, callback, train_freq, replay_buffer, *args, **kwargs)
        except BaseException:
            self._forget_last_obs()
            raise
        if not rollout.continue_training:
            self._forget_last_obs()
        return rollout

    def _forget_last_obs(self) -> None:
        # The step at which a callback or an exception stops a rollout is not stored. Without a reset, the next learn()
        # would join what was observed before that step with what comes after it, a transition that never happened
        if isinstance(self.replay_buffer, PrioritizedReplayBuffer):
            self._last_obs = None

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_step(self.num_timesteps, new_obs, reward, dones, infos)  # here, where it is still known whose it is
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Sample, take the TD errors, write their priorities back, descend their weighted Huber loss.

        :param gradient_steps: number of gradient steps
        :param batch_size: transitions for each of them
        :raises ValueError: with prioritized replay, if a TD error is not finite, naming step and update
        """
        if self._deferring:
            self._owed_gradient_steps += gradient_steps
        else:
            self._train(gradient_steps, batch_size)

    def _pay_gradient_steps(self, at_most: int) -> None:
        gradient_steps = min(at_most, self._owed_gradient_steps)
        if gradient_steps > 0:
            self._owed_gradient_steps -= gradient_steps
            self._train(gradient_steps, self.batch_size)

    def _train(self, gradient_steps: int, batch_size: int) -> None:
        buffer: Any = self.replay_buffer
        prioritized = isinstance(buffer, PrioritizedReplayBuffer)
        if gradient_steps < 1 or (prioritized and not buffer.drawable):
            return  # or no n-step window is complete yet
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._speedups.prepare(self.policy.optimizer)
        beta = self.beta_schedule(self._current_progress_remaining)
        gradient_step = self._gradient_step_of(batch_size)

        statistics = []
        for _ in range(gradient_steps):
            statistics.append(gradient_step(beta))
            self._n_updates += 1
            self._speedups.flush_denormals(self.policy.optimizer, self._n_updates)

        # Read from the device once a call
        losses, td_errors, q_values, target_q_values = (th.stack(values) for values in zip(*statistics, strict=True))
        means = th.stack([losses.mean(), td_errors.abs().mean(), q_values.mean(), target_q_values.mean()]).tolist()
        if isinstance(buffer, DeviceReplayBuffer) and not math.isfinite(means[1]):
            first = self._n_updates - gradient_steps + 1
            raise ValueError(self._diverged(f"updates {first} to {self._n_updates}", f"a TD error is {means[1]}."))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, mean in zip(("loss", "td_error", "q_value", "target_q_value"), means, strict=True):
            self.logger.record(f"train/{name}", mean)
        if prioritized:
            self.logger.record("train/beta", beta)

    def _gradient_step_of(self, batch_size: int) -> Callable[[float], tuple[th.Tensor, ...]]:
        """
        :param batch_size: number of transitions
        :return: a gradient step as a function of beta, recorded as a CUDA graph if there can be one
        """
        parameters = list(self.policy.parameters())
        step = partial(self._gradient_step, batch_size=batch_size, parameters=parameters)
        buffer, optimizer, recorded = self.replay_buffer, self.policy.optimizer, self._recorded_step
        if not (self._speedups.graph and isinstance(buffer, DeviceReplayBuffer) and optimizer.state):
            return step  # (the first steps make the optimizer's state)
        if recorded is not None and recorded.failed:
            return step
        numbers = batch_size, self.gamma, self.max_grad_norm, self.double_q, *buffer.numbers
        key = key_of(numbers, [*parameters, *buffer.tensors], optimizer)
        if recorded is None or recorded.key != key:
            self._recorded_step = recorded = RecordedStep(step, key, self.device)
        return recorded

    def _gradient_step(
        self, beta: float | th.Tensor, batch_size: int, parameters: list[th.nn.Parameter]
    ) -> tuple[th.Tensor, ...]:
        """
        :param beta: how far importance-sampling weights correct for prioritization
        :param batch_size: number of transitions
        :param parameters: of the policy
        :return: loss, TD errors, Q-values and their targets, without gradient
        """
        buffer: Any = self.replay_buffer
        prioritized = isinstance(buffer, PrioritizedReplayBuffer)
        arguments = {"beta": beta} if prioritized else {}
        replay_data = buffer.sample(batch_size, env=self._vec_normalize_env, **arguments)
        weights = replay_data.weights if prioritized else None
        loss, td_errors, q_values, target_q_values = self._loss_and_errors(self._batch(replay_data), weights)

        # Before the step, so that an error that is not finite stops here, with the weights still good
        if prioritized:
            self._update_priorities(replay_data.indices, td_errors)

        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(parameters, self.max_grad_norm)
        self.policy.optimizer.step()
        return loss.detach(), td_errors, q_values, target_q_values

    def _batch(self, replay_data: Any) -> ReplayBufferSamples:
        """
        :param replay_data: what a replay buffer drew
        :return: SB3's fields of it, as the networks want them
        """
        return ReplayBufferSamples(
            observations=self._speedups.arrange(replay_data.observations),  # type: ignore[arg-type]  # or a dict of them
            actions=replay_data.actions,
            next_observations=self._speedups.arrange(replay_data.next_observations),  # type: ignore[arg-type]
            dones=replay_data.dones,
            rewards=replay_data.rewards,
            discounts=replay_data.discounts,
        )

    def _td_loss(
        self, batch: ReplayBufferSamples, weights: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :param batch: from the replay buffer
        :param weights: importance-sampling weights, shape (batch, 1), or ``None`` for a uniform draw
        :return: the loss, a scalar, and without gradient, each of shape (batch, 1): TD errors, Q-values, their targets
        """
        target_q_values = self._target_q_values(batch)  # (batch, 1)
        q_values = self._q_values(self.q_net, batch.observations)  # (batch, n_actions)
        q_values = q_values.gather(dim=1, index=batch.actions.long())  # (batch, 1)
        # Huber loss (less sensitive to outliers), weighted against the bias of the draws (Schaul et al., Sec. 3.4)
        losses = F.smooth_l1_loss(q_values, target_q_values, reduction="none")  # (batch, 1)
        loss = (losses if weights is None else losses * weights).mean()
        return loss, (target_q_values - q_values).detach(), q_values.detach(), target_q_values

    def _target_q_values(self, batch: ReplayBufferSamples) -> th.Tensor:
        """
        :param batch: from the replay buffer
        :return: 1-step (or n-step) TD targets, shape (batch, 1), without gradient
        """
        # For n-step replay, the discount factor is gamma**n_steps (when no early termination)
        discounts = batch.discounts if batch.discounts is not None else self.gamma
        with th.no_grad():
            next_q_values = self._q_values(self.q_net_target, batch.next_observations)  # (batch, n_actions)
            if self.double_q:
                # Van Hasselt et al. (2016), Eq. 4: the online network chooses, the target network evaluates
                best_actions = self._q_values(self.q_net, batch.next_observations).argmax(dim=1, keepdim=True)
                next_q_values = next_q_values.gather(dim=1, index=best_actions)  # (batch, 1)
            else:
                next_q_values = next_q_values.max(dim=1, keepdim=True).values
            target_q_values: th.Tensor = batch.rewards + (1 - batch.dones) * discounts * next_q_values
        return target_q_values

    def _q_values(self, q_net: QNetwork, observations: PyTorchObs) -> th.Tensor:
        with self._speedups.autocast():
            q_values: th.Tensor = q_net(observations)
        return q_values.float()

    def _update_priorities(self, indices: Any, td_errors: th.Tensor) -> None:
        assert isinstance(self.replay_buffer, PrioritizedReplayBuffer)
        try:
            self.replay_buffer.update_priorities(indices, td_errors)
        except ValueError as error:
            raise ValueError(self._diverged(f"update {self._n_updates + 1}", str(error))) from error

    def _diverged(self, updates: str, what: str) -> str:
        return (
            f"Training diverged at step {self.num_timesteps}, {updates}: {what} "
            "Check the rewards; a smaller learning_rate or max_grad_norm may help."
        )

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_speedups",
            "_loss_and_errors",
            "_recorded_step",
            "_deferring",
            "_overlapped",
            "_owed_gradient_steps",
        ]

    def dump_logs(self) -> None:
        if isinstance(self.replay_buffer, PrioritizedReplayBuffer):
            for name, value in self.replay_buffer.statistics().items():
                self.logger.record(f"replay/{name}", value)
        if self._acting is not None:
            for name, value in self._acting.statistics().items():
                self.logger.record(f"actors/{name}", value)
        super().dump_logs()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Epsilon-greedy actions, where epsilon is ``exploration_rate``.

        :param observation: the input observation
        :param state: The last states (can be None, used in recurrent policies)
        :param episode_start: The last masks (can be None, used in recurrent policies)
        :param deterministic: ``True`` for greedy actions
        :return: the model's action and the next state
        """
        if deterministic or not self.per_env_exploration or not self.policy.is_vectorized_observation(observation):
            return super().predict(observation, state, episode_start, deterministic)
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        explores = np.random.rand(len(first)) < self.exploration_rate
        actions = np.array([self.action_space.sample() for _ in explores])
        if not explores.all():
            greedy, state = self.policy.predict(observation, state, episode_start, deterministic)
            actions = np.where(explores, actions, greedy)
        return actions, state

    def learn(
        self: SelfPerDoubleDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "PerDoubleDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPerDoubleDQN:
        self._deferring = self.train_while_stepping
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            self._pay_gradient_steps(self._owed_gradient_steps)
        finally:
            self._deferring, self._overlapped = False, None
        return self
