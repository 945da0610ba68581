"""What a run from the command line does while it trains: it records itself, and stops in good order."""

import csv
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

from sb3_per_dqn.checkpoint import RunCheckpoints


class RunRecorder(BaseCallback):
    """
    Writes the run's ``progress.csv`` (all that the logger gets) and ``episodes.csv`` (every finished episode), anew at
    each ``learn()``, or behind what is there, each file by itself.

    ``Monitor``'s own files count emulator frames, so they cannot place a game on the axis of environment steps.

    :param run_folder: where the two files go
    :param resumes: whether to go on with the files that are there
    """

    goes_on = False  # with attributes from a checkpoint: paths and files may be others

    def __init__(self, run_folder: str, resumes: bool = False) -> None:
        super().__init__()
        self.run_folder = Path(run_folder)
        self.resumes = resumes

    @property
    def files(self) -> list[Path]:
        """What it writes."""
        return [self.run_folder / "progress.csv", self.run_folder / "episodes.csv"]

    def _on_training_start(self) -> None:
        progress, episodes = self.files
        goes_on = self.resumes and progress.exists()
        self.progress = _csv_behind(progress) if goes_on else CSVOutputFormat(str(progress))
        self.logger.output_formats.append(self.progress)
        self.episodes = episodes.open("a" if self.resumes else "w", buffering=1, newline="")
        self.writer = csv.writer(self.episodes)
        if not self.episodes.tell():
            self.writer.writerow(["timesteps", "r", "l"])

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):
            if "episode" in info:
                self.writer.writerow([self.num_timesteps, info["episode"]["r"], info["episode"]["l"]])
        return True

    def _on_training_end(self) -> None:
        # The zoo calls this once more for the first callback of its list, also when training failed to start
        if hasattr(self, "progress") and self.progress in self.logger.output_formats:
            self.logger.output_formats.remove(self.progress)
            self.progress.close()
            self.episodes.close()


def _csv_behind(path: Path) -> CSVOutputFormat:
    """
    :param path: a file that a ``CSVOutputFormat`` has written
    :return: one that goes on with it, where SB3's would begin by emptying it
    """
    progress = CSVOutputFormat(os.devnull)
    progress.file.close()
    progress.file = path.open("r+")
    header = progress.file.readline().strip()
    progress.keys = header.split(",") if header else []
    progress.file.seek(0, os.SEEK_END)
    return progress


class Terminated(KeyboardInterrupt):
    """SIGTERM, and not Ctrl-C."""

    status = 128 + signal.SIGTERM


class InterruptGuard(BaseCallback):
    """
    Ends training in good order when Ctrl-C is pressed or SIGTERM comes, and at once when that happens again: after the
    present step, or if there are checkpoints, after the one that comes before the next rollout.

    An exception in the middle of a step would leave the workers' answers half read, and the next call to them waiting.
    """

    goes_on = False  # the signal was for the other process
    message = b"\nStopping after this step or evaluation, then saving. Once more stops at once.\n"

    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: RunCheckpoints | None = None
        self.signum = 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal came."""
        return self.signum != 0

    @property
    def exception(self) -> KeyboardInterrupt:
        """What to raise when all is saved."""
        return Terminated() if self.signum == signal.SIGTERM else KeyboardInterrupt()

    def _on_step(self) -> bool:
        waits = self.checkpoints is not None and self.checkpoints.requested
        return waits or not self.interrupted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch signals here. Python hands them to the main thread alone: in another, nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.signum = 0
        before = {signum: signal.signal(signum, self._on_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self.signum = signum
            raise self.exception
        self.signum = signum
        if self.checkpoints is not None:
            self.checkpoints.request()
        # not print(): a handler may run while the same buffer is being written to
        os.write(2, self.message)
