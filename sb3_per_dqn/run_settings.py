"""What a run from the command line is asked for beyond the zoo's arguments, and how a run is begun again."""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_per_dqn.checkpoint import CheckpointError
from sb3_per_dqn.checkpoint.run import EVERY
from sb3_per_dqn.whole_files import replacing

RUN_FILE, CONF_FILE = "run.json", "conf.yml"
CONF_KINDS = (".yml", ".yaml", ".py")  # the zoo takes names of modules as well


@dataclass
class RunSettings:
    """
    :param every: environment steps from one checkpoint to the next, 0 for none
    :param resume: folder of the run to go on with
    :param ray_address: of the Ray cluster that it runs on
    """

    every: int = EVERY
    resume: Path | None = None
    ray_address: str | None = None

    def save(self, manager: Any) -> None:
        """
        Write down how to begin the run again.

        :param manager: the zoo's ``ExperimentManager`` of a new run
        """
        folder = Path(manager.save_path)
        conf = None
        if manager.config.endswith(CONF_KINDS):
            conf = Path(CONF_FILE).with_suffix(Path(manager.config).suffix).name
            with replacing(folder / conf) as beside:
                shutil.copyfile(manager.config, beside)  # the original may change
        # The zoo adds the environment to the folder; without one there are no curves
        curves = manager.tensorboard_log and str(Path(manager.tensorboard_log).absolute().parent)
        # A script of the user's own has other defaults than our command line
        fixed = ["--algo", manager.algo, "--env", str(manager.env_name.gym_id)]
        fixed += ["--seed", str(manager.seed), "-tb", curves or ""]
        every = 0 if manager.checkpoints is None else self.every  # of SB3's algorithms there are none
        arguments = [*sys.argv[1:], *fixed]  # where the zoo reads them, whoever called it
        run = {"arguments": arguments, "every": every, "folder": str(folder.absolute()), "conf": conf}
        run["ray_address"] = self.ray_address
        with replacing(folder / RUN_FILE) as beside:
            beside.write_text(json.dumps(run, indent=1))


def arguments_of(run_folder: Path) -> list[str]:
    """
    :param run_folder: folder of a run
    :return: the zoo's arguments that it was begun with; none if it was not begun by this package's command line
    :raises ValueError: if the file is damaged
    """
    file = run_folder / RUN_FILE
    return list(json.loads(file.read_text())["arguments"]) if file.exists() else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sb3-per-dqn train", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder, alone")
    parser.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help=f"from one checkpoint to the next, 0: none ({EVERY})"
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a Ray cluster, for ray_actors, and for the trials of -optimize"
    )
    return parser


def settings_help() -> str:
    """
    :return: what ``train`` takes beyond the zoo's arguments
    """
    _, _, options = _parser().format_help().partition("\n\n")
    return options


def parse_settings(arguments: list[str]) -> tuple[RunSettings, list[str]]:
    """
    :param arguments: of ``train``
    :return: what is ours, and the rest, which is the zoo's
    :raises ValueError: if they contradict each other, or there is no such run
    """
    ours, rest = _parser().parse_known_args(arguments)
    if ours.resume is None:
        every = EVERY if ours.checkpoint_every is None else ours.checkpoint_every
        if every < 0:
            raise ValueError(f"--checkpoint-every={every} must be a number of steps, or 0 for none.")
        return RunSettings(every, ray_address=ours.ray_address), rest
    if rest or ours.checkpoint_every is not None:
        raise ValueError(f"--resume {ours.resume}: a run goes on with its own arguments; drop the others.")
    arguments, every, original, conf, address = _read_run(ours.resume)
    if every < 1:
        raise CheckpointError(
            f"--resume {ours.resume}: the run has no checkpoints (--checkpoint-every 0, or another --algo)."
        )
    has_curves = bool(arguments and arguments[-1])  # as save() wrote them
    if conf is not None:
        arguments = [*arguments, "--conf-file", str(ours.resume / conf)]
    if has_curves and original.exists() and not original.samefile(ours.resume):
        arguments += ["-tb", str(ours.resume / "tensorboard")]  # a copy leaves the original's alone
    return RunSettings(every, ours.resume, ours.ray_address or address), arguments  # another cluster may go on


def _read_run(folder: Path) -> tuple[list[str], int, Path, str | None, str | None]:
    """
    What ``save()`` wrote: the zoo's arguments, steps between checkpoints, the run's folder, its settings' file, and the
    address of its cluster.
    """
    file = folder / RUN_FILE
    try:
        run = json.loads(file.read_text())
        arguments, every, original = run["arguments"], run["every"], Path(run.get("folder", folder))
        conf, address = run.get("conf", CONF_FILE), run.get("ray_address")
        if not (isinstance(every, int) and all(isinstance(argument, str) for argument in arguments)):
            raise TypeError
        if conf is not None and Path(conf).name != conf:
            raise ValueError
    except OSError as error:
        raise CheckpointError(f"--resume {folder}: no run of this package ({error}).") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"--resume {folder}: {file} is damaged.") from None
    return arguments, every, original, conf, address
