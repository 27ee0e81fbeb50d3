"""The wheel and the sdist contain the page, and an environment with nothing else installed serves it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from support.processes import Running, environment

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
NODE_MODULES = ROOT / "frontend" / "node_modules"
PAGE = "klinesync/web/index.html"
PYTHONS = ("3.11", "3.12", "3.13")
# Everything on PATH except Node.
NO_NODE_PATH = "/nonexistent"
TIMEOUT_S = 280


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )


def python_of(version: str) -> Path | None:
    """An interpreter of that version, on PATH or among pyenv's."""
    found = shutil.which(f"python{version}")
    candidates = [] if found is None else [Path(found)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    for candidate in candidates:
        if run(candidate, "-c", "import venv, sys; print(sys.version)", cwd=ROOT).stdout.startswith(version):
            return candidate
    return None


@pytest.fixture(scope="module")
def hatchling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build backend in an environment of its own."""
    folder = tmp_path_factory.mktemp("builder")
    run(sys.executable, "-m", "venv", folder, cwd=ROOT)
    done = run(folder / "bin" / "pip", "install", "--quiet", "hatchling>=1.27", cwd=folder)
    if done.returncode:
        pytest.skip(f"hatchling cannot be installed: {done.stdout[-300:]}")
    return folder / "bin" / "hatchling"


@pytest.fixture(scope="module")
def clean_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files in version control, without built files; Node's packages are linked from this tree."""
    if not (NODE_MODULES / ".installed").is_file():
        pytest.skip("frontend/node_modules is not installed: make setup")
    tree = tmp_path_factory.mktemp("tree")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    assert listed.returncode == 0, listed.stdout
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    (tree / "frontend" / "node_modules").symlink_to(NODE_MODULES)
    (tree / "frontend" / "package-lock.json").touch()
    (NODE_MODULES / ".installed").touch()
    assert not (tree / "src" / PAGE).exists()
    return tree


@pytest.fixture(scope="module")
def without_node(hatchling: Path) -> Mapping[str, str]:
    return environment(PATH=f"{hatchling.parent}{os.pathsep}{NO_NODE_PATH}")


@pytest.fixture(scope="module")
def sdist(hatchling: Path, clean_tree: Path, without_node: Mapping[str, str]) -> Path:
    refused = run(hatchling, "build", "-t", "wheel", "-d", "dist", cwd=clean_tree, env=without_node)
    assert refused.returncode != 0
    assert "the page is not built, and there is no npm to build it: install Node.js" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert not list(clean_tree.glob("dist/*.whl"))
    done = run(hatchling, "build", "-t", "sdist", "-d", "dist", cwd=clean_tree)
    assert done.returncode == 0, done.stdout
    (found,) = clean_tree.glob("dist/*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(
    hatchling: Path, sdist: Path, without_node: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """From the sdist, without Node."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    assert (tree / "src" / PAGE).is_file()
    assert not (tree / "frontend" / "node_modules").exists()
    done = run(hatchling, "build", "-t", "wheel", "-d", "dist", cwd=tree, env=without_node)
    assert done.returncode == 0, done.stdout
    (found,) = tree.glob("dist/*.whl")
    return found


def test_a_wheel_of_a_clean_tree_or_of_its_sdist_has_the_same_page(
    hatchling: Path, clean_tree: Path, sdist: Path, wheel: Path
) -> None:
    done = run(hatchling, "build", "-t", "wheel", "-d", "dist", cwd=clean_tree)
    assert done.returncode == 0, done.stdout
    (of_tree,) = clean_tree.glob("dist/*.whl")
    with zipfile.ZipFile(of_tree) as one, zipfile.ZipFile(wheel) as other:
        names = [name for name in one.namelist() if name.startswith("klinesync/web/")]
        assert PAGE in names
        assert any(name.endswith(".js") for name in names)
        assert [(name, one.read(name)) for name in names] == [(name, other.read(name)) for name in names]
        assert one.namelist() == other.namelist()


@pytest.mark.usefixtures("sdist")
def test_an_old_page_is_not_packed(hatchling: Path, clean_tree: Path, without_node: Mapping[str, str]) -> None:
    source = clean_tree / "frontend" / "index.html"
    page = clean_tree / "src" / PAGE
    later = page.stat().st_mtime + 60
    os.utime(source, (later, later))
    refused = run(hatchling, "build", "-t", "wheel", "-d", "late", cwd=clean_tree, env=without_node)
    assert refused.returncode != 0
    assert "the page is older than its sources" in refused.stdout
    os.utime(page, (later + 1, later + 1))


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.timeout(900)
async def test_an_empty_environment_with_the_wheel_serves_the_page(version: str, wheel: Path, tmp_path: Path) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    assert run(python, "-m", "venv", tmp_path / "env", cwd=tmp_path).returncode == 0
    constraints = ROOT / "constraints.txt"
    done = await asyncio.to_thread(
        run, tmp_path / "env/bin/pip", "install", "--quiet", "--prefer-binary", "-c", constraints, wheel, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-2000:]
    demo = await asyncio.create_subprocess_exec(
        tmp_path / "env/bin/klinesync",
        *("demo", "--port=0", "--no-browser", "--symbols=2"),
        cwd=tmp_path,
        env=environment(PATH=NO_NODE_PATH),
        stdout=subprocess.PIPE,
    )
    try:
        url = await Running(demo).address("klinesync serves")
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/") as answer:
                text = await answer.text()
                assert (answer.status, answer.content_type) == (200, "text/html")
            script = text.partition('src="')[2].partition('"')[0]
            async with http.get(f"{url}/{script.lstrip('./')}") as answer:
                assert answer.status == 200
                assert "javascript" in answer.content_type
        demo.terminate()
        assert await asyncio.wait_for(demo.wait(), 60) == 0
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
