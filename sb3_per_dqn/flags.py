"""What rl-zoo3's commands are given: our defaults, and then the user's flags, looked at first."""

import argparse
import os
from pathlib import Path

from sb3_per_dqn.checks import check_algo, check_device, check_env_id, check_folder_name, check_seed, check_writable
from sb3_per_dqn.classes import imported
from sb3_per_dqn.zoo import RunManager


def with_defaults(command: str, arguments: list[str], env_id: str) -> list[str]:
    """
    :param command: one of rl-zoo3's
    :param arguments: the user's
    :param env_id: where they name none
    :return: our defaults and then the user's arguments: of a flag given twice, the zoo takes the last
    :raises ValueError: for what the zoo takes without a word, or refuses without the flag's name
    """
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    if command == "plot_from_file":
        parser = argparse.ArgumentParser(f"sb3-per-dqn {command}", add_help=False, allow_abbrev=False)
        parser.add_argument("-i", "--input")
        if parser.parse_known_args(arguments)[0].input is None and not asks_for_help:
            raise ValueError("plot_from_file: say of which file: -i FILE, as all_plots -o FILE has written it.")
        return arguments
    if command in ("plot_train", "all_plots"):
        arguments = ["-a", "per_ddqn", "-e", env_id, "-f", "logs", *arguments]
        if not asks_for_help:
            _check_runs(command, arguments)
        return arguments
    # Only what the defaults depend on, or what is checked here; the zoo parses it all again
    parser = argparse.ArgumentParser(f"sb3-per-dqn {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", default="per_ddqn")
    parser.add_argument("--env", default=env_id)
    parser.add_argument("-f", "--log-folder", "--folder", default="logs")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("-o", "--output-folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("-n", "--n-timesteps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-i", "--trained-agent")
    given, _ = parser.parse_known_args(arguments)
    _check_flags(given, command)
    is_atari = RunManager.is_atari(given.env)
    defaults = ["--algo", given.algo, "--env", given.env, "-f", given.log_folder]
    if command == "train":
        defaults += ["-tb", os.path.join(given.log_folder, "tensorboard")]
        defaults += ["--vec-env", "subproc", "-P"] if is_atari else []
    elif given.output_folder:
        check_writable(given.output_folder, "-o")
    if command != "train" and is_atari and given.algo == "per_ddqn":
        defaults += ["--deterministic"]  # our evaluation mode brings its own random actions
    if command == "record_training":
        # Not among a run's videos, its own default, as it deletes what is there. Its ffmpeg wants an absolute path
        folder = given.output_folder or os.path.join(given.log_folder, "videos", given.env.replace("/", "-"))
        arguments = [*arguments, "-o", os.path.abspath(folder)]
    if asks_for_help:
        print(f"defaults: {' '.join(defaults)}\n")
    return defaults + arguments


def _check_flags(given: argparse.Namespace, command: str) -> None:
    check_folder_name(given.log_folder, "-f")
    check_device(given.device)
    if given.n_envs < 1:
        raise ValueError(f"--n-envs={given.n_envs} must be 1 or more.")
    if command != "train" and given.n_timesteps is not None and given.n_timesteps < 1:
        raise ValueError(f"-n {given.n_timesteps} must be 1 or more: nothing would be played.")
    check_seed(given.seed, may_be_drawn=command == "train", n_envs=given.n_envs)
    agent = given.trained_agent
    if agent and not (agent.endswith(".zip") and os.path.isfile(agent)):
        raise ValueError(f"--trained-agent={agent} must be a model's file, and end in .zip.")
    check_algo(given.algo)
    for package in given.gym_packages:
        imported(package, "--gym-packages")
    check_env_id(given.env)


def _check_runs(command: str, arguments: list[str]) -> None:
    """Of what is not there the zoo draws nothing, or zeros."""
    parser = argparse.ArgumentParser(f"sb3-per-dqn {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("-a", "--algo", "--algos", nargs="+")
    parser.add_argument("-e", "--env", nargs="+")
    parser.add_argument("-f", "--exp-folder", "--exp-folders", nargs="+")
    given, _ = parser.parse_known_args(arguments)
    algos = [algo.lower() for algo in given.algo] if command == "all_plots" else given.algo  # as the zoo does
    for folder in given.exp_folder:
        check_folder_name(folder, "-f")
        if not os.path.isdir(folder):
            raise ValueError(f"-f {folder!r} is no folder: choose one that runs were written to with -f.")
    for algo in algos:
        if not any(Path(folder, algo).is_dir() for folder in given.exp_folder):
            check_algo(algo, "-a ")
    places = [Path(folder, algo) for folder in given.exp_folder for algo in algos]
    runs = [run.name for place in places if place.is_dir() for run in place.iterdir() if run.is_dir()]
    for env in given.env:
        if not any(env in run for run in runs):
            there = ", ".join(sorted(runs)) or "none at all"
            raise ValueError(f"-e {env}: no run of it in {', '.join(map(str, places))} (there are: {there}).")
