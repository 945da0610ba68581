"""Files that grow with a run: how far they had come at a checkpoint, and back to there."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def positions(logs: Sequence[Path]) -> dict[str, int]:
    """
    :param logs: files, and folders of TensorBoard's; they need not be there
    :return: by name (the folder may be moved), how many lines of a CSV file there are, and bytes of any other
    """
    return {path.name: _lines(path) if path.suffix == ".csv" else path.stat().st_size for path in _files(logs)}


def cut_back(logs: Sequence[Path], to: dict[str, int]) -> None:
    """
    Cut what was written later, so that a run which goes on from a checkpoint writes it again, once.

    :param logs: as for ``positions``; nothing else is touched, whatever ``to`` names
    :param to: from ``positions``. Of files that were not there then, TensorBoard's are removed, and others left alone
    """
    for path in _files(logs):
        if path.name not in to:
            if path.match(EVENTS):
                path.unlink()
        elif path.suffix == ".csv":  # whose first line may have become longer
            with path.open("rb+") as file:
                file.truncate(sum(len(line) for line in islice(file, to[path.name])))
        else:
            with path.open("rb+") as file:
                file.truncate(min(to[path.name], path.stat().st_size))


def _files(logs: Sequence[Path]) -> Iterator[Path]:
    for log in logs:
        yield from (path for path in (log.glob(EVENTS) if log.is_dir() else [log]) if path.is_file())


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
