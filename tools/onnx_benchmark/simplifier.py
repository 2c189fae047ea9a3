# ruff: noqa: E501 - lines of a script
"""Structured pruning of onnxsim on the same files, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT = 120
_SCRIPT = """
import sys
import numpy as np, onnx, onnxruntime
from onnxsim.pruning import apply_structured_pruning
def size(model):
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == 1)
before = onnx.load(sys.argv[1])
after = apply_structured_pruning(sys.argv[1], 0.5)
try:
    session = onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = [n if isinstance(n, int) else {"batch": 2, "sequence": 4, "past": 5, "total": 9}.get(n, 2) for n in value.shape]
        feeds[value.name] = np.ones(shape, np.int64) if "int" in value.type else np.ones(shape, np.float32)
    if "attention_mask" in feeds and not any(n.startswith("past") for n in feeds):
        feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
    session.run(None, feeds)
    state = "runs"
except Exception as fault:
    state = "does not run"
print(f"{size(before):,} -> {size(after):,}, {state}")
"""


def pruned_by_simplifier(path: Path, installed: Path) -> str:
    """Parameters before and after, and whether ONNX Runtime runs the result."""
    paths = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _SCRIPT, str(path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done in {TIMEOUT} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if done.returncode == 0 else f"fails: {lines[-1][:80] if lines else done.returncode}"
