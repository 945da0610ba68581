"""What is installed: the same package from a checkout, an sdist and a wheel, with what it needs and no more."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_per_dqn"
# What the extras bring (and rl-zoo3 and SB3's own extra bring with them)
EXTRAS = [
    "ale_py",
    "cv2",
    "lz4",
    "minatar",
    "moviepy",
    "optuna",
    "pygame",
    "ray",
    "rl_zoo3",
    "sb3_contrib",
    "tensorboard",
]


def build(tree: Path, target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_its_types_and_its_hyperparameters(wheel: Path) -> None:
    there = contents(wheel)
    for path in [*PACKAGE.rglob("*.py"), PACKAGE / "py.typed"]:
        assert there[f"sb3_per_dqn/{path.relative_to(PACKAGE).as_posix()}"] == path.read_bytes()
    for path in (ROOT / "hyperparams").glob("*.yml"):
        assert there[f"sb3_per_dqn/hyperparams/{path.name}"] == path.read_bytes()
    assert not [name for name in there if re.match(r"(tests|benchmarks|docs)/", name)]


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.glob("sb3_per_dqn-*/")
    assert contents(build(tree, "wheel", tmp_path / "wheel")) == contents(wheel)


def test_the_installed_command_trains(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which has of this one the dependencies alone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    flags = ["--env", "CartPole-v1", "-n", "300", "--device", "cpu", "--eval-freq", "-1"]
    flags += ["-params", "learning_starts:100", "train_freq:8", "gradient_steps:2"]
    command = [str(python.with_name("sb3-per-dqn")), "train", *flags]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name this checkout
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert f"Loading hyperparameters from: {packages}/sb3_per_dqn/hyperparams/per_ddqn.yml" in run.stdout
    assert (tmp_path / "logs" / "per_ddqn" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()


def test_the_core_needs_no_extra() -> None:
    program = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None  # whatever imports one of them fails
from sb3_per_dqn import *
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.workers import WorkerVecEnv
model = PerDoubleDQN("MlpPolicy", "CartPole-v1", learning_starts=50).learn(200)
assert model._n_updates
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.parametrize(
    ("missing", "program", "message"),
    [
        ("ale_py", "from sb3_per_dqn import make_atari_vec_env", "Atari games need ale-py: pip install .*\\[atari\\]"),
        (
            "huggingface_hub",
            "from sb3_per_dqn import *; model = PerDoubleDQN('MlpPolicy', 'CartPole-v1')\n"
            "export_model(model, 'nowhere', env_id='CartPole-v1')",
            "export_model writes a model card by huggingface_hub: pip install .*\\[zoo\\]",
        ),
        ("rl_zoo3", "from sb3_per_dqn.__main__ import main; main()", "needs rl_zoo3: pip install .*\\[zoo\\]"),
        ("optuna", "from sb3_per_dqn.__main__ import main; main()", "needs optuna: pip install .*\\[zoo\\]"),
        ("ray", "import sb3_per_dqn.cluster", "sb3_per_dqn.cluster needs ray: pip install .*\\[ray\\]"),
    ],
)
def test_a_missing_extra_is_named(missing: str, program: str, message: str) -> None:
    block = f"import sys; sys.modules['{missing}'] = None; sys.argv = ['sb3-per-dqn', 'train']; "
    run = subprocess.run([sys.executable, "-c", block + program], capture_output=True, text=True)
    assert re.search(message, run.stderr.strip().splitlines()[-1])


def imported_by(path: Path) -> set[str]:
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


def test_ray_is_imported_by_what_is_for_clusters_alone() -> None:
    importing = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if "ray" in imported_by(path)}
    assert importing == {"cluster"}
    outside = [path for path in PACKAGE.rglob("*.py") if "cluster" not in path.parts]
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in outside}
    naming = {name for name, text in texts.items() if "sb3_per_dqn.cluster" in text}
    assert naming == {"zoo/manager.py", "zoo/remote.py"}  # in functions, when it is asked for
    assert not [name for name in naming if "\nfrom sb3_per_dqn.cluster" in texts[name]]


def test_what_is_imported_is_declared() -> None:
    """By name in pyproject.toml, but for what SB3 itself needs and declares."""
    names = set().union(*map(imported_by, PACKAGE.rglob("*.py")))
    third_party = names - sys.stdlib_module_names - {"sb3_per_dqn"}
    assert {"torch", "rl_zoo3", "ale_py"} <= third_party
    declared = {
        re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")  # type: ignore[index]
        for package in ("sb3-per-dqn", "stable-baselines3")
        for requirement in metadata.requires(package) or ()
    }
    distributions = metadata.packages_distributions()
    for name in third_party:
        assert {each.lower().replace("_", "-") for each in distributions[name]} & declared, name
