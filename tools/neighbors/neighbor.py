"""What checks of neighbors share: a neighbor's record, the names of the folders, and the comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PER_LAYER, STOCK, ONNX, WEB = "per-layer", "stock", "onnx", "web"
QUESTIONS, EXPECTED = "questions.jsonl", "expected.pt"
IDS = torch.arange(3, 17).view(2, 7)

Check = Callable[[Path], float]


@dataclass(frozen=True)
class Neighbor:
    """A package: what pip installs, what is done with it, and the bound of the difference.

    Args:
        requirements: Requirements for pip, or packages for npm; without their dependencies.
        does: What it does, for the table.
        check: Function that takes the folder of the models (see `run.prepare`) and returns the largest difference,
            relative to the largest number.
        bound: Bound of the difference.
        npm: Whether npm installs it.
    """

    requirements: tuple[str, ...]
    does: str
    check: Check
    bound: float = 1e-4
    npm: bool = False


def load(place: Path, kind: str = PER_LAYER) -> Any:
    """A pruned model by transformers."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(place / kind, trust_remote_code=True)
    return model.eval()


def tokenizer(place: Path) -> Any:
    """The tokenizer of the pruned model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place / PER_LAYER)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors of one shape, relative to the largest number of the second.

    Raises:
        ValueError: if their shapes differ, or a number is not finite.
    """
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        raise ValueError(f"numbers of shape {tuple(a.shape)}, expected are finite ones of shape {tuple(b.shape)}")
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Logits of `IDS`."""
    return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def expected(place: Path, kind: str) -> Tensor:
    """Logits of `IDS` that transformers computed with a pruned model."""
    return torch.load(place / EXPECTED)[kind]  # type: ignore[no-any-return]


def feeds(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Inputs of a decoder for `IDS`: `inputs` has the shapes by name; a cache is empty."""
    rows, columns = IDS.shape
    known = {
        "input_ids": IDS,
        "attention_mask": torch.ones_like(IDS),
        "position_ids": torch.arange(columns).expand_as(IDS),
    }
    return {
        name: known[name] if name in known else torch.zeros(rows, int(shape[1]), 0, int(shape[3]))
        for name, shape in inputs.items()
    }
