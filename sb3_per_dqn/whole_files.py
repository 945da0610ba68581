"""Files that are written to the disk before they are relied upon, and read only if they are what they should be."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sha256(data: Any) -> str:
    """
    :param data: bytes, or a buffer of them
    :return: their checksum, in hexadecimal digits
    """
    return hashlib.sha256(data).hexdigest()


def write_file(path: Path, data: Any) -> None:
    """
    :param path: of a file, which is made or overwritten
    :param data: bytes, on the disk when this returns
    :raises OSError: if that fails
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Write a file beside its place, sync it, and rename it: it is there as a whole, or what was there stays. Of several
    that write it at the same time, each has a file of its own beside it, and the last to finish stays.

    :param path: of a file, which is made or replaced
    :yield: where to write it
    :raises OSError: if that fails
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        descriptor = os.open(beside, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def read_file(path: Path, error: type[ValueError], at_most: int | None = None) -> bytes:
    """
    :param path: of an ordinary file; a link is none
    :param error: what to raise
    :param at_most: bytes that it may have
    :return: what is in it
    :raises error: if it is missing, no ordinary file, too large, or cannot be read
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise error(f"{path} is missing, or no ordinary file.")
        if at_most is not None and path.stat().st_size > at_most:
            raise error(f"{path} is larger than {at_most} bytes.")
        return path.read_bytes()
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason}.") from reason


def sync_folder(folder: Path) -> None:
    """
    :param folder: whose list of files is on the disk when this returns
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
