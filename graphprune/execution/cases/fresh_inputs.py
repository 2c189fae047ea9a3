"""Random inputs of the kind of a program's example, which reach its branches: masks, padding, indices, other sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.execution.cases.index_ranges import IndexRange, index_range
from graphprune.execution.cases.input_sizes import Sizes, candidates, evaluate, leaves, structured
from graphprune.ir.program import Inputs, Program

#: Ways to fill masks: as in the example, with padding before or after some rows, or at random.
PLAIN, LEFT, RIGHT, RANDOM = "plain", "left", "right", "random"
#: Only floating-point values are new.
RETAINED = "retained"
Span = tuple[int, int]
FEW = 1 << 21  # parameters of a program that is cheap to run


@dataclass(frozen=True)
class Variant:
    """Kind of inputs: sizes (traced, large or small), filling of masks, and factor of floating-point values."""

    sizes: str
    masks: str
    scale: float = 1.0


VARIANTS = (
    Variant("traced", PLAIN),
    Variant("large", LEFT, 3.0),
    Variant("small", RIGHT, 0.5),
    Variant("traced", RANDOM),
)
STRONG = (Variant("traced", PLAIN, 10.0), Variant("traced", RANDOM, 30.0))
TRACED = (Variant("traced", PLAIN), Variant("traced", RANDOM))
WRITTEN_BACK = (Variant("traced", PLAIN), Variant("traced", LEFT), Variant("traced", RANDOM, 3.0))


def variants(program: Program) -> Sequence[Variant]:
    """Kinds of inputs for a proof, fewer for a large program that takes no masks."""
    discrete = any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for _, leaf in leaves(program))
    if program.count() <= FEW:
        return VARIANTS
    return VARIANTS[:3] if discrete else VARIANTS[:2]


def fresh_inputs(program: Program, seed: int) -> Inputs:
    """Random inputs of the traced sizes; those of several seeds differ in their masks, too."""
    variant = WRITTEN_BACK[seed % len(WRITTEN_BACK)]
    return draw(program, seed, variant, next(candidates(program, "traced")))


def attempts(program: Program, seed: int, variant: Variant) -> Iterator[tuple[Inputs, str]]:
    """Inputs of one kind to try in this order until the program accepts some, and what they take from the example."""
    for sizes in candidates(program, variant.sizes):
        yield draw(program, seed, variant, sizes), ""
    traced = next(candidates(program, "traced"))
    yield draw(program, seed, Variant("traced", PLAIN), traced), ""
    yield draw(program, seed, Variant("traced", RETAINED), traced), " with the integers of the example"
    yield program.inputs, ", the example itself"


def draw(program: Program, seed: int, variant: Variant, sizes: Sizes) -> Inputs:
    """Random inputs of one kind and these sizes."""
    known = leaves(program)
    floats = [node.meta["val"] for node, leaf in known if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    rows_grow = any(value.dim() and not isinstance(value.shape[0], int) for value in floats)
    source = _Source(torch.Generator().manual_seed(seed), variant, sizes, {}, rows_grow)
    return structured(program, [source.leaf(program, node, leaf) for node, leaf in known])


@dataclass
class _Source:
    """Random values of one case; inputs of one shape share their padding.

    `rows_grow`: floating-point inputs have a dynamic number of rows.
    """

    generator: torch.Generator
    variant: Variant
    sizes: Sizes
    paddings: dict[tuple[int, ...], Tensor]
    rows_grow: bool

    def leaf(self, program: Program, node: fx.Node, leaf: Any) -> Any:
        """New value for a leaf of the example."""
        value = node.meta.get("val")
        if isinstance(leaf, int) and not isinstance(leaf, bool) and not isinstance(value, int | None):
            return evaluate(value, self.sizes)
        if not isinstance(leaf, Tensor) or not isinstance(value, Tensor) or not leaf.numel():
            return leaf
        shape = [evaluate(size, self.sizes) for size in value.shape]
        example = leaf.detach().cpu()
        use = index_range(program, node)
        if leaf.is_floating_point() or leaf.is_complex():
            return self._decisive(self._floats(example, shape), example, use).to(leaf)
        if self.variant.masks == RETAINED:
            return tiled(example, shape).to(leaf)
        if leaf.dtype == torch.bool:
            return self._mask(example, shape).to(leaf)
        integers = self._integers(example, shape, use)
        return (integers if use.tables else self._decisive(integers, example, use)).to(leaf)

    def _decisive(self, drawn: Tensor, example: Tensor, use: IndexRange) -> Tensor:
        """Put numbers that decide comparisons into one kind of inputs, at random places or, in few, everywhere."""
        if self.variant.masks != RANDOM or not use.decisive or drawn.is_complex():
            return drawn
        first = float(example.flatten()[0])
        numbers = torch.tensor(sorted(use.decisive, key=lambda number: -abs(number - first)), dtype=torch.float64)
        order = torch.randperm(drawn.numel(), generator=self.generator).view(drawn.shape)
        chosen = self._whole(0, 2, [*drawn.shape]) > 0 if drawn.numel() > 2 * len(numbers) else True
        return torch.where(torch.as_tensor(chosen), numbers[order % len(numbers)].to(drawn.dtype), drawn)

    def _floats(self, example: Tensor, shape: list[int]) -> Tensor:
        wide = example.to(torch.promote_types(example.dtype, torch.float32))
        levels = _levels(wide)
        if len(levels) == 2 and wide.numel() > 2:  # a mask, which may hold -inf
            return tiled(wide, shape) if self.variant.masks == RETAINED else self._mask(wide, shape)
        if len(levels) == 1 and self.variant.masks == RANDOM and wide.numel() > 2 and float(wide.abs().max()) in (0, 1):
            return self._mask(wide, shape)  # it may be a mask that excludes nothing
        drawn = torch.randn(shape, generator=self.generator, dtype=wide.dtype) * self.variant.scale
        if len(levels) == 1:
            return drawn * max(1.0, abs(float(wide.abs().flatten()[0]))) + wide.flatten()[0]
        finite = bool(wide.isfinite().all())
        if not finite or (not wide.is_complex() and bool((wide >= 0).all()) and self.variant.masks == PLAIN):
            return wide.flatten()[self._whole(0, wide.numel(), shape)]
        return drawn * wide.std(correction=0) + wide.mean()

    def _mask(self, example: Tensor, shape: list[int]) -> Tensor:
        """Values of the example, with the other of two values at padding, or both at random."""
        plain = tiled(example, shape)
        if self.variant.masks == PLAIN:
            return plain
        other = _other(example)
        if self.variant.masks == RANDOM or len(shape) < 2:
            return plain.where(self._whole(0, 2, shape) > 0, other)
        return plain.where(~self._padding(shape), other)

    def _integers(self, example: Tensor, shape: list[int], use: IndexRange) -> Tensor:
        tables = [(-offset, evaluate(size, self.sizes) - offset) for size, offset in use.tables]
        low, high = max((t[0] for t in tables), default=None), min((t[1] for t in tables), default=None)
        if low is None or high is None or high <= low:
            low, high = int(example.min()), int(example.max()) + 1
            if low >= 0 and high <= 2:
                return self._mask(example, shape)
            low = min(low, 1) if low == high - 1 else low
        if example.dim() and example.shape[-1] > 1 and bool((example.diff(dim=-1) == 1).all()):  # positions
            count = torch.arange(shape[-1]) + int(example.flatten()[0])
            return (count.clamp(max=max(high - 1, 0)) if tables else count).expand(shape).clone()
        return self._marked(self._whole(low, high, shape), example, shape, use, (low, high))

    def _marked(
        self, drawn: Tensor, example: Tensor, shape: list[int], use: IndexRange, span: tuple[int, int]
    ) -> Tensor:
        """Draw again what the program looks for, then put it where the example has it, or else at padding."""
        if not use.marks:
            return drawn
        marks = torch.tensor(sorted(use.marks), dtype=drawn.dtype)
        free = torch.arange(*span)[:4096] if span[1] - span[0] > 1 else torch.tensor([span[0]])
        free = free[~torch.isin(free, marks)]
        if len(free):
            drawn = drawn.where(~torch.isin(drawn, marks), free[self._whole(0, len(free), shape)])
        places = tuple(slice(0, size) for size in example.shape)
        if self.rows_grow and example.dim():  # so does the number of features that a model puts there
            places, example = (slice(None), *places[1:]), tiled(example, [shape[0], *example.shape[1:]])
        inside = drawn[places]
        part = example[tuple(slice(0, size) for size in inside.shape)].to(drawn.dtype)
        drawn[places] = part.where(torch.isin(part, marks), inside)
        absent = sorted(m for m in use.marks if span[0] <= m < span[1] and not bool((example == m).any()))
        if not absent or self.variant.masks == PLAIN:
            return drawn
        if len(shape) > 1:
            return drawn.masked_fill(self._padding(shape), absent[0]) if self.variant.masks != RANDOM else drawn
        chosen = torch.tensor(absent, dtype=drawn.dtype)[self._whole(0, len(absent), shape)]
        return chosen.where(self._whole(0, 2, shape) > 0, drawn)  # of a vector, which has no padding

    def _padding(self, shape: list[int]) -> Tensor:
        """Mask of the padding: a random part at one end of the last dimension, in every other row."""
        if tuple(shape) not in self.paddings:
            lengths = self._whole(1, max(2, (shape[-1] + 1) // 2), [*shape[:-1], 1])
            rows = torch.arange(lengths.shape[0]) % 2 == (0 if lengths.shape[0] == 1 else 1)
            lengths = lengths * rows.view(-1, *[1] * (len(shape) - 1))
            places = torch.arange(shape[-1])
            places = places if self.variant.masks == LEFT else places.flip(0)
            self.paddings[tuple(shape)] = (places < lengths).expand(shape) & (shape[-1] > 1)
        return self.paddings[tuple(shape)]

    def _whole(self, low: int, high: int, shape: list[int]) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)


def tiled(example: Tensor, shape: Sequence[int]) -> Tensor:
    """The example repeated or cut to another shape."""
    for dim, size in enumerate(shape):
        example = example.index_select(dim, torch.arange(size) % example.shape[dim])
    return example


def _levels(values: Tensor) -> Tensor:
    """Up to three of the distinct values."""
    levels: list[Tensor] = []
    flat = values.flatten()
    while len(flat) and len(levels) < 3:
        levels.append(flat[0])
        flat = flat[(flat != flat[0]) & ~flat.isnan()]
    return torch.stack(levels)


def _other(example: Tensor) -> Tensor:
    """The rarer of two values, or the one of 0 and 1 that does not occur."""
    levels = _levels(example)
    if len(levels) == 1:
        return (levels[0] == 0).to(example.dtype)
    first = int((example == levels[0]).sum()) * 2 > example.numel()
    return levels[1] if first else levels[0]
