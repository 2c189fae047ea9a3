"""Write-back: the original module, made as narrow as the rewritten graph."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.errors import VerificationError, WriteBackError, because, reason_of
from graphprune.execution.equivalence import Verification, compare, fresh_inputs, run
from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.huggingface import config_widths
from graphprune.huggingface.layer_removal import shorten_module
from graphprune.huggingface.meta_models import is_config
from graphprune.ir.program import Inputs, Program, Rewritten, Rotatable
from graphprune.ir.weights import Scaled
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan, make
from graphprune.support.undo import Undo
from graphprune.writeback import attention_scale, zero_padding
from graphprune.writeback.attribute_slots import Slot, slots
from graphprune.writeback.layers import assign, said_by_weights, set_sizes
from graphprune.writeback.literal_matching import Conflict, solve, wishes
from graphprune.writeback.size_tracing import watch

Cut = Callable[[Program, Plan], Program]
CASES = 3  # times that inputs are drawn: one draw alone may leave all units silent that a wrong size would change
CONFIGS = 300  # how many are tried to find one that says the new widths


@dataclass(frozen=True)
class WrittenBack:
    """How well the module agrees with the graph, and why its configuration could not follow ("" if it did).

    `padded` names the kinds of groups that stay wider in the module than in the graph, with zeros in the removed
    places, and says why; `unremoved` is how many parameters that leaves which the graph does not have. `multiplied`
    names parameters that are those of the graph times a number, since the forward takes a scale from a size.
    """

    verification: Verification
    config_left: str
    padded: Mapping[str, str] = field(default_factory=dict)
    unremoved: int = 0
    multiplied: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.padded:
            return "the module is as narrow as the graph"
        kept = [f"kept wider in the module (zeros): {kind} - {why}" for kind, why in self.padded.items()]
        return "\n".join([*kept, f"{self.unremoved:,} parameters of the module are zeros that the graph does not have"])


def write_back(cut: Cut, program: Program, module: nn.Module) -> WrittenBack:
    """Narrow `module`, of which the program's original was traced, in place; `cut` makes other programs of its plan.

    Parameters are replaced, sizes of standard layers set, and the integers from which a forward computes its sizes
    found by watching it run. Groups for which it has no size of their own stay wider in the module, with zeros; the
    result names them. On failure the module is as it was. Saved folders are not made by this, and never padded.

    Raises:
        WriteBackError: if the module is another one, or does not agree with the graph however wide it stays.
    """
    _check_names(program, module)
    search = _Search(cut, program, module)
    try:
        with evaluation_mode(module):  # a parametrised weight that is read in training may change its buffers
            found = search.narrowest()
            left = _follow_config(search, found)
    except BaseException:
        search.undo.rollback()
        raise
    assert isinstance(found.outcome, Verification)
    reasons = {kind: wider.why for kind, wider in found.widths.items()}
    return WrittenBack(found.outcome, left, reasons, found.small.count() - program.count(), found.multiplied)


def drop_back(program: Program, module: nn.Module, entries: Sequence[str]) -> tuple[WrittenBack, Callable[[], None]]:
    """Take entries out of the lists of `module`, in place, as they are gone from the program; and how to undo it.

    Raises:
        WriteBackError: if the module does not agree with the graph then; it is left as it was.
    """
    undo = Undo()
    try:
        with evaluation_mode(module):
            left = shorten_module(undo, module, entries)
            found = [_agreement(module, _case(program, seed), seed) for seed in range(CASES)]
    except Exception as fault:  # a forward may count on its layers in any way
        undo.rollback()
        raise WriteBackError(
            f"{type(module).__name__} cannot go without {', '.join(entries)}{because(fault)}; use the rewritten "
            "graph, program.module(), instead"
        ) from fault
    return WrittenBack(max(found, key=lambda verification: verification.max_error), left), undo.rollback


def _case(program: Program, seed: int) -> tuple[Inputs, Any]:
    """Fresh inputs, and what the graph makes of them."""
    args, kwargs = fresh_inputs(program, seed)
    return (args, kwargs), run(program.module(), args, kwargs, seed)


def _agreement(module: nn.Module, case: tuple[Inputs, Any], seed: int) -> Verification:
    """Compare the module with the graph on one case."""
    (args, kwargs), expected = case
    with preserved_state(module):
        got = run(module, args, kwargs, seed)
    return compare(expected, got, "rewritten graph and written-back module")


def _check_names(program: Program, module: nn.Module) -> None:
    """Refuse a module whose parameters are not those of the original program."""
    rewritten = program.fact(Rewritten)
    have = {n: tuple(t.shape) for n, t in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    for name, shape in rewritten.original.shapes().items():
        if name in rewritten.keep and have.get(name) != shape:
            raise WriteBackError(
                f"{type(module).__name__} is not the module that was traced: {name} should have shape {shape}, "
                f"got {have.get(name, 'no such parameter')}; pass the original module, before any cut"
            )


@dataclass(frozen=True)
class _Trial:
    """What became of a module in which some kinds of groups stay wider."""

    widths: zero_padding.Widths
    small: Program
    outcome: Verification | Exception
    conflicts: list[Conflict]
    multiplied: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Does the module agree with the graph?"""
        return isinstance(self.outcome, Verification)


class _Search:
    """Makes a module narrow, and less and less so until it agrees with the graph."""

    def __init__(self, cut: Cut, program: Program, module: nn.Module) -> None:
        self.cut, self.program, self.module, self.undo = cut, program, module, Undo()
        self.rewritten = program.fact(Rewritten)
        self.dependencies = self.rewritten.original.fact(Dependencies)
        self.said = said_by_weights(module)
        self.uses = watch(module, slots(module), *self.rewritten.original.inputs)
        self.cases = [_case(program, seed) for seed in range(CASES)]

    def narrowest(self) -> _Trial:
        """Leave the module as narrow as it can be."""
        trial = self.settle(self.attempt({}))
        if not trial.agrees:
            trial = self.attempt(zero_padding.everything(self.dependencies, self.rewritten.groups))
        if isinstance(trial.outcome, Exception):
            raise WriteBackError(
                f"{type(self.module).__name__} disagrees with the rewritten graph, even with zeros in all the removed "
                f"places{because(trial.outcome)}; use the rewritten graph, program.module(), instead"
            ) from trial.outcome
        return self.attempt(self._least(trial).widths) if trial.widths else trial

    def settle(self, trial: _Trial) -> _Trial:
        """As long as the module disagrees, widen what its own sizes contradict."""
        while not trial.agrees:
            wider = zero_padding.settled(trial.conflicts, self.dependencies, self._rows(trial.widths), trial.widths)
            if wider == trial.widths:
                break
            trial = self.attempt(wider)
        return trial

    def _least(self, trial: _Trial) -> _Trial:
        """Take back every widening that is not needed, alone or together with others in the same module."""
        reasons = dict[str, str]()
        for kinds in zero_padding.bundles(trial.widths):
            less = {kind: wider for kind, wider in trial.widths.items() if kind not in kinds}
            if less == trial.widths:
                continue
            plain = self.attempt(less)
            other = self.settle(plain)
            if other.agrees and (other.small.count(), len(other.widths)) < (trial.small.count(), len(trial.widths)):
                trial = other
            if isinstance(plain.outcome, Exception):
                why = dict.fromkeys(kinds, reason_of(plain.outcome).removesuffix("; nothing was saved"))
                reasons = {**why, **reasons} if plain.conflicts else {**reasons, **why}  # contradictions say less
        whys = {kind: replace(wider, why=wider.why or reasons[kind]) for kind, wider in trial.widths.items()}
        return replace(trial, widths=whys)

    def attempt(self, widths: zero_padding.Widths) -> _Trial:
        """Make the module as narrow as that allows; where it then does not agree, it is as it was."""
        self.undo.rollback()
        original, small = self.rewritten.original, self._wider(widths)
        assignments, conflicts = solve(wishes(self.module, self.uses, original, small))
        sizes = {name: len(rows[0]) for name, rows in self._rows(widths).items()}
        faults = list[Exception]()
        for factors in attention_scale.options(original, self.dependencies, sizes, small.fact(Rewritten).keep):
            self._assign(small, factors)
            for values in assignments:
                outcome = self._outcome(values)
                if isinstance(outcome, Verification):
                    return _Trial(widths, small, outcome, conflicts, tuple(factors))
                faults.append(outcome)
            self.undo.rollback()
            if not any(isinstance(fault, VerificationError) for fault in faults):
                break  # it does not even run
        return _Trial(widths, small, faults[0], conflicts)

    def _outcome(self, values: Mapping[Slot, float]) -> Verification | Exception:
        """How well the module agrees when its slots have these values; if it does not, they have their old ones."""
        mark = len(self.undo.steps)
        try:
            for slot, value in values.items():
                if value != slot.value:
                    slot.put(self.undo, value)
            set_sizes(self.undo, self.module, self.said, {(id(slot.owner), slot.key) for slot in values})
            return self.agree()
        except Exception as fault:  # a wrong size may raise whatever the module's code does not expect
            self.undo.rollback(mark)
            return fault

    def agree(self) -> Verification:
        """Compare the module with the graph on fresh inputs; its buffers are as before afterwards."""
        with evaluation_mode(self.module):
            found = [_agreement(self.module, case, seed) for seed, case in enumerate(self.cases)]
        return max(found, key=lambda verification: verification.max_error)

    def _rows(self, widths: zero_padding.Widths) -> Any:
        return zero_padding.widened(self.dependencies, self.rewritten.groups, widths)

    def _wider(self, widths: zero_padding.Widths) -> Program:
        """The program in which these kinds of groups are wider, with zeros."""
        if not widths:
            return self.program
        original = self.rewritten.original
        small = self.cut(original, make(original, self.dependencies, self._rows(widths)))
        keeps = self.rewritten.keep, small.fact(Rewritten).keep
        scales = small.fact(Rewritten).scales, self.rewritten.scales
        factors = {name: scales[0].get(name, 1.0) / scales[1].get(name, 1.0) for name in {*scales[0], *scales[1]}}
        narrow = Scaled(self.program.weights, factors)
        return small.with_facts(weights=zero_padding.Padded(narrow, *keeps, original.shapes()))

    def _assign(self, small: Program, factors: attention_scale.Factors) -> None:
        weights = Scaled(small.weights, factors)
        for name in {*changed_names(self.program), *factors}:
            names = [name, *(alias for alias, stored in small.ties.items() if stored == name)]
            assign(self.undo, self.module, names, weights[name])


def changed_names(program: Program) -> list[str]:
    """Parameters and buffers with new shapes or values."""
    rewritten, refits = program.fact(Rewritten), program.facts.get(Refits)
    refitted = refits.changed if refits else set()
    rotated = program.fact(Rotatable).changed if Rotatable in program.facts else frozenset()
    return sorted({*rewritten.keep, *rewritten.scales, *refitted, *rotated})


def _follow_config(search: _Search, found: _Trial) -> str:
    """Let a Hugging Face configuration say the new widths, if it can; return why it cannot."""
    config = getattr(search.module, "config", None)
    if not is_config(config):
        return ""
    named = copy.deepcopy(config)
    named.architectures = [type(search.module).__name__]
    try:
        new = config_widths.fit(named, found.small.shapes(), trials=CONFIGS)
    except Exception as fault:  # a configuration may refuse to be built with whatever it likes
        return reason_of(fault)
    mark = len(search.undo.steps)
    for name, value in vars(new).items():
        if type(value) is int and vars(config).get(name) != value:
            search.undo.set_item(vars(config), name, value)
    if len(search.undo.steps) > mark:
        try:
            search.agree()
        except Exception as fault:
            search.undo.rollback(mark)
            return f"its forward reads the configuration{because(fault)}"
    return ""
