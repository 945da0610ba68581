"""What rl-zoo3's ``-optimize`` tries for ``per_ddqn``: the zoo's search space of DQN, and our own arguments."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_offpolicy_params, sample_dqn_params

EARLIEST_JOINT = 0.001  # of epsilon: the zoo's space of DQN begins with 0, where our joint of the start is


def sample_per_ddqn_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for PerDoubleDQN hyperparams.

    Epsilon falls from 1 to the zoo's ``exploration_final_eps`` within ``exploration_fraction`` of the run, as for DQN,
    and then to ``last_eps`` within ``last_joint`` of the rest.

    :param trial: of an Optuna study
    :param n_actions: as the zoo hands it on
    :param n_envs: as the zoo hands it on
    :param additional_args: as the zoo hands it on
    :return: arguments of ``PerDoubleDQN``
    """
    of_dqn = sample_dqn_params(trial, n_actions, n_envs, additional_args)
    trial.suggest_float("last_joint", 0.01, 1.0)
    trial.suggest_float("last_eps", 0.0, 0.1)
    trial.suggest_categorical("dueling", [True, False])
    if additional_args["using_her_replay_buffer"]:  # which is neither prioritized nor made for several steps
        return convert_per_ddqn_params(trial.params) | {"replay_buffer_kwargs": of_dqn["replay_buffer_kwargs"]}
    trial.suggest_int("n_steps", 1, 5)
    trial.suggest_float("prioritized_replay_alpha", 0.0, 1.0)
    trial.suggest_float("initial_beta", 0.0, 1.0)
    trial.suggest_float("prioritized_replay_eps", 1e-8, 1e-2, log=True)
    return convert_per_ddqn_params(trial.params)


def convert_per_ddqn_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: of a trial, as the study keeps them
    :return: arguments of ``PerDoubleDQN``
    """
    hyperparams = convert_offpolicy_params(sampled_params)
    for name in ("n_sampled_goal", "goal_selection_strategy"):  # of a replay buffer, which the zoo's sampler makes
        hyperparams.pop(name, None)
    hyperparams["policy_kwargs"]["dueling"] = hyperparams.pop("dueling")
    first, eps = max(hyperparams.pop("exploration_fraction"), EARLIEST_JOINT), hyperparams.pop("exploration_final_eps")
    last, last_eps = first + hyperparams.pop("last_joint") * (1.0 - first), hyperparams.pop("last_eps")
    hyperparams["exploration"] = [[0.0, 1.0], [first, eps], [min(last, 1.0), min(last_eps, eps)]]
    if "initial_beta" in hyperparams:
        hyperparams["prioritized_replay_beta"] = [[0.0, hyperparams.pop("initial_beta")], [1.0, 1.0]]
    return hyperparams
