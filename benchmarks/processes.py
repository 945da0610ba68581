"""Cells of a grid in processes of this machine."""

import signal
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from benchmarks.cell import run_cell
from benchmarks.grid import Cell


class Processes:
    """
    Runs cells, each in a process of its own.

    :param working: folder for the cells' own
    :param at_most: processes at a time
    :param every: environment steps from one checkpoint to the next
    :param agents: folder for the trained agents of PerDoubleDQN, each in a small model folder; ``None`` keeps none
    """

    def __init__(self, working: Path, at_most: int, every: int, agents: Path | None) -> None:
        self.working, self.at_most, self.every, self.agents = working, at_most, every, agents
        self.running: list[tuple[Cell, SpawnProcess]] = []
        self.signum = 0

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, int]]:
        """
        :param cells: to run in this order
        :return: each when it has ended, and its exit status
        """
        waiting = list(cells)
        try:
            while self.running or (waiting and not self.signum):
                while waiting and len(self.running) < self.at_most and not self.signum:
                    self._start(waiting.pop(0))
                connection.wait([process.sentinel for _, process in self.running], timeout=1)
                for cell, process in [each for each in self.running if not each[1].is_alive()]:
                    self.running.remove((cell, process))
                    yield cell, process.exitcode or 0
        finally:  # none are left but when the results cannot be written
            self._terminate()

    def _start(self, cell: Cell) -> None:
        agent = self.agents and self.agents / cell.folder_name
        process = get_context("spawn").Process(
            target=run_cell, args=(cell, self.working / cell.folder_name, self.every, agent)
        )
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, until it has a session of its own
        process.start()
        signal.signal(signal.SIGINT, before)
        self.running.append((cell, process))

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """
        Hand a signal on; once more, and the runs end at once.

        :param signum: which signal came
        :param frame: where
        """
        self.signum = signum
        self._terminate()

    def _terminate(self) -> None:
        for _, process in self.running:
            process.terminate()
