"""What a run from the command line is asked for beyond the zoo's arguments, and how a run is begun again."""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
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
        # A script of the user's own has other defaults than our command line
        fixed = ["--algo", manager.algo, "--env", str(manager.env_name.gym_id), "--seed", str(manager.seed)]
        # It may go on from another folder
        fixed += ["-i", os.path.abspath(manager.trained_agent)] if manager.trained_agent else []
        fixed += ["--storage", _absolute_storage(manager.storage)] if manager.storage else []
        run = SavedRun(
            arguments=[*sys.argv[1:], *fixed],  # where the zoo reads them, whoever called it
            every=0 if manager.checkpoints is None else self.every,  # of SB3's algorithms there are none
            folder=os.path.abspath(folder),
            conf=conf,
            tensorboard=os.path.abspath(manager.tensorboard_log) if manager.tensorboard_log else "",
            ray_address=self.ray_address,
        )
        with replacing(folder / RUN_FILE) as beside:
            beside.write_text(json.dumps(asdict(run), indent=1))


@dataclass
class SavedRun:
    """
    How a run is begun again: what its ``run.json`` holds.

    :param arguments: the zoo's
    :param every: environment steps from one checkpoint to the next, 0 for none
    :param folder: where it was begun
    :param conf: name of the file of hyperparameters in there, if they are not a module's
    :param tensorboard: where the curves of its environment are; empty without curves, ``None`` if ``arguments`` say it
    :param ray_address: of the Ray cluster that it runs on
    """

    arguments: list[str]
    every: int
    folder: str
    conf: str | None
    tensorboard: str | None
    ray_address: str | None

    @classmethod
    def read(cls, run_folder: Path) -> "SavedRun":
        """
        :param run_folder: folder of a run
        :return: what is written there
        :raises CheckpointError: if it cannot be read, or is damaged
        """
        file = run_folder / RUN_FILE
        try:
            given = json.loads(file.read_text())
            if not isinstance(given, dict):
                raise ValueError(f"{type(given).__name__} for a dictionary")
            for name, kinds in FIELDS.items():
                if type(given.get(name)) not in kinds:
                    raise ValueError(f"{name}={given.get(name)!r}")
            fields: dict[str, Any] = {name: given.get(name) for name in FIELDS}
            run = cls(**fields)
            if not all(isinstance(argument, str) for argument in run.arguments):
                raise ValueError(f"arguments={run.arguments!r}")
            if run.conf is not None and Path(run.conf).name != run.conf:
                raise ValueError(f"conf={run.conf!r}")
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error}.") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is damaged ({error}): put back a copy of it.") from None
        return run

    def curves(self, run_folder: Path) -> Path:
        """
        :param run_folder: where the run is now, on whatever machine
        :return: where its curves go on: in its own folder, as those of a copy do, which leaves the original's alone; or
            where they were; or where they have come with it, if they lay beside it
        """
        assert self.tensorboard
        own = run_folder / "tensorboard" / Path(self.tensorboard).name
        moved = os.path.realpath(run_folder / os.path.relpath(self.tensorboard, self.folder))
        is_copy = os.path.exists(self.folder) and not os.path.samefile(self.folder, run_folder)
        places = [own] if is_copy else [own, Path(self.tensorboard), Path(moved)]
        # os.path: of what may not be looked at, pathlib raises an error
        there = (place for place in places if os.path.isdir(place) and os.access(place, os.W_OK))
        return next(there, own).parent  # to which the zoo adds the environment


NONE = type(None)
FIELDS: dict[str, tuple[type, ...]] = {
    **{"arguments": (list,), "every": (int,), "folder": (str,)},
    **{name: (str, NONE) for name in ("conf", "tensorboard", "ray_address")},
}


def _absolute_storage(storage: str) -> str:
    scheme, separator, path = storage.partition(":///")  # of a database that is a file
    if separator and scheme.startswith("sqlite") and path and not path.startswith(":memory:"):
        return f"{scheme}:///{os.path.abspath(path)}"
    return os.path.abspath(storage) if storage.endswith(".log") else storage


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
    if not (ours.resume / RUN_FILE).is_file():
        raise CheckpointError(f"--resume {ours.resume}: no run of this package, as there is no {RUN_FILE} in it.")
    run = SavedRun.read(ours.resume)
    if run.every < 1:
        raise CheckpointError(
            f"--resume {ours.resume}: the run has no checkpoints (--checkpoint-every 0, or another --algo)."
        )
    arguments = run.arguments
    if run.conf is not None:
        arguments = [*arguments, "--conf-file", str(ours.resume / run.conf)]
    if run.tensorboard is not None:
        arguments = [*arguments, "-tb", str(run.curves(ours.resume)) if run.tensorboard else ""]
    return RunSettings(run.every, ours.resume, ours.ray_address or run.ray_address), arguments  # or another cluster
