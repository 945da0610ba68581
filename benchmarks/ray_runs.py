"""
Cells of a grid on a Ray cluster: pip install 'sb3-per-dqn[ray]', and this checkout at the same path on each node. Where
the folder of the results is shared by the nodes, a run whose node died goes on from its checkpoint on another one; else
it begins anew.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any

from benchmarks.cell import INTERRUPTED, LOG, ROW, run_cell
from benchmarks.grid import ROOT, Cell

LOST_NODES = 3  # that a run may outlive
FAILED, LOST = 1, -1
ANSWER_SECONDS = 5.0  # of an actor that has begun


class RayRuns:
    """
    Runs cells, each in a process of its own on a node of a cluster, beside an actor that hands on what is told.

    :param working: folder for the cells' own, on each node
    :param at_most: runs at a time
    :param every: environment steps from one checkpoint to the next
    :param agents: as for ``Processes``; left on the node that trained them
    :param address: as for ``ray.init``
    :raises ConnectionError: if there is no cluster at that address
    """

    def __init__(self, working: Path, at_most: int, every: int, agents: Path | None, address: str) -> None:
        import ray

        from sb3_per_dqn.cluster.actors import check_reachable

        check_reachable(address)
        self.ray = ray
        # what a node needs to find this module, wherever the driver was started
        environment = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, include_dashboard=False)
        # an actor and not a task: Ray 2.60 aborts who cancels a task that ends at that moment
        self.actor: Any = ray.remote(num_cpus=1, max_concurrency=2)(RunActor)
        self.losses = Counter[str]()
        self.working, self.at_most, self.every, self.agents = working.absolute(), at_most, every, agents
        self.running: dict[Any, tuple[Cell, Any]] = {}
        self.signum = 0

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, int]]:
        """
        :param cells: to run in this order
        :return: each when it has ended, its row or its last words here in ``working``, and its exit status
        """
        waiting, is_told = list(cells), False
        while self.running or (waiting and not self.signum):
            while waiting and len(self.running) < self.at_most and not self.signum:
                self._start(waiting.pop(0))
            if not self.running:  # a signal came before the first
                break
            if self.signum and not is_told:
                self._stop_runs()
                is_told = True
            ended, _ = self.ray.wait(list(self.running), timeout=0.2)
            for reference in ended:
                cell, actor = self.running.pop(reference)
                status = self._status(reference, self.working / cell.folder_name)
                self.ray.kill(actor)
                if status == LOST and self.losses[cell.folder_name] < LOST_NODES:
                    self.losses[cell.folder_name] += 1
                    self._start(cell)
                else:
                    yield cell, status

    def _start(self, cell: Cell) -> None:
        agent = self.agents and self.agents.absolute() / cell.folder_name
        actor = self.actor.remote()
        self.running[actor.run.remote(cell, self.working / cell.folder_name, self.every, agent)] = cell, actor

    def _stop_runs(self) -> None:
        answers = {actor.stop.remote(): actor for _, actor in self.running.values()}
        _, unanswered = self.ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_SECONDS)
        for answer in unanswered:  # there was no room for it yet
            self.ray.kill(answers[answer])

    def _status(self, reference: Any, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            status, files = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            (folder / LOG).write_text(f"{' '.join(str(error).split())}\n")
            if isinstance(error, self.ray.exceptions.RayTaskError):
                return FAILED
            return INTERRUPTED if self.signum else LOST  # its node or its process is gone
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return int(status)

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """
        :param signum: which signal came: the runs write their checkpoints and end
        :param frame: where
        """
        self.signum = signum


class RunActor:
    """A run of a grid on a node."""

    def __init__(self) -> None:
        self.is_stopped = Event()

    def run(self, cell: Cell, folder: Path, every: int, agent: Path | None) -> tuple[int, dict[str, bytes]]:
        """
        :param cell: to run
        :param folder: the run's own
        :param every: environment steps from one checkpoint to the next
        :param agent: where to keep the trained agent
        :return: exit status, and the row and the log
        """
        process = get_context("spawn").Process(target=_run_with_its_actor, args=(cell, folder, every, agent))
        process.start()
        Thread(target=self._hand_on, args=(process,), daemon=True).start()
        process.join()
        files = {name: (folder / name).read_bytes() for name in (ROW, LOG) if (folder / name).exists()}
        return process.exitcode or 0, files

    def _hand_on(self, process: SpawnProcess) -> None:
        self.is_stopped.wait()
        process.terminate()

    def stop(self) -> None:
        """The run is to write its checkpoint and to end."""
        self.is_stopped.set()


def _run_with_its_actor(*arguments: Any) -> None:
    Thread(target=_end_with_its_actor, daemon=True).start()
    run_cell(*arguments)


def _end_with_its_actor() -> None:
    """At once: if the actor was killed, another one begins, and goes on in the same folder."""
    actor = parent_process()
    assert actor is not None
    actor.join()
    os._exit(FAILED)
