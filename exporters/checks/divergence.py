"""How much rounded weights change what a model says: measured on what the model itself finds likely."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.checks.parity import Runs, meaningful
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import Subject, following

#: By precision the most divergence, in nats a token, and the most error of outputs that are no logits. Beyond them a
#: file is of no use, however rightly it was rounded.
BOUNDS = {"fp16": (0.02, 0.05), "int8": (0.1, 0.2), "int4": (1.0, 0.7)}
_ADVICE = {"fp16": "use --dtype fp32", "int8": "use --quant none", "int4": "use --quant int8"}


@dataclass(frozen=True)
class Divergence:
    """The mean Kullback-Leibler divergence from the model's logits, in nats a token, and the share of tokens where both
    prefer the same; None without logits. `worst` is the largest root mean square error of an output, relative to it."""

    divergence: float | None
    agreement: float | None
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return dict(vars(self))


def check(subject: Subject, exported: Runs, quant: str) -> Divergence:
    """Compare on text that a decoder writes itself, half of it token by token, or on the cases of other models.

    Raises:
        ExportError: if the file differs beyond use.
    """
    return judge(_continued(subject, exported) if subject.grows else _single(subject, exported), quant)


def judge(pairs: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]], quant: str) -> Divergence:
    """What outputs of a file and those of its model on the same inputs, by name, say of it.

    Raises:
        ExportError: if the file differs beyond use.
    """
    sides: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for found, wanted in pairs:
        for name, tensor in wanted.items():
            sides.setdefault(name.split(".")[0], []).append((found[name].double(), tensor.double()))
    worst = max(_relative(pair) for pair in sides.values())
    made = Divergence(*_logits(sides["logits"]), worst) if "logits" in sides else Divergence(None, None, worst)
    most, rough = BOUNDS[quant]
    advice = f"nothing was exported; {_ADVICE[quant]}"
    if made.divergence is None and not worst <= rough:
        raise ExportError(f"{quant} changes outputs by {worst:.0%} of their size, allowed are {rough:.0%}; {advice}")
    if made.divergence is not None and not made.divergence <= most:
        raise ExportError(
            f"{quant} changes what the model predicts by {made.divergence:.2f} nats a token, allowed are {most}; "
            f"{advice}"
        )
    return made


def _continued(subject: Subject, exported: Runs) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """A prompt and single steps after it, each side with its own cache."""
    ids = trial_inputs.written(subject)
    mask, half = torch.ones_like(ids), ids.shape[1] // 2
    caches = trial_inputs.empty(subject, len(ids)), trial_inputs.empty(subject, len(ids))
    for done, end in [(0, half), *((i, i + 1) for i in range(half, ids.shape[1]))]:
        feeds = trial_inputs.step_feeds(subject, ids, mask, done, end)
        found, wanted = exported.run({**feeds, **caches[0]}), subject.run({**feeds, **caches[1]})
        caches = following(found), following(wanted)
        yield {"logits": found["logits"]}, {"logits": wanted["logits"]}


def _single(subject: Subject, exported: Runs) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    for _, feeds, valid in trial_inputs.single(subject):
        sides = exported.run(feeds), subject.run(feeds)
        found, wanted = ({name: meaningful(name, side[name], valid) for name in subject.outputs} for side in sides)
        yield found, wanted


def _relative(pairs: list[tuple[Tensor, Tensor]]) -> float:
    lost = sum(float((found - wanted).square().sum()) for found, wanted in pairs)
    whole = sum(float(wanted.square().sum()) for _, wanted in pairs)
    return (lost / whole) ** 0.5 if whole else lost


def _logits(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    found, wanted = (torch.cat([side.flatten(0, -2) for side in sides]) for sides in zip(*pairs, strict=True))
    log = wanted.log_softmax(-1)
    divergence = (log.exp() * (log - found.log_softmax(-1))).sum(-1).mean()
    return float(divergence), float((found.argmax(-1) == wanted.argmax(-1)).double().mean())
