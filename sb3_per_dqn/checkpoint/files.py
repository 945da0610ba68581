"""
Trees of plain data in a folder: JSON, safetensors and npy files, a checksum for each, and nothing ever half there.

    folder/
      blocks/<sha256>.npy        parts of large arrays, which checkpoints share
      <name>/arrays.safetensors  small arrays
      <name>/tree.json           all else; which arrays and blocks belong to it, with their checksums

A checkpoint is written beside its place, synced, and renamed. Whatever happens meanwhile, what was there before stays.
"""

import json
import math
import os
import re
import shutil
import weakref
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from sb3_per_dqn.arguments import check_whole
from sb3_per_dqn.checkpoint.state import KIND, Tree
from sb3_per_dqn.replay.memory import available_memory
from sb3_per_dqn.whole_files import read_file, sha256, sync_folder, write_file

FORMAT = "sb3-per-dqn checkpoint"
VERSION = 3
LARGE = 2**20  # bytes from which on an array is kept in blocks
BLOCK = 2**24  # bytes of a block, about
SPARE_ROWS = 2  # of a ring, that may still have been rewritten after they were counted as written
MOST_JSON = 2**30  # bytes
NAME = re.compile(r"step-(\d{12})")
BLOCK_NAME = re.compile(r"[0-9a-f]{64}")
BLOCK_FILE = re.compile(r"[0-9a-f]{64}\.npy|\.[0-9a-f]{64}\.\d+")  # and what is left of one that was being written

Array = npt.NDArray[Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read: what is wrong, and what to do."""


class CheckpointFolder:
    """
    The checkpoints of one run.

    :param folder: where they are; made when the first one is written
    :param keep: how many to keep, the newest ones
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        check_whole("keep", keep, 1)
        self.folder = Path(folder)
        self.keep = keep
        self._rings: dict[str, dict[str, Any]] = {}  # as they were written last, by place in the tree

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        names = [NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir()]
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """
        :param step: of a checkpoint
        :return: its folder
        """
        return self.folder / f"step-{step:012d}"

    # ---------------------------------------------------------------------------------------------------------- writing

    def prepare(self) -> None:
        """
        Make the folder, unless it is there.

        :raises CheckpointError: if it cannot be made, or a part of it is a link, through which files elsewhere would be
            written and removed
        """
        for path in (self.folder / "blocks", self.folder / ".lock"):
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link: remove it, or choose another folder.")
        try:
            (self.folder / "blocks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder} can hold no checkpoints ({error}): choose another folder.") from None

    def forget_after(self, step: int) -> None:
        """
        Remove later checkpoints: of a run that was resumed from an earlier one, and so takes another course.

        :param step: of the last one to keep
        """
        for later in reversed([other for other in self.steps if other > step]):
            aside = self.folder / f".old.{os.getpid()}"
            shutil.rmtree(aside, ignore_errors=True)
            self.path(later).rename(aside)  # so that it goes as a whole
            shutil.rmtree(aside, ignore_errors=True)

    def write(self, step: int, tree: Tree) -> Path:
        """
        Write a checkpoint, and then remove those beyond the newest ``keep``.

        :param step: its number; one of the same number is replaced
        :param tree: plain data and arrays; ``{"~": "ring", "value": array, "written": rows}`` is an array whose rows
            are written in turn, of which only those written since the last checkpoint are looked at
        :return: its folder
        :raises CheckpointError: if there is no room for it; what was there before is as it was
        :raises OSError: if writing fails; likewise
        """
        self.prepare()
        blocks = self.folder / "blocks"
        beside = self.folder / f".{self.path(step).name}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            arrays: dict[str, Array] = {}
            rings: dict[str, dict[str, Any]] = {}
            self._check_room(tree)
            plain = self._plain(tree, "", arrays, rings)
            write_file(beside / "arrays.safetensors", safetensors.numpy.save(arrays))
            content = {"step": step, "arrays": sha256((beside / "arrays.safetensors").read_bytes()), "tree": plain}
            text = json.dumps(content)
            head = {"format": FORMAT, "version": VERSION, "sha256": sha256(text.encode())}
            write_file(beside / "tree.json", (json.dumps(head) + "\n" + text).encode())
            sync_folder(beside)
            sync_folder(blocks)
            aside = self.folder / f".old.{os.getpid()}"
            if self.path(step).exists():  # of an earlier try that was resumed from before it
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
            beside.rename(self.path(step))
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self._rings = rings
        self._tidy_up()
        return self.path(step)

    def _check_room(self, tree: Tree) -> None:
        needed, room = self._new_nbytes(tree, ""), shutil.disk_usage(self.folder).free
        if needed > room:
            raise CheckpointError(
                f"{self.folder}: a checkpoint takes up to {needed / 1e9:.3g} GB, and {room / 1e9:.3g} GB are free."
            )

    def _new_nbytes(self, tree: Tree, path: str) -> float:
        if isinstance(tree, np.ndarray):
            return tree.nbytes
        if _is(tree, "ring"):
            array, before = tree["value"], self._ring_before(tree, path)
            if before is None:
                return int(array.nbytes)
            rows = tree["written"] - before["written"] + 2 * SPARE_ROWS
            return float(min(rows * array.nbytes / len(array) + 2 * BLOCK, array.nbytes))
        return sum(self._new_nbytes(part, f"{path}/{key}") for key, part in _children(tree))

    def _plain(self, tree: Tree, path: str, arrays: dict[str, Array], rings: dict[str, dict[str, Any]]) -> Any:
        """
        :param tree: to write
        :param path: of this part of it
        :param arrays: to which the small ones are added
        :param rings: to which what is remembered of the rings is added
        :return: the same with names in place of arrays
        """
        if isinstance(tree, np.ndarray):
            if tree.nbytes < LARGE or tree.ndim == 0:
                arrays[path] = np.array(tree, order="C")  # a copy, contiguous, also of no dimensions
                return {KIND: "small", "name": path}
            return self._large(tree, (0, len(tree)), [])
        if _is(tree, "ring"):
            return self._ring(tree, path, rings)
        if isinstance(tree, dict):
            return {key: self._plain(part, f"{path}/{key}", arrays, rings) for key, part in tree.items()}
        if isinstance(tree, list):
            return [self._plain(part, f"{path}/{i}", arrays, rings) for i, part in enumerate(tree)]
        return tree

    def _ring_before(self, tree: Tree, path: str) -> dict[str, Any] | None:
        before, array = self._rings.get(path), tree["value"]
        return before if before is not None and before["array"]() is array else None

    def _ring(self, tree: Tree, path: str, rings: dict[str, dict[str, Any]]) -> Any:
        array, written, before = tree["value"], tree["written"], self._ring_before(tree, path)
        if before is None:
            part = self._large(array, (0, len(array)), [])
        else:
            part = self._large(array, (before["written"] - SPARE_ROWS, written + SPARE_ROWS), before["blocks"])
        rings[path] = {"array": weakref.ref(array), "blocks": part["blocks"], "written": written}
        return {KIND: "ring", "value": part, "written": written}

    def _large(self, array: Array, changed: tuple[int, int], blocks_before: list[str]) -> dict[str, Any]:
        """
        :param array: to write
        :param changed: first and last row, as counted round and round, that may differ from what was written before
        :param blocks_before: names of the blocks then
        :return: what is to stand in the tree
        """
        array = np.ascontiguousarray(array)
        rows = max(BLOCK * len(array) // array.nbytes, 1)  # of a block
        blocks = []
        for i, first in enumerate(range(0, len(array), rows)):
            last = min(first + rows, len(array))
            if i < len(blocks_before) and not _overlap(first, last, *changed, len(array)):
                blocks.append(blocks_before[i])
            else:
                blocks.append(self._write_block(array[first:last]))
        return {KIND: "large", "shape": list(array.shape), "dtype": array.dtype.str, "rows": rows, "blocks": blocks}

    def _write_block(self, block: Array) -> str:
        file = BytesIO()
        np.save(file, block, allow_pickle=False)
        name = sha256(file.getbuffer())
        path = self.folder / "blocks" / f"{name}.npy"
        if not path.exists():
            beside = path.with_name(f".{name}.{os.getpid()}")
            write_file(beside, file.getbuffer())
            beside.rename(path)
        return name

    def _tidy_up(self) -> None:
        """Remove old checkpoints, what was left of broken ones, and blocks that none needs any more."""
        steps = self.steps
        for step in steps[: -self.keep]:
            shutil.rmtree(self.path(step), ignore_errors=True)
        for entry in [*self.folder.glob(".step-*"), *self.folder.glob(".old.*")]:
            shutil.rmtree(entry, ignore_errors=True)
        try:
            kept = {name for step in steps[-self.keep :] for name in _blocks_of(self._read_tree(step)["tree"])}
        except CheckpointError:  # then nobody knows which blocks it needs
            return
        for block in (self.folder / "blocks").iterdir():
            if BLOCK_FILE.fullmatch(block.name) and block.stem not in kept and not block.is_dir():
                block.unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------------------------- reading

    def read(self, step: int | None = None) -> tuple[int, Tree]:
        """
        :param step: of a checkpoint; ``None`` takes the newest
        :return: its step, and its tree; large arrays are read when ``load`` is called on them
        :raises CheckpointError: if there is none, or it is damaged, or not what it should be
        """
        steps = self.steps
        if not steps:
            raise CheckpointError(f"{self.folder}: no checkpoint here.")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step}; there are {steps}.")
        content = self._read_tree(step)
        file = self.path(step) / "arrays.safetensors"
        raw = self._read(file, step)
        if sha256(raw) != content["arrays"]:
            raise CheckpointError(f"{file} is damaged: its checksum is another. {self._way_out(step)}")
        try:
            arrays = safetensors.numpy.load(raw)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{file} is damaged: {error}. {self._way_out(step)}") from None
        try:
            self._check_memory(content["tree"])
            return step, self._filled(content["tree"], arrays)
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError, OverflowError, MemoryError) as error:
            what = str(error) if isinstance(error, CheckpointError) else f"{self.path(step)} is damaged: {error!r}."
            raise CheckpointError(f"{what} {self._way_out(step)}") from None

    def _read_tree(self, step: int) -> dict[str, Any]:
        file = self.path(step) / "tree.json"
        head_line, _, text = self._read(file, step, MOST_JSON).partition(b"\n")
        try:
            head = json.loads(head_line)
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise CheckpointError(f"{file} is no checkpoint of sb3-per-dqn.")
            if head.get("version") != VERSION:
                raise CheckpointError(
                    f"{file} has the format version {head.get('version')!r}, and this package reads {VERSION}: "
                    "resume with the version of the package that wrote it."
                )
            if sha256(text) != head.get("sha256"):
                raise CheckpointError(f"{file} is damaged: its checksum is another. {self._way_out(step)}")
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} is damaged: {error}. {self._way_out(step)}") from None
        if not isinstance(content, dict) or content.get("step") != step:
            raise CheckpointError(f"{file} is of another step than its folder's name says.")
        return content

    def _read(self, file: Path, step: int, at_most: int | None = None) -> bytes:
        try:
            return _read(file, at_most)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self._way_out(step)}") from None

    def _way_out(self, step: int) -> str:
        earlier = [other for other in self.steps if other < step]
        if earlier:
            return f"Delete {self.path(step)} to resume from step {earlier[-1]}."
        return "There is no earlier one."

    def _check_memory(self, plain: Any) -> None:
        needed = sum(
            math.prod(part["shape"]) * np.dtype(part["dtype"]).itemsize for part in _parts(plain) if _is(part, "large")
        )
        if needed > available_memory():
            raise CheckpointError(f"{self.folder}: needs {needed / 1e9:.3g} GB of memory, more than there is.")

    def _filled(self, plain: Any, arrays: dict[str, Array]) -> Tree:
        if _is(plain, "small"):
            return arrays[plain["name"]]
        if _is(plain, "large"):
            return self._read_large(plain)
        if isinstance(plain, dict):
            return {key: self._filled(part, arrays) for key, part in plain.items()}
        if isinstance(plain, list):
            return [self._filled(part, arrays) for part in plain]
        return plain

    def _read_large(self, part: dict[str, Any]) -> Array:
        shape, dtype, rows = tuple(part["shape"]), np.dtype(part["dtype"]), part["rows"]
        if not shape or not all(type(size) is int and size > 0 for size in (*shape, rows)) or dtype.hasobject:
            raise CheckpointError(f"{self.folder}: an array of shape {shape}, {dtype} and {rows} rows a block.")
        array = np.zeros(shape, dtype=dtype)
        names = part["blocks"]
        if len(names) != -(-shape[0] // rows):
            raise CheckpointError(
                f"{self.folder}: an array has {len(names)} blocks of {rows} rows, and {shape[0]} rows."
            )
        for i, name in enumerate(names):
            if not BLOCK_NAME.fullmatch(name):
                raise CheckpointError(f"{self.folder}: {name!r} is no name of a block.")
            raw = _read(self.folder / "blocks" / f"{name}.npy")
            if sha256(raw) != name:
                raise CheckpointError(f"{self.folder / 'blocks' / name}.npy is damaged: its checksum is another.")
            block = np.load(BytesIO(raw), allow_pickle=False)
            place = array[i * rows : (i + 1) * rows]
            if (block.shape, block.dtype) != (place.shape, place.dtype):
                raise CheckpointError(
                    f"{self.folder}: a block of shape {block.shape}, {block.dtype}, for {place.shape}."
                )
            place[...] = block
        return array


def _overlap(first: int, last: int, begin: int, end: int, size: int) -> bool:
    """
    :return: whether rows ``first`` to ``last`` of a ring of ``size`` are among those counted from ``begin`` to ``end``
    """
    if end - begin >= size:
        return True
    begin, end = begin % size, begin % size + (end - begin)
    return (first < end and begin < last) or first + size < end


def _is(part: Any, kind: str) -> bool:
    return isinstance(part, dict) and part.get(KIND) == kind


def _children(part: Any) -> Iterable[tuple[Any, Any]]:
    return part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()


def _parts(plain: Any) -> Iterator[Any]:
    yield plain
    for _, child in _children(plain):
        yield from _parts(child)


def _blocks_of(plain: Any) -> Iterator[str]:
    for part in _parts(plain):
        if _is(part, "large"):
            yield from part["blocks"]


def _read(path: Path, at_most: int | None = None) -> bytes:
    if path.parent.is_symlink():  # to a folder outside
        raise CheckpointError(f"{path} is no ordinary file: {path.parent} is a link.")
    return read_file(path, CheckpointError, at_most)
