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


class RunRecorder(BaseCallback):
    """
    Writes the run's ``progress.csv`` (all that the logger gets) and ``episodes.csv`` (every finished episode), anew at
    each ``learn()``.

    ``Monitor``'s own files count emulator frames, so they cannot place a game on the axis of environment steps.

    :param run_folder: where the two files go
    """

    def __init__(self, run_folder: str) -> None:
        super().__init__()
        self.run_folder = Path(run_folder)

    def _on_training_start(self) -> None:
        self.progress = CSVOutputFormat(str(self.run_folder / "progress.csv"))
        self.logger.output_formats.append(self.progress)
        self.episodes = (self.run_folder / "episodes.csv").open("w", buffering=1, newline="")
        self.writer = csv.writer(self.episodes)
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


class InterruptGuard(BaseCallback):
    """
    Ends training after the present step when Ctrl-C is pressed, and at once when it is pressed again.

    An exception in the middle of a step would leave the workers' answers half read, and the next call to them waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = False

    def _on_step(self) -> bool:
        return not self.interrupted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGINT here. Python hands signals to the main thread alone: in another, nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.interrupted = False
        before = signal.signal(signal.SIGINT, self._on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)  # None: not set from Python

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        # not print(): a handler may run while the same buffer is being written to
        os.write(2, b"\nStopping after this step or evaluation, then saving. Ctrl-C again stops at once.\n")
