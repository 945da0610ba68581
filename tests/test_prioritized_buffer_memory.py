"""What the prioritized buffer refuses, on which device it is, and how much memory it takes."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch as th
from gymnasium import spaces

from sb3_per_dqn import PrioritizedReplayBuffer
from sb3_per_dqn.replay import memory as memory_module
from sb3_per_dqn.replay import prioritized_buffer
from sb3_per_dqn.replay.memory import available_memory
from tests.pair_buffers import PAIR_SPACE, filled_buffer, pair_buffer, relative_priorities

META = th.device("meta")  # a device that is not the CPU, on every machine


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.6", None, True])
def test_bad_alpha(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"^alpha=.*\[0, 1\]"):
        pair_buffer(4, alpha=alpha)


@pytest.mark.parametrize("eps", [0.0, -1e-6, math.nan, math.inf, "1e-6", None])
def test_bad_eps(eps: Any) -> None:
    with pytest.raises(ValueError, match=r"^eps=.*above 0"):
        pair_buffer(4, eps=eps)


@pytest.mark.parametrize("argument", ["single_frames", "compress_frames"])
@pytest.mark.parametrize("value", [0, 1, np.False_, "yes"])
def test_a_switch_is_a_bool(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument}="):
        pair_buffer(4, **{argument: value})


@pytest.mark.parametrize("value", ["all", None, True])
def test_bad_normalization(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^normalize_weights=.*memory or batch"):
        pair_buffer(4, normalize_weights=value)


def test_weights_of_the_batch_need_no_third_tree() -> None:
    of_memory, of_batch = filled_buffer(1000), filled_buffer(1000, normalize_weights="batch")
    assert of_batch.nbytes <= of_memory.nbytes - 8 * 1000


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_bad_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta={beta}"):
        filled_buffer(4).sample(2, beta=beta)


def test_bad_batch_size_and_empty_buffer() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        filled_buffer(4).sample(0)
    with pytest.raises(ValueError, match="empty"):
        pair_buffer(4).sample(2)


def test_updates_that_name_nothing_are_refused() -> None:
    buffer = filled_buffer(4, 2)
    before = relative_priorities(buffer)
    for serial in (-1, 4, 2**40):
        with pytest.raises(IndexError, match="never stored"):
            buffer.update_priorities(np.array([0, serial]), np.ones(2))
    with pytest.raises(ValueError, match="3 elements for 2 indices"):
        buffer.update_priorities(np.array([0, 1]), np.ones(3))
    assert relative_priorities(buffer) == before
    buffer.update_priorities(np.array([], dtype=np.int64), np.array([]))
    assert relative_priorities(buffer) == before


# --------------------------------------------------------------------------------------------------- device and memory


@pytest.mark.parametrize("space", [PAIR_SPACE, spaces.Dict({"pair": PAIR_SPACE})])
def test_every_tensor_of_a_batch_is_on_the_buffers_device(space: spaces.Space[Any]) -> None:
    buffer = PrioritizedReplayBuffer(10, space, spaces.Discrete(2), META)
    obs: Any = np.zeros((1, 2), dtype=np.float32)
    obs = {"pair": obs} if isinstance(space, spaces.Dict) else obs
    buffer.add(obs, obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    batch = buffer.sample(4)
    tensors = [batch.actions, batch.rewards, batch.dones, batch.weights]
    for observations in (batch.observations, batch.next_observations):
        tensors += observations.values() if isinstance(observations, dict) else [observations]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


ZEROS = np.zeros((2, 2), dtype=np.float32)
STEP: Any = (
    ZEROS,
    ZEROS + np.array([[1, 2], [3, 4]]),
    np.zeros(2),
    np.zeros(2),
    np.zeros(2),
    [{}, {}],
)
# Of each transition: two observations of two floats, a leaf in each of three trees (25 with what stands above them),
# the action (8), reward, done and timeout (12)
NBYTES = 16 + 25 + 8 + 12


def memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: available)


def test_memory_that_will_not_fit_is_refused_before_anything_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a size that would fit; a run that needs less than a full buffer is let through."""
    memory(monkeypatch, 10_000)
    buffer = pair_buffer(2000, 2)
    needs, fits = 2000 * NBYTES / 1e9, (10_000 // (2 * NBYTES) - 16) * 2
    message = (
        f"^buffer_size=2000 needs {needs:.3g} GB of memory, of which 1e-05 GB are available: buffer_size={fits} would"
    )
    with pytest.raises(ValueError, match=message):
        buffer.add(*STEP)
    with pytest.raises(ValueError, match=message):
        pair_buffer(2000, 2, single_frames=False).expect(2000)  # the other has forgotten that these are no stacks
    assert buffer.size() == 0
    assert not hasattr(buffer, "rewards")
    buffer.expect(10_000 // NBYTES)
    buffer.add(*STEP)
    fitting = pair_buffer(fits, 2)
    fitting.add(*STEP)
    assert fitting.nbytes < 10_000 + 3 * 256 * 8  # trees have whole blocks
    memory(monkeypatch, 100)
    with pytest.raises(ValueError, match="are available: free some memory"):
        pair_buffer(2000, 2).add(*STEP)


@pytest.mark.parametrize("buffer_size", [10**13, 10**30])
def test_priorities_that_no_system_has_memory_for_are_refused(buffer_size: int) -> None:
    with pytest.raises(ValueError, match=f"^buffer_size={buffer_size}: its priorities alone"):
        pair_buffer(buffer_size).expect(100)


def test_an_empty_buffer_from_a_file_holds_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 1000)
    with pytest.raises(ValueError, match="needs"):
        pickle.loads(pickle.dumps(pair_buffer(2000))).expect(2000)


@pytest.mark.parametrize("shape", [(4,), (3, 96, 96)])
def test_memory_is_taken_when_it_is_written_to(shape: tuple[int, ...]) -> None:
    """
    What the first step makes resident, as the operating system sees it. What it reserves would be 1.4 GB for the
    vectors, and 1.1 GB for the images; only one tree of three cannot begin with zeros.
    """
    rows = 12_000_000 if shape == (4,) else 20_000
    space = spaces.Box(0, 255, shape, dtype=np.uint8)
    buffer = PrioritizedReplayBuffer(rows, space, spaces.Discrete(2), device="cpu", single_frames=False)
    observation = np.ones((1, *shape), dtype=np.uint8)
    buffer.expect(100)
    process = psutil.Process()
    before = process.memory_info().rss
    buffer.add(observation, observation, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    grown = process.memory_info().rss - before
    assert buffer.nbytes > 5e8
    assert grown < 8 * rows + 5e7


def test_a_missing_part_of_an_observation_is_named() -> None:
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Discrete(3)})
    buffer = PrioritizedReplayBuffer(4, space, spaces.Discrete(2), device="cpu")
    whole, part = {"a": np.zeros(1), "b": np.zeros(1)}, {"b": np.zeros(1)}
    for observations in ((part, whole), (whole, part)):
        with pytest.raises(ValueError, match=r"^the observation lacks a, which"):
            buffer.add(*observations, np.zeros(1), np.zeros(1), np.zeros(1), [{}])


def test_memory_that_is_held_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second run; and all of a loaded buffer is there, filled or not."""
    memory(monkeypatch, 10_000)
    buffer = pair_buffer(200, 2)
    buffer.expect(100)
    for _ in range(50):
        buffer.add(*STEP)
    buffer.expect(100)
    memory(monkeypatch, 1000)
    with pytest.raises(ValueError, match=f"needs {100 * NBYTES / 1e9:.3g} GB"):
        buffer.expect(100)
    pickle.loads(pickle.dumps(buffer)).expect(100)
    for _ in range(50):
        buffer.add(*STEP)
    buffer.expect(10**6)


def test_memory_is_asked_for_again_when_whole_arrays_become_necessary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored already is needed twice while it moves."""
    memory(monkeypatch, 10_000)
    buffer = pair_buffer(200, 2)
    buffer.expect(100)
    for _ in range(10):  # as stacks of one number each
        buffer.add(ZEROS, ZEROS, *STEP[2:])
    stacks = buffer.layouts
    needs = 100 * 16 + (100 - 20) * (NBYTES - 16)
    memory(monkeypatch, needs - 1)
    with pytest.raises(ValueError, match=f"needs {needs / 1e9:.3g} GB"):
        buffer.add(*STEP)
    assert buffer.size() == 10
    assert buffer.layouts == stacks
    buffer.expect(80)  # as stacks, which fit
    memory(monkeypatch, needs)
    buffer.add(*STEP)
    assert buffer.size() == 11


def test_what_a_buffer_before_has_left_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps it for the next one: to the driver it is taken."""
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda device: (1000, 24_000))
    monkeypatch.setattr(th.cuda, "memory_reserved", lambda device: 8000)
    monkeypatch.setattr(th.cuda, "memory_allocated", lambda device: 500)
    assert available_memory(th.device("cuda")) == 8500


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "CGROUP", tmp_path)
    everything = available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == pytest.approx(everything, rel=0.2)
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("8000\n")
    (tmp_path / "memory.stat").write_text("anon 7000\ninactive_file 500\nactive_file 100\n")
    assert available_memory() == 1500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"single_frames": "no"}, "^single_frames='no' must be True, False or None"),
        ({"compress_frames": "lz4"}, "^compress_frames='lz4' must be True or False"),
        ({"compress_frames": True, "single_frames": False}, "^compress_frames=True compresses single frames"),
        ({"n_steps": 0}, "^n_steps=0 must be a whole number"),
        ({"n_steps": 2.5}, "^n_steps=2.5 must be a whole number"),
        ({"gamma": 1.5}, r"^gamma=1.5 must be a number in \[0, 1\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_buffer(10, **arguments)


@pytest.mark.parametrize(
    ("position", "wrong"),
    [(2, np.array(["left", "right"])), (3, np.array(["much", "more"])), (3, np.zeros(3)), (5, [{}])],
)
def test_a_refused_step_leaves_no_trace(position: int, wrong: Any) -> None:
    buffer = pair_buffer(10, 2)
    buffer.add(*STEP)
    before = pickle.dumps(buffer)
    step = list(STEP)
    step[position] = wrong
    with pytest.raises(ValueError, match=r".+"):
        buffer.add(*step)
    assert pickle.dumps(buffer) == before


def test_an_entry_that_is_refused_leaves_no_trace_in_another() -> None:
    """What contradicts the stacks of the one comes with a step that the other refuses."""
    space = spaces.Dict({"frames": spaces.Box(0, 255, (4, 6, 6), np.uint8), "vector": spaces.Box(0, 1, (2,))})
    buffer = PrioritizedReplayBuffer(10, space, spaces.Discrete(2), device="cpu")
    rest = np.zeros(1), np.zeros(1), np.zeros(1), [{}]
    still = {"frames": np.full((1, 4, 6, 6), 7, np.uint8), "vector": np.zeros((1, 2), np.float32)}
    buffer.add(still, still, *rest)
    before = pickle.dumps(buffer)
    no_stack = np.arange(144, dtype=np.uint8).reshape(1, 4, 6, 6)
    with pytest.raises(ValueError, match="has the shape"):
        buffer.add(still, {"frames": no_stack, "vector": np.zeros((1, 3))}, *rest)
    assert pickle.dumps(buffer) == before
    buffer.add(still, still, *rest)
    assert buffer.layouts["frames"][0] == [0, 4]
