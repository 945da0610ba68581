"""
How small do Atari frames get, and what does it cost to read them?

``python -m benchmarks.compression BreakoutNoFrameskip-v4`` plays the game, keeps blocks of consecutive frames, and
prints a markdown table of codecs that code some consecutive frames of one environment together. For each of them:

- bytes a frame: the code itself (mean, 99th percentile of the groups), and what a process grows by for each frame
  that it holds, Python's objects and the allocator's rounding included;
- microseconds to encode one frame;
- microseconds to read a batch of 32 transitions, 5 consecutive frames each (the stacks of 4 before and after a step),
  into one preallocated array. All codecs read the same batches, in turns and in random order, and every batch is
  compared with what was recorded.

Breakout is played by following the ball, with 0 to 30% random actions; other games with actions that are held for three
steps on average. The codecs are optional: ``pip install lz4 zstandard blosc2 cramjam isal``.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.priorities import machine, positive
from sb3_per_dqn.atari import make_atari_vec_env

Frames = npt.NDArray[np.uint8]  # (any, 84, 84)
FRAME, PIXELS = (84, 84), 84 * 84
ENVS, BLOCK = 8, 64  # a block is one environment's consecutive frames
BATCH, SPAN = 32, 5

HOLD = """
import sys, numpy, psutil
count, sizes = int(sys.argv[1]), [int(size) for size in sys.stdin.read().split()]
before = psutil.Process().memory_info().rss
codes = numpy.empty(count, dtype=object)
for index in range(count):
    codes[index] = b"x" * sizes[index % len(sizes)]
print(psutil.Process().memory_info().rss - before)
"""


class Codec(NamedTuple):
    """``encode`` takes (frames, 84, 84) and gives bytes; ``decode`` gives the pixels back, as any buffer."""

    name: str
    frames: int
    encode: Callable[[Frames], bytes]
    decode: Callable[[bytes], Any]


def lz4_codecs() -> Iterator[Codec]:
    lz4 = import_module("lz4.block")
    slow = {"mode": "high_compression", "compression": 4}
    for name, frames, mode in (("", 1, {}), ("", 4, {}), ("", 8, {}), (", high compression 4", 8, slow), ("", 16, {})):
        decode = partial(lz4.decompress, uncompressed_size=frames * PIXELS)
        yield Codec("lz4" + name, frames, partial(lz4.compress, store_size=False, **mode), decode)


def zstandard_codecs() -> Iterator[Codec]:
    zstandard = import_module("zstandard")
    decode = zstandard.ZstdDecompressor().decompress
    for level, frames in ((3, 1), (3, 8), (10, 8), (3, 16)):
        yield Codec(f"zstandard {level}", frames, zstandard.ZstdCompressor(level=level).compress, decode)


def blosc2_codecs() -> Iterator[Codec]:
    blosc2 = import_module("blosc2")
    blosc2.set_nthreads(1)
    slow = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [blosc2.Filter.NOFILTER], "typesize": 1}
    yield Codec("blosc2 LZ4HC 5", 8, partial(blosc2.compress2, **slow), into_array(blosc2.decompress2, 8))


def cramjam_codecs() -> Iterator[Codec]:
    lz4 = import_module("cramjam").lz4
    encode = partial(lz4.compress_block, store_size=False)
    yield Codec("cramjam lz4", 8, lambda frames: bytes(encode(frames)), into_array(lz4.decompress_block_into, 8))


def into_array(decompress: Callable[[bytes, Frames], object], frames: int) -> Callable[[bytes], Frames]:
    pixels = np.empty(frames * PIXELS, dtype=np.uint8)

    def decode(code: bytes) -> Frames:
        decompress(code, pixels)
        return pixels

    return decode


def isal_codecs() -> Iterator[Codec]:
    isal = import_module("isal.isal_zlib")
    yield Codec("isal, zlib's format, 1", 8, lambda frames: isal.compress(frames, 1), isal.decompress)


def record(env_id: str, blocks: int, pause: int) -> Frames:
    """
    :param blocks: number of blocks to keep of each environment
    :param pause: steps that are played and not kept before each block
    :return: shape (blocks * ENVS, BLOCK, 84, 84)
    """
    rng = np.random.default_rng(0)
    env = make_atari_vec_env(env_id, ENVS, seed=0, frame_stack=1, vec_env_cls=DummyVecEnv)
    emulators = [game.unwrapped.ale for game in env.unwrapped.envs]  # type: ignore[attr-defined]
    n_actions = env.action_space.n  # type: ignore[attr-defined]
    follows_ball = "Breakout" in env_id
    actions = np.zeros(ENVS, dtype=np.int64)
    randomness = np.linspace(0, 0.3, ENVS) if follows_ball else np.full(ENVS, 1 / 3)
    env.reset()
    kept = []
    for step in range(blocks * (pause + BLOCK)):
        if follows_ball:
            memory = np.array([emulator.getRAM() for emulator in emulators], dtype=np.int64)
            ahead = memory[:, 99] - memory[:, 72] - 8  # how far the ball is to the right of the paddle
            actions = np.select([ahead > 3, ahead < -3], [2, 3], 0)
        actions = np.where(rng.random(ENVS) < randomness, rng.integers(n_actions, size=ENVS), actions)
        frames: Any = env.step(actions)[0]
        if step % (pause + BLOCK) >= pause:
            kept.append(frames[..., 0].copy())
    env.close()
    recorded: Frames = np.stack(kept).reshape(blocks, BLOCK, ENVS, *FRAME).swapaxes(1, 2).reshape(-1, BLOCK, *FRAME)
    return recorded


class Store:
    """Frames in code, with ``copies`` of each, so that the processor's caches help no more than in a large buffer."""

    def __init__(self, codec: Codec, recorded: Frames, copies: int) -> None:
        self.codec, self.encode_us, self.sample_us = codec, list[float](), list[float]()
        codes = [self._encode(group) for group in recorded.reshape(-1, codec.frames, *FRAME)]
        self.codes = np.empty(len(codes) * copies, dtype=object)
        for index in range(len(self.codes)):
            # A copy takes no more than it needs; zstandard's own result ends a block sized for the worst case.
            self.codes[index] = bytes(memoryview(codes[index % len(codes)]))
        self.sizes = np.array([len(code) for code in codes])

    def _encode(self, group: Frames) -> bytes:
        start = time.perf_counter_ns()
        code = self.codec.encode(group)
        self.encode_us.append((time.perf_counter_ns() - start) / 1000 / len(group))
        return code

    def held_per_frame(self) -> float:
        """What a fresh process grows by for each frame, when it holds as much as this store."""
        sizes = " ".join(str(size) for size in self.sizes)
        command = [sys.executable, "-c", HOLD, str(len(self.codes))]
        grown = subprocess.run(command, input=sizes, capture_output=True, text=True, check=True).stdout
        return int(grown) / len(self.codes) / self.codec.frames

    def sample(self, starts: list[int], out: Frames) -> None:
        """Read the SPAN frames from each start (counted through all copies) into ``out``, (BATCH, SPAN, 84, 84)."""
        length, decode = self.codec.frames, self.codec.decode
        for start, frames in zip(starts, out, strict=True):
            done = 0
            while done < SPAN:
                group, first = divmod(start + done, length)
                part = np.frombuffer(decode(self.codes[group]), np.uint8).reshape(length, *FRAME)[first:][: SPAN - done]
                frames[done : done + len(part)] = part
                done += len(part)


def measure(stores: list[Store], recorded: Frames, copies: int, repeats: int) -> None:
    """Sample from all stores in turns, and check what comes back."""
    rng = np.random.default_rng(1)
    frames = recorded.reshape(-1, *FRAME)  # all copies repeat these
    out = np.empty((BATCH, SPAN, *FRAME), dtype=np.uint8)
    for _ in range(repeats):
        starts = rng.integers(len(recorded) * copies, size=BATCH) * BLOCK + rng.integers(BLOCK - SPAN + 1, size=BATCH)
        expected = frames[(starts[:, None] + np.arange(SPAN)) % len(frames)]
        for index in rng.permutation(len(stores)):
            store = stores[index]
            begin = time.perf_counter_ns()
            store.sample(starts.tolist(), out)
            store.sample_us.append((time.perf_counter_ns() - begin) / 1000)
            assert np.array_equal(out, expected), store.codec.name


def main() -> None:
    """Record, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", default="BreakoutNoFrameskip-v4")
    parser.add_argument("--blocks", type=positive, default=8, help="of each environment (default %(default)s)")
    parser.add_argument("--pause", type=positive, default=448, help="steps before each block (default %(default)s)")
    parser.add_argument("--copies", type=positive, default=24, help="of every frame, to be held (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=100, help="batches for each (default %(default)s)")
    args = parser.parse_args()

    recorded = record(args.env_id, args.blocks, args.pause)
    uncompressed = Codec("uncompressed", 8, lambda frames: frames.tobytes(), lambda code: code)
    stores = [Store(uncompressed, recorded, args.copies)]
    versions = [f"Python {platform.python_version()}"]
    for codecs in (lz4_codecs, zstandard_codecs, blosc2_codecs, cramjam_codecs, isal_codecs):
        package = codecs.__name__.removesuffix("_codecs")
        try:
            stores += [Store(codec, recorded, args.copies) for codec in codecs()]
            versions.append(f"{package} {metadata.version(package)}")
        except ImportError:
            versions.append(f"{package} is not installed")
    measure(stores, recorded, args.copies, args.repeats)

    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{args.env_id}: {recorded[..., 0, 0].size} frames, each held {args.copies} times;")
    print(f"medians of {args.repeats} batches of {BATCH} transitions in turns, {threads} threads;")
    print(f"{datetime.date.today().isoformat()}, {machine()}; {', '.join(versions)}\n")
    print("| codec | frames together | bytes a frame | 99% | held | encode µs a frame | batch µs (lowest) |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for store in stores:
        name, length = store.codec.name, store.codec.frames
        mean, p99 = np.mean(store.sizes) / length, np.percentile(store.sizes, 99) / length
        sizes = f"{mean:.0f} | {p99:.0f} | {store.held_per_frame():.0f}"
        times = f"{np.median(store.encode_us):.1f} | {np.median(store.sample_us):.0f} ({min(store.sample_us):.0f})"
        print(f"| {name} | {length} | {sizes} | {times} |")


if __name__ == "__main__":
    main()
