"""Trials of the zoo's ``-optimize`` on the nodes of a cluster. The study stays with who asked for it."""

import asyncio
import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOST_NODES = 3  # that a trial may outlive
PROPERTIES = {name for name, part in vars(optuna.Trial).items() if isinstance(part, property)}  # the rest are methods
WAIT_SECONDS = 1.0  # between two looks at what was interrupted


class Questions:
    """What a trial somewhere on the cluster asks of its study, one question at a time. A Ray actor between the two."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Any] = asyncio.Queue()
        self._reply: asyncio.Future[Any]

    async def ask(self, *question: Any) -> Any:
        """
        :param question: name of the trial's attribute, and arguments if it is a method
        :return: what it returns
        """
        reply: asyncio.Future[Any] = asyncio.Future()
        await self._asked.put((question, reply))
        return await reply

    async def next(self) -> Any:
        """
        :return: a question
        """
        question, self._reply = await self._asked.get()
        return question

    async def answer(self, answer: Any) -> None:
        """
        :param answer: to the last question; nobody waits for it if who asked is gone
        """
        if not self._reply.done():
            self._reply.set_result(answer)


class RemoteTrial:
    """
    Optuna's ``Trial``, from afar: its methods are called where the study is.

    :param number: of the trial
    :param questions: between the two
    """

    def __init__(self, number: int, questions: Any) -> None:
        self.number = number
        self._questions = questions

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._ask(name) if name in PROPERTIES else partial(self._ask, name)

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return ray.get(self._questions.ask.remote(method, args, kwargs))


def remote_objective(manager: Any, trial: optuna.Trial, interrupted: Callable[[], bool] = lambda: False) -> float:
    """
    :param manager: ``RunManager`` of the optimization
    :param trial: to try, in an actor on the cluster
    :param interrupted: whether it is to end; of several trials at a time, none is in the thread that signals come to
    :return: its value
    :raises optuna.TrialPruned: if it is pruned, or failed: a trial does so alone
    :raises KeyboardInterrupt: if it was interrupted
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made: Any = ray.remote(Questions)
    questions = made.options(num_cpus=0, scheduling_strategy=here).remote()
    # an actor and not a task: Ray 2.60 aborts who cancels a task that ends at that moment
    made = ray.remote(num_cpus=1, max_restarts=LOST_NODES, max_task_retries=LOST_NODES)(TrialActor)
    actor = made.remote()
    value = actor.run.remote(manager.args.gym_packages, ray.put(manager), RemoteTrial(trial.number, questions))
    try:
        question = questions.next.remote()
        while not interrupted():
            ready, _ = ray.wait([value, question], timeout=WAIT_SECONDS)
            if value in ready:
                return float(ray.get(value))
            if question in ready:
                name, args, kwargs = ray.get(question)
                asked = getattr(trial, name)
                questions.answer.remote(asked(*args, **kwargs) if callable(asked) else asked)
                question = questions.next.remote()
        raise KeyboardInterrupt
    except ray.exceptions.RayError as error:
        if isinstance(error, optuna.TrialPruned):
            raise optuna.TrialPruned from None  # without the traceback of afar
        reason = str(error).strip().splitlines()[-1]
        print(f"sb3-per-dqn: trial {trial.number} failed: {reason}", file=sys.stderr)
        trial.set_user_attr("failed", reason)
        raise optuna.TrialPruned(reason) from error
    finally:
        ray.kill(actor)
        ray.kill(questions)


class TrialActor:
    """A trial on a node."""

    def run(self, gym_packages: list[str], manager: Any, trial: Any) -> float:
        """
        :param gym_packages: modules that register environments
        :param manager: ``RunManager`` of the optimization
        :param trial: to try
        :return: its value
        """
        for package in gym_packages:
            importlib.import_module(package)
        return float(manager.objective(trial))
