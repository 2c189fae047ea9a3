"""A compiler for structured pruning of PyTorch models.

The names of `graphprune.public` are also names of this package. They are loaded when the first of them is used, so that
the command line shows ``--help`` without importing torch.
"""

from typing import TYPE_CHECKING

from graphprune.version import __version__ as __version__

if TYPE_CHECKING:
    from graphprune.public import *  # noqa: F403 - the module is a list of names
else:
    from importlib import import_module

    def __getattr__(name: str) -> object:
        if not name.startswith("__") or name == "__all__":  # Python itself reads other names
            _load()
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        _load()
        return [*globals()]

    def _load() -> None:
        """Import all public names into this package; ``__all__`` lists them."""
        public = import_module(f"{__name__}.public")
        names = {name: thing for name, thing in vars(public).items() if not name.startswith("_")}
        globals().update(names, __all__=["__version__", *names])
