"""Example inputs of an ONNX graph: sizes of its dynamic dimensions with which ONNX Runtime runs it."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from graphprune.errors import LoadError, because
from graphprune.frontends.onnx_import.reference_session import ReferenceSession

BATCH = 2
SIDES = (8, 32, 64, 224)
MOST = 400  # trials
SEED = 0

Shapes = Mapping[str, Sequence[int | str]]


def example(
    file: str, shapes: Shapes, session: ReferenceSession, given: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs that ONNX Runtime accepts, of the sizes that are given, and its outputs.

    Raises:
        LoadError: if it accepts none of the trials, with its reason for the first.
    """
    names = _names(shapes)
    if unknown := [name for name in given if name not in names]:
        known = ", ".join(names) or "none"
        raise LoadError(f"{file} has no dynamic dimension {unknown[0]!r}; the dynamic dimensions are: {known}")
    first: Exception | None = None
    for number, sizes in enumerate(_trials(shapes)):
        feeds = drawn(shapes, {**sizes, **given}, session.types)
        try:
            return feeds, session.run(feeds)
        except Exception as fault:  # its errors share no base class
            first = first or fault
        if number == MOST:
            break
    assert first is not None
    form, flags = ", ".join(f"{name!r}: N" for name in names), ",".join(f"{name}=N" for name in names)
    raise LoadError(
        f"{file}: ONNX Runtime runs it with none of the sizes that were tried{because(first)}; give the sizes at which "
        f"it runs: graphprune.load(file, sizes={{{form}}}), or --sizes {flags}"
    ) from first


def _names(shapes: Shapes) -> list[str]:
    """Names of the dynamic dimensions."""
    return list(dict.fromkeys(size for shape in shapes.values() for size in shape if isinstance(size, str)))


def drawn(shapes: Shapes, sizes: Mapping[str, int], types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Inputs of these sizes: random numbers, and ones for integers, which are valid as masks and most indices."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = {}
    for name, shape in shapes.items():
        known = [sizes[size] if isinstance(size, str) else size for size in shape]
        kind = types[name]
        numbers = torch.randn(known, generator=generator) if kind.is_floating_point else torch.ones(known)
        inputs[name] = numbers.to(kind)
    return inputs


def _trials(shapes: Shapes) -> Iterator[dict[str, int]]:
    """Sizes to try: simple ones, then those in which some are sums of others, as the length of a mask with a cache."""
    names = _names(shapes)
    batches = {str(shape[0]) for shape in shapes.values() if shape}
    for batch in (BATCH, 1):
        bases = [_base(names, batches, side, batch, apart) for side, apart in product(SIDES, (True, False))]
        yield from bases
        for sizes, side in product(bases[:2], (*SIDES, 1)[: None if batch == 1 else -1]):
            yield from ({**sizes, name: side} for name in names)
        for sizes, (name, a, b) in product(bases[:2], product(names, names, names)):
            if name not in (a, b) and a <= b:
                yield {**sizes, name: sizes[a] + sizes[b]}
            elif name == a != b:
                yield {**sizes, name: sizes[b]}


def _base(names: Sequence[str], batches: Collection[str], side: int, batch: int, apart: bool) -> dict[str, int]:
    """A batch, and one size for all other dimensions, or one for each of them."""
    others = iter(range(len(names)))
    sizes = {name: batch if name in batches else side + (next(others) if apart else 0) for name in names}
    return _with_sums(names, sizes)


def _with_sums(names: Sequence[str], sizes: dict[str, int]) -> dict[str, int]:
    """Sizes in which names that are sums, such as ``past + sequence``, have their value."""
    for name in names:
        parts = [part.strip() for part in re.split(r"\+", name)]
        if len(parts) > 1 and all(part in sizes or part.isdigit() for part in parts):
            sizes[name] = sum(sizes[part] if part in sizes else int(part) for part in parts)
    return sizes
