"""A wheel and an sdist as they would be published: what they contain, and that the wheel works without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageDraw

import medr1

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("medr1/conf", "medr1/sweeps", "medr1/models/tiny_base", "medr1/reporting/templates")
pytestmark = pytest.mark.long


def sources(folder: str) -> set[str]:
    """The files of a folder of the checkout that belong into a distribution, relative to it."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / folder).as_posix() for path in files}


class Built(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, built in the checkout, and the wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, timeout=600)
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, sdist)


class Installed(NamedTuple):
    """Commands of a virtual environment, run in a folder that has nothing to do with the checkout."""

    environment: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        clean["PATH"] = os.pathsep.join([str(self.environment / "bin"), os.environ["PATH"]])
        program = str(self.environment / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=clean, capture_output=True, text=True, timeout=900
        )


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, with the libraries of this environment.

    A .pth file names the folder of the libraries. The .pth files inside that folder are not read, so that an editable
    medr1 of this environment cannot be imported.
    """
    environment, folder = tmp_path_factory.mktemp("venv"), tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, with_pip=True)
    here = Installed(environment, folder)
    done = here.run("python", "-m", "pip", "install", "--no-deps", str(built.wheel))
    assert done.returncode == 0, done.stderr
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(paths["purelib"]) / "libraries.pth").write_text("\n".join(libraries))
    return here


def test_the_wheel_contains_the_package_with_its_settings_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    expected = {f"medr1/{name}" for name in sources("medr1")}
    expected |= {f"medr1/{folder}/{name}" for folder in ("conf", "sweeps") for name in sources(folder)}
    assert all(any(name.startswith(folder) for name in expected) for folder in SHIPPED)
    information = f"medr1-{medr1.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == expected
    assert f"{information}licenses/LICENSE" in names


def test_the_sdist_contains_what_the_wheel_is_built_from_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    folders = {f"{folder}/{name}" for folder in ("medr1", "conf", "sweeps") for name in sources(folder)}
    files = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in names if not name.startswith("medr1.egg-info/")} == folders | files


def test_the_installed_package_is_imported_not_the_checkout(installed: Installed) -> None:
    code = "import medr1, medr1.config.paths as p; print(medr1.__version__, medr1.__file__, p.CONF, p.CHECKOUT)"
    version, *places, checkout = installed.run("python", "-c", code).stdout.split()
    assert (version, checkout) == (medr1.__version__, "None")
    assert all(Path(place).is_relative_to(installed.environment) for place in places)


@pytest.mark.parametrize("command", ["medr1-train", "medr1-evaluate", "medr1-ask"])
def test_help(command: str, installed: Installed) -> None:
    done = installed.run(command, "--help")
    assert done.returncode == 0 and done.stdout and not done.stderr


def test_train_then_evaluate(installed: Installed) -> None:
    done = installed.run("medr1-train", "debug=quick", "output_dir=single")
    assert done.returncode == 0, done.stderr
    [run] = (installed.folder / "single").glob("*/finished.json")
    assert json.loads((run.parent / "environment.json").read_bytes())["git_commit"] == ""
    done = installed.run("medr1-evaluate", f"run={run.parent}", "evaluation.limit=1", "output_dir=single")
    assert done.returncode == 0, done.stderr


def test_runs_of_a_sweep_are_started_and_import_nothing_from_the_folder(installed: Installed) -> None:
    (installed.folder / "torch.py").write_text("raise ImportError('the wrong torch')")
    try:
        done = installed.run("medr1-train", "-m", "debug=quick", "seed=0,1", "output_dir=sweep")
    finally:
        (installed.folder / "torch.py").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((installed.folder / "sweep").glob("*/*/finished.json"))) == 2


@pytest.mark.parametrize("command", [("medr1-ask",), ("python", "-m", "medr1.ask")], ids=" ".join)
def test_ask(command: tuple[str, ...], installed: Installed) -> None:
    image = Image.new("L", (90, 70))
    ImageDraw.Draw(image).ellipse((20, 10, 70, 60), fill=180)
    image.save(installed.folder / "drawn.png")
    done = installed.run(*command, "drawn.png", "Which imaging modality is this?", "ct", "mri", "--json")
    assert done.returncode == 0, done.stderr
    assert {"letter", "completion", "probabilities"} <= set(json.loads(done.stdout))
