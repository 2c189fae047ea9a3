"""The names that a user may rely on exist, and say what they are."""

import ast
import inspect
from pathlib import Path

import pytest

import graphprune

FUNCTIONS = (
    "trace",
    "load",
    "analyze",
    "plan",
    "apply",
    "verify",
    "prune",
    "heal",
    "save",
    "export",
    "sensitivity",
    "compare",
    "view",
)
TYPES = ("Dependencies", "Group", "Plan", "Pipeline", "Program", "Pruner", "Report", "Sensitivities", "Comparison")
PASSES = ("Analyze", "Calibrate", "Score", "Allocate", "Select", "Rewrite", "Refit", "Verify")


def announced() -> list[str]:
    """What `graphprune/public.py` exports: every ``name as name``."""
    text = Path(graphprune.__file__).with_name("public.py").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return sorted(alias.name for node in imports for alias in node.names if alias.asname == alias.name)


@pytest.mark.parametrize("name", [*FUNCTIONS, *TYPES, *PASSES])
def test_the_contract_is_announced(name: str) -> None:
    assert name in announced()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_are_functions(name: str) -> None:
    assert inspect.isfunction(getattr(graphprune, name)), f"graphprune.{name} is hidden by a module of that name"


@pytest.mark.parametrize("name", announced())
def test_every_name_is_documented(name: str) -> None:
    thing = getattr(graphprune, name)
    assert isinstance(thing, str) or inspect.getdoc(thing), f"graphprune.{name} has no docstring"
