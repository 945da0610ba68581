"""Models and replay buffers in SB3's files: written wholly or not at all, and refused where they do not fit."""

import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.save_util import open_path

from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer
from sb3_per_dqn.whole_files import replacing

SelfPersistentDQN = TypeVar("SelfPersistentDQN", bound="PersistentDQN")


class PersistentDQN(DQN):
    """SB3's ``DQN`` with safer files."""

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file: wholly, and on the disk when this
        returns, or what was there stays.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        with _replacing(path, "zip") as beside:
            super().save(beside, exclude, include)

    @classmethod
    def load(
        cls: type[SelfPersistentDQN], path: str | Path | BufferedIOBase, *args: Any, **kwargs: Any
    ) -> SelfPersistentDQN:
        """
        Load the model from a zip-file (which may run code: load only what you trust).

        :param path: path to the file (or a file-like) where to load the agent from
        :param args: further arguments of SB3's method
        :param kwargs: further arguments of SB3's method
        :return: new model instance with loaded parameters
        :raises ValueError: if the file is damaged, or of an algorithm that is no ``DQN``
        """
        _check_model_file(path)
        return super().load(path, *args, **kwargs)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a given zip-file or a nested dictionary containing parameters for different modules (see
        ``get_parameters``). Of a file only tensors are read, which run no code.

        :param load_path_or_dict: path to the file (or a file-like), or a dictionary, as in SB3
        :param exact_match: whether parameters of each module must be there
        :param device: on which they are loaded
        :raises ValueError: if the file is damaged, or the parameters are not the model's
        """
        if not isinstance(load_path_or_dict, dict):
            _check_model_file(load_path_or_dict)
        super().set_parameters(load_path_or_dict, exact_match, device)

    def save_replay_buffer(self, path: str | Path | BufferedIOBase) -> None:
        """
        Save the replay buffer as a pickle file: wholly, and on the disk when this returns, or what was there stays.

        :param path: path to the file where the replay buffer should be saved
        """
        with _replacing(path, "pkl") as beside:
            super().save_replay_buffer(beside)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file (which may run code: load only what you trust).

        :param path: path to the file, or an open file
        :param truncate_last_traj: as in SB3, for ``HerReplayBuffer``
        :raises ValueError: if the buffer's environments, observations or actions are not the model's
        """
        before = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        buffer: Any = self.replay_buffer
        if buffer.n_envs != self.n_envs:
            self.replay_buffer = before
            raise ValueError(f"path={path}: a buffer of {buffer.n_envs} environments, and the model has {self.n_envs}.")
        for mine, other in (
            (self.observation_space, buffer.observation_space),
            (self.action_space, buffer.action_space),
        ):
            if not _is_alike(mine, other):
                self.replay_buffer = before
                raise ValueError(f"path={path}: a buffer for {other}, and the model has {mine}.")
        if isinstance(buffer, DeviceReplayBuffer):
            buffer.to(self.device)
        if isinstance(buffer, PrioritizedReplayBuffer):
            buffer.end_segments()  # what the environments do next does not follow what is stored
        if before is None:
            return
        names = ["buffer_size", "handle_timeout_termination", "alpha", "eps", "normalize_weights", "n_steps"]
        if getattr(buffer, "n_steps", 1) > 1:  # or it is the model's that counts
            names.append("gamma")
        theirs = {name: getattr(buffer, name, None) for name in names if hasattr(before, name)}
        other = [f"{name}={value}" for name, value in theirs.items() if value != getattr(before, name)]
        if type(buffer) is not type(before) or other:
            kept = ", ".join([type(buffer).__name__, *other])
            warnings.warn(f"The loaded replay buffer differs from the model's: it stays {kept}.", stacklevel=2)


@contextmanager
def _replacing(path: str | Path | BufferedIOBase, suffix: str) -> Iterator[Path | BufferedIOBase]:
    """
    :param path: path to a file, or a file-like, to which SB3 writes
    :param suffix: of the file, if it has none
    :yield: where SB3 shall write it
    """
    if isinstance(path, BufferedIOBase):
        yield path
        return
    path = Path(path) if Path(path).suffix else Path(f"{path}.{suffix}")  # as SB3 names it
    if path.is_dir():  # where SB3 takes another name, with a warning
        yield path
        return
    with replacing(path) as beside:
        yield beside


def _check_model_file(path: str | Path | BufferedIOBase) -> None:
    """All checksums: newer versions of ``zipfile`` compare none of what is read by leaps, as PyTorch reads."""
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:  # of a directory with methods unheard of, say
        raise ValueError(f"path={path}: {error or type(error).__name__}: the file is damaged, or no model.") from error
    finally:
        if file is not path:
            file.close()
    if damaged is not None:
        raise ValueError(f"path={path}: {damaged} has another checksum: the file is damaged.")
    if not {"data", "policy.pth"} <= set(names):  # which each of SB3's has, whatever it was saved without
        raise ValueError(f"path={path}: the file is no model of SB3's: it holds {', '.join(names) or 'nothing'}.")


def _is_alike(space: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """
    :param space: of observations or actions
    :param other: likewise
    :return: whether what is in the one is of the shape and dtype of what is in the other
    """
    if isinstance(space, spaces.Dict) and isinstance(other, spaces.Dict):
        return space.keys() == other.keys() and all(_is_alike(space[key], other[key]) for key in space)
    if isinstance(space, spaces.Box) and isinstance(other, spaces.Box):
        return space.shape == other.shape and space.dtype == other.dtype
    return bool(space == other)
