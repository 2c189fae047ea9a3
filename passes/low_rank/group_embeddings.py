"""The pass that divides the rows of embedding tables into groups by frequency, and chooses a low rank for each."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import PlanError
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Dropped, Program, Rotatable
from graphprune.ir.weights import Layered
from graphprune.passes.low_rank.requirements import require_free, require_one_share
from graphprune.passes.scores import SCORES
from graphprune.passes.selection.select import knobs
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import Budget
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Plan
from graphprune.planning.ranking import growth_pool, pooled_shares
from graphprune.solvers.embedding_tables import (
    EmbeddingTable,
    count_rows,
    decreasing,
    embedding_tables,
    is_descending,
)
from graphprune.solvers.factorable import part_of_widths
from graphprune.solvers.row_groups import EmbeddingGroups, GroupedRows, Spectra, TableSpectra
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import FactorGradients, GradientSums

ORDERS = ("auto", "ids", "counts")
METRICS = ("loss", "none")
UNSEEN = 0.01  # share of the calibration tokens that is spread over all rows, as some that do not occur in them will
AFTER_REFIT = 0.5  # of the growth that scores predict: two models lost 0.35 of it on like texts, and one 0.6 on others
WITHOUT_SCORES = 0.4  # share of the reduction where no scores tell what other layers cost
USUAL_FACTOR = 4.5  # growth of the loss by that which spectra predict, in language models
TRIAL_BATCHES = 2  # held-out batches on which the growth of the loss is measured

log = logging.getLogger(__name__)
Choice = dict[str, list[int]]  # the rank of every group, by table


@PASSES.register("group-embeddings")
@dataclass(frozen=True)
class GroupEmbeddings(Pass):
    """Divide the rows of embedding tables into `groups` of equal numbers of rows, by frequency, and choose a rank for
    each (GroupReduce, arXiv:1806.06950). A head that shares a table, or has an output for each of its rows, is grouped
    alike. The pass `refit` gives the tables these ranks before it fits other layers; `factorize` replaces them.

    The rows are weighted by their frequency in the calibration inputs, and the columns by the Gram matrices of the
    gradients at the lookups and of the inputs of the heads, which `gradients{of=layers}` gathers. So the growth of the
    loss is least for the parameters that are saved. With the `metric` ``none``, columns are not weighted. The `order`
    of rows is that of their ``ids``, or by ``counts``; ``auto`` takes the former where ids are in the order of
    frequency, as those of most tokenizers.

    The tables remove `part` of the reduction to `sparsity` of all parameters; or `ratio` of their own. By default, the
    part is that at which the growth of the loss per parameter is that of the scores of the groups that are cut
    (``k-obs``): the growth of the tables is measured once on held-out calibration inputs.
    """

    name: ClassVar[str] = "group-embeddings"
    reads: ClassVar[tuple[type, ...]] = (Scores, Plan, Dropped, Rotatable, GradientSums, TableSpectra)
    makes: ClassVar[tuple[type, ...]] = (EmbeddingGroups, Plan)
    one_of: ClassVar[tuple[str, ...]] = ("sparsity", "ratio")
    sparsity: float | None = None
    ratio: float | None = None
    part: float | None = None
    groups: int = 8
    order: str = "auto"
    metric: str = "loss"
    budget: str = "parameters"
    protect: tuple[str, ...] = ()
    width_part: float = field(default=1.0, repr=False)  # that follows from the pass allocate

    @property
    def needs(self) -> tuple[type, ...]:
        """The inputs, and the gradients for the metric of columns."""
        return (
            Dependencies,
            Eligible,
            Calibration,
            *((GradientSums, FactorGradients) if self.metric == "loss" else ()),
        )

    def before(self, later: Sequence[Pass]) -> Pass:
        """The pass with the share of the rest that `allocate` removes by narrower layers."""
        parts = [float(getattr(step, "part", 1.0)) for step in later if step.name == "allocate"]
        return replace(self, width_part=parts[0]) if parts else self

    def check(self) -> None:
        """Refuse impossible shares, numbers of groups and orders.

        Raises:
            PlanError: if not exactly one share is given, or an option is impossible.
        """
        require_one_share(self.sparsity, self.ratio, "the tables")
        if self.part is not None and not 0 < self.part <= 1:
            raise PlanError(f"part is a share of the reduction above 0 and at most 1, got {self.part}")
        if self.order not in ORDERS:
            raise PlanError(f"rows are in the order of {', '.join(ORDERS[1:])}, or {ORDERS[0]}, not {self.order!r}")
        if self.metric not in METRICS:
            raise PlanError(f"the metric of columns is {' or '.join(METRICS)}, not {self.metric!r}")
        if not isinstance(self.groups, int) or self.groups < 1:
            raise PlanError(f"groups must be a positive whole number, got {self.groups}")

    def preflight(self, program: Program) -> Program:
        """Check that the destination can hold groups of rows.

        Raises:
            PlanError: if it cannot.
        """
        return require_free(program, "an embedding table in groups of rows of low ranks")

    def shared(self, program: Program) -> Program:
        """The program with the spectra of its tables, and the growth of the loss at the share of this pass."""
        tables, _ = self._tables(program)
        if not tables:
            return program
        problem = _Tables.of(program, tables, self)
        measures = self.ratio is None and problem.comparable(self)
        factor = problem.factor(problem.trial(problem.target(self))) if measures else None
        return program.with_facts(TableSpectra(problem.spectra, factor))

    def _tables(self, program: Program) -> tuple[list[EmbeddingTable], dict[str, str]]:
        """The tables that can be grouped, and the reasons for others."""
        tables, left = embedding_tables(program, program.fact(Dependencies), self.protect)
        if self.budget == "parameters":
            return tables, left
        return [], left | {table.weight: f"groups of rows save parameters, not {self.budget}" for table in tables}

    def run(self, program: Program) -> Program:
        """The program with the groups of its tables.

        Raises:
            PlanError: if the destination cannot hold them.
        """
        self.preflight(program)
        tables, left = self._tables(program)
        problem = _Tables.of(program, tables, self) if tables else None
        fact = EmbeddingGroups({}, {}, 0, left=left) if problem is None else problem.chosen(self, left)
        if not fact.by_weight:
            log.info("no embedding table is grouped")
        plan = program.facts.get(Plan) or Plan(
            program.fingerprint(), {}, {}, {"destination": program.fact(Eligible).destination.name}
        )
        return program.with_facts(fact, replace(plan, tables=fact.sizes))


@dataclass(frozen=True)
class _Tables:
    """The spectra of tables, by weight, with the growth of the loss in nats per token, or its own unit."""

    program: Program
    spectra: Mapping[str, Spectra]
    gathered: GradientSums

    @classmethod
    def of(cls, program: Program, tables: Sequence[EmbeddingTable], options: GroupEmbeddings) -> "_Tables":
        gathered = program.facts.get(GradientSums) or GradientSums({}, {}, {}, 0)
        known = program.facts.get(TableSpectra)
        if known is not None:
            return cls(program, known.by_weight, gathered)
        spectra = dict[str, Spectra]()
        for table in tables:
            counts, weight = count_rows(program, table), program.weights[table.weight]
            metric = torch.eye(weight.shape[1], dtype=torch.float64)
            if options.metric == "loss":
                tokens = float(counts.sum()) / len(program.fact(Calibration).batches)
                inputs = [gathered.input_grams[head.node].double() for head in table.heads]
                gradients = [gathered.terms * tokens * gathered.output_grams[node].double() for node in table.lookups]
                metric = torch.stack([*inputs, *gradients]).sum(0)
            spectra[table.weight] = _spectra(weight, counts, metric, options)
        return cls(program, spectra, gathered)

    def chosen(self, options: GroupEmbeddings, left: Mapping[str, str]) -> EmbeddingGroups:
        """The groups at the best ranks within the target."""
        values = sum(spectra.order.numel() * len(spectra.half) for spectra in self.spectra.values())
        if options.ratio is not None:
            return self._fact(self.saving(options.ratio * values), left)
        target = self.target(options)
        if not self.comparable(options):
            part = WITHOUT_SCORES if options.part is None else options.part
            return self._fact(self.saving(part * target), left)
        spectra = self.program.facts.get(TableSpectra)
        factor = spectra.factor if spectra else None
        factor = self.factor(self.trial(target)) if factor is None else factor
        log.info("embedding tables cost %.2f times what their spectra predict", factor)
        removed = self._removed_by_scores(self.program.fact(Scores), options)
        low, high = -60.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            saved = self.saved(self.at(exp(middle) / factor)) + removed(exp(middle))
            low, high = (low, middle) if saved >= target else (middle, high)
        return self._fact(self.saving(max(target - removed(exp(high)), 0)), left, factor)

    def target(self, options: GroupEmbeddings) -> float:
        """The number of parameters to remove from the model."""
        assert options.sparsity is not None
        return options.sparsity * _total(self.program)

    def comparable(self, options: GroupEmbeddings) -> bool:
        """Whether scores tell what the same growth of the loss saves in other layers."""
        scores = self.program.facts.get(Scores)
        rated = scores is not None and SCORES[scores.method].gradients_of == "outputs"
        return rated and options.part is None and options.metric == "loss"

    def trial(self, target: float) -> Choice:
        """The ranks at which the growth of the loss is measured."""
        values = sum(spectra.order.numel() * len(spectra.half) for spectra in self.spectra.values())
        return self.saving(min(WITHOUT_SCORES * target, 0.5 * values))

    def at(self, multiplier: float) -> Choice:
        """The ranks at a cost of `multiplier` per parameter."""
        return {name: spectra.at(multiplier) for name, spectra in self.spectra.items()}

    def saved(self, choice: Choice) -> int:
        """The number of parameters that these ranks save."""
        return sum(self.spectra[name].saved(ranks) for name, ranks in choice.items())

    def saving(self, amount: float) -> Choice:
        """The ranks with the least growth of the loss that save so many parameters, or as many as possible."""
        if amount <= 0:
            return self.at(0.0)
        low, high = -60.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.saved(self.at(exp(middle))) >= amount else (middle, high)
        return self._filled(self.at(exp(high)), amount)

    def _filled(self, choice: Choice, amount: float) -> Choice:
        """The ranks, raised one group after the other as far as they still save so much."""
        for name, ranks in choice.items():
            for group, full in enumerate(map(self.spectra[name].full, range(len(ranks)))):
                others = self.saved(choice) - self.spectra[name].saved_by(group, ranks[group])
                least = amount - others
                ranks[group] = max(r for r in range(ranks[group], full + 1)
                                   if r == ranks[group] or self.spectra[name].saved_by(group, r) >= least)  # fmt: skip
        return choice

    def _cost(self, choice: Choice) -> float:
        return sum(self.spectra[name].cost(ranks) for name, ranks in choice.items())

    def _lowered(self, choice: Choice) -> dict[str, Tensor]:
        return {name: self.spectra[name].lowered(self.program.weights[name], ranks) for name, ranks in choice.items()}

    def factor(self, choice: Choice) -> float:
        """The growth of the loss at these ranks, divided by what is predicted; the usual ratio where a loss from Python
        cannot be measured."""
        if not self.gathered.own:
            return USUAL_FACTOR
        objective = Objective.of(self.program, TRIAL_BATCHES)
        trial = replace(self.program, weights=Layered((self._lowered(choice), self.program.weights)))
        with progress("measuring the loss by tables", 2 * len(objective.batches)) as step:
            growth = objective.loss_of(trial, step) - objective.loss_of(self.program, step)
        return max(growth / max(self._cost(choice), 1e-12), 1.0)

    def _removed_by_scores(self, scores: Scores, options: GroupEmbeddings) -> Callable[[float], float]:
        """The number of parameters that narrower and factorized layers save at a growth of the loss per parameter."""
        eligible = self.program.fact(Eligible)
        budget = Budget.of(self.program, knobs(eligible, 1), 0, "parameters", eligible.requested)
        pool = growth_pool(budget, scores.by_group)
        shares = pooled_shares(replace(budget, target=min(round(self.target(options)), budget.most)), pool)
        part = part_of_widths(self.program, options.width_part, options.protect, budget.knobs, shares)
        slopes = self._unit * pool.score
        saved = torch.cat([torch.zeros(1), pool.cost.cumsum(0)])
        return lambda slope: float(saved[int(torch.searchsorted(slopes, slope))]) / part

    @property
    def _unit(self) -> float:
        """The growth of the loss by the unit of the scores, after a refit."""
        return AFTER_REFIT * self.gathered.terms / max(self.gathered.batches, 1)

    def _fact(self, choice: Choice, left: Mapping[str, str], factor: float | None = None) -> EmbeddingGroups:
        by_weight = {
            name: GroupedRows(self.spectra[name].order, self.spectra[name].sizes, tuple(ranks))
            for name, ranks in choice.items() if self.spectra[name].saved(ranks) > 0
        }  # fmt: skip
        changed = {name: choice[name] for name in by_weight}
        growth = self._cost(changed)
        measured = None if factor is None else factor * growth
        score = None if measured is None else measured / self._unit
        return EmbeddingGroups(by_weight, self._lowered(changed), self.saved(changed), growth, measured, score, left)


def _spectra(weight: Tensor, counts: Tensor, metric: Tensor, options: GroupEmbeddings) -> Spectra:
    """The spectra of a table's groups of rows, by their frequency."""
    rows, columns = weight.shape
    number = max(1, min(options.groups, rows // (4 * columns)))
    sizes = [rows // number] * (number - 1) + [rows - rows // number * (number - 1)]
    by_ids = options.order == "ids" or (options.order == "auto" and is_descending(counts, sizes))
    order = torch.arange(rows) if by_ids else counts.argsort(descending=True, stable=True)
    frequency = torch.empty_like(counts)
    frequency[order] = decreasing(counts[order]) + UNSEEN * counts.mean()
    return Spectra.of(weight, order, sizes, frequency / frequency.sum(), metric)


def _total(program: Program) -> float:
    """The parameters of the model before blocks were dropped, or layers added for rotations."""
    earlier = (program.facts[kind].original for kind in (Dropped, Rotatable) if kind in program.facts)
    return Budget.of(next(earlier, program), [], 0).total
