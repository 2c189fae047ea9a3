"""What a run does not need, it does not import, and where that is broken the run works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.fakes import NMS, broken, broken_torchvision

ROOT = Path(__file__).parents[1]
HEAVY = ("accelerate", "gguf", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torchvision", "transformers")
LOADED = f"import sys; print(*sorted({{*{HEAVY!r}}} & {{*sys.modules}}), sep=',')"
MINE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {"width": 16}
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


def net():
    return Net(), (torch.randn(2, 3, 16, 16),), {}
"""
WHOLE = """
import graphprune as gp
import mine

module, args, _ = mine.net()
program = gp.trace(module, args)
plan = gp.plan(program, sparsity=0.3, recipe="magnitude")
small = gp.apply(program, plan)
gp.verify(program, small, plan)
print(small.write_back(module))
assert sum(p.numel() for p in module.parameters()) == small.count() < program.count()
gp.save(small, output="saved")
from graphprune.cli.commands import app
app(["inspect", "mine:net"], standalone_mode=False)
"""
EXPORT = """
from graphprune.cli import main
sys.argv = ["graphprune", "export", "saved", "--target", "onnx", "--output", "x"]
main()
"""


NAMES = """
import sys
import graphprune as gp
assert "torch" not in sys.modules and gp.__version__
import graphprune.workflows.prune
assert gp.prune.__call__
before = {*dir()}
from graphprune import *
print(*sorted({*dir()} - before - {"before", "__version__"}))
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder whose packages come before the installed ones."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    given = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=given, capture_output=True, text=True, check=False)


def refused(folder: Path, *words: str) -> str:
    """The line with which the command line refuses."""
    done = run(folder, "-m", "graphprune", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of one's own and a broken torchvision and ONNX Runtime."""
    made = tmp_path_factory.mktemp("broken")
    broken_torchvision(made)
    broken(made, "onnxruntime", "OSError('libonnx.so: cannot open shared object file')")
    (made / "mine.py").write_text(MINE)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made / "decoder")
    return made


def test_a_module_of_ones_own_needs_no_package(folder: Path) -> None:
    """Not even to save it, though without ONNX Runtime there are no ONNX files; what needs it says so.

    The import loads none, either. All public names are there, and no module hides one.
    """
    done = run(folder, "-c", f"{NAMES}{LOADED}\n{WHOLE}{LOADED}{EXPORT}")
    assert "the module is as narrow as the graph" in done.stdout, done.stderr
    names, loaded, *_ = done.stdout.splitlines()
    text = (ROOT / "graphprune" / "public.py").read_text(encoding="utf-8")
    assert names.split() == sorted(re.findall(r" as (\w+)\n", text)) and loaded == ""
    assert not {"transformers", "torchvision", "onnxruntime", "gguf"} & set(done.stdout.splitlines()[-1].split(","))
    assert (folder / "saved" / "model.pt2").is_file() and not (folder / "saved" / "onnx").exists()
    assert "mine:net" in done.stdout and "conv2d" in done.stdout
    line = done.stderr.splitlines()[-1]
    assert re.match(r"error: saved has no ONNX files, .*onnxruntime.* cannot be imported .*: reinstall it", line)
    assert done.returncode == 2 and not (folder / "x").exists()


def test_a_broken_torchvision_is_named(folder: Path) -> None:
    line = refused(folder, "inspect", "decoder")
    assert re.fullmatch(
        rf"error: torchvision 0.28.0 cannot be imported with torch \S+ \(reason: {NMS}\): "
        "install the torchvision built for this torch, or uninstall it",
        line,
    )
