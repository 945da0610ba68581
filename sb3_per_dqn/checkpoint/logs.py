"""Files that grow with a run: how far they had come at a checkpoint, and back to there."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def positions(logs: Sequence[Path]) -> dict[str, int]:
    """
    :param logs: files, and folders of TensorBoard's; they need not be there
    :return: by place in ``logs`` and name (the folder may be moved), how many lines of a CSV file there are, and bytes
        of any other
    """
    return {place: _lines(path) if path.suffix == ".csv" else path.stat().st_size for place, path in _files(logs)}


def cut_back(logs: Sequence[Path], to: dict[str, int]) -> None:
    """
    Cut what was written later, so that a run which goes on from a checkpoint writes it again, once.

    :param logs: as for ``positions``; nothing else is touched, whatever ``to`` names
    :param to: from ``positions``. Of files that were not there then, TensorBoard's are removed, and others left alone
    """
    for place, path in _files(logs):
        position = to.get(place)
        if position is None:
            if path.match(EVENTS):
                path.unlink()
        elif path.suffix == ".csv":  # whose first line may have become longer
            with path.open("rb+") as file:
                file.truncate(sum(len(line) for line in islice(file, position)))
        else:
            with path.open("rb+") as file:
                file.truncate(min(position, path.stat().st_size))


def _files(logs: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for i, log in enumerate(logs):
        for path in log.glob(EVENTS) if log.is_dir() else [log]:
            if path.is_file():
                yield f"{i}/{path.name}", path


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
