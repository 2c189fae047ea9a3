"""Prune a CNN, save it, export it to ONNX, and run the file: ``python -m tools.examples.export_onnx [FOLDER]``."""

import sys
from pathlib import Path

import onnxruntime
import torch

import graphprune as gp
from tools.examples.small_cnn import SmallCNN


def main(arguments: list[str]) -> None:
    """Write the folders `pruned` and `onnx` into a folder."""
    folder = Path(arguments[0] if arguments else "build/export_onnx")
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.randn(4, 3, 12, 12)
    program = gp.trace(SmallCNN().eval(), (images,))
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    gp.save(small, output=folder / "pruned", force=True)
    report = gp.export(folder / "pruned", target="onnx", output=folder / "onnx", force=True)
    print(report)
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    print(f"largest difference {abs(logits - small.module()(images).detach().numpy()).max():.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
