"""Imports of the server of processes, made once so that each model starts quickly."""

import os
from importlib import import_module
from importlib.util import find_spec

os.environ["HF_HUB_OFFLINE"] = "1"

import_module("tests.zoo")  # before all others, for it helps torchvision
for package in ("transformers.models.auto.modeling_auto", "timm", "torch_pruning", "torch_kirigami"):
    if find_spec(package.split(".")[0]):
        import_module(package)
import_module("tools.zoo_benchmark.work")
