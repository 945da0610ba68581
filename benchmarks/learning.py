"""
Learning curves: PerDoubleDQN beside SB3's DQN with the same settings.

    python -m benchmarks.learning hyperparams/breakout_200k.yml BreakoutNoFrameskip-v4 --algo dqn --seed 0

Both algorithms read one file of hyperparameters. SB3's DQN gets all that it knows, the same epsilon schedule, and the
same network without the dueling streams; ``--set KEY=VALUE`` gives PerDoubleDQN an argument that is not in the file.
One JSON file per run: every finished game, the settings, and an evaluation.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_class_by_name, get_wrapper_class
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_per_dqn.atari import make_atari_vec_env
from sb3_per_dqn.minatar import register_minatar
from sb3_per_dqn.schedules import PiecewiseSchedule

NOT_FOR_THE_MODEL = ("env_wrapper", "frame_stack", "n_envs", "n_timesteps")
OURS_ALONE = ("exploration", "prioritized_replay_alpha", "prioritized_replay_beta", "prioritized_replay_eps")
EVALUATION_EPISODES = 30


class EpisodeLog(BaseCallback):
    """Collects ``(timestep, return)`` of every game that ends, as ``Monitor`` reports it."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_training_start(self) -> None:
        self.start = time.monotonic()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, float(info["episode"]["r"])))
                if len(self.episodes) % 100 == 0:
                    recent = np.mean([episode[1] for episode in self.episodes[-100:]])
                    seconds = time.monotonic() - self.start
                    print(f"{self.num_timesteps} steps, {seconds:.0f} s: last 100 games {recent:.2f}", flush=True)
        return True


def make_env(env_id: str, settings: dict[str, Any], n_envs: int, seed: int, evaluation: bool) -> VecEnv:
    if "frame_stack" in settings:
        return make_atari_vec_env(env_id, n_envs, seed, frame_stack=settings["frame_stack"], evaluation=evaluation)
    return make_vec_env(env_id, n_envs, seed, wrapper_class=get_wrapper_class(settings))


def make_model(algo: str, env: VecEnv, settings: dict[str, Any], seed: int) -> BaseAlgorithm:
    arguments = {key: value for key, value in settings.items() if key not in NOT_FOR_THE_MODEL}
    arguments["policy_kwargs"] = eval(arguments.get("policy_kwargs", "{}"))  # as the zoo reads them
    arguments = ExperimentManager._preprocess_schedules(arguments)
    if "." in arguments["policy"]:
        arguments["policy"] = get_class_by_name(arguments["policy"])
    if algo == "per_ddqn":
        from sb3_per_dqn import PerDoubleDQN

        return PerDoubleDQN(env=env, seed=seed, **arguments)
    if arguments["policy"] not in DQN.policy_aliases:
        arguments["policy_kwargs"]["dueling"] = False
    model = DQN(env=env, seed=seed, **{key: value for key, value in arguments.items() if key not in OURS_ALONE})
    if "exploration" in arguments:
        model.exploration_schedule = PiecewiseSchedule(arguments["exploration"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conf_file", type=Path)
    parser.add_argument("env")
    parser.add_argument("--algo", choices=["dqn", "per_ddqn"], default="per_ddqn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of PerDoubleDQN, as in YAML"
    )
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("-n", "--n-timesteps", type=int)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()

    th.set_num_threads(args.num_threads)
    if args.env.startswith("MinAtar/"):
        register_minatar()
    settings = yaml.safe_load(args.conf_file.read_text())[args.env]
    if args.set and args.algo == "dqn":
        parser.error(f"--set {' '.join(args.set)} is for --algo per_ddqn: leave it out.")
    settings |= {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    algo = ", ".join([args.algo, *args.set])
    n_timesteps = args.n_timesteps or int(settings["n_timesteps"])
    env = make_env(args.env, settings, settings.get("n_envs", 1), args.seed, evaluation=False)
    model = make_model(args.algo, env, settings, args.seed)
    log = EpisodeLog()
    started = time.monotonic()
    model.learn(n_timesteps, callback=log)
    seconds = time.monotonic() - started
    env.close()
    eval_env = make_env(args.env, settings, 1, args.seed + 10_000, evaluation=True)
    scores, _ = evaluate_policy(model, eval_env, EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True)
    eval_env.close()

    result = {
        "env": args.env,
        "algo": algo,
        "seed": args.seed,
        "n_timesteps": n_timesteps,
        "settings": {**settings, "conf_file": str(args.conf_file)},
        "seconds": round(seconds, 1),
        "num_threads": args.num_threads,
        "machine": f"{platform.machine()}, {platform.system()}, torch {th.__version__}, gymnasium {gym.__version__}",
        "evaluation": scores,
        "episodes": log.episodes,
    }
    name = f"{args.env.replace('/', '-')}_{algo.replace(', ', '_')}_{n_timesteps}_{args.seed}"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
    last = np.mean([episode[1] for episode in log.episodes[-100:]])
    print(f"{name}: last 100 games {last:.2f}, evaluation {np.mean(scores):.2f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
