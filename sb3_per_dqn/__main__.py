"""
The command line: rl-zoo3's commands with our defaults.

    sb3-per-dqn train --env CartPole-v1 --seed 1
    python -m sb3_per_dqn enjoy --no-render

    sb3-per-dqn train --resume logs/per_ddqn/CartPole-v1_1

Exit status: 0, or 2 for a wrong argument, 1 if training fails, 130 after Ctrl-C and 143 after SIGTERM (an interrupted
training is saved, and can be resumed).
"""

import argparse
import difflib
import os
import sys
import traceback

COMMANDS = {
    "train": "train a model; saves it with its learning curves, score and a video",
    "enjoy": "watch a trained model (--no-render prints its scores only)",
    "record_video": "record a video of a trained model",
    "record_training": "record a video of a model at each of its --save-freq checkpoints",
    "export": "write a trained model into a folder to share, with its score, curves, video and model card",
    "watch": "play the games of such a folder: in a window, into a video, or for the score alone",
    "plot_train": "plot training returns",
    "plot_from_file": "plot what all_plots has written",
    "all_plots": "compare runs",
}
DEFAULT_ENV = "BreakoutNoFrameskip-v4"
USAGE = """\
usage: sb3-per-dqn COMMAND [ARGUMENTS]

rl-zoo3's commands (and export, watch), for PerDoubleDQN (--algo per_ddqn) on Breakout unless told otherwise:

{commands}

sb3-per-dqn COMMAND --help lists a command's arguments."""


def main() -> int:
    """
    :return: exit status
    """
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:16}{what}" for name, what in COMMANDS.items())))
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1) or [", ".join(COMMANDS)]
        return fail(f"unknown command {command!r}. Did you mean {near[0]}? (see sb3-per-dqn --help)")
    try:
        return run(command, arguments)
    except KeyboardInterrupt as interrupt:
        print("sb3-per-dqn: interrupted", file=sys.stderr)
        return int(getattr(interrupt, "status", 130))


def run(command: str, arguments: list[str]) -> int:
    """
    :param command: one of ``COMMANDS``
    :param arguments: the user's
    :return: exit status
    """
    # Not at the top: worker processes import this module, and need nothing of the zoo
    from sb3_per_dqn.checkpoint import CheckpointError
    from sb3_per_dqn.run_settings import RunSettings, parse_settings, settings_help

    try:
        from sb3_per_dqn import zoo
    except ModuleNotFoundError as error:
        return fail(f"the command line needs {str(error.name).split('.')[0]}: pip install 'sb3-per-dqn[zoo]'")
    try:
        if command == "export":
            from sb3_per_dqn.export import export_run

            print(export_run(arguments, DEFAULT_ENV))
            return 0
        if command == "watch":
            from sb3_per_dqn.watch import watch_model

            print(watch_model(arguments))
            return 0
        settings = RunSettings()
        if command == "train":
            if {"-h", "--help"} & set(arguments):
                print(f"our own {settings_help()}")
            settings, arguments = parse_settings(arguments)
        zoo.run_command(command, with_defaults(command, arguments), settings)
    except Exception as error:
        if zoo.arose_in_training(error) and not isinstance(error, CheckpointError):
            raise
        return fail(one_line(error))
    return 0


def with_defaults(command: str, arguments: list[str]) -> list[str]:
    """
    :param command: one of ``COMMANDS``
    :param arguments: the user's
    :return: our defaults and then the user's arguments: of a flag given twice, the zoo takes the last
    """
    if command == "plot_from_file":
        parser = argparse.ArgumentParser("sb3-per-dqn plot_from_file", add_help=False)
        parser.add_argument("-i", "--input")
        if parser.parse_known_args(arguments)[0].input is None and not {"-h", "--help"} & set(arguments):
            raise ValueError("plot_from_file: say of which file: -i FILE, as all_plots -o FILE has written it.")
        return arguments
    if command in ("plot_train", "all_plots"):
        return ["-a", "per_ddqn", "-e", DEFAULT_ENV, "-f", "logs", *arguments]
    # Only what the defaults depend on; the zoo parses it all again
    parser = argparse.ArgumentParser(f"sb3-per-dqn {command}", add_help=False)
    parser.add_argument("--algo", default="per_ddqn")
    parser.add_argument("--env", default=DEFAULT_ENV)
    parser.add_argument("-f", "--log-folder", "--folder", default="logs")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("-o", "--output-folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("-i", "--trained-agent")
    given, _ = parser.parse_known_args(arguments)

    from sb3_per_dqn.checks import check_writable

    _check_flags(given)
    logs = given.log_folder
    defaults = ["--algo", given.algo, "--env", given.env, "-f", logs]
    is_atari = _is_atari(given.algo, given.env, given.gym_packages)
    if command == "train":
        defaults += ["-tb", os.path.join(logs, "tensorboard")]
        defaults += ["--vec-env", "subproc", "-P"] if is_atari else []
    elif given.output_folder:
        check_writable(given.output_folder, "-o")
    if command != "train" and is_atari and given.algo == "per_ddqn":
        defaults += ["--deterministic"]  # our evaluation mode brings its own random actions
    if command == "record_training":
        # Not among a run's videos, its own default, as it deletes what is there. Its ffmpeg wants an absolute path
        folder = given.output_folder or os.path.join(logs, "videos", given.env.replace("/", "-"))
        arguments = [*arguments, "-o", os.path.abspath(folder)]
    if {"-h", "--help"} & set(arguments):
        print(f"defaults: {' '.join(defaults)}\n")
    return defaults + arguments


def _check_flags(given: argparse.Namespace) -> None:
    """What the zoo takes without a word, or refuses without the flag's name."""
    from sb3_per_dqn.checks import check_device

    if not given.log_folder:  # which the zoo takes for the root of all folders
        raise ValueError("-f='' is the name of no folder: leave it out, or choose one.")
    check_device(given.device)
    if given.n_envs < 1:
        raise ValueError(f"--n-envs={given.n_envs} must be 1 or more.")
    agent = given.trained_agent
    if agent and not (agent.endswith(".zip") and os.path.isfile(agent)):
        raise ValueError(f"--trained-agent={agent} must be a model's file, and end in .zip.")


def _is_atari(algo: str, env_id: str, gym_packages: list[str]) -> bool:
    from rl_zoo3.utils import ALGOS

    from sb3_per_dqn import zoo
    from sb3_per_dqn.checks import check_algo, check_env_id
    from sb3_per_dqn.classes import imported

    check_algo(algo, ALGOS)
    for package in gym_packages:
        imported(package, "--gym-packages")
    check_env_id(env_id)
    return zoo.RunManager.is_atari(env_id)


def one_line(error: Exception) -> str:
    """
    :param error: an exception
    :return: its message in one line, with its type where the message may not be a sentence; where it arose, without one
    """
    message = " ".join(str(error).split())
    if not message:
        places = traceback.extract_tb(error.__traceback__)
        return type(error).__name__ + "".join(f" at {place.filename}:{place.lineno}" for place in places[-1:])
    return message if isinstance(error, (ValueError, AssertionError)) else f"{type(error).__name__}: {message}"


def fail(message: str) -> int:
    """
    :param message: what is wrong
    :return: exit status
    """
    print(f"sb3-per-dqn: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
