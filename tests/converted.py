"""GGUF files converted in two ways: what tests of the frontend and of the exporter share."""

from pathlib import Path

from safetensors.torch import load_file

from graphprune.frontends import gguf_models, gguf_weights
from graphprune.huggingface import model_folder


def alike(file: Path, place: Path) -> None:
    """Tensor by tensor, a file becomes what transformers makes of it as a whole."""
    whole, single = place / "whole", place / "single"
    for folder in (whole, single):
        folder.mkdir(parents=True)
    gguf_weights.write(file, single)
    gguf_models._write_whole(file, whole, {"gguf_file": file.name, "local_files_only": True})
    assert sorted(path.name for path in single.iterdir()) == sorted(path.name for path in whole.iterdir())
    for name in ("config.json", "generation_config.json"):
        assert model_folder.read_json(single / name) == model_folder.read_json(whole / name)
    one, other = (load_file(folder / "model.safetensors") for folder in (single, whole))
    assert one.keys() == other.keys()
    for name, expected in other.items():
        assert one[name].dtype == expected.dtype and one[name].equal(expected), name
