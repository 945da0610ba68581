"""How the state of a replay buffer's frames is kept: rings in parts, of which only new ones are written."""

from typing import Any

import numpy as np

from sb3_per_dqn.checkpoint.state import KIND, StateError, Tree, captured, handle, restored
from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.frame_ring import CompressedFrames, RawFrames
from sb3_per_dqn.replay.frame_store import FrameLayout
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer

OF_COMPRESSED = ("_open", "_open_group", "_coded", "_code_nbytes")


def captured_buffer(buffer: Any) -> Tree:
    """
    :param buffer: any replay buffer of SB3's kind
    :return: its state
    """
    layouts = buffer.layouts if isinstance(buffer, PrioritizedReplayBuffer) else None
    return {"layouts": layouts, "contents": captured(buffer)}


def restore_buffer(buffer: Any, tree: Tree) -> None:
    """
    :param buffer: made with the same arguments as the captured one
    :param tree: from ``captured_buffer``
    :raises StateError: if it does not fit
    """
    if isinstance(buffer, PrioritizedReplayBuffer):
        buffer.reset()
        buffer.allocate(tree["layouts"])
    restored(buffer, tree["contents"])
    if isinstance(buffer, DeviceReplayBuffer):
        buffer.to(buffer.device)


def _check_layout(layout: FrameLayout, tree: Tree) -> None:
    if [layout.axis, layout.depth] != tree:
        raise StateError(f"observations are stacks along axis {layout.axis}, {layout.depth} deep, and not {tree}")


def _restore_raw(ring: RawFrames, tree: Tree) -> None:
    frames = tree["value"]
    if (frames.shape, frames.dtype) != (ring._frames.shape, ring._frames.dtype):
        raise StateError(f"frames of shape {frames.shape}, {frames.dtype}, for {ring._frames.shape}")
    restored(ring._frames, frames)
    ring.written = tree["written"]


def _captured_compressed(ring: CompressedFrames) -> Tree:
    codes = ring._codes.ravel().tolist()
    return {
        "lengths": np.array([-1 if code is None else len(code) for code in codes]),
        "codes": np.frombuffer(b"".join(code for code in codes if code is not None), dtype=np.uint8),
        "rest": {name: captured(getattr(ring, name)) for name in OF_COMPRESSED},
    }


def _restore_compressed(ring: CompressedFrames, tree: Tree) -> None:
    lengths, codes = tree["lengths"], tree["codes"].tobytes()
    if lengths.shape != (ring._codes.size,) or lengths.clip(min=0).sum() != len(codes):
        raise StateError(f"{len(codes)} bytes of frames in {lengths.shape} codes, for {ring._codes.size}")
    ends = np.cumsum(lengths.clip(min=0)).tolist()
    parts = zip(lengths.tolist(), ends, strict=True)
    ring._codes.reshape(-1)[:] = [None if length < 0 else codes[end - length : end] for length, end in parts]
    for name in OF_COMPRESSED:
        setattr(ring, name, restored(getattr(ring, name), tree["rest"][name]))


handle(FrameLayout, lambda layout: [layout.axis, layout.depth], _check_layout)
handle(RawFrames, lambda ring: {KIND: "ring", "value": ring._frames, "written": ring.written}, _restore_raw)
handle(CompressedFrames, _captured_compressed, _restore_compressed)
