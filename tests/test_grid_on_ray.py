"""Grids on a Ray cluster: the same rows, a run that fails alone, interruption."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import rows
from benchmarks.grid import ROOT
from benchmarks.learning import main as learning
from tests.test_grid import EVERY, write_grid


def test_a_grid_goes_on_on_ray_with_the_rows_of_this_machine(tmp_path: Path) -> None:
    alone, on_ray = tmp_path / "alone", tmp_path / "on_ray"
    arguments = [write_grid(tmp_path), "--every", EVERY, "-j", "2"]
    command = [sys.executable, "-m", "benchmarks.learning", *arguments, "-o", str(on_ray), "--ray-address", "local"]

    first = subprocess.Popen(command, cwd=ROOT)
    while not list(on_ray.glob("working/tiny/CartPole-v1_ours*/checkpoints/step-*")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    assert not (on_ray / "tiny.jsonl").exists()

    second = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert second.returncode == 1
    assert "too_large, seed 0: failed with status 1: ValueError: buffer_size=" in second.stdout
    (folder,) = on_ray.glob("working/tiny/CartPole*")
    assert "_too_large_" in folder.name

    assert learning([*arguments, "-o", str(alone), "--variants", "ours"]) == 0
    (row,), (expected,) = (rows.read_rows(results / "tiny.jsonl") for results in (on_ray, alone))
    for name in ("settings", "games", "last_100", "curve", "evaluation"):
        assert row[name] == expected[name], name
