"""
What does a replay buffer of Atari frames cost, in memory and in time?

``python -m benchmarks.replay`` prints one markdown table: bytes a transition, and microseconds to add one step of 8
environments, to draw a batch as torch tensors (both stacks of 4×84×84 whole, n-step 1), and to write its priorities
back. Each contestant is set up to be prioritized and to save frames, as far as it can:

- this package's ``PrioritizedReplayBuffer``;
- SB3's ``ReplayBuffer`` in both modes, and the compressed one of ``sb3-extra-buffers``; these draw uniformly;
- TorchRL's ``TensorDictReplayBuffer`` with ``PrioritizedSampler``: whole stacks, as in its own DQN; or a frame and the
  next one a transition, and a ``Sequence`` that draws the three before with them, joined to stacks here;
- Tianshou's ``PrioritizedVectorReplayBuffer``, one frame a transition. Stacks at an episode's start are filled up with
  its first frame, where ``VecFrameStack`` has zeros;
- cpprb's ``PrioritizedReplayBuffer`` with ``stack_compress`` and ``next_of``. It compresses a single stream, so there
  is one buffer for each environment, and a batch is drawn in equal parts from them.

**Data.** Steps of 8 Breakouts under a random policy, recorded first, are replayed again and again; the last recorded
one is cut by a time limit. Each buffer gets arrays as its own library's loop has them (for SB3's, the transposed views
of ``VecTransposeImage``); bringing them into that form is not timed. The learner's TD errors are a torch tensor.

**Memory.** Each contestant has a process of its own. Counted is the growth of its resident set, as the operating system
reports it, from just before the buffer is made until it is full; and the whole process then, the recording of 0.5 GB
and PyTorch included. What would not fit is not started, and a process
that asks for more than there is gets a ``MemoryError``.

**Time.** Medians, on full buffers that go on being overwritten. Not all buffers fit into memory at once, so one
reference (our buffer with the first number of slots) stays alive, and each contestant takes short turns with it while
the other one waits. In brackets, the contestant's time over our buffer's with as many slots, each first divided by
the reference's in the same minutes, so that a slower spell of the machine cancels out.

**Stacks.** In its process each contestant shows with a ring of 4,096 slots, drawn from after every step, whether it
returns what was put in (``next_obs`` where the game went on). An action is its transition's place in the recording, and
so tells what is right. Otherwise the table says which share of the drawn transitions of an environment's newest step
and oldest three, at time limits, in an episode's first steps, or elsewhere had a wrong stack.

``--python tianshou=/path/to/python`` names an interpreter for a package that cannot be installed beside the others
(it needs torch and psutil as well). A package that cannot be imported gets one line saying so.
"""

import argparse
import datetime
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch as th

Array = npt.NDArray[Any]
Times = dict[str, list[float]]  # microseconds, by column
Batch = tuple[th.Tensor, th.Tensor, th.Tensor]  # obs and next_obs, both (batch, 4, 84, 84) in any layout, and actions

N_ENVS = 8
BATCHES = (32, 256)
COLUMNS = ["add", *(f"{operation} {batch}" for batch in BATCHES for operation in ("sample", "update"))]
ALPHA, BETA, EPS = 0.6, 0.4, 1e-6
FRAME, STACK = 84 * 84, 4 * 84 * 84
CHECKED_SLOTS = 4096
OVERHEAD = 1.5e9  # bytes in a process besides its buffer: libraries and the recording


class Step(NamedTuple):
    """One step of all environments, in arrays of its own; stacks are (N_ENVS, 84, 84, 4), as from VecFrameStack."""

    obs: Array
    next_obs: Array  # of the same episode, also at its end
    actions: Array  # place in the recording
    rewards: Array
    done: Array
    truncated: Array


class Recording:
    """
    A stretch of Breakout that begins anew when it is over.

    :param arrays: ``obs``, ``rewards``, ``done``, ``truncated`` and ``age`` (steps since the episode's start), all of
        shape (steps, N_ENVS, ...), and ``last_obs``, one for each ``done`` in order
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays
        self.steps = len(arrays["obs"])
        self.ends_before = np.cumsum(arrays["done"]).reshape(-1, N_ENVS) - arrays["done"]

    def __getitem__(self, time_step: int) -> Step:
        t, envs = time_step % self.steps, np.arange(N_ENVS)
        rewards, done, truncated = (self.arrays[key][t] for key in ("rewards", "done", "truncated"))
        return Step(*self.stacks(np.full(N_ENVS, t), envs), t * N_ENVS + envs, rewards, done, truncated)

    def stacks(self, t: Array, envs: Array) -> tuple[Array, Array]:
        """
        :return: copies of obs and next_obs, shape (batch, 84, 84, 4)
        """
        obs, next_obs = self.arrays["obs"][t, envs], self.arrays["obs"][(t + 1) % self.steps, envs]
        done = self.arrays["done"][t, envs]
        next_obs[done] = self.arrays["last_obs"][self.ends_before[t, envs][done]]
        return obs, next_obs


def record(steps: int) -> dict[str, Array]:
    """Play Breakout at random, for the arrays of a ``Recording``."""
    from sb3_per_dqn import make_atari_vec_env  # not installed beside the other packages

    env = make_atari_vec_env("BreakoutNoFrameskip-v4", N_ENVS, seed=0)
    env.action_space.seed(0)
    played: dict[str, list[Any]] = {key: [] for key in ("obs", "rewards", "done", "truncated", "age")}
    last_obs = []
    obs, age = env.reset(), np.zeros(N_ENVS, np.int64)
    for t in range(steps):
        step: Any = env.step(np.array([env.action_space.sample() for _ in range(N_ENVS)]))
        next_obs, rewards, done, infos = step
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        if t == steps - 1:
            truncated |= ~done
        for key, value in zip(played, (obs, rewards, done | truncated, truncated, age), strict=True):
            played[key].append(value)
        last_obs += [infos[i].get("terminal_observation", next_obs[i]) for i in range(N_ENVS) if played["done"][-1][i]]
        obs, age = next_obs, np.where(done, 0, age + 1)
    env.close()
    return {key: np.array(values) for key, values in {**played, "last_obs": last_obs}.items()}


def channels_first(obs: Array) -> Array:
    return np.moveaxis(obs, -1, 1)


class Contestant:
    """
    A buffer, and how its library is called; made from the number of slots, which imports the library.

    ``arrange`` brings a step into the form in which the library's own loop has it, and is not timed; ``sample`` keeps
    the drawn ``indices``, for which ``update`` writes priorities.
    """

    prioritized = True
    buffer: Any
    indices: Any

    def arrange(self, step: Step) -> Any:
        raise NotImplementedError

    def add(self, arranged: Any) -> None:
        self.buffer.add(arranged)

    def sample(self, batch: int) -> Batch:
        raise NotImplementedError

    def update(self, td_errors: th.Tensor) -> None:
        raise NotImplementedError

    def own_count(self) -> int | None:
        """Bytes that the buffer itself says it holds, if it does."""
        return getattr(self.buffer, "nbytes", None)


class SB3(Contestant):
    prioritized = False

    def __init__(self, slots: int, path: str = "stable_baselines3.common.buffers.ReplayBuffer", **kwargs: Any) -> None:
        module, _, name = path.rpartition(".")
        spaces = importlib.import_module("gymnasium").spaces
        box, actions = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(4)
        self.buffer = getattr(importlib.import_module(module), name)(slots, box, actions, "cpu", N_ENVS, **kwargs)

    def arrange(self, step: Step) -> Any:
        infos = [{"TimeLimit.truncated": bool(truncated)} for truncated in step.truncated]
        return (*map(channels_first, step[:2]), step.actions, step.rewards, step.done, infos)

    def add(self, arranged: Any) -> None:
        self.buffer.add(*arranged)

    def sample(self, batch: int) -> Batch:
        samples = self.buffer.sample(batch)
        return samples.observations, samples.next_observations, samples.actions


class Ours(SB3):
    prioritized = True

    def __init__(self, slots: int, **kwargs: Any) -> None:
        path = "sb3_per_dqn.replay.prioritized_buffer.PrioritizedReplayBuffer"
        super().__init__(slots, path, alpha=ALPHA, eps=EPS, **kwargs)

    def sample(self, batch: int) -> Batch:
        samples = self.buffer.sample(batch, beta=BETA)
        self.indices = samples.indices
        return samples.observations, samples.next_observations, samples.actions

    def update(self, td_errors: th.Tensor) -> None:
        self.buffer.update_priorities(self.indices, td_errors)


class TorchRL(Contestant):
    def __init__(self, slots: int, **kwargs: Any) -> None:
        self.data = importlib.import_module("torchrl.data")
        sampler = self.data.PrioritizedSampler(slots, alpha=ALPHA, beta=BETA, eps=EPS)
        storage = self.data.LazyTensorStorage(slots)
        self.buffer = self.data.TensorDictReplayBuffer(storage=storage, sampler=sampler, **kwargs)

    def arrange(self, step: Step) -> Any:
        obs, next_obs = (np.ascontiguousarray(channels_first(array)) for array in step[:2])
        ends = {"done": step.done, "truncated": step.truncated, "terminated": step.done & ~step.truncated}
        after = {
            "pixels": next_obs,
            "reward": step.rewards[:, None],
            **{key: end[:, None] for key, end in ends.items()},
        }
        transition = {"pixels": obs, "action": step.actions, "next": after}
        return importlib.import_module("tensordict").TensorDict(transition, batch_size=[N_ENVS])

    def add(self, arranged: Any) -> None:
        self.buffer.extend(arranged)

    def sample(self, batch: int) -> Batch:
        samples = self.buffer.sample(batch)
        self.indices = samples["index"]
        return samples["pixels"], samples["next", "pixels"], samples["action"]

    def update(self, td_errors: th.Tensor) -> None:
        self.buffer.update_priority(self.indices, td_errors.abs())

    def own_count(self) -> int | None:
        return int(self.buffer[:].bytes())


class TorchRLFrames(TorchRL):
    def __init__(self, slots: int) -> None:
        sequence = importlib.import_module("torchrl.data").Sequence
        # The environments alternate in the storage: a dilation of 8 keeps to one of them
        super().__init__(slots, sample_unit=sequence(1, "include_reset", done_key=None, burn_in=3, dilation=N_ENVS))

    def arrange(self, step: Step) -> Any:
        arranged = super().arrange(step)
        arranged["same_episode"] = arranged["pixels"][:, :3].flatten(2).amax(2) > 0  # where VecFrameStack gave no zeros
        arranged["pixels"] = arranged["pixels"][:, -1].clone()
        arranged["next", "pixels"] = arranged["next", "pixels"][:, -1].clone()
        return arranged

    def sample(self, batch: int) -> Batch:
        samples = self.buffer.sample(batch).reshape(batch, 4)
        self.indices = samples["anchor_index"][:, -1]
        obs = samples["pixels"]
        obs[:, :3].masked_fill_(~samples["same_episode"][:, -1, :, None, None], 0)
        return obs, th.cat([obs[:, 1:], samples["next", "pixels"][:, -1:]], dim=1), samples["action"][:, -1]


class Tianshou(Contestant):
    def __init__(self, slots: int) -> None:
        self.data = importlib.import_module("tianshou.data")
        frames = {"stack_num": 4, "ignore_obs_next": True, "save_only_last_obs": True}
        self.buffer = self.data.PrioritizedVectorReplayBuffer(slots, N_ENVS, alpha=ALPHA, beta=BETA, **frames)

    def arrange(self, step: Step) -> Any:
        obs, next_obs = (np.ascontiguousarray(channels_first(array)) for array in step[:2])
        ends = {"terminated": step.done & ~step.truncated, "truncated": step.truncated}
        return self.data.Batch(obs=obs, obs_next=next_obs, act=step.actions, rew=step.rewards, **ends)

    def sample(self, batch: int) -> Batch:
        samples, self.indices = self.buffer.sample(batch)
        samples.to_torch_()
        return samples.obs, samples.obs_next, samples.act

    def update(self, td_errors: th.Tensor) -> None:
        self.buffer.update_weight(self.indices, td_errors)


class Cpprb(Contestant):
    def __init__(self, slots: int) -> None:
        entries = {"obs": {"shape": (84, 84, 4), "dtype": np.uint8}, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
        options = {"alpha": ALPHA, "eps": EPS, "next_of": "obs", "stack_compress": "obs"}
        new = importlib.import_module("cpprb").PrioritizedReplayBuffer
        self.buffer = [new(slots // N_ENVS, entries, **options) for _ in range(N_ENVS)]

    def arrange(self, step: Step) -> Any:
        return step._replace(done=step.done & ~step.truncated), step.done

    def add(self, arranged: Any) -> None:
        (obs, next_obs, actions, rewards, terminated, _), done = arranged
        for env, buffer in enumerate(self.buffer):
            parts = {"obs": obs[env], "next_obs": next_obs[env], "act": actions[env], "rew": rewards[env]}
            buffer.add(**parts, done=terminated[env])
            if done[env]:
                buffer.on_episode_end()

    def sample(self, batch: int) -> Batch:
        parts = [buffer.sample(batch // N_ENVS, beta=BETA) for buffer in self.buffer]
        self.indices = [part["indexes"] for part in parts]
        samples = {key: th.from_numpy(np.concatenate([part[key] for part in parts])) for key in parts[0]}
        return samples["obs"].permute(0, 3, 1, 2), samples["next_obs"].permute(0, 3, 1, 2), samples["act"]

    def update(self, td_errors: th.Tensor) -> None:
        for buffer, indices, errors in zip(self.buffer, self.indices, td_errors.abs().chunk(N_ENVS), strict=True):
            buffer.update_priorities(indices, errors.numpy())


class Entry(NamedTuple):
    """A line of the table."""

    title: str
    package: str
    expected_bytes: int  # a transition; tells beforehand what fits
    make: Callable[[int], Contestant]


OPTIMIZED: dict[str, Any] = {"optimize_memory_usage": True, "handle_timeout_termination": False}
EXTRA, EXTRA_PATH = "sb3-extra-buffers", "sb3_extra_buffers.compressed.CompressedReplayBuffer"
LZ4: dict[str, Any] = {"path": EXTRA_PATH, "compression_method": "lz4-frame/1"}
ZSTD: dict[str, Any] = {"path": EXTRA_PATH, "compression_method": "zstd-3"}
ENTRIES = {
    "ours": Entry("one frame", "sb3-per-dqn", FRAME + 150, Ours),
    "ours-compressed": Entry("one frame, LZ4", "sb3-per-dqn", 1500, partial(Ours, compress_frames=True)),
    "sb3": Entry("whole stacks", "stable-baselines3", 2 * STACK + 20, SB3),
    "sb3-optimized": Entry("optimized", "stable-baselines3", STACK + 20, partial(SB3, **OPTIMIZED)),
    "extra-lz4": Entry("lz4-frame/1", EXTRA, 2500, partial(SB3, **LZ4)),
    "extra-lz4-optimized": Entry("lz4-frame/1, optimized", EXTRA, 1300, partial(SB3, **LZ4, **OPTIMIZED)),
    "extra-zstd-optimized": Entry("zstd-3, optimized", EXTRA, 20_000, partial(SB3, **ZSTD, **OPTIMIZED)),
    "torchrl": Entry("whole stacks", "torchrl", 2 * STACK + 50, TorchRL),
    "torchrl-frames": Entry("two frames", "torchrl", 2 * FRAME + 60, TorchRLFrames),
    "tianshou": Entry("one frame", "tianshou", FRAME + 60, Tianshou),
    "cpprb": Entry("one frame, whole stacks at ends", "cpprb", 2 * FRAME, Cpprb),
}
PEERS = [name for name in ENTRIES if name != "ours"]


def check_stacks(contestant: Contestant, recording: Recording) -> str:
    """
    Play the recording into a ring of ``CHECKED_SLOTS``, and draw at its end and on into the next time round.

    :return: "right", or the shares of the drawn transitions that had a wrong stack, by where they are
    """
    rows, arrays = CHECKED_SLOTS // N_ENVS, recording.arrays
    drawn, wrong = Counter[str](), Counter[str]()
    for time_step in range(recording.steps + rows // 2):
        contestant.add(contestant.arrange(recording[time_step]))
        if time_step < recording.steps - rows:
            continue
        obs, next_obs, actions = (tensor.numpy() for tensor in contestant.sample(32))
        if contestant.prioritized:
            contestant.update(th.randn(32))
        t, envs = np.divmod(actions.reshape(-1), N_ENVS)
        true_obs, true_next_obs = map(channels_first, recording.stacks(t, envs))
        truncated, done = arrays["truncated"][t, envs], arrays["done"][t, envs]
        right = (next_obs == true_next_obs).all(axis=(1, 2, 3)) | (done & ~truncated)
        right &= (obs == true_obs).all(axis=(1, 2, 3))

        since = (time_step - t) % recording.steps
        where = np.where(arrays["age"][t, envs] < 3, "in first 3 steps", "elsewhere")
        where = np.where(truncated, "at time limits", where)
        where = np.where((since == 0) | (since >= rows - 3), "newest and oldest 3", where)
        drawn.update(where.tolist())
        wrong.update(where[~right].tolist())
    faults = [f"{wrong[place] / drawn[place]:.1%} {place}" for place in sorted(wrong)]
    return "wrong: " + ", ".join(faults) if faults else "right"


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def play(contestant: Contestant, recording: Recording, time_steps: range) -> Times:
    """
    :param time_steps: an add for each, with batches of all sizes in turn
    :return: microseconds of every operation
    """
    times: Times = {column: [] for column in COLUMNS}

    def timed(column: str, function: Callable[[Any], object], argument: Any) -> None:
        start = time.perf_counter_ns()
        function(argument)
        times[column].append((time.perf_counter_ns() - start) / 1000)

    for time_step in time_steps:
        batch = BATCHES[time_step % len(BATCHES)]
        timed("add", contestant.add, contestant.arrange(recording[time_step]))
        timed(f"sample {batch}", contestant.sample, batch)
        if contestant.prioritized:
            timed(f"update {batch}", contestant.update, th.randn(batch))
    return times


def serve(name: str, slots: int, recording_path: str) -> None:
    """A contestant's process: fill the buffer, then answer each line of standard input (time steps) with times."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else a library prints goes elsewhere
    limit = int(psutil.virtual_memory().available - OVERHEAD / 2)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    np.random.seed(0)
    th.manual_seed(0)
    with np.load(recording_path) as arrays:
        recording = Recording(dict(arrays))
    make, rows = ENTRIES[name].make, slots // N_ENVS
    try:
        play(make(16 * N_ENVS), recording, range(32))  # so that the library's own memory is not counted
        before = resident_bytes()
        contestant = make(slots)
        for time_step in range(rows):
            contestant.add(contestant.arrange(recording[time_step]))
    except (ImportError, MemoryError) as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"}), file=answers)
        return
    facts: dict[str, Any] = {"resident": resident_bytes() - before, "own": contestant.own_count()}
    facts["process"] = resident_bytes()
    facts["stacks"] = check_stacks(make(CHECKED_SLOTS), recording)
    package = ENTRIES[name].package
    is_ours = package == ENTRIES["ours"].package  # which need not be installed
    facts["version"] = importlib.import_module("sb3_per_dqn").__version__ if is_ours else metadata.version(package)
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(play(contestant, recording, range(rows, rows := rows + int(line)))), file=answers)


class Process:
    """
    The other end of ``serve``.

    :raises RuntimeError: from its methods, if the process cannot go on
    """

    def __init__(self, name: str, slots: int, recording_path: str, python: str = sys.executable) -> None:
        command = [python, "-m", "benchmarks.replay", "--serve", name, str(slots), recording_path]
        pipe, repository = subprocess.PIPE, Path(__file__).parents[1]
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=repository)
        self.facts: dict[str, Any] = self._answer()
        if "failed" in self.facts:
            raise RuntimeError(self.facts["failed"])

    def turn(self, time_steps: int) -> Times:
        assert self.popen.stdin is not None
        print(time_steps, file=self.popen.stdin, flush=True)
        times: Times = self._answer()
        return times

    def close(self) -> None:
        self.popen.communicate()  # the end of its input ends it

    def _answer(self) -> Any:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"stopped with exit code {self.popen.wait()}")
        return json.loads(line)


def medians(turns: Iterable[Times]) -> dict[str, float]:
    pooled = {column: [microseconds for times in turns for microseconds in times[column]] for column in COLUMNS}
    return {column: float(np.median(times)) for column, times in pooled.items() if times}


class Row(NamedTuple):
    """Measurements of one contestant with one number of slots."""

    facts: dict[str, Any]
    medians: dict[str, float]  # microseconds, by column
    relative: dict[str, float]  # the same over the reference's of the same minutes


def measure(name: str, slots: int, reference: Process, args: argparse.Namespace, recording_path: str) -> Row | str:
    """
    :return: the measurements, or why there are none
    """
    entry = ENTRIES[name]
    needed = entry.expected_bytes * slots
    if needed + OVERHEAD > psutil.virtual_memory().available:
        return f"needs {needed / 1e9:.0f} GB, does not fit"
    try:
        process = Process(name, slots, recording_path, args.python.get(entry.package, sys.executable))
        turns = [(process.turn(args.steps), reference.turn(args.steps)) for _ in range(args.rounds + 1)]
        process.close()
    except (RuntimeError, OSError) as error:
        return str(error)
    its_medians, reference_medians = (medians(side) for side in zip(*turns[1:], strict=True))  # the first warms up
    relative = {column: median / reference_medians[column] for column, median in its_medians.items()}
    return Row(process.facts, its_medians, relative)


def table_row(name: str, slots: int, row: Row | str, ours: Row | str) -> str:
    entry = ENTRIES[name]
    if isinstance(row, str):
        cells = [entry.package, entry.title, row, *[""] * (len(COLUMNS) + 3)]
    else:
        own = f"{row.facts['own'] / slots:,.0f}" if row.facts["own"] else "–"
        cells = [f"{entry.package} {row.facts['version']}", entry.title, f"{row.facts['resident'] / slots:,.0f}", own]
        cells.append(f"{row.facts['process'] / 1e9:.2f}")
        for column in COLUMNS:
            cell = f"{row.medians[column]:,.0f}" if column in row.medians else "–"
            if column in row.medians and isinstance(ours, Row):
                cell += f" ({row.relative[column] / ours.relative[column]:.2f})"
            cells.append(cell)
        cells.append(row.facts["stacks"])
    return "| " + " | ".join([f"{slots:,}", *cells]) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[2**17, 2**20], help="(default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contestant (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="time steps in a turn (default %(default)s)")
    parser.add_argument("--recorded", type=int, default=2000, help="time steps of the recording (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS, help="these, and our own")
    parser.add_argument("--python", nargs="+", default=[], metavar="PACKAGE=PATH", help="interpreters, see above")
    args = parser.parse_args()
    args.python = dict(text.split("=", 1) for text in args.python)
    if not args.python.keys() <= {entry.package for entry in ENTRIES.values()}:
        parser.error(f"--python {' '.join(args.python)}: must be {', '.join(e.package for e in ENTRIES.values())}")
    if args.recorded <= CHECKED_SLOTS // N_ENVS:
        parser.error(f"--recorded {args.recorded}: must be above {CHECKED_SLOTS // N_ENVS}")
    if args.rounds < 1 or args.steps < 2:
        parser.error(f"--rounds {args.rounds} --steps {args.steps}: must be 1 and 2, or more")
    if any(slots % N_ENVS or slots < 16 * N_ENVS for slots in args.slots):
        parser.error(f"--slots {args.slots}: must be multiples of {N_ENVS} from {16 * N_ENVS} on")

    from benchmarks.priorities import machine, versions  # needs this package, which is not installed beside all others

    print(f"Medians in µs (in brackets: times ours), {args.rounds} turns of {args.steps} time steps, ", end="")
    print(f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads;")
    print(f"{datetime.date.today().isoformat()}, {machine()}; {versions()}\n")
    print(
        "| slots | package | setting | bytes a transition | its own count | process GB | "
        + " | ".join(COLUMNS)
        + " | stacks |"
    )
    print("|---:|---|---|---:|---:|---:|" + "---:|" * len(COLUMNS) + "---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "recording.npz")
        np.savez(path, **record(args.recorded))  # type: ignore[arg-type]  # mypy thinks of allow_pickle
        reference = Process("ours", args.slots[0], path)
        for slots in args.slots:
            ours = measure("ours", slots, reference, args, path)
            print(table_row("ours", slots, ours, ours), flush=True)
            for name in args.only:
                print(table_row(name, slots, measure(name, slots, reference, args, path), ours), flush=True)
        reference.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
