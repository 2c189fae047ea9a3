"""Lazy imports of packages that not every run needs, with one-line errors where an import fails.

Modules import ``transformers`` and the like from this module, so that a missing or broken package affects only code
that needs it. Type checkers see the packages themselves.
"""

import logging
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any

from graphprune.errors import PackageError, because


class Lazy(ModuleType):
    """Proxy module that imports its package when one of the package's names is read.

    A name is an attribute of the package or a module in it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # Python itself reads them to inspect the module
            raise AttributeError(name)
        package = load(self.__name__)
        try:
            return getattr(package, name)
        except Exception as fault:
            if not isinstance(fault, AttributeError):
                raise failed_import(fault, self.__name__) or fault from fault
        try:
            return import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"{self.__name__} has no {name}") from None


EXTRAS = {"onnxruntime": "cpu"}  # extras of graphprune that install a package which not every run needs
ALTERNATIVES = {"cpu": "; [gpu] instead of [cpu] has CUDA"}

metadata = Lazy("importlib.metadata")  # slow to import, and only errors need it

if TYPE_CHECKING:
    import accelerate as accelerate  # type: ignore[import-untyped]
    import gguf as gguf
    import huggingface_hub as huggingface_hub
    import onnx as onnx
    import onnx_ir as onnx_ir
    import onnxruntime as onnxruntime
    import onnxscript as onnxscript
    import tokenizers as tokenizers
    import transformers as transformers
else:
    accelerate = Lazy("accelerate")
    gguf, onnx, onnx_ir = Lazy("gguf"), Lazy("onnx"), Lazy("onnx_ir")
    huggingface_hub = Lazy("huggingface_hub")
    onnxruntime, onnxscript, transformers = Lazy("onnxruntime"), Lazy("onnxscript"), Lazy("transformers")
    tokenizers = Lazy("tokenizers")


def load(module: str, extra: str = "") -> Any:
    """Import a module of an optional package, and undo changes that it makes to the root logger.

    Args:
        module: The module's full name.
        extra: The extra of graphprune that installs the package; "" if it comes with graphprune.

    Raises:
        PackageError: if the package is missing or fails while it is imported.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return import_module(module)
    except Exception as fault:  # a compiled module fails with anything
        raise failed_import(fault, module, extra) or _broken(module, module, fault) from fault
    finally:
        if root.level != level or root.handlers != handlers:
            root.handlers[:] = handlers
            root.setLevel(level)


def failed_import(fault: BaseException, needed: str = "", extra: str = "") -> PackageError | None:
    """Error of the package whose import raised `fault`, or None if no import did.

    Args:
        fault: An error, possibly raised from that of the import.
        needed: The requested module, if it is known.
        extra: The extra that installs it, if one does.
    """
    if isinstance(fault, PackageError):
        return fault
    for error in _causes(fault):
        if isinstance(error, ModuleNotFoundError) and error.name and find_spec(_top(error.name)) is None:
            return _missing(_top(error.name), needed, extra)
        frames = [frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__) if _is_import(frame)]
        if frames and _top(frames[-1]) != "graphprune":
            return _broken(_top(frames[-1]), needed, error)
    return None


def _is_import(frame: Any) -> bool:
    """Whether a frame runs the statements of a module, not of a function."""
    return bool(frame.f_code.co_name == "<module>")


def _causes(fault: BaseException) -> Iterator[BaseException]:
    """Errors that an error was raised from, the first cause first, and the error itself."""
    if fault.__cause__ is not None:
        yield from _causes(fault.__cause__)
    yield fault


def _missing(package: str, needed: str, extra: str) -> PackageError:
    why = f", which {_top(needed)} needs," if needed and _top(needed) != package else ""
    extra = extra or EXTRAS.get(package, "")
    requirement = f"'graphprune[{extra}]'{ALTERNATIVES.get(extra, '')}" if extra else package
    return PackageError(f"{package}{why} is not installed: pip install {requirement}")


def _broken(package: str, needed: str, fault: BaseException) -> PackageError:
    """Error of an installed package: it may be built for another torch, or may be unnecessary."""
    name, version = _distribution(package)
    needs_torch = "torch" in _needs(name)
    with_torch = f" with torch {_version('torch')}" if needs_torch else ""
    advice = f"reinstall it (pip install {name})" if version else "correct its code"
    advice = f"install the {name} built for this torch" if needs_torch else advice
    if needed and _top(needed) != package and name not in _needs(_distribution(_top(needed))[0]):
        advice += ", or uninstall it"
    return PackageError(f"{f'{name} {version}'.rstrip()} cannot be imported{with_torch}{because(fault)}: {advice}")


def _distribution(package: str) -> tuple[str, str]:
    """Name and version of the distribution of a package; the package itself and "" if pip did not install it."""
    name = next(iter(metadata.packages_distributions().get(package, [])), package)
    return name, _version(name)


def _version(distribution: str) -> str:
    try:
        return str(metadata.version(distribution) or "")
    except metadata.PackageNotFoundError:
        return ""


def _needs(distribution: str) -> set[str]:
    """Names of the distributions that a distribution always requires."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return set()
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line}


def _top(module: str) -> str:
    return module.partition(".")[0]
