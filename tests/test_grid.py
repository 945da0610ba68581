"""Grids of runs: what stands in their files, runs that fail or are interrupted, results, aggregates, pictures."""

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from filelock import FileLock
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import rows
from benchmarks.aggregate import interquartile_mean, interval
from benchmarks.cell import make_env, make_model, try_out
from benchmarks.curves import aggregate, aggregate_table, draw_aggregate, draw_curves, games_of, table
from benchmarks.curves import main as curves
from benchmarks.grid import GRIDS, ROOT, read_grid
from benchmarks.learning import main as learning
from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.sharing import load_model
from sb3_per_dqn.watch import watch_model
from sb3_per_dqn.zoo.evaluation import MAX_STEPS

HYPERPARAMETERS: dict[str, Any] = {
    **{"policy": "MlpPolicy", "policy_kwargs": "dict(net_arch=[16])", "n_timesteps": 3_000},
    **{"learning_starts": 100, "train_freq": 8, "exploration": [[0, 1.0], [0.5, 0.1]]},
}
VARIANTS: dict[str, Any] = {
    "ours": {"algo": "per_ddqn", "label": "PerDoubleDQN"},
    "too_large": {
        "algo": "per_ddqn",
        "set": {"buffer_size": 10**14},
    },  # no machine has that memory, asked for in training
}
GRID: dict[str, Any] = {"games": ["CartPole-v1"], "seeds": [0], "evaluation_episodes": 2, "variants": VARIANTS}
EVERY = "500"


def write_grid(folder: Path, **changes: Any) -> str:
    """
    :return: path of a grid's file
    """
    conf_file = folder / "conf.yml"
    conf_file.write_text(yaml.safe_dump({"CartPole-v1": HYPERPARAMETERS, "Acrobot-v1": HYPERPARAMETERS}))
    content = {"conf_file": str(conf_file), **GRID, **changes}
    path = folder / "tiny.yml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a grid that ran through, but for a run that failed: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [write_grid(folder), "-o", str(folder), "--every", EVERY, "--agents", str(folder / "agents")]
    (folder / "status").write_text(str(learning(arguments)))
    return folder


def test_a_run_that_fails_does_so_alone(whole: Path) -> None:
    assert (whole / "status").read_text() == "1"
    (row,) = rows.read_rows(whole / "tiny.jsonl")
    assert rows.key_of(row) == ("CartPole-v1", "ours", 0)
    (left,) = (folder for folder in (whole / "working" / "tiny").iterdir() if folder.is_dir())
    assert left.name.startswith("CartPole-v1_too_large_0_")
    assert "more than the system can give" in (left / "log.txt").read_text().splitlines()[-1]


def test_a_row_says_what_the_run_was(whole: Path) -> None:
    (row,) = rows.read_rows(whole / "tiny.jsonl")
    assert (row["grid"], row["steps"], len(row["evaluation"]), len(row["curve"])) == ("tiny", 3_000, 2, 100)
    assert row["curve"][-1] == pytest.approx(row["last_100"], abs=1e-4)
    assert row["games"] > 100
    assert row["settings"]["hyperparameters"] == {k: v for k, v in HYPERPARAMETERS.items() if k != "n_timesteps"}
    assert row["versions"].keys() >= {"torch", "stable-baselines3", "sb3-per-dqn"}


def test_the_trained_agent_is_kept(whole: Path) -> None:
    (agent,) = (whole / "agents").iterdir()  # and none of the run that failed
    kept = load_model(agent, make_vec_env("CartPole-v1"), buffer_size=1)
    assert kept.num_timesteps == 3_000
    again = make_vec_env("CartPole-v1", seed=10_000)  # as the run scored it
    returns, _ = evaluate_policy(kept, again, 2, return_episode_rewards=True)
    assert f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}" in (agent / "README.md").read_text()
    assert "mean: " in watch_model([str(agent), "--games", "1", "--no-render"])


def test_an_interrupted_grid_goes_on_with_the_same_rows(whole: Path, tmp_path: Path) -> None:
    arguments = [write_grid(tmp_path), "--variants", "ours", "-o", str(tmp_path), "--every", EVERY]
    command = subprocess.Popen([sys.executable, "-m", "benchmarks.learning", *arguments], cwd=ROOT)
    while not list(tmp_path.glob("working/tiny/CartPole*/checkpoints/step-*")):
        assert command.poll() is None
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM
    assert not (tmp_path / "tiny.jsonl").exists()
    assert learning(arguments) == 0
    (row,), (expected,) = (rows.read_rows(folder / "tiny.jsonl") for folder in (tmp_path, whole))
    for name in ("games", "last_100", "curve", "evaluation"):
        assert row[name] == expected[name], name
    assert not list(tmp_path.glob("working/tiny/CartPole*"))
    assert learning(arguments) == 0  # and nothing is left to do
    assert rows.read_rows(tmp_path / "tiny.jsonl") == [row]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"game": ["CartPole-v1"]}, "nothing reads 'game' in the grid; did you mean games?"),
        ({"seeds": None}, "seeds is missing in the grid"),
        ({"seeds": [0, "1"]}, "seeds=.* must be a list of whole numbers"),
        ({"seeds": [0, 0]}, "seeds=.* each once"),
        ({"games": ["CartPole-v0"]}, "CartPole-v0 is not in .*conf.yml; there are Acrobot-v1, CartPole-v1"),
        ({"conf_file": "nowhere.yml"}, "nowhere.yml cannot be read"),
        ({"conf_file": "no_package:dqn.yml"}, "there is no package no_package"),
        ({"n_timesteps": 0}, "n_timesteps=0 must be a whole number"),
        ({"evaluation_episodes": 1.5}, "evaluation_episodes=1.5 must be a whole number"),
        ({"evaluation_episodes": {"CartPole-v1": 0}}, "evaluation_episodes=0 must be a whole number"),
        ({"evaluation_episodes": {"CartPole": 9}}, "in evaluation_episodes; did you mean CartPole-v1?"),
        ({"variants": {"a": {"algo": "ddqn"}}}, "algo='ddqn' must be one of dqn, qrdqn, per_ddqn"),
        ({"variants": {"a": {"algo": "dqn", "sets": {}}}}, "nothing reads 'sets' in variant a; did you mean set?"),
        ({"variants": {False: {"algo": "dqn"}}}, "variants: False must be a word"),
        ({"variants": {"a": {"algo": "per_ddqn", "set": {"duoble_q": False}}}}, "did you mean double_q?"),
        ({"variants": {"a": {"algo": "dqn", "set": {"double_q": False}}}}, "nothing reads 'double_q'"),
        ({"variants": {"a": {"algo": "dqn", "set": {"normalize": True}}}}, "normalize is not for grids"),
        ({"variants": {"a": {"algo": "dqn", "games": {"Acrobot-v1": {}}}}}, "nothing reads 'Acrobot-v1' in games of"),
        ({"variants": {"a": {"algo": "dqn", "set": {"policy_kwargs": "dict(net=[8])"}}}}, "CartPole-v1, a: .*'net'"),
        ({"variants": {"a": {"algo": "dqn", "set": {"learning_rate": "1e-3"}}}}, "a, CartPole-v1: .*='1e-3' .* 0.001"),
        ({"variants": {"a": {"algo": "dqn", "set": {"frame_stack": 4}}}}, "frame_stack=4 is for env_wrapper"),
        ({"set": [1]}, "must be names with values"),
        ({"reference": {"CartPole": 500}}, "did you mean CartPole-v1?"),
        ({"reference": {"CartPole-v1": [9, 9]}}, "must be a score, or .low, high. that differ"),
    ],
)
def test_what_is_wrong_with_a_grid_is_one_line_before_anything_starts(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        learning([write_grid(tmp_path, **changes), "-o", str(tmp_path / "results")])
    out, error = capsys.readouterr()
    assert re.search(message, error)
    assert (out, error.count("\n")) == ("", 1)
    assert not (tmp_path / "results").exists()


def test_a_game_may_be_evaluated_for_longer(tmp_path: Path) -> None:
    games = ["CartPole-v1", "Acrobot-v1"]
    grid = write_grid(tmp_path, games=games, evaluation_episodes={"Acrobot-v1": 70}, seeds=[0])
    cells = [cell for cell in read_grid(grid).cells if cell.variant == "ours"]
    assert [(cell.game, cell.settings["evaluation_episodes"]) for cell in cells] == [(games[0], 30), (games[1], 70)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--games", "Pong"], "--games Pong: not in the grid; there are CartPole-v1"),
        (["--seeds", "7"], "--seeds 7"),
        (["-j", "0"], "-j 0 must be 1 or more"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        learning([write_grid(tmp_path), "-o", str(tmp_path), *flags])
    assert message in capsys.readouterr().err


def test_results_of_other_settings_are_not_taken_for_these(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole / "other"
    folder.mkdir()
    (folder / "tiny.jsonl").write_bytes((whole / "tiny.jsonl").read_bytes())
    with pytest.raises(SystemExit, match="2"):
        learning([write_grid(folder, n_timesteps=7_000), "-o", str(folder)])
    assert "has CartPole-v1, ours, seed 0 with other settings" in capsys.readouterr().err


def test_a_grid_is_run_by_one_command_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "working" / "tiny").mkdir(parents=True)
    with FileLock(tmp_path / "working" / "tiny" / ".lock"), pytest.raises(SystemExit, match="2"):
        learning([write_grid(tmp_path), "-o", str(tmp_path)])
    assert "another command that is still alive" in capsys.readouterr().err


def test_seed_by_seed_and_what_a_variant_gets(tmp_path: Path) -> None:
    variants = {
        "dqn": {"algo": "dqn"},
        "ours": {"algo": "per_ddqn", "set": {"gamma": 0.9}, "games": {"Acrobot-v1": {"gamma": 0.8}}},
    }
    changes = {"games": ["CartPole-v1", "Acrobot-v1"], "seeds": [3, 1], "set": {"double_q": False, "gamma": 0.5}}
    variants["ours"]["games"]["CartPole-v1"] = {"n_timesteps": 50}
    cells = read_grid(write_grid(tmp_path, n_timesteps=70, variants=variants, **changes)).cells
    expected = product((3, 1), ("CartPole-v1", "Acrobot-v1"), ("dqn", "ours"))
    assert [(cell.seed, cell.game, cell.variant) for cell in cells] == list(expected)
    assert [cell.settings["n_timesteps"] for cell in cells[:4]] == [70, 50, 70, 70]
    assert [cell.settings["hyperparameters"]["gamma"] for cell in cells[:4]] == [0.5, 0.9, 0.5, 0.8]
    assert ["double_q" in cell.settings["hyperparameters"] for cell in cells[:2]] == [False, True]


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yml")), ids=lambda path: path.stem)
def test_every_grid_builds(path: Path) -> None:
    grid = read_grid(str(path))
    for module in {"MinAtar": "minatar", "LunarLander": "Box2D"}.items():
        if any(cell.game.startswith(module[0]) for cell in grid.cells):
            pytest.importorskip(module[1])
    for cell in {cell.key[:2]: cell for cell in grid.cells}.values():
        try_out(cell)


def test_sb3_has_the_same_network_and_epsilon() -> None:
    pytest.importorskip("minatar")
    cells = {cell.variant: cell for cell in read_grid("minatar_parts").cells}
    models = {}
    for variant in ("dqn", "qrdqn", "no_dueling"):
        env = make_env(cells[variant], 0, n_envs=2)
        models[variant] = make_model(cells[variant], env)
        env.close()
    sb3, contrib, ours = models.values()
    assert type(sb3) is DQN
    assert isinstance(ours, PerDoubleDQN)
    weights = [{name: value.shape for name, value in model.policy.state_dict().items()} for model in (sb3, ours)]
    assert weights[0] == weights[1]
    assert str(contrib.quantile_net.features_extractor) == str(ours.q_net.features_extractor)
    for progress_remaining in (1.0, 0.9, 0.5, 0.0):
        epsilons = {model.exploration_schedule(progress_remaining) for model in models.values()}
        assert len(epsilons) == 1


def test_curve_of_known_games() -> None:
    steps, returns = np.array([10, 20, 500]), np.array([1.0, 2.0, 6.0])
    part = rows.of_games(steps, returns, n_timesteps=1_000)
    assert (part["games"], part["last_100"]) == (3, 3.0)
    assert part["curve"] == [1.0] + [1.5] * 48 + [3.0] * 51  # at steps 10, 20 to 490, 500 to 1000
    late = rows.of_games(np.array([25]), np.array([4.0]), n_timesteps=1_000)
    assert late["curve"] == [None, None] + [4.0] * 98
    none = rows.of_games(np.empty(0), np.empty(0), n_timesteps=1_000)
    assert none == {"games": 0, "last_100": None, "curve": [None] * 100}


def test_a_row_is_there_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    first = {"game": "é", "variant": "a", "seed": 0}
    rows.add_row(path, first)

    def full_disk(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "write_file", full_disk)
        with pytest.raises(OSError, match="no space"):
            rows.add_row(path, {**first, "seed": 1})
    assert rows.read_rows(path) == [first]
    rows.add_row(path, {**first, "seed": 2})
    assert [row["seed"] for row in rows.read_rows(path)] == [0, 2]
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match="line 2, is no result of a run"):
        rows.read_rows(path)


def test_interquartile_mean_of_known_scores() -> None:
    assert interquartile_mean(np.array([100.0, 1, 2, -50])) == 1.5
    assert interquartile_mean(np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])) == np.mean([3, 4, 5, 6])
    assert interquartile_mean(np.array([1.0, 2, 9])) == 4  # a quarter of three is less than one run


def test_interval_is_that_of_all_resamples() -> None:
    games = [np.array([0.0, 1, 5]), np.array([2.0, 3.5, 7])]
    of_game = [list(product(scores, repeat=3)) for scores in games]
    means = sorted(np.mean(sorted(first + second)[1:-1]) for first, second in product(*of_game))  # 3^6, equally likely
    low, high = interval(games)
    assert np.quantile(means, 0.02) <= low <= np.quantile(means, 0.03)
    assert np.quantile(means, 0.97) <= high <= np.quantile(means, 0.98)


def test_runs_are_resampled_within_their_game() -> None:
    assert interval([np.zeros(3), np.full(3, 10.0)], resamples=1_000) == (5, 5)
    assert np.isnan(interval([np.zeros(1), np.ones(3)])).all()


def made_up(game: str, variant: str, seed: int, last: float, evaluation: list[float]) -> rows.Row:
    curve = [None, *np.linspace(0, last, 99)]
    row = {"game": game, "variant": variant, "seed": seed, "steps": 1_000, "seconds": 10.0 + seed}
    return {**row, "last_100": last, "evaluation": evaluation, "curve": curve}


def test_tables_and_pictures_of_known_results(tmp_path: Path) -> None:
    reference = {"CartPole-v1": [10, 20], "Acrobot-v1": 4}
    grid = read_grid(write_grid(tmp_path, games=list(reference), seeds=[0, 1, 2], reference=reference))
    results = [
        made_up("CartPole-v1", "ours", 1, 20, [3, 5]),
        made_up("CartPole-v1", "ours", 0, 10, [2]),
        made_up("CartPole-v1", "ours", 2, 99, [2]),  # a seed that the other game does not have
        made_up("CartPole-v1", "too_large", 0, 10, [1, 3]),
        made_up("Acrobot-v1", "ours", 0, 2, [2]),
        made_up("Acrobot-v1", "ours", 1, 4, [2]),
    ]
    lines = table(results[:2] + results[3:], grid, "CartPole-v1").splitlines()
    assert lines[2:] == [
        "| PerDoubleDQN | 2 | 15.00 ± 5.00 (10.00, 20.00) | 3.00 ± 1.00 (2.00, 4.00) | 10–11 |",
        "| too_large | 1 | 10.00 | 2.00 ± 1.00 | 10–10 |",
    ]
    intervals = aggregate(results, grid)
    assert intervals["last 100 games"].keys() == {"ours"}
    iqm, low, high, seeds = intervals["last 100 games"]["ours"]  # of 0, 1 and 0.5, 1
    assert (iqm, seeds) == (0.75, 2)
    assert 0.25 <= low < iqm < high <= 1
    assert aggregate_table(intervals, grid).splitlines()[2].startswith("| PerDoubleDQN | 2 | 0.75 (0.25 to 1.00) | ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(results, grid, tmp_path / "curves.png")
        draw_aggregate(intervals, grid, tmp_path / "aggregate.png")
    for name in ("curves.png", "aggregate.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("letters", [30, 60])
def test_the_legend_is_in_the_picture(letters: int, tmp_path: Path) -> None:
    labels = {name: name * letters for name in "abcd"}
    grid = read_grid(write_grid(tmp_path, variants={name: {"algo": "dqn", "label": labels[name]} for name in labels}))
    draw_curves([made_up("CartPole-v1", name, 0, 10, [2]) for name in labels], grid, tmp_path / "curves.png")
    edges = plt.imread(tmp_path / "curves.png")[:, [0, -1], :3]
    np.testing.assert_array_equal(edges, np.ones_like(edges))


def test_no_two_variants_look_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"variant_{i}" for i in range(12)]
    grid = read_grid(write_grid(tmp_path, variants={name: {"algo": "dqn"} for name in names}))
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_curves([made_up("CartPole-v1", name, 0, 10, [2]) for name in names], grid, tmp_path / "curves.png")
    assert len({to_hex(line.get_color()) for line in drawn[0].axes[0].lines}) == len(names)


def test_curves_without_results_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        curves([write_grid(tmp_path), "-o", str(tmp_path)])
    assert "no results" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(rows.RESULTS.glob("*.jsonl")), ids=lambda file: str(file.stem))
def test_the_readme_has_the_figures_of_the_results(file: Path) -> None:
    pages = [(ROOT / page).read_text() for page in ("README.md", "benchmarks/README.md")]
    (readme,) = (page for page in pages if f"results/{file.stem}.png)" in page)  # that shows its curves
    grid, results = read_grid(file.stem), rows.read_rows(file)
    assert {rows.key_of(row) for row in results} <= {cell.key for cell in grid.cells}
    for game in games_of(results, grid):
        for line in table(results, grid, game).splitlines()[2:]:
            last, evaluation = line.split(" | ")[2:4]
            assert f"| {last} | {evaluation} |" in readme


def test_results_are_json_that_everyone_reads() -> None:
    for line in "".join(path.read_text() for path in rows.RESULTS.glob("*.jsonl")).splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN, say


def test_no_game_of_an_evaluation_lasts_for_ever() -> None:
    """In MinAtar's Seaquest the submarine may stay at the surface."""
    pytest.importorskip("minatar")
    cell = next(cell for cell in read_grid("minatar").cells if "Seaquest" in cell.game)
    env = make_env(cell, 0, n_envs=1, evaluation=True)
    env.reset()
    for _ in range(2 * MAX_STEPS):
        *_, dones, infos = env.step([0])  # no operation
        if dones[0]:
            break
    env.close()
    assert infos[0]["episode"]["l"] == MAX_STEPS
