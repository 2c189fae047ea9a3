"""Tasks of models of text: what a window of tokens becomes as inputs and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import logits
from graphprune.healing.data.examples import IGNORED
from graphprune.statistics.collector import DECODER_IDS, encoder_decoder_inputs

Kind = Literal["causal", "masked", "encoder-decoder", "classifier"]
_PROBE = 6  # tokens


@dataclass(frozen=True)
class TextTask:
    """Task of a model: its kind, special tokens, and the names of its inputs.

    `around` are the tokens before and after the text of a window, `mask` replaces tokens of a masked language model,
    and `start` starts the decoder of an encoder-decoder.
    """

    kind: Kind
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    mask: int = 0
    start: int = 0
    names: frozenset[str] = frozenset({"input_ids", "attention_mask"})

    @property
    def extra(self) -> int:
        """Number of special tokens of a window."""
        return sum(map(len, self.around))

    def inputs(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Named inputs for token ids, shape (rows, length); `mask` is 0 at padding."""
        if self.kind == "encoder-decoder":
            known: Mapping[str, Tensor] = encoder_decoder_inputs(ids, self.start)
        else:
            known = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        return {name: tensor for name, tensor in known.items() if name in self.names}

    def example(self, ids: Tensor, share: float, seeds: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and labels of windows without special tokens; `seeds`, one a row, draw the masked tokens."""
        if self.kind == "encoder-decoder":
            return self.inputs(ids), ids[:, ids.shape[1] // 2 :]
        if self.kind == "causal":
            return self.inputs(ids), torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], 1)
        drawn = torch.stack([_drawn(ids.shape[1], share, seed) for seed in seeds])
        labels = self._enclosed(ids.where(drawn, IGNORED), IGNORED)
        return self.inputs(self._enclosed(ids.masked_fill(drawn, self.mask))), labels

    def unmasked(self, ids: Tensor) -> dict[str, Tensor]:
        """Inputs of windows without special tokens, of which none is masked."""
        return self.inputs(self._enclosed(ids))

    def _enclosed(self, ids: Tensor, value: int | None = None) -> Tensor:
        """Token ids between the special tokens of a window, or between as many times a value."""
        front, back = (torch.tensor([tokens] * len(ids), dtype=ids.dtype).view(len(ids), -1) for tokens in self.around)
        if value is not None:
            front, back = torch.full_like(front, value), torch.full_like(back, value)
        return torch.cat([front, ids, back], 1)


def _drawn(length: int, share: float, seed: int) -> Tensor:
    """Mask of about this share of the tokens, at least one."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    drawn = torch.zeros(length, dtype=torch.bool)
    drawn[order[: max(1, round(share * length))]] = True
    return drawn


@torch.no_grad()
def task_of(module: nn.Module, tokenizer: Any, names: frozenset[str], start: int) -> TextTask:
    """Task of a model, found by its outputs on a few tokens: a causal model does not see later ones.

    Raises:
        CalibrationError: if it takes other inputs than text, or has no logits.
    """
    ids = torch.arange(2, 2 + _PROBE).remainder(max(len(tokenizer), 1)).view(1, -1)
    if DECODER_IDS in names:
        return TextTask("encoder-decoder", start=start, names=names)
    if "input_ids" not in names:
        raise CalibrationError(
            f"the model takes {', '.join(sorted(names)) or 'positional inputs'}, expected input_ids: pass batches from "
            "Python instead (data=batches)"
        )
    task = TextTask("causal", names=names)
    scores = _scores(module, task, ids)
    if scores.dim() == 2:
        return TextTask("classifier", names=names)
    later = _scores(module, task, torch.cat([ids[:, :-1], ids[:, :1]], 1))
    if torch.allclose(scores[:, :-1], later[:, :-1], rtol=1e-4, atol=1e-5):
        return task
    if tokenizer.mask_token_id is None or scores.shape[-1] < len(tokenizer):
        raise CalibrationError(
            "the model sees later tokens, but its tokenizer has no token for a mask, or its logits are not those of "
            "tokens: pass batches and a loss from Python instead (data=batches, loss=...)"
        )
    around = tokenizer.cls_token_id, tokenizer.sep_token_id
    both = ((around[0],), (around[1],)) if None not in around else ((), ())
    return TextTask("masked", both, tokenizer.mask_token_id, names=names)


def _scores(module: nn.Module, task: TextTask, ids: Tensor) -> Tensor:
    output = module(**task.inputs(ids))
    try:
        scores = logits(output, 2)
    except CalibrationError:
        scores = logits(output)
    if not bool(scores.isfinite().all()):
        raise CalibrationError("the model predicts numbers that are not finite; its weights are damaged: save it again")
    return scores
