"""Wheel and source distribution install in an empty environment, by the tools that publish them."""

import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from graphprune.version import __version__

ROOT = Path(__file__).parents[1]
PRUNED = """
import torch, graphprune as gp
from torch import nn
module = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
print(gp.prune(module, args=(torch.randn(3, 4),), recipe="magnitude", sparsity=0.3).report.removed)
"""


def done(*command: object, folder: Path) -> str:
    """Output of a command that must succeed, in an environment without this checkout."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [*map(str, command)]
    ended = subprocess.run(words, cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("build") and find_spec("twine")), reason="build and twine are not installed")
def test_wheel_and_sdist_install_in_a_clean_environment(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    done(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT, folder=tmp_path)
    wheel, sdist = (next(dist.glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    assert done(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, folder=tmp_path).count("PASSED") == 2
    venv.create(tmp_path / "clean", with_pip=True)
    clean = tmp_path / "clean" / "bin"
    install = clean / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"
    done(*install, wheel, folder=tmp_path)
    assert "% of the parameters" in done(clean / "python", "-c", PRUNED, folder=tmp_path), "without ONNX Runtime"
    done(*install, "hatchling", folder=tmp_path)
    done(*install, "--no-build-isolation", "--no-deps", "--force-reinstall", sdist, folder=tmp_path)
    assert done(clean / "graphprune", "--version", folder=tmp_path).split() == ["graphprune", __version__]
