"""All neighbors by name, and the check of one, in the process that has its packages.

Usage: python -m tools.neighbors.single_check NAME FOLDER
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from tools.neighbors.checks import LIBRARIES
from tools.neighbors.neighbor import Neighbor
from tools.neighbors.runtimes import RUNTIMES

NEIGHBORS: dict[str, Neighbor] = {**LIBRARIES, **RUNTIMES}


def installed(neighbor: Neighbor, name: str) -> str:
    """Version of the package."""
    if not neighbor.npm:
        return version(name)
    facts = Path(os.environ["NODE_PATH"]) / neighbor.requirements[0] / "package.json"
    return str(json.loads(facts.read_text())["version"])


if __name__ == "__main__":
    name, folder = sys.argv[1:]
    torch.manual_seed(0)
    apart = NEIGHBORS[name].check(Path(folder))
    sys.stdout.write("\n" + json.dumps({"version": installed(NEIGHBORS[name], name), "difference": apart}) + "\n")
