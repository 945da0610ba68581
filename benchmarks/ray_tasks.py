"""
Cells of a grid as tasks of a Ray cluster: pip install 'sb3-per-dqn[ray]', and this checkout at the same path on each
node. Where the folder of the results is shared by the nodes, a run whose node died goes on from its checkpoint on
another one; else it begins anew.
"""

from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.cell import INTERRUPTED, LOG, ROW, run_cell
from benchmarks.grid import ROOT, Cell

LOST_NODES = 3  # that a run may outlive
FAILED = 1


class RayTasks:
    """
    Runs cells, each in a process of its own on a node of a cluster.

    :param working: folder for the cells' own, on each node
    :param at_most: tasks at a time
    :param every: environment steps from one checkpoint to the next
    :param agents: as for ``Processes``; left on the node that trained them
    :param address: as for ``ray.init``
    :raises ConnectionError: if there is no cluster at that address
    """

    def __init__(self, working: Path, at_most: int, every: int, agents: Path | None, address: str) -> None:
        import ray

        self.ray = ray
        # what a node needs to find this module, wherever the driver was started
        environment = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, include_dashboard=False)
        self.task = ray.remote(num_cpus=1, max_retries=LOST_NODES)(in_a_process)
        self.working, self.at_most, self.every, self.agents = working.absolute(), at_most, every, agents
        self.running: dict[Any, Cell] = {}
        self.signum = 0

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, int]]:
        """
        :param cells: to run in this order
        :return: each when it has ended, its row or its last words here in ``working``, and its exit status
        """
        waiting = list(cells)
        while self.running or (waiting and not self.signum):
            while waiting and len(self.running) < self.at_most and not self.signum:
                self._start(waiting.pop(0))
            ended, _ = self.ray.wait(list(self.running), timeout=1)
            for reference in ended:
                cell = self.running.pop(reference)
                yield cell, self._status(reference, self.working / cell.folder_name)

    def _start(self, cell: Cell) -> None:
        agent = self.agents and self.agents.absolute() / cell.folder_name
        self.running[self.task.remote(cell, self.working / cell.folder_name, self.every, agent)] = cell

    def _status(self, reference: Any, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            status, files = self.ray.get(reference)
        except self.ray.exceptions.TaskCancelledError:
            return INTERRUPTED
        except self.ray.exceptions.RayError as error:  # more nodes were lost than a run outlives
            (folder / LOG).write_text(f"{' '.join(str(error).split())}\n")
            return FAILED
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return int(status)

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """
        :param signum: which signal came: the runs write their checkpoints and end
        :param frame: where
        """
        self.signum = signum
        for reference in self.running:
            self.ray.cancel(reference)


def in_a_process(cell: Cell, folder: Path, every: int, agent: Path | None) -> tuple[int, dict[str, bytes]]:
    """
    :param cell: to run
    :param folder: the run's own
    :param every: environment steps from one checkpoint to the next
    :param agent: where to keep the trained agent
    :return: exit status, and the row and the log
    """
    process = get_context("spawn").Process(target=run_cell, args=(cell, folder, every, agent))
    try:
        process.start()
        process.join()
    except KeyboardInterrupt:  # of ray.cancel
        if process.pid is None:
            return INTERRUPTED, {}
        process.terminate()
        process.join()
    assert process.exitcode is not None
    files = {name: (folder / name).read_bytes() for name in (ROW, LOG) if (folder / name).exists()}
    return process.exitcode, files
