"""Operators of ONNX as functions of torch, a file for each family."""

from collections.abc import Callable
from typing import Any

from graphprune.frontends.onnx_import.onnx_values import NodeCall
from graphprune.registry import Registry, discover

Translation = Callable[[NodeCall], Any]  # a value, or a tuple of values
MICROSOFT = "com.microsoft"

#: Translations by operator, such as ``Gather`` or ``com.microsoft::BiasGelu``.
TRANSLATIONS: Registry[str, Translation] = Registry("ONNX operator")


def translates(*names: str, domain: str = "") -> Callable[[Translation], Translation]:
    """Register a translation of these operators of a domain."""
    return TRANSLATIONS.register(*(key(domain, name) for name in names))


def key(domain: str, name: str) -> str:
    """Name of an operator with its domain, unless that is the standard one."""
    return name if domain in ("", "ai.onnx") else f"{domain}::{name}"


discover(__name__, __path__)
