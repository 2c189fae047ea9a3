"""Load a model of any supported kind."""

from collections.abc import Mapping
from pathlib import Path

from graphprune.errors import LoadError
from graphprune.frontends import FRONTENDS, adapter_folders, onnx_models
from graphprune.huggingface.hub_models import local_path
from graphprune.ir.program import Program


def load(
    model: str | Path,
    *,
    dequantize: bool = False,
    sizes: Mapping[str, int] | None = None,
    revision: str | None = None,
    offline: bool = False,
    merge_adapters: bool = False,
) -> Program:
    """Load a folder, a file, a model of the hub or ``package.module:callable`` by the first frontend that accepts it.

    `dequantize` turns quantized weights of an ONNX file into floating-point numbers, and `sizes` has sizes of its
    dynamic dimensions at which it runs. A model of the hub is read from its cache, and downloaded if it is not there
    and `offline` is not set; `revision` is a branch, tag or commit of it. `merge_adapters` adds the adapter of a
    folder to its model first.

    Raises:
        LoadError: if no frontend accepts it, or its files cannot be read.
        TraceError: if torch.export refuses the model.
    """
    path = local_path(model, revision, offline)
    text = str(adapter_folders.merged(Path(path)) if merge_adapters else path)
    if FRONTENDS["onnx"].accepts(text):
        return onnx_models.load(text, dequantize=dequantize, sizes=sizes)
    if dequantize or sizes:
        raise LoadError(f"{text} is no ONNX file, and only those are loaded with dequantize or sizes; omit them")
    for frontend in FRONTENDS.values():
        if frontend.accepts(text):
            return frontend.load(text)
    expected = "\n".join(f"  {frontend.description}" for frontend in FRONTENDS.values())
    raise LoadError(f"cannot load {text!r}: {_contents(Path(text))}; expected one of\n{expected}")


def _contents(path: Path) -> str:
    """Description of what lies at a path that no frontend accepts."""
    if path.is_dir() and adapter_folders.is_adapter(path):
        return "the folder holds an adapter without its base model, which merge_adapters (--merge-adapters) adds to it"
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())
        return f"the folder holds {', '.join(inside[:8])}" if inside else "the folder is empty"
    return "the file is of no known kind" if path.exists() else "there is no such file or folder"
