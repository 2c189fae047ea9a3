"""Registries of plug-ins by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar, cast

from graphprune.errors import RegistryError, because, choices

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")

PLUGINS = "graphprune.plugins"
_plugged_in = False


class Registry(Mapping[K, V]):
    """Registry of objects by name; duplicates are errors, and so are unknown names, with close ones in the message.

    `listed` describes where all names are listed. Plug-ins are loaded before the first access to a registry: see
    `load_plugins`. `own` has the entries so far, for modules that read their registry while they are imported.
    """

    def __init__(self, kind: str, listed: str = "") -> None:
        self.kind, self.listed = kind, listed
        self.own: dict[K, V] = {}

    @property
    def _table(self) -> dict[K, V]:
        load_plugins()
        return self.own

    def register(self, *names: K) -> Callable[[W], W]:
        """Register the decorated object under each of `names`.

        Raises:
            RegistryError: if a name is taken.
        """

        def add(thing: W) -> W:
            for name in names:
                if name in self.own:
                    raise RegistryError(f"{self.kind} {name!r} is registered twice")
                self.own[name] = thing  # type: ignore[assignment]
            return thing

        return add

    def __getitem__(self, name: K) -> V:
        if name in self._table:
            return self._table[name]
        hint = choices(name, sorted(map(str, self._table)), self.listed)
        raise RegistryError(f"no {self.kind} {str(name)!r}; {hint}")

    def get(self, name: K, default: Any = None) -> Any:
        """Return the object of this name, or `default`, without computing suggestions."""
        return self[name] if name in self._table else default

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[K]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


@dataclass(frozen=True)
class _Unread:
    """Object whose module is not imported yet."""

    module: str
    name: str

    def read(self) -> Any:
        return getattr(import_module(self.module), self.name)


class FileRegistry(Registry[str, V]):
    """Registry of the files in a folder: ``some_name.py`` holds ``some-name`` and is imported on first use."""

    def __init__(self, kind: str, package: str, path: Iterable[str], name: str) -> None:
        """List the modules of `package` in the folders of `path`, each of which defines `name`."""
        super().__init__(kind)
        for module in sorted(info.name for info in iter_modules(path)):
            self.own[module.replace("_", "-")] = cast(V, _Unread(f"{package}.{module}", name))

    def __getitem__(self, name: str) -> V:
        thing = super().__getitem__(name)
        if isinstance(thing, _Unread):
            thing = self._table[name] = thing.read()
        return thing


def discover(package: str, path: Iterable[str]) -> None:
    """Import every module of a plug-in folder, so that each registers itself; import errors are raised."""
    for module in sorted(info.name for info in iter_modules(path)):
        import_module(f"{package}.{module}")


def load_plugins() -> None:
    """Import the modules that installed distributions name as entry points of the group `PLUGINS`, once.

    Raises:
        RegistryError: if one cannot be imported, with the name of its distribution.
    """
    global _plugged_in
    if _plugged_in:
        return
    _plugged_in = True  # plug-ins access registries, too
    for point in entry_points(group=PLUGINS):
        try:
            point.load()
        except Exception as fault:  # the import of a plug-in can raise anything
            _plugged_in = False
            distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
            raise RegistryError(
                f"plug-in {point.value} of {distribution} cannot be imported{because(fault)}; repair or uninstall it"
            ) from fault
