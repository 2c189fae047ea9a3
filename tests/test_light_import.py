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
REFUSED = """
from graphprune.cli import main
for words in (["export", "saved", "--target", "onnx", "--output", "x"], ["inspect", "decoder"]):
    sys.argv = ["graphprune", *words]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 2
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of one's own and a broken torchvision and ONNX Runtime."""
    broken_torchvision(tmp_path)
    broken(tmp_path, "onnxruntime", "OSError('libonnx.so: cannot open shared object file')")
    (tmp_path / "mine.py").write_text(MINE)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "decoder")
    return tmp_path


def test_a_module_of_ones_own_needs_no_package(folder: Path) -> None:
    """Not even to save it, though without ONNX Runtime there are no ONNX files; what needs a broken package says so.

    The import loads none, either. All public names are there, and no module hides one.
    """
    done = run(folder, "-c", f"{NAMES}{LOADED}\n{WHOLE}{LOADED}{REFUSED}")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    names, nothing, *_, loaded = done.stdout.splitlines()
    text = (ROOT / "graphprune" / "public.py").read_text(encoding="utf-8")
    assert names.split() == sorted(re.findall(r" as (\w+)\n", text)) and nothing == ""
    assert not {"transformers", "torchvision", "onnxruntime", "gguf"} & set(loaded.split(","))
    assert "the module is as narrow as the graph" in done.stdout
    assert (folder / "saved" / "model.pt2").is_file() and not (folder / "saved" / "onnx").exists()
    assert "mine:net" in done.stdout and "conv2d" in done.stdout
    export, inspect = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.match(r"error: saved has no ONNX files, .*onnxruntime.* cannot be imported .*: reinstall it", export)
    assert not (folder / "x").exists()
    assert re.fullmatch(
        rf"error: torchvision 0.28.0 cannot be imported with torch \S+ \(reason: {NMS}\): "
        "install the torchvision built for this torch, or uninstall it",
        inspect,
    )
