"""Checks of a trimmed model: outputs for retained tokens, and texts that are encoded and decoded."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphprune.errors import VerificationError
from graphprune.execution.output_comparison import compare, numbers
from graphprune.vocabulary.vocabulary_axes import INDICES

if TYPE_CHECKING:
    from graphprune.workflows.trimming.trimmed_folder import TrimSource

TOLERANCE = 1e-5  # of the typical value
_CASES = 3


@dataclass(frozen=True)
class Sample:
    """Inputs of retained tokens alone, and the tokens whose outputs are compared, in ascending order."""

    inputs: Sequence[Mapping[str, Any]]
    compared: Tensor

    @classmethod
    def of(cls, source: "TrimSource", retained: Mapping[int, int], apart: Set[int]) -> "Sample":
        """Inputs of the sizes of the example of a model, without the tokens `apart`, whose rows change."""
        known = [number for number in retained if number < source.rows and number not in apart]
        tokens = torch.tensor(sorted(known))
        generator = torch.Generator().manual_seed(0)

        def drawn(name: str, value: Any) -> Any:
            if not name.endswith(INDICES):
                return value
            return tokens[torch.randint(len(tokens), value.shape, generator=generator)]

        example = source.program.inputs[1]
        cases = [{name: drawn(name, value) for name, value in example.items()} for _ in range(_CASES)]
        return cls(cases, tokens)

    def renumbered(self, retained: Mapping[int, int]) -> "Sample":
        """Inputs and compared tokens under their new identifiers."""
        table = torch.zeros(int(self.compared.max()) + 1, dtype=torch.long)
        table[self.compared] = torch.tensor([retained[number] for number in self.compared.tolist()])
        cases = [
            {name: table[value] if name.endswith(INDICES) else value for name, value in case.items()}
            for case in self.inputs
        ]
        return replace(self, inputs=cases, compared=table[self.compared])

    def outputs(self, module: Any, rows: int) -> list[list[Tensor]]:
        """Outputs of a model in each case; of those of `rows` tokens, the compared ones."""
        with torch.no_grad():
            every = [numbers(module(**case, **_no_cache(module))) for case in self.inputs]
        return [[self._selected(output, rows) for output in outputs] for outputs in every]

    def _selected(self, output: Tensor, rows: int) -> Tensor:
        return output[..., self.compared] if output.dim() and output.shape[-1] == rows else output


def _no_cache(module: Any) -> dict[str, Any]:
    return {"use_cache": False} if getattr(module.config, "use_cache", False) else {}


def require_agreement(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]]) -> float:
    """The largest relative difference of outputs before and after.

    Raises:
        VerificationError: if they differ by more than rounding.
    """
    pairs = zip(before, after, strict=True)
    return max(compare([*a], [*b], "original and trimmed model", TOLERANCE).max_error for a, b in pairs)


def require_round_trips(old: Any, new: Any, retained: Mapping[int, int], texts: Sequence[str]) -> None:
    """Check that texts decode to what they decoded to, and that those of retained tokens have the same tokens.

    Raises:
        VerificationError: if one does not.
    """
    tokenizers = old.backend_tokenizer, new.backend_tokenizer
    before, after = ([e.ids for e in each.encode_batch(list(texts))] for each in tokenizers)
    for text, a, b in zip(texts, before, after, strict=True):
        if all(number in retained for number in a) and [retained[number] for number in a] != b:
            raise VerificationError(
                f"the trimmed tokenizer splits {text[:60]!r} into other tokens, although all of its own are retained; "
                "nothing was saved"
            )
        decoded = [each.decode(ids) for each, ids in zip(tokenizers, (a, b), strict=True)]
        if decoded[0] != decoded[1]:
            at = next((i for i, (x, y) in enumerate(zip(*decoded, strict=False)) if x != y), 0)
            raise VerificationError(
                f"the trimmed tokenizer reads {decoded[1][at : at + 40]!r} where the original reads "
                f"{decoded[0][at : at + 40]!r}; nothing was saved"
            )
