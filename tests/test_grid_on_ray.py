"""Grids on a Ray cluster: the same rows, a run that fails alone, interruption."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from benchmarks import rows
from benchmarks.grid import ROOT
from benchmarks.learning import main as learning
from tests.test_grid import EVERY, write_grid


@pytest.fixture(autouse=True)
def niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # as nice as the tests, and not 15 more


def test_a_grid_goes_on_on_ray_with_the_rows_of_this_machine(tmp_path: Path) -> None:
    alone, on_ray = tmp_path / "alone", tmp_path / "on_ray"
    arguments = [
        write_grid(tmp_path, n_timesteps=12_000),
        "--every",
        EVERY,
        "-j",
        "2",
    ]  # longer than it takes to stop it
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


def test_a_run_ends_with_its_actor(tmp_path: Path) -> None:
    """Also if that is killed, as by Ray when memory is short: another one goes on in the same folder."""
    variants = {"ours": {"algo": "per_ddqn", "label": "PerDoubleDQN", "set": {"n_timesteps": 100_000}}}
    grid = write_grid(tmp_path, variants=variants)
    command = [sys.executable, "-m", "benchmarks.learning", grid, "--every", EVERY, "-o", str(tmp_path)]
    driver = subprocess.Popen([*command, "--ray-address", "local"], cwd=ROOT)
    while not list(tmp_path.glob("working/tiny/CartPole-v1_ours*/checkpoints/step-*")):
        assert driver.poll() is None
        time.sleep(0.05)
    processes = psutil.Process(driver.pid).children(recursive=True)
    (actor,) = (process for process in processes if "ray::RunActor" in " ".join(process.cmdline()))
    runs = actor.children()
    actor.kill()
    try:
        assert not psutil.wait_procs(runs, timeout=5)[1]
        steps = tmp_path.glob("working/tiny/*/checkpoints/step-*")
        last = max(step.name for step in steps)
        while max(step.name for step in tmp_path.glob("working/tiny/*/checkpoints/step-*")) <= last:
            assert driver.poll() is None  # the run goes on
            time.sleep(0.05)
    finally:
        driver.terminate()
        status = driver.wait()
    assert status == 128 + signal.SIGTERM
    last = max(step.name for step in tmp_path.glob("working/tiny/*/checkpoints/step-*"))
    assert int(last.removeprefix("step-")) < 90_000  # it was stopped, too


def test_runs_that_found_no_room_yet_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 0}')
    command = [sys.executable, "-m", "benchmarks.learning", write_grid(tmp_path), "-o", str(tmp_path)]
    with subprocess.Popen([*command, "--ray-address", "local"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline().startswith("tiny: 2 runs")
        time.sleep(1)  # the runs are asked for by then
        driver.send_signal(signal.SIGTERM)
        assert "the same command goes on" in driver.stdout.read()
    assert driver.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("working/tiny/*/checkpoints"))


def test_a_cluster_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:  # is bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(SystemExit, match="2"):
            learning([write_grid(tmp_path), "-o", str(tmp_path), "--ray-address", address])
    assert f"--ray-address {address}" in (said := capsys.readouterr().err)
    assert "no cluster answers there" in said
