"""Refuse TorchScript files, with the ways to get a model out of them."""

from pathlib import Path
from typing import NoReturn
from zipfile import BadZipFile, ZipFile

from graphprune.errors import LoadError
from graphprune.frontends import FRONTENDS, Frontend

_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript", ".jit")


def refuse(text: str) -> NoReturn:
    """Refuse a file.

    Raises:
        LoadError: always; it describes what to load instead.
    """
    raise LoadError(
        f"{text} is a TorchScript file, whose graph torch.export cannot follow; export it as ONNX "
        '(torch.onnx.export(torch.jit.load(file), args, "model.onnx", dynamo=False)) and load that file, or pass the '
        "Python module that it was scripted from to graphprune.trace"
    )


def _is_torchscript(text: str) -> bool:
    path = Path(text)
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return False
    try:
        with ZipFile(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except (BadZipFile, OSError):
        return False


FRONTENDS.register("torchscript")(
    Frontend("(TorchScript files are refused: export them as ONNX)", _is_torchscript, refuse)
)
