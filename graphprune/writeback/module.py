"""Write-back: narrow the original module to the widths of the rewritten graph."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from graphprune.errors import WriteBackError, because
from graphprune.execution.module_state import evaluation_mode
from graphprune.execution.output_comparison import Verification
from graphprune.execution.wrappers import unwrapped
from graphprune.huggingface import followed_config
from graphprune.huggingface.config_epsilons import literals_after
from graphprune.huggingface.followed_config import shorten_module
from graphprune.ir.program import Program, Rewritten
from graphprune.support.undo import Undo
from graphprune.writeback import optimizers
from graphprune.writeback.layers import named_tensors
from graphprune.writeback.narrowing import CASES, Attempt, Cut, Narrowing, compare_case, make_case

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenBack:
    """Result of a write-back: the numerical agreement of module and graph, and where the two differ in width.

    `config_mismatch` is the reason why the configuration could not be updated ("" if it was). `padded` maps each kind
    of group that remains wider in the module, with zeros at the removed indices, to the reason; `unremoved` counts the
    parameters that the module has beyond the graph. `multiplied` names the parameters that equal those of the graph
    times a constant, because the forward derives the attention scale from a size that was cut. `adapted` names the
    methods in which a size is now read from a new attribute, because the forward computed it from that of another
    tensor: their layers have a subclass of their former class. `unused` names the parameters outside the graph that
    were cut with it, `assumed` the attributes that were set although the call does not use them, and `undetermined`
    those that equal a former width and have no single new one. `reset` names the parameters whose state in the
    optimizer starts anew. `checked` lists what was compared or run. `program`
    has the widths of the module: it differs from the graph where that is padded.
    """

    verification: Verification
    config_mismatch: str
    padded: Mapping[str, str] = field(default_factory=dict)
    unremoved: int = 0
    multiplied: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    undetermined: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    program: Program | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        lines = [f"padded with zeros in the module: {kind} - {why}" for kind, why in self.padded.items()]
        lines.append(
            f"the module has {self.unremoved:,} parameters, all zeros, that the graph has not"
            if self.padded
            else "the module is as narrow as the graph"
        )
        notes = {
            "code adapted": self.adapted,
            "cut with it, although the call does not use them": self.unused,
            "set, although the call does not use them": self.assumed,
            "not set, although they equal a former width": self.undetermined,
            "state of the optimizer starts anew": self.reset,
            "note": (self.config_mismatch,) if self.config_mismatch else (),
        }
        lines += [f"{note}: {', '.join(names)}" for note, names in notes.items() if names]
        return "\n".join(lines)


def write_back(
    cut: Cut,
    program: Program,
    module: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    average: nn.Module | None = None,
    configuration: bool = True,
) -> WrittenBack:
    """Narrow `module`, from which the program's original was traced, in place; `cut` applies other plans to it.

    Parameters are replaced and the sizes of standard layers set. The integers from which a forward computes its sizes
    are identified by tracing one run. Where a size is computed from that of another tensor, the layer's code is
    adapted. Groups that no size can express are padded with zeros in the module, and listed in the result. Parameters
    are swapped in each `optimizer`, and its state is cut; an `average` of the module is narrowed with its own values.
    A `configuration` of transformers follows unless it is False, as before another cut that it has to follow anyway.
    On failure everything is restored. Saved folders do not use this function and are never padded.

    Raises:
        WriteBackError: if it is another module, or disagrees with the graph even when every cut is padded with zeros.
    """
    module = unwrapped(module)
    before = dict(module.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(module)}
    _check_names(program, type(module).__name__, shapes)
    search = Narrowing(cut, program, module)
    try:
        with evaluation_mode(module):  # reading a parametrized weight in training mode may change its buffers
            trial = search.narrowest()
            assumed, undetermined = search.set_leftovers(trial)
            mismatch = ""
            if configuration:
                literals = literals_after(trial.small)
                mismatch = followed_config.follow(search.undo, module, trial.small.shapes(), literals, search.agreement)
        cuts = search.tensor_cuts(trial, shapes)
        replaced = {n: (before[n], p) for n, p in module.named_parameters() if n in before and p is not before[n]}
        reset = [name for each in _each(optimizer) for name in optimizers.follow(search.undo, each, replaced, cuts)]
        if average is not None:
            optimizers.follow_average(search.undo, average, module, sorted(shapes), cuts)
    except BaseException:
        search.undo.rollback()
        raise
    result = _result(search, trial, mismatch, (assumed, undetermined), tuple(reset))
    _warn(result)
    _warn_of_hooks(replaced)
    _warn_of_stale([old for old, _ in replaced.values()])
    return result


def _result(
    search: Narrowing,
    trial: Attempt,
    mismatch: str,
    leftovers: tuple[tuple[str, ...], tuple[str, ...]],
    reset: tuple[str, ...],
) -> WrittenBack:
    assert isinstance(trial.outcome, Verification)
    return WrittenBack(
        trial.outcome,
        mismatch,
        {kind: wider.why for kind, wider in trial.widths.items()},
        trial.small.count() - search.program.count(),
        trial.multiplied,
        trial.adapted,
        tuple(search.unused_cuts),
        *leftovers,
        reset,
        search.checks(),
        trial.small,
    )


def _warn(result: WrittenBack) -> None:
    """Log what costs parameters, and folders that will not load."""
    if result.padded:
        log.warning("%s", result)
    elif result.config_mismatch:
        log.warning("%s", result.config_mismatch)


def _warn_of_hooks(replaced: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Log parameters whose hooks on gradients their narrower ones lack."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    if hooked := [name for name, (old, _) in replaced.items() if any(getattr(old, kind, None) for kind in kinds)]:
        log.warning("hooks on gradients were not moved to the narrower parameters: register those of %s again", hooked)


def _warn_of_stale(removed: Sequence[nn.Parameter]) -> None:
    """Log optimizers that were not passed."""
    for optimizer in optimizers.stale(removed):
        log.warning(
            "%s holds parameters that the module no longer has, and would train nothing: pass it as optimizer=, or "
            "make a new one",
            type(optimizer).__name__,
        )


def write_back_dropped(
    program: Program,
    module: nn.Module,
    entries: Sequence[str],
    optimizer: Optimizer | Sequence[Optimizer] = (),
    average: nn.Module | None = None,
) -> tuple[WrittenBack, Callable[[], None]]:
    """Remove the dropped entries from the module lists of `module`, in place; return the result and an undo function.

    Each `optimizer` forgets the parameters of the entries, and an `average` of the module loses the entries, too.

    Raises:
        WriteBackError: if the module then disagrees with the graph; it is restored.
    """
    undo, before = Undo(), list(module.parameters())
    try:
        with evaluation_mode(module):
            mismatch = shorten_module(undo, module, entries)
            verifications = [compare_case(module, program, make_case(program, seed), seed) for seed in range(CASES)]
        held = {id(parameter) for parameter in module.parameters()}
        removed = [parameter for parameter in before if id(parameter) not in held]
        for each in _each(optimizer):
            optimizers.forget(undo, each, removed)
        if average is not None:
            shorten_module(undo, optimizers.averaged(average), entries)
    except Exception as fault:  # a forward may depend on its layers in any way
        undo.rollback()
        raise WriteBackError(
            f"{type(module).__name__} does not work without {', '.join(entries)}{because(fault)}; use the "
            "rewritten graph, program.module(), instead"
        ) from fault
    _warn_of_stale(removed)
    return WrittenBack(max(verifications, key=lambda verification: verification.max_error), mismatch), undo.rollback


def _each(optimizer: Optimizer | Sequence[Optimizer]) -> Sequence[Optimizer]:
    return optimizer if isinstance(optimizer, Sequence) else [optimizer]


def _check_names(program: Program, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a WriteBackError if the parameters of the module are not those of the original program."""
    rewritten = program.fact(Rewritten)
    original = rewritten.original
    for name, shape in original.shapes().items():
        if name not in shapes and name not in original.parameters:
            continue  # a tensor that the module holds without registering it
        if name in rewritten.keep and shapes.get(name) != shape:
            raise WriteBackError(
                f"{kind} is not the module that was traced: {name} should have shape {shape}, "
                f"got {shapes.get(name, 'no such parameter')}; pass the original module, before any cut"
            )
