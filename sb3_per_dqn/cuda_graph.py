"""A gradient step as a CUDA graph."""

import warnings
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

import torch as th

WARM_UP = 3  # ordinary steps before recording, in which libraries choose their kernels and allocate their memory

Tensors = tuple[th.Tensor, ...]


def key_of(numbers: Hashable, tensors: Iterable[th.Tensor], optimizer: th.optim.Optimizer) -> Hashable:
    """
    :param numbers: that a step reads from the host
    :param tensors: that it reads and writes
    :param optimizer: that it steps, of which numbers and the state's tensors count as well
    :return: what a recorded step depends on: these numbers, and where the tensors lie in memory
    """
    options = (option for group in optimizer.param_groups for option in group.items() if option[0] != "params")
    of_optimizer = tuple(option for option in options if not isinstance(option[1], th.Tensor))
    states = (value for state in optimizer.state.values() for value in state.values())
    tensors = [*tensors, *(state for state in states if isinstance(state, th.Tensor))]
    return numbers, of_optimizer, tuple(tensor.data_ptr() for tensor in tensors)


class RecordedStep:
    """
    Records a step once as a CUDA graph, and replays it: the host then launches hundreds of kernels at once, and does
    nothing else. See https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture.

    The step must not wait for the device, and what it reads from the host it reads when it is recorded. A number that
    changes from step to step therefore has to be a tensor. The first ``WARM_UP`` calls, and all if recording fails
    (which is said once), are ordinary steps; every call does exactly one step.

    :param step: a function of one number, as a float64 tensor on the device, that returns tensors
    :param key: of ``key_of``, what the recorded step depends on. Where it is another, make a new one
    :param device: a CUDA device
    """

    def __init__(self, step: Callable[[th.Tensor], Tensors], key: Hashable, device: th.device) -> None:
        self.key = key
        self._step = step
        self._argument = th.zeros((), dtype=th.float64, device=device)
        self._calls = 0
        self._graph: th.cuda.CUDAGraph | None = None
        self._results: Tensors = ()
        self.failed = False  # to be recorded

    def __getstate__(self) -> dict[str, Any]:
        # A graph holds the memory of one model: a copy records its own
        return {**self.__dict__, "key": None, "_graph": None, "_results": ()}

    def __call__(self, argument: float) -> Tensors:
        """
        :param argument: of the step
        :return: what the step returns
        """
        with th.cuda.device(self._argument.device):  # streams and graphs are those of the current one
            return self._next(argument)

    def _next(self, argument: float) -> Tensors:
        self._argument.fill_(argument)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._on_a_side_stream()
        if self._calls == WARM_UP + 1:
            self._record()
        if self._graph is None:
            return self._step(self._argument)
        self._graph.replay()
        return tuple(result.clone() for result in self._results)  # the next replay overwrites them

    def _on_a_side_stream(self) -> Tensors:
        # Work of the warm-up on the usual stream would tie what is recorded to it
        stream = th.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            results = self._step(self._argument)
        th.cuda.current_stream().wait_stream(stream)
        return results

    def _record(self) -> None:
        graph, stream = th.cuda.CUDAGraph(), th.cuda.current_stream()
        try:
            # (nothing runs meanwhile; torch's own stream for it is of the device that recorded first in this process)
            with th.cuda.graph(graph, stream=th.cuda.Stream()):  # type: ignore[no-untyped-call]
                self._results = self._step(self._argument)
            self._graph = graph
        except RuntimeError as error:
            self._leave_a_broken_one(stream)
            self.failed = True
            warnings.warn(
                f"speedups: a gradient step could not be recorded as a CUDA graph ({error.__context__ or error}); "
                "going on without.",
                stacklevel=4,
            )

    def _leave_a_broken_one(self, stream: th.cuda.Stream) -> None:
        # It may leave its own stream behind and, before PyTorch 2.13, a random generator that is still being recorded
        # and refuses to draw: another recording, which comes to its end, sets that right
        th.cuda.set_stream(stream)
        another = th.cuda.graph(th.cuda.CUDAGraph(), stream=th.cuda.Stream())  # type: ignore[no-untyped-call]
        with suppress(RuntimeError), another:
            self._argument.clone()
        th.cuda.set_stream(stream)
