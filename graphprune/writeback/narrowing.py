"""Narrowing for the narrowest form of a module that agrees with the rewritten graph."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from graphprune.axes.groups import Dependencies
from graphprune.errors import VerificationError, WriteBackError, because, reason_of
from graphprune.execution import interpreter, precision
from graphprune.execution.cases.fresh_cases import accepted
from graphprune.execution.cases.fresh_inputs import WRITTEN_BACK
from graphprune.execution.equivalence import run
from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.execution.object_state import ObjectState
from graphprune.execution.output_comparison import Verification, compare
from graphprune.execution.rounding_check import compare_closely
from graphprune.ir.program import Inputs, Program, Rewritten, Rotatable
from graphprune.ir.weights import Narrowed, Scaled
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan, make
from graphprune.support.undo import Undo
from graphprune.writeback import attention_scale, plain_tensors, unused_parameters, zero_padding
from graphprune.writeback.attribute_slots import Slot, slots
from graphprune.writeback.code_adaptation import Adaptation
from graphprune.writeback.layers import assign, named_tensors, set_sizes, sizes_from_weights
from graphprune.writeback.optimizers import TensorCuts
from graphprune.writeback.sizes import stand_in_methods
from graphprune.writeback.sizes.leftover_sizes import readings
from graphprune.writeback.sizes.literal_matching import Conflict, matches, size_constraints, solve
from graphprune.writeback.sizes.shapeless_fields import sets_no_width
from graphprune.writeback.sizes.size_tracing import trace_numbers

Cut = Callable[[Program, Plan], Program]
SINGLES = 16  # kinds of groups that are tried alone
WHAT = "rewritten graph and written-back module"
CASES = 3  # random inputs to compare on: with a single one, every unit that a wrong size changes may be inactive


def make_case(program: Program, seed: int) -> tuple[Inputs, Any]:
    """Random inputs, and the outputs of the graph for them."""
    cases = accepted(program, (seed,), "the rewritten graph", WRITTEN_BACK)
    return cases.inputs[0], cases.outputs[0]


def compare_case(module: nn.Module, program: Program, case: tuple[Inputs, Any], seed: int) -> Verification:
    """Compare the module with the graph on one case; in single precision where half precision shows a difference.

    In half precision, rounding may decide a choice, such as that of an expert.
    """
    with preserved_state(module) as state:
        return compare_once(state, module, program, case, seed)


def compare_once(
    state: ObjectState, module: nn.Module, program: Program, case: tuple[Inputs, Any], seed: int
) -> Verification:
    """Compare a module of this state, which is restored after the run, with the graph on one case."""
    (args, kwargs), expected = case
    got = run(module, args, kwargs, seed)
    state.restore()
    try:
        try:
            return compare_closely(expected, got, WHAT, lambda: run(module, args, kwargs, seed))
        finally:
            state.restore()  # the estimate of rounding runs it again
    except VerificationError as fault:
        if not precision.uses(program, precision.SINGLE):
            raise
        return _compared_in_single(module, program, (args, kwargs), seed, fault)


def _compared_in_single(
    module: nn.Module, program: Program, case: Inputs, seed: int, fault: VerificationError
) -> Verification:
    inputs = precision.inputs(case, precision.SINGLE)
    try:
        with preserved_state(module):
            got = run(copy.deepcopy(module).float(), *inputs, seed)
        (expected,) = interpreter.run(precision.program(program, precision.SINGLE), [inputs], (seed,))
        return compare(expected, got, WHAT)
    except Exception:  # code that computes in half precision alone raises anything
        raise fault from None


@dataclass(frozen=True)
class Attempt:
    """Outcome of writing back with the kinds of groups in `widths` padded: a verification, or the error."""

    widths: zero_padding.Widths
    small: Program
    outcome: Verification | Exception
    conflicts: list[Conflict]
    factors: attention_scale.Factors = field(default_factory=dict)
    adapted: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the module agrees with the graph."""
        return isinstance(self.outcome, Verification)

    @property
    def multiplied(self) -> tuple[str, ...]:
        """Names of the parameters that take a factor."""
        return tuple(self.factors)

    @property
    def size(self) -> tuple[int, int]:
        """Parameters of the padded program and number of padded kinds, to compare trials: smaller is better."""
        return self.small.count(), len(self.widths)


class Narrowing:
    """Narrows a module fully, then pads group by group until it agrees with the graph."""

    def __init__(self, cut: Cut, program: Program, module: nn.Module) -> None:
        self.cut, self.program, self.module, self.undo = cut, program, module, Undo()
        self.rewritten = program.fact(Rewritten)
        self.dependencies = self.rewritten.original.fact(Dependencies)
        registered = {*dict(named_tensors(module))}
        self.plain = plain_tensors.places(self.rewritten.original, module, registered)
        self.elsewhere = self.rewritten.original.shapes().keys() - registered
        self.weight_sizes = sizes_from_weights(module)
        self.slots = slots(module)
        self.trace = trace_numbers(module, self.slots, *self.rewritten.original.inputs)
        self.cases = [make_case(program, seed) for seed in range(CASES)]
        self.unused = unused_parameters.unused(self.rewritten.original, module)
        self.trains, self.untrainable, self.follows_unused = self._runs_in_training(), False, False
        self.layers_in_training: set[str]
        self.unused_cuts: dict[str, dict[int, Tensor]] = {}
        self.ambiguous = list[str]()

    def narrowest(self) -> Attempt:
        """Narrow the module as far as it agrees with the graph."""
        trial = self.attempt({})
        if not trial.agrees and self.untrainable and self.unused:
            self.follows_unused = True
            trial = self.attempt({})
        trial = self.resolve_conflicts(trial)
        trial = trial if trial.agrees else self._with_one_wide()
        if not trial.agrees:
            trial = self.attempt(zero_padding.full_widths(self.dependencies, self.rewritten.groups))
        if isinstance(trial.outcome, Exception):
            raise WriteBackError(
                f"{type(self.module).__name__} disagrees with the rewritten graph, even with zeros at all removed "
                f"indices{because(trial.outcome)}; use the rewritten graph, program.module(), instead"
            ) from trial.outcome
        return self.attempt(self._without_needless(trial).widths) if trial.widths else trial

    def _with_one_wide(self) -> Attempt:
        """The narrowest trial with a single kind of groups padded; a failed one if there is none."""
        kinds = zero_padding.full_widths(self.dependencies, self.rewritten.groups)
        trials = [self.attempt({kind: wider}) for kind, wider in kinds.items()] if 1 < len(kinds) <= SINGLES else []
        agreeing = [trial for trial in trials if trial.agrees]
        return min(agreeing, key=lambda trial: trial.size) if agreeing else self.attempt({})

    def resolve_conflicts(self, trial: Attempt) -> Attempt:
        """Pad the groups behind contradicting sizes, repeatedly, until the module agrees or no conflict is left."""
        while not trial.agrees:
            rows = self._rows(trial.widths)
            wider = zero_padding.resolve_conflicts(trial.conflicts, self.dependencies, rows, trial.widths)
            if wider == trial.widths:
                break
            trial = self.attempt(wider)
        return trial

    def _without_needless(self, trial: Attempt) -> Attempt:
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

    def attempt(self, widths: zero_padding.Widths) -> Attempt:
        """Narrow the module to these widths; restore it if it then disagrees with the graph."""
        self.undo.rollback()
        original, small = self.rewritten.original, self._padded_program(widths)
        self.unused_cuts = self._cuts_of_unused(widths)
        pairs = matches(self.module, self.trace.uses, original, small)
        assignments, conflicts = solve(size_constraints(pairs))
        options = list(self._options(widths, small))
        faults = list[Exception]()
        for factors in options:
            self._assign(small, factors)
            for values in assignments:
                outcome = self._outcome(values)
                if isinstance(outcome, Verification):
                    return Attempt(widths, small, outcome, conflicts, factors)
                faults.append(outcome)
            self.undo.rollback()
            if not any(isinstance(fault, VerificationError) for fault in faults):
                break  # the forward fails before any numbers can be compared
        for factors in options:
            self._assign(small, factors)
            for values in (assignments[0], {**assignments[0], **self._unique_readings(assignments[0], widths)}):
                adaptation = self._adaptation(widths, small, bool(factors))
                outcome = self._outcome(values, adaptation)
                if isinstance(outcome, Verification):
                    return Attempt(widths, small, outcome, conflicts, factors, adaptation.methods)
            self.undo.rollback()
        return Attempt(widths, small, faults[0], conflicts)

    def _options(self, widths: zero_padding.Widths, small: Program) -> Iterator[attention_scale.Factors]:
        sizes = {name: len(rows[0]) for name, rows in self._rows(widths).items()}
        original = self.rewritten.original
        return attention_scale.options(original, self.dependencies, sizes, small.fact(Rewritten).keep)

    def _unique_readings(self, known: Mapping[Slot, float], widths: zero_padding.Widths) -> dict[Slot, float]:
        """Values of the slots that the run does not determine, where one group alone can explain them."""
        possible = readings(self.module, self.slots, known, self.dependencies, self._rows(widths), ({}, {}))
        return {slot: values[0] for slot, values in possible.items() if len(values) == 1}

    def _adaptation(self, widths: zero_padding.Widths, small: Program, scaled: bool) -> Adaptation:
        original = self.rewritten.original
        pairs = matches(self.module, self.trace.uses, original, small, by_function=True)
        by_name = self.dependencies.by_name
        new = {by_name[name].prime: len(rows[0]) for name, rows in self._rows(widths).items()}
        return Adaptation(
            self.undo, self.module, self.slots, self.trace, pairs, original.inputs, self.dependencies, new, scaled
        )

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

    def agreement(self, rebuilt: nn.Module | None = None) -> Verification:
        """Compare the module, or one in its place, with the graph on random inputs; buffers are restored afterwards."""
        module = rebuilt or self.module
        with evaluation_mode(module), preserved_state(module) as state:
            pairs = enumerate(self.cases)
            verifications = [compare_once(state, module, self.program, case, seed) for seed, case in pairs]
            if self.trains and rebuilt is None:
                self._require_training()
        return max(verifications, key=lambda verification: verification.max_error)

    def _runs_in_training(self) -> bool:
        """Whether the module runs in training mode, on the first random inputs."""
        try:
            with unused_parameters.layers_that_run(self.module, self.unused) as self.layers_in_training:
                self._run_in_training()
        except Exception:  # a forward may need labels, or more samples, in training
            return False
        return True

    def _require_training(self) -> None:
        try:
            self._train()
        except Exception:
            self.untrainable = True
            raise

    def _run_in_training(self) -> None:
        with evaluation_mode(self.module), preserved_state(self.module):
            self._train()

    def _train(self) -> None:
        (args, kwargs), _ = self.cases[0]
        self.module.train()
        run(self.module, args, kwargs)

    def checks(self) -> tuple[str, ...]:
        """Checks that the agreement has passed."""
        inputs = f"outputs equal those of the graph on {len(self.cases)} random inputs"
        training = ["runs in training mode"] if self.trains else []
        conditions = [f"holds where {guard.text}" for guard in self.program.guards]
        return (inputs, *training, *conditions)

    def set_leftovers(self, trial: Attempt) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Set attributes that the run does not use and that equal a former width; return the set ones and the others.

        They are set where one new width is possible.
        """
        used = {slot for use in self.trace.uses if use.provenance for slot in use.provenance.slots}
        used |= self.trace.comparisons.slots
        known = dict.fromkeys(used, 0.0)
        shapes = self.rewritten.original.shapes(), trial.small.shapes()
        every = readings(self.module, self.slots, known, self.dependencies, self._rows(trial.widths), shapes)
        widths = {slot: values for slot, values in every.items() if not sets_no_width(self.module, slot, values[0])}
        possible = self._agreeing(widths)
        mark, chosen = len(self.undo.steps), {slot: v[0] for slot, v in possible.items() if len(v) == 1}
        for slot, value in chosen.items():
            slot.put(self.undo, value)
        try:
            _ = chosen and self.agreement()
        except Exception:  # an attribute that the run reads in a way that was not seen
            self.undo.rollback(mark)
            chosen = {}
        assumed = dict.fromkeys(f"{slot} = {value} (was {slot.value})" for slot, value in chosen.items())
        left = [slot for slot in possible if slot not in chosen]
        stand_in_methods.warn_of_readers(left)
        return tuple(assumed), (*dict.fromkeys(f"{slot} = {slot.value}" for slot in left), *self.ambiguous)

    def _agreeing(self, possible: Mapping[Slot, Sequence[int]]) -> Mapping[Slot, Sequence[int]]:
        with evaluation_mode(self.module), preserved_state(self.module):
            return stand_in_methods.agreeing(lambda: run(self.module, *self.cases[0][0]), possible)

    def tensor_cuts(self, trial: Attempt, shapes: Mapping[str, tuple[int, ...]]) -> TensorCuts:
        """Cuts of all tensors of the module, by all their names."""
        ties = self.rewritten.original.ties
        keep, wide = dict(self.rewritten.keep), dict(trial.small.fact(Rewritten).keep)
        for cuts in (keep, wide):
            cuts |= self.unused_cuts
            cuts |= {alias: cuts[name] for alias, name in ties.items() if name in cuts}
        return TensorCuts(keep, wide, shapes, trial.factors)

    def _cuts_of_unused(self, widths: zero_padding.Widths) -> dict[str, dict[int, Tensor]]:
        """Retained indices of parameters that the traced call does not use."""
        if not self.unused:
            return {}
        rows = self._rows(widths)
        removed: unused_parameters.Removed = {}
        if self.follows_unused:
            tensors = self.unused
            removed = unused_parameters.reached(self.module, self._run_in_training, self.dependencies, rows, tensors)
        self.ambiguous = list[str]()
        for name in self.idle():
            possible = unused_parameters.readings(name, self.unused[name], self.dependencies, rows)
            removed |= possible[0] if len(possible) == 1 else {}
            self.ambiguous += [name] if len(possible) > 1 else []
        self.ambiguous += self._unfollowed(rows)
        return unused_parameters.retained(removed, self.unused)

    def _unfollowed(self, rows: Any) -> list[str]:
        """Parameters of layers that no run reaches, although they may belong to a group that was cut."""
        idle, reached = self.idle(), self.layers_in_training
        others = {n: t for n, t in self.unused.items() if n not in idle and n.rpartition(".")[0] not in reached}
        return [n for n, t in others.items() if unused_parameters.may_follow(n, t, self.dependencies, rows)]

    def idle(self) -> list[str]:
        """Unused parameters that a layer holds together with used ones: no run shows what they belong to."""
        used = {name.rpartition(".")[0] for name in self.rewritten.original.shapes()}
        holders = {name.rpartition(".")[0] for name in self.unused}
        own = {path for path in holders if self._has_used_parts(path, used)}
        return [name for name in self.unused if name.rpartition(".")[0] in own]

    def _has_used_parts(self, path: str, used: set[str]) -> bool:
        return any(other == path or not path or other.startswith(f"{path}.") for other in used)

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
        for name, holders in self.plain.items():
            plain_tensors.write(self.undo, holders, weights[name])
        for name in {*changed_names(self.program), *factors} - self.elsewhere:
            names = [name, *(alias for alias, stored in small.ties.items() if stored == name)]
            assign(self.undo, self.module, names, weights[name])
        if self.unused_cuts:
            for name, tensor in Narrowed(self.unused, self.unused_cuts).items():
                assign(self.undo, self.module, [name], tensor)
                layer = self.module.get_submodule(name.rpartition(".")[0])
                if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:  # followed if it is depthwise
                    self.undo.set_item(vars(layer), "groups", len(tensor))


def changed_names(program: Program) -> list[str]:
    """Names of the parameters and buffers with new shapes or values."""
    rewritten, refits = program.fact(Rewritten), program.facts.get(Refits)
    refitted = refits.changed if refits else set()
    rotated = program.fact(Rotatable).changed if Rotatable in program.facts else frozenset()
    return sorted({*rewritten.keep, *rewritten.scales, *refitted, *rotated})
