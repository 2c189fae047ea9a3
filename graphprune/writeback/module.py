"""Write-back: narrow the original module to the widths of the rewritten graph."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.errors import VerificationError, WriteBackError, because, reason_of
from graphprune.execution.equivalence import accepted, run
from graphprune.execution.fresh_inputs import WRITTEN_BACK
from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.execution.output_comparison import Verification, compare
from graphprune.huggingface import config_widths
from graphprune.huggingface.adapters import without_adapters
from graphprune.huggingface.layer_removal import shorten_module
from graphprune.huggingface.meta_models import is_config
from graphprune.ir.program import Inputs, Program, Rewritten, Rotatable
from graphprune.ir.weights import Scaled
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan, make
from graphprune.support.undo import Undo
from graphprune.writeback import attention_scale, zero_padding
from graphprune.writeback.attribute_slots import Slot, slots
from graphprune.writeback.code_adaptation import Adaptation
from graphprune.writeback.layers import assign, set_sizes, sizes_from_weights
from graphprune.writeback.leftover_sizes import readings
from graphprune.writeback.literal_matching import Conflict, matches, size_constraints, solve
from graphprune.writeback.size_tracing import trace_numbers

Cut = Callable[[Program, Plan], Program]
CASES = 3  # random inputs to compare on: with a single one, every unit that a wrong size changes may be inactive
CONFIG_TRIALS = 300  # configurations tried in the search for one with the new widths


@dataclass(frozen=True)
class WrittenBack:
    """Result of a write-back: the numerical agreement of module and graph, and where the two differ in width.

    `config_mismatch` is the reason why the configuration could not be updated ("" if it was). `padded` maps each kind
    of group that remains wider in the module, with zeros at the removed indices, to the reason; `unremoved` counts the
    parameters that the module has beyond the graph. `multiplied` names the parameters that equal those of the graph
    times a constant, because the forward derives the attention scale from a size that was cut.
    """

    verification: Verification
    config_mismatch: str
    padded: Mapping[str, str] = field(default_factory=dict)
    unremoved: int = 0
    multiplied: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.padded:
            return "the module is as narrow as the graph"
        padded = [f"padded with zeros in the module: {kind} - {why}" for kind, why in self.padded.items()]
        return "\n".join([*padded, f"the module has {self.unremoved:,} parameters, all zeros, that the graph has not"])


def write_back(cut: Cut, program: Program, module: nn.Module) -> WrittenBack:
    """Narrow `module`, from which the program's original was traced, in place; `cut` applies other plans to it.

    Parameters are replaced and the sizes of standard layers set. The integers from which a forward computes its sizes
    are identified by tracing one run. Groups that share such an integer with a wider one are padded with zeros in the
    module, and listed in the result. On failure the module is restored. Saved folders do not use this function and are
    never padded.

    Raises:
        WriteBackError: if it is another module, or disagrees with the graph even when every cut is padded with zeros.
    """
    _check_names(program, module)
    search = _Search(cut, program, module)
    try:
        with evaluation_mode(module):  # reading a parametrized weight in training mode may change its buffers
            trial = search.narrowest()
            mismatch = _follow_config(search, trial)
    except BaseException:
        search.undo.rollback()
        raise
    assert isinstance(trial.outcome, Verification)
    reasons = {kind: wider.why for kind, wider in trial.widths.items()}
    return WrittenBack(
        trial.outcome, mismatch, reasons, trial.small.count() - program.count(), trial.multiplied, trial.adapted
    )


def write_back_dropped(
    program: Program, module: nn.Module, entries: Sequence[str]
) -> tuple[WrittenBack, Callable[[], None]]:
    """Remove the dropped entries from the module lists of `module`, in place; return the result and an undo function.

    Raises:
        WriteBackError: if the module then disagrees with the graph; it is restored.
    """
    undo = Undo()
    try:
        with evaluation_mode(module):
            mismatch = shorten_module(undo, module, entries)
            verifications = [_agreement(module, _case(program, seed), seed) for seed in range(CASES)]
    except Exception as fault:  # a forward may depend on its layers in any way
        undo.rollback()
        raise WriteBackError(
            f"{type(module).__name__} does not work without {', '.join(entries)}{because(fault)}; use the "
            "rewritten graph, program.module(), instead"
        ) from fault
    return WrittenBack(max(verifications, key=lambda verification: verification.max_error), mismatch), undo.rollback


def _case(program: Program, seed: int) -> tuple[Inputs, Any]:
    """Random inputs, and the outputs of the graph for them."""
    cases = accepted(program, (seed,), "the rewritten graph", WRITTEN_BACK)
    return cases.inputs[0], cases.outputs[0]


def _agreement(module: nn.Module, case: tuple[Inputs, Any], seed: int) -> Verification:
    """Compare the module with the graph on one case."""
    (args, kwargs), expected = case
    with preserved_state(module):
        got = run(module, args, kwargs, seed)
    return compare(expected, got, "rewritten graph and written-back module")


def _check_names(program: Program, module: nn.Module) -> None:
    """Raise a WriteBackError if the parameters of the module are not those of the original program."""
    rewritten = program.fact(Rewritten)
    shapes = {n: tuple(t.shape) for n, t in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    for name, shape in rewritten.original.shapes().items():
        if name in rewritten.keep and shapes.get(name) != shape:
            raise WriteBackError(
                f"{type(module).__name__} is not the module that was traced: {name} should have shape {shape}, "
                f"got {shapes.get(name, 'no such parameter')}; pass the original module, before any cut"
            )


@dataclass(frozen=True)
class _Trial:
    """Outcome of writing back with the kinds of groups in `widths` padded: a verification, or the error."""

    widths: zero_padding.Widths
    small: Program
    outcome: Verification | Exception
    conflicts: list[Conflict]
    multiplied: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the module agrees with the graph."""
        return isinstance(self.outcome, Verification)

    @property
    def size(self) -> tuple[int, int]:
        """Parameters of the padded program and number of padded kinds, to compare trials: smaller is better."""
        return self.small.count(), len(self.widths)


class _Search:
    """Narrows a module fully, then pads group by group until it agrees with the graph."""

    def __init__(self, cut: Cut, program: Program, module: nn.Module) -> None:
        self.cut, self.program, self.module, self.undo = cut, program, module, Undo()
        self.rewritten = program.fact(Rewritten)
        self.dependencies = self.rewritten.original.fact(Dependencies)
        self.weight_sizes = sizes_from_weights(module)
        self.slots = slots(module)
        self.trace = trace_numbers(module, self.slots, *self.rewritten.original.inputs)
        self.cases = [_case(program, seed) for seed in range(CASES)]

    def narrowest(self) -> _Trial:
        """Narrow the module as far as it agrees with the graph."""
        trial = self.resolve_conflicts(self.attempt({}))
        if not trial.agrees:
            trial = self.attempt(zero_padding.full_widths(self.dependencies, self.rewritten.groups))
        if isinstance(trial.outcome, Exception):
            raise WriteBackError(
                f"{type(self.module).__name__} disagrees with the rewritten graph, even with zeros at all removed "
                f"indices{because(trial.outcome)}; use the rewritten graph, program.module(), instead"
            ) from trial.outcome
        return self.attempt(self._without_needless(trial).widths) if trial.widths else trial

    def resolve_conflicts(self, trial: _Trial) -> _Trial:
        """Pad the groups behind contradicting sizes, repeatedly, until the module agrees or no conflict is left."""
        while not trial.agrees:
            rows = self._rows(trial.widths)
            wider = zero_padding.resolve_conflicts(trial.conflicts, self.dependencies, rows, trial.widths)
            if wider == trial.widths:
                break
            trial = self.attempt(wider)
        return trial

    def _without_needless(self, trial: _Trial) -> _Trial:
        """Drop every padding that is not needed, alone or together with others in the same module."""
        reasons = dict[str, str]()
        for kinds in zero_padding.narrowing_candidates(trial.widths):
            narrower = {kind: wider for kind, wider in trial.widths.items() if kind not in kinds}
            if narrower == trial.widths:
                continue
            first = self.attempt(narrower)
            candidate = self.resolve_conflicts(first)
            if candidate.agrees and candidate.size < trial.size:
                trial = candidate
            if isinstance(first.outcome, Exception):
                messages = dict.fromkeys(kinds, reason_of(first.outcome).removesuffix("; nothing was saved"))
                # an error without size conflicts is the more specific reason: it takes precedence
                reasons = {**messages, **reasons} if first.conflicts else {**reasons, **messages}
        explained = {kind: replace(wider, why=wider.why or reasons[kind]) for kind, wider in trial.widths.items()}
        return replace(trial, widths=explained)

    def attempt(self, widths: zero_padding.Widths) -> _Trial:
        """Narrow the module to these widths; restore it if it then disagrees with the graph."""
        self.undo.rollback()
        original, small = self.rewritten.original, self._padded_program(widths)
        pairs = matches(self.module, self.trace.uses, original, small)
        assignments, conflicts = solve(size_constraints(pairs))
        options = list(self._options(widths, small))
        faults = list[Exception]()
        for factors in options:
            self._assign(small, factors)
            for values in assignments:
                outcome = self._outcome(values)
                if isinstance(outcome, Verification):
                    return _Trial(widths, small, outcome, conflicts, tuple(factors))
                faults.append(outcome)
            self.undo.rollback()
            if not any(isinstance(fault, VerificationError) for fault in faults):
                break  # the forward fails before any numbers can be compared
        for factors in options:
            self._assign(small, factors)
            for values in (assignments[0], {**assignments[0], **self._unique_readings(assignments[0], widths)}):
                adaptation = self._adaptation(small, bool(factors))
                outcome = self._outcome(values, adaptation)
                if isinstance(outcome, Verification):
                    return _Trial(widths, small, outcome, conflicts, tuple(factors), adaptation.methods)
            self.undo.rollback()
        return _Trial(widths, small, faults[0], conflicts)

    def _options(self, widths: zero_padding.Widths, small: Program) -> Iterator[attention_scale.Factors]:
        sizes = {name: len(rows[0]) for name, rows in self._rows(widths).items()}
        original = self.rewritten.original
        return attention_scale.options(original, self.dependencies, sizes, small.fact(Rewritten).keep)

    def _unique_readings(self, known: Mapping[Slot, float], widths: zero_padding.Widths) -> dict[Slot, float]:
        """Values of the slots that the run does not determine, where one group alone can explain them."""
        possible = readings(self.module, self.slots, known, self.dependencies, self._rows(widths))
        return {slot: values[0] for slot, values in possible.items() if len(values) == 1}

    def _adaptation(self, small: Program, scaled: bool) -> Adaptation:
        original = self.rewritten.original
        pairs = matches(self.module, self.trace.uses, original, small, by_function=True)
        return Adaptation(self.undo, self.module, self.slots, self.trace, pairs, original.inputs, scaled)

    def _outcome(self, values: Mapping[Slot, float], adaptation: Adaptation | None = None) -> Verification | Exception:
        """Set the slots to these values and compare; on an error the old values are restored and it is returned."""
        mark = len(self.undo.steps)
        try:
            for slot, value in values.items():
                if value != slot.value:
                    slot.put(self.undo, value)
            set_sizes(self.undo, self.module, self.weight_sizes, {(id(slot.owner), slot.key) for slot in values})
            if adaptation:
                adaptation.apply()
            return self.agreement()
        except Exception as fault:  # a wrong size may raise any exception in the module's code
            self.undo.rollback(mark)
            return fault

    def agreement(self) -> Verification:
        """Compare the module with the graph on random inputs; its buffers are restored afterwards."""
        with evaluation_mode(self.module):
            verifications = [_agreement(self.module, case, seed) for seed, case in enumerate(self.cases)]
        return max(verifications, key=lambda verification: verification.max_error)

    def _rows(self, widths: zero_padding.Widths) -> Any:
        return zero_padding.padded_rows(self.dependencies, self.rewritten.groups, widths)

    def _padded_program(self, widths: zero_padding.Widths) -> Program:
        """The program with these kinds of groups padded with zeros to their widths."""
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
    """Names of the parameters and buffers with new shapes or values."""
    rewritten, refits = program.fact(Rewritten), program.facts.get(Refits)
    refitted = refits.changed if refits else set()
    rotated = program.fact(Rotatable).changed if Rotatable in program.facts else frozenset()
    return sorted({*rewritten.keep, *rewritten.scales, *refitted, *rotated})


def _follow_config(search: _Search, trial: _Trial) -> str:
    """Update a Hugging Face configuration to the new widths; return the reason if that is not possible, else ""."""
    config = getattr(search.module, "config", None)
    if not is_config(config):
        return ""
    model, shapes = without_adapters(search.module, trial.small.shapes())
    probe = copy.deepcopy(config)
    probe.architectures = [type(model).__name__]
    try:
        new = config_widths.fit(probe, shapes, trials=CONFIG_TRIALS)
    except Exception as fault:  # the constructor of a configuration may raise any exception
        return reason_of(fault)
    mark = len(search.undo.steps)
    for name, value in vars(new).items():
        if type(value) is int and vars(config).get(name) != value:
            search.undo.set_item(vars(config), name, value)
    if len(search.undo.steps) > mark:
        try:
            search.agreement()
        except Exception as fault:
            search.undo.rollback(mark)
            return f"its forward reads the configuration{because(fault)}"
    return ""
