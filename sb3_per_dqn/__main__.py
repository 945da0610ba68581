"""
The command line: rl-zoo3's commands with our defaults.

    sb3-per-dqn train --env CartPole-v1 --seed 1
    python -m sb3_per_dqn enjoy --no-render

    sb3-per-dqn train --resume logs/per_ddqn/CartPole-v1_1

Exit status: 0, or 2 for a wrong argument, 1 if training fails, 130 after Ctrl-C and 143 after SIGTERM (an interrupted
training is saved, and can be resumed).
"""

import difflib
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
        from sb3_per_dqn.flags import with_defaults

        settings = RunSettings()
        if command == "train":
            if {"-h", "--help"} & set(arguments):
                print(f"our own {settings_help()}")
            settings, arguments = parse_settings(arguments)
        zoo.run_command(command, with_defaults(command, arguments, DEFAULT_ENV), settings)
    except Exception as error:
        if zoo.arose_in_training(error) and not isinstance(error, CheckpointError):
            raise
        return fail(one_line(error))
    return 0


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
