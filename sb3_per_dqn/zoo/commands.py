"""rl-zoo3's commands, run on arguments of ours."""

import argparse
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import rl_zoo3.exp_manager
import rl_zoo3.train
import rl_zoo3.utils
from rl_zoo3.utils import ALGOS

from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.persistence import SelfPersistentDQN
from sb3_per_dqn.run_settings import RunSettings
from sb3_per_dqn.zoo.attributes import replaced
from sb3_per_dqn.zoo.manager import RunManager
from sb3_per_dqn.zoo.registration import register
from sb3_per_dqn.zoo.values import StoreValues


def run_command(command: str, arguments: list[str], settings: RunSettings | None = None) -> None:
    """
    Run one of the zoo's commands on the arguments given.

    :param command: ``train``, ``enjoy``, ``record_video``, ``record_training``, or one of ``rl_zoo3.plots``
    :param arguments: the command's arguments
    :param settings: of ``train``, which the zoo knows nothing of
    """
    own = settings or RunSettings()
    packages: list[str] = []
    if command in ("record_video", "record_training"):  # which do not know the flag; the packages are imported by now
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--gym-packages", nargs="+", default=packages)
        given, arguments = parser.parse_known_args(arguments)
        packages = given.gym_packages
    with ExitStack() as stack:
        stack.enter_context(replaced(sys, argv=[f"sb3-per-dqn {command}", *arguments]))
        stack.enter_context(replaced(RunManager, settings=own))
        for module in (rl_zoo3.utils, rl_zoo3.train):  # from the first one the others take it when they are run
            stack.enter_context(replaced(module, StoreDict=StoreValues))
        if command == "train":
            rl_zoo3.train.train()
        elif command in ("enjoy", "record_video", "record_training"):
            _watch(command, packages)
        else:
            getattr(importlib.import_module("rl_zoo3.plots"), command)()


def _watch(command: str, packages: list[str]) -> None:
    try:
        ALGOS["per_ddqn"] = WatchedModel
        with _tools_of_record_training(packages) if command == "record_training" else nullcontext():
            runpy.run_module(f"rl_zoo3.{command}", run_name="__main__")
    finally:
        register()


@contextmanager
def _tools_of_record_training(packages: list[str]) -> Iterator[None]:
    """
    It calls ``python -m rl_zoo3.record_video``, which knows nothing of us, and an ffmpeg that need not be there, for a
    text whose font need not be there: both come with packages.
    """
    call = subprocess.call
    more = ["--gym-packages", *packages] if packages else []

    def call_ours(command: Any, *args: Any, **kwargs: Any) -> int:
        if list(command[:3]) == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "sb3_per_dqn", "record_video", *command[3:], *more]
        return call(command, *args, **kwargs)

    before = dict(os.environ)
    with replaced(subprocess, call=call_ours), TemporaryDirectory() as folder:
        if shutil.which("ffmpeg") is None:
            os.symlink(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe(), Path(folder) / "ffmpeg")
        fonts = Path(folder) / "fonts.conf"
        others = before.get("FONTCONFIG_FILE", "/etc/fonts/fonts.conf")
        fonts.write_text(
            f"<fontconfig><dir>{escape(matplotlib.get_data_path())}/fonts/ttf</dir>"
            f"<cachedir>{escape(folder)}</cachedir>"
            f'<include ignore_missing="yes">{escape(others)}</include></fontconfig>'
        )
        os.environ |= {"PATH": os.pathsep.join([before["PATH"], folder]), "FONTCONFIG_FILE": str(fonts)}
        try:
            yield
        finally:
            os.environ.pop("FONTCONFIG_FILE")
            os.environ |= before


class WatchedModel(PerDoubleDQN):
    """What ``enjoy`` and ``record_video`` load: without replay memory. The zoo does so for the names that it knows."""

    @classmethod
    def load(cls: type[SelfPersistentDQN], *args: Any, **kwargs: Any) -> SelfPersistentDQN:
        """
        :param args: as for SB3's method
        :param kwargs: as for SB3's method
        :return: the model
        """
        return super().load(*args, **{"buffer_size": 1, **kwargs})


def arose_in_training(error: BaseException) -> bool:
    """
    :param error: an exception from :func:`run_command`
    :return: whether training had begun
    """
    codes = RunManager.learn.__code__, RunManager.save_trained_model.__code__
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))
