"""Faster arithmetic for a gradient step, each kind by its name. What does not work here is left out, and said once."""

import difflib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType, MethodType
from typing import Any, Generic, TypeVar

import numpy as np
import torch as th
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy

FUSED, FLUSH, CHANNELS_LAST, COMPILE, BF16, GRAPH = "fused", "flush", "channels_last", "compile", "bf16", "graph"
NAMES = (FUSED, FLUSH, CHANNELS_LAST, COMPILE, BF16, GRAPH)
PRESETS: dict[str, tuple[str, ...]] = {"none": (), "safe": (FUSED, FLUSH, CHANNELS_LAST), "max": NAMES}

# The mean of a gradient that has become zero (of a dead unit) shrinks by Adam's beta_1 = 0.9 a step, and stays for ever
# in the denormal numbers, below 1.2e-38, with which processors are many times slower. From NEGLIGIBLE it takes 170
# steps to get there. What is lost is far below the rounding of any weight.
NEGLIGIBLE = 1e-30
FLUSH_INTERVAL = 100

Speed = str | Sequence[str]
Result = TypeVar("Result")


class Speedups:
    """
    What is done to make a gradient step faster.

    - ``"fused"``: one kernel for the optimizer's whole step, where it has one (Adam, AdamW, SGD, Adagrad)
    - ``"flush"``: every ``FLUSH_INTERVAL`` steps, what is below ``NEGLIGIBLE`` in the optimizer's state becomes zero
    - ``"channels_last"``: images in the memory order in which convolutions are fastest
    - ``"compile"``: forward and backward pass by ``torch.compile``; the first gradient step takes up to a minute
    - ``"bf16"``: networks compute in bfloat16 (8 bits of precision); weights, targets and loss stay in float32
    - ``"graph"``: the whole gradient step, replay included, as one CUDA graph; with a ``DeviceReplayBuffer``

    :param wanted: ``"none"``, ``"safe"`` (the first three: float32, other rounding), ``"max"`` (all), or names
    :param device: where the networks are
    :raises ValueError: for an unknown name, with the nearest known one
    """

    def __init__(self, wanted: Speed, device: th.device) -> None:
        names = _names(wanted)
        self.device = device
        self.fused = FUSED in names
        self.flush = FLUSH in names
        self.channels_last = CHANNELS_LAST in names
        self.compile = COMPILE in names
        self.bf16 = BF16 in names and _has_bf16(device)
        if BF16 in names and not self.bf16:
            warnings.warn(f"speedups: {device.type} has no fast bfloat16 here; going on in float32.", stacklevel=2)
        self.graph = GRAPH in names
        self._demands_graph = wanted != "max"
        self._learning_rate = th.zeros((), device=device)  # as a recorded step reads it
        if device.type != "cuda":
            self.leave_out_graph("there are none on a CPU")

    def leave_out_graph(self, reason: str) -> None:
        """
        Go on without a CUDA graph, and say so if one was asked for by name.

        :param reason: why
        """
        if self.graph and self._demands_graph:
            warnings.warn(f"speedups: going on without a CUDA graph: {reason}.", stacklevel=3)
        self.graph = False

    def prepare(self, optimizer: th.optim.Optimizer) -> None:
        """
        Switch the optimizer's fused kernel on, or back to what it was made with, and make it fit for a CUDA graph or
        not. Its state may have come from a file.

        :param optimizer: the policy's, with the learning rate of the steps to come
        """
        made_with = optimizer.defaults
        undecided = made_with.get("fused", 0) is None and not made_with.get("foreach")
        undecided = undecided and not made_with.get("differentiable")
        wanted = {
            "fused": True if self.fused and undecided else made_with.get("fused"),
            "capturable": self.graph or made_with.get("capturable"),
        }
        for group in optimizer.param_groups:
            if self.graph:
                group["lr"] = self._learning_rate.fill_(group["lr"])
            changed = {name: value for name, value in wanted.items() if name in made_with and group[name] != value}
            group.update(changed)
            for parameter in group["params"] if changed else ():
                state = optimizer.state.get(parameter, {})
                if "step" in state:  # then it must stand beside the weights, and otherwise on the CPU
                    there = parameter.device if wanted["fused"] or wanted["capturable"] else "cpu"
                    state["step"] = state["step"].to(there)

    def flush_denormals(self, optimizer: th.optim.Optimizer, update: int) -> None:
        """
        Now and then free the optimizer's state from denormal numbers.

        :param optimizer: the policy's
        :param update: number of the gradient step in the whole run
        """
        if self.flush and update % FLUSH_INTERVAL == 0:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, th.Tensor) and value.is_floating_point():
                        value.masked_fill_(value.abs() < NEGLIGIBLE, 0.0)

    def arrange(self, observations: PyTorchObs) -> PyTorchObs:
        """
        :param observations: a batch of them
        :return: the same numbers; images, of shape (batch, channels, height, width), in the wanted memory order
        """
        if not self.channels_last:
            return observations
        if isinstance(observations, dict):
            return {name: _in_channels_last(part) for name, part in observations.items()}
        return _in_channels_last(observations)

    def autocast(self) -> AbstractContextManager[object]:
        """
        :return: the context for one pass through one network. (A context that outlives ``no_grad`` would keep
            weights that were cast without a gradient.)
        """
        return th.autocast(self.device.type, dtype=th.bfloat16) if self.bf16 else nullcontext()

    def probe(self, policy: DQNPolicy) -> None:
        """
        Leave channels-last out, with a warning, if the policy's features extractor cannot take it (for it calls
        ``view``, say, which wants the usual order).

        :param policy: whose network is tried
        """
        if not self.channels_last:
            return
        # Not samples: the space, and so its random numbers, may be the environment's own
        zeros: Any = create_empty_array(policy.observation_space, n=2, fn=np.zeros)
        observations, _ = policy.obs_to_tensor(zeros)
        policy.set_training_mode(False)
        try:
            with th.no_grad():
                policy.q_net(self.arrange(observations))
        except RuntimeError as error:
            self.channels_last = False
            warnings.warn(f"speedups: going on without channels_last, as the network says: {error}", stacklevel=3)

    def compiled(self, method: Callable[..., Result]) -> Callable[..., Result]:
        """
        :param method: of tensors, without side effects
        :return: the same, compiled at its first call; as it is if that fails, or if it was not asked for
        """
        return _CompiledOrNot(method) if self.compile else method


def clip_gradients(parameters: Sequence[th.nn.Parameter], max_norm: float) -> None:
    """
    ``clip_grad_norm_`` to the bit. That one multiplies all gradients by 1 where there is nothing to clip, one more pass
    over as much memory as the weights take; on a CPU it costs nothing to look at the norm first.

    :param parameters: with their gradients
    :param max_norm: largest norm of all gradients together
    """
    if parameters[0].device.type != "cpu":
        th.nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = th.nn.utils.get_total_norm(gradients)
    if not max_norm / (norm + 1e-6) >= 1.0:  # as torch computes the factor; NaN goes where torch lets it go
        th.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


class _CompiledOrNot(Generic[Result]):
    def __init__(self, method: Callable[..., Result]) -> None:
        self.method = method
        self.compiled: Callable[..., Result] | None = None
        self.failed = False

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled holds the networks of one model: a copy compiles its own
        return {**self.__dict__, "compiled": None}

    def __call__(self, *args: object) -> Result:
        if self.failed:
            return self.method(*args)
        try:
            self.compiled = self.compiled or th.compile(_with_code_of_its_own(self.method), dynamic=False)
            return self.compiled(*args)
        except Exception as error:
            result = self.method(*args)  # an error of the method itself is raised here, as it is
            self.failed = True
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            warnings.warn(f"speedups: torch.compile failed ({reason}); going on without it.", stacklevel=3)
            return result


def _with_code_of_its_own(method: Any) -> Any:
    # torch.compile keeps eight versions of one piece of code, for all models of a process: a study makes more of them
    function = method.__func__
    copied = FunctionType(function.__code__.replace(), function.__globals__)
    return MethodType(copied, method.__self__)


def _names(wanted: Speed) -> Sequence[str]:
    if isinstance(wanted, str):
        names = PRESETS.get(wanted, (wanted,))
    else:
        names = tuple(wanted) if isinstance(wanted, Sequence) else (wanted,)
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), [*PRESETS, *NAMES], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(
                f"speedups={wanted!r} must be one of {', '.join(PRESETS)}, or a list of {', '.join(NAMES)}{hint}"
            )
    return names


def _in_channels_last(part: th.Tensor) -> th.Tensor:
    if part.dim() != 4 or part.is_contiguous(memory_format=th.channels_last):
        return part
    if part.dtype != th.uint8 or part.device.type != "cpu":
        return part.contiguous(memory_format=th.channels_last)
    # of bytes, channel by channel, which took 0.34 to 0.45 ms where contiguous() took 0.62 to 1.1 (32 stacks of frames)
    arranged = th.empty_like(part, memory_format=th.channels_last)
    for channel in range(part.shape[1]):
        arranged[:, channel].copy_(part[:, channel])
    return arranged


def _has_bf16(device: th.device) -> bool:
    if device.type == "cuda":
        with th.cuda.device(device):
            return bool(th.cuda.is_bf16_supported(including_emulation=False))
    # without AMX, bfloat16 is slower than float32 (0.8 times as fast, on a processor with AVX512_BF16 alone)
    return device.type == "cpu" and bool(th.cpu._is_amx_tile_supported())
