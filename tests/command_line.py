"""The command line in this process, and what a run of it leaves."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest

from sb3_per_dqn.__main__ import main

BREAKOUT = "BreakoutNoFrameskip-v4"
SHORT_CARTPOLE = ["--env", "CartPole-v1", "-n", "400", "--seed", "3", "--device", "cpu"]
CARTPOLE_PARAMS = ["-params", "learning_starts:100", "train_freq:8", "gradient_steps:2", "buffer_size:1000"]
BREAKOUT_PARAMS = ["-params", "n_envs:2", "learning_starts:100", "buffer_size:1000", "gradient_steps:1", "batch_size:8"]


@dataclass
class Run:
    """One command and what came of it."""

    status: int
    out: str
    err: str
    logs: Path
    env_id: str

    @property
    def folder(self) -> Path:
        return self.logs / "per_ddqn" / f"{self.env_id}_1"


def run_main(*arguments: str, logs: Path | None = None, env_id: str = "") -> Run:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    folder = [] if logs is None else ["-f", str(logs)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["sb3-per-dqn", *arguments, *folder])
        try:
            status = main()
        except SystemExit as exit_:  # argparse
            status = exit_.code if isinstance(exit_.code, int) else 1
    return Run(status, out.getvalue(), err.getvalue(), logs or Path(), env_id)


def frames(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    count = 0
    while video.read()[0]:
        count += 1
    return count


def closing_line(run: Run) -> dict[str, str]:
    line = run.out.strip().splitlines()[-1]
    return dict(part.split(": ", 1) for part in line.split("; ")[1:])


def assert_one_line(run: Run, *words: str) -> None:
    """The command failed, and what it printed about that is a line with these words."""
    lines = run.err.strip().splitlines()
    assert (run.status, len(lines)) == (2, 1), run
    assert lines[0].startswith("sb3-per-dqn: error: "), run.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {run.err!r}"
