"""Cases of a comparison: fresh inputs that a program accepts, and its outputs for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphprune.errors import VerificationError, because
from graphprune.execution import interpreter
from graphprune.execution.cases.fresh_inputs import Variant, attempts, variants
from graphprune.execution.cases.input_sizes import describe
from graphprune.execution.interface_cut import SAME, InterfaceCut
from graphprune.execution.liveness import Watch
from graphprune.ir.program import Inputs, Program


@dataclass(frozen=True)
class Cases:
    """Inputs that a program accepts, their seeds and outputs, the sizes of each, and the sizes that it refused."""

    inputs: Sequence[Inputs]
    seeds: Sequence[int]
    outputs: Sequence[Any]
    sizes: tuple[str, ...]
    refused: tuple[str, ...]
    interface: InterfaceCut = SAME

    def compared(self, interface: InterfaceCut) -> "Cases":
        """Cases for the comparison with a program whose inputs and outputs are narrower."""
        return replace(self, outputs=list(map(interface.expected, self.outputs)), interface=interface)

    def only(self, chosen: Sequence[int]) -> "Cases":
        """Some of the cases."""
        inputs, seeds, outputs = self.inputs, self.seeds, self.outputs
        return replace(
            self, inputs=[inputs[i] for i in chosen], seeds=[seeds[i] for i in chosen],
            outputs=[outputs[i] for i in chosen],
        )  # fmt: skip

    @property
    def given(self) -> Sequence[Inputs]:
        """Inputs of the other program."""
        return list(map(self.interface.given, self.inputs))


def accepted(
    program: Program,
    seeds: Sequence[int] = (),
    what: str = "the original",
    kinds: Sequence[Variant] = (),
    watch: Watch = interpreter.NOTHING,
) -> Cases:
    """Run a program on every kind of inputs; where it raises an error, on inputs closer to those of the example.

    Raises:
        VerificationError: if it raises one on the example, too.
    """
    kinds = kinds or variants(program)
    chosen = tuple(seeds or range(len(kinds)))
    remaining = [attempts(program, seed, kinds[seed % len(kinds)]) for seed in chosen]
    inputs, notes = map(list, zip(*map(next, remaining), strict=True))
    outputs = interpreter.attempt(program, inputs, chosen, watch)
    refused: dict[str, None] = {}
    while failed := [i for i, output in enumerate(outputs) if isinstance(output, Exception)]:
        for i in failed:
            refused[describe(inputs[i], program)] = None
            inputs[i], notes[i] = _next(remaining[i], outputs[i], what)
        again = interpreter.attempt(program, [inputs[i] for i in failed], [chosen[i] for i in failed], watch)
        for i, output in zip(failed, again, strict=True):
            outputs[i] = output
    sizes = [describe(case, program) for case in inputs]
    used = tuple(size + note for size, note in zip(sizes, notes, strict=True))
    return Cases(inputs, chosen, outputs, used, tuple(size for size in refused if size not in sizes))


def _next(remaining: Iterator[tuple[Inputs, str]], error: Exception, what: str) -> tuple[Inputs, str]:
    following = next(remaining, None)
    if following is None:
        raise VerificationError(
            f"{what} fails on the inputs that it was traced with{because(error)}; nothing was saved"
        ) from error
    return following
