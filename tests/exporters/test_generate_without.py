"""The program of the README writes the text that graphprune writes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphprune.exporters.checks.generation import generate
from graphprune.exporters.contract import ExportReport

Save = Callable[..., Path]
Exported = Callable[..., ExportReport]
README = Path(__file__).parents[2] / "exporters" / "README.md"
PROMPT = "w3 w4 w5 w6"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first Python block under its heading."""
    section = README.read_text(encoding="utf-8").split("## Generate without graphprune\n")[1]
    path = tmp_path_factory.mktemp("program") / "generate.py"
    path.write_text(section.split('```python title="generate.py"\n')[1].split("```")[0], encoding="utf-8")
    return path


def run(program: Path, *arguments: object) -> str:
    """Standard output of a process that can import neither torch nor transformers nor graphprune."""
    refuse = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'graphprune')))\n"
    (program.parent / "sitecustomize.py").write_text(refuse)
    command = [sys.executable, str(program), *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(program.parent), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plain_decoder(program: Path, saved: Save, exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported(saved("llama")).output, tmp_path / "out"))
    text = generate(folder, PROMPT, 12)
    assert run(program, folder, PROMPT, 12) == f"{text}\n" and len(text.split()) == 12
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    path = folder / "generation_config.json"
    last = [vocabulary[word] for word in text.split()[-2:]]
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, *last]}))
    shorter = generate(folder, PROMPT)
    assert run(program, folder, PROMPT) == f"{shorter}\n" and len(shorter) < len(text)


@pytest.mark.slow
def test_half_precision_and_layers_of_different_heads(program: Path, uneven: Save, exported: Exported) -> None:
    folder = exported(uneven(), dtype="fp16").output
    text = generate(folder, PROMPT, 12)
    assert run(program, folder, PROMPT, 12) == f"{text}\n" and text
