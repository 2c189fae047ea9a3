"""Record what every recipe makes of a model, and compare two such records byte for byte.

Usage: python tools/record_outcomes.py record MODEL --text TEXT --output FILE [--checkout FOLDER] [--recipes R,R]
       python tools/record_outcomes.py compare FILE FILE

`record` prunes by the command line of a checkout, this one or an older one, once for each recipe and destination, in
one thread. It notes a digest of the plan's retained indices and one of each weight that was saved, or the message with
which the recipe was refused. `compare` prints where two records differ, and exits with 1 if they do.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).parent.parent
DESTINATIONS = ("free", "stock")


def main(arguments: list[str] | None = None) -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record")
    recorder.add_argument("model")
    recorder.add_argument("--text", required=True)
    recorder.add_argument("--output", type=Path, required=True)
    recorder.add_argument("--checkout", type=Path, default=ROOT)
    recorder.add_argument("--recipes", default="", help="a comma between two; all of the checkout if left out")
    recorder.add_argument("--sparsity", default="0.2")
    comparer = commands.add_parser("compare")
    comparer.add_argument("records", nargs=2, type=Path)
    options = parser.parse_args(arguments)
    if options.command == "record":
        record(options)
    else:
        sys.exit(compare(*(json.loads(path.read_text()) for path in options.records)))


def record(options: argparse.Namespace) -> None:
    """Write the digests of every recipe, one recipe after the other."""
    listed = run(options.checkout, "recipes", "--json")
    names = options.recipes.split(",") if options.recipes else list(json.loads(listed.stdout))
    outcomes: dict[str, Any] = {}
    for name in names:
        for destination in DESTINATIONS:
            outcomes[f"{name} {destination}"] = outcome(options, name, destination)
            options.output.write_text(json.dumps(outcomes, indent=1) + "\n")
            print(f"{name} {destination}: {outcomes[f'{name} {destination}'].get('refused', 'recorded')}", flush=True)


def outcome(options: argparse.Namespace, recipe: str, destination: str) -> dict[str, Any]:
    """The digests of one recipe for one destination; `refused` is the message if there is no outcome."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        done = run(
            options.checkout, "prune", options.model, "--recipe", recipe, "--sparsity", options.sparsity,
            "--calibration", options.text, "--samples", "16", "--length", "128", "--trials", "4",
            "--destination", destination, "--output", str(folder),
        )  # fmt: skip
        if done.returncode:
            return {"refused": [line for line in done.stderr.splitlines() if line.startswith("error:")][:1]}
        plan = json.loads((folder / "plan.json").read_text())
        return {"plan": digest(json.dumps(plan, sort_keys=True).encode()), "weights": weights(folder)}


def run(checkout: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line of a checkout in one thread."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "graphprune", *words]
    return subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)


def weights(folder: Path) -> dict[str, str]:
    """The digest of every weight in the safetensors and .pt2 files of a folder."""
    digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                digests[name] = digest(file.get_tensor(name).contiguous().numpy().tobytes())
    for path in sorted(folder.glob("*.pt2")):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if "/data/weights/" in name or "/data/constants/" in name]
            digests |= {name.partition("/")[2]: digest(archive.read(name)) for name in names}
    return digests


def digest(content: bytes) -> str:
    """A short SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def compare(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Print every difference; true if there is one."""
    different = False
    for name in sorted({*before, *after}):
        first, second = before.get(name), after.get(name)
        if first == second:
            continue
        different = True
        if first is None or second is None or "refused" in first or "refused" in second:
            print(f"{name}: {first and first.get('refused')} -> {second and second.get('refused')}")
            continue
        old, new = first["weights"], second["weights"]
        names = [weight for weight in sorted({*old, *new}) if old.get(weight) != new.get(weight)]
        plans = "the plan differs" if first["plan"] != second["plan"] else "the plan is the same"
        print(f"{name}: {plans}, {len(names)} of {len(new)} weights differ: {', '.join(names[:3])}")
    print(f"{len({*before, *after})} outcomes compared: {'they differ' if different else 'all the same'}")
    return different


if __name__ == "__main__":
    main()
