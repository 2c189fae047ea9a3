"""The pass that splits dense feed-forward layers into experts with a router, in closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError, choices
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Dropped, ExpertSplit, Factored, Program, Rewritten, SplitSizes
from graphprune.ir.weights import Layered
from graphprune.passes.experts.expert_graph import ROUTER, ROUTER_BIAS, expert_parts, names_of, with_experts
from graphprune.passes.experts.feed_forward import FeedForward, feed_forward_layers
from graphprune.passes.experts.split_walk import WAYS, SplitWalk
from graphprune.passes.low_rank.requirements import require_free
from graphprune.pipeline import PASSES, Pass, Timings
from graphprune.planning.budget import Budget
from graphprune.planning.facts import OF_ONE_GRAPH, OF_WEIGHTS, Eligible
from graphprune.planning.plan import Plan
from graphprune.statistics.collector import Calibration

RETAINED = (Calibration, Timings, Rewritten, Dropped, *OF_WEIGHTS, Factored)


@PASSES.register("split-experts")
@dataclass(frozen=True)
class SplitExperts(Pass):
    """Split every dense feed-forward layer into `experts` of equal width, of which each token takes the `active` ones
    that a linear router scores highest, and verify the graph. No parameter is removed; a token uses fewer of them.

    Neurons that are strong for the same tokens are put together, `by` ``co-activation``: balanced k-means on the
    correlations of their strengths, absolute activations times the norms of their last weights; ``random`` is the
    baseline. The `shared_part`
    of the neurons, the strongest ones, are computed for all tokens, and so are as many as remain when the others
    are divided equally. The router is fitted to the norms of what the
    experts add to the output, then the last weight to the outputs of the dense layer, both by least squares on inputs
    from the layers before, already split. `damping` is relative to the mean diagonal of the Gram matrices; by default,
    it is chosen on held-out tokens. Nothing is trained. After Read-ME (arXiv:2410.19123) and MoEfication
    (arXiv:2110.01786), which choose experts by co-activation, too, and train routers.

    Instead of `active`, give a `ratio` of the neurons of each layer that a token leaves out, or, with the `budget`
    ``macs``, the share `sparsity` of all multiply-accumulates to save; the most experts with which it is met are taken.
    `protect` holds globs of parameters of layers that are not split.
    """

    name: ClassVar[str] = "split-experts"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Rewritten, Dropped, *OF_WEIGHTS, Factored, Plan)
    makes: ClassVar[tuple[type, ...]] = (ExpertSplit, Plan, Verification)
    invalidates: ClassVar[tuple[type, ...]] = OF_ONE_GRAPH
    one_of: ClassVar[tuple[str, ...]] = ("active", "ratio", "sparsity")
    experts: int = 8
    active: int | None = None
    shared_part: float = 0.0
    ratio: float | None = None
    sparsity: float | None = None
    budget: str = "parameters"
    by: str = "co-activation"
    seed: int = 0
    damping: float | None = None
    protect: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse impossible options.

        Raises:
            PlanError: if the numbers of experts, the shares or the method are impossible, or parameters were to be
                removed.
        """
        if self.by not in WAYS:
            raise PlanError(f"no way {self.by!r} to put neurons together; {choices(self.by, WAYS)}")
        if not isinstance(self.experts, int) or self.experts < 2:
            raise PlanError(f"a layer is split into at least 2 experts, got experts={self.experts}")
        if self.active is not None and not (isinstance(self.active, int) and 1 <= self.active <= self.experts):
            raise PlanError(f"a token takes 1 to {self.experts} of {self.experts} experts, got active={self.active}")
        if not 0 <= self.shared_part < 1:
            raise PlanError(f"shared_part is a share of the neurons, at least 0 and below 1, got {self.shared_part}")
        shares = [share for share in (self.ratio, self.sparsity) if share is not None]
        if (self.active is not None) + len(shares) != 1:
            raise PlanError(
                "give one of active (experts of a token), ratio (the share of neurons that a token leaves out) and "
                "macs (the share of all multiply-accumulates to save)"
            )
        if any(not isinstance(share, int | float) or not 0 < share < 1 for share in shares):
            raise PlanError(f"a share must lie between 0 and 1 (0.2 is 20 %), got {shares[0]}")
        if self.sparsity is not None and self.budget != "macs":
            raise PlanError(
                f"split-experts removes no {self.budget}: each token uses fewer of them; give macs (the share of all "
                "multiply-accumulates to save) or ratio (the share of neurons that a token leaves out)"
            )

    def preflight(self, program: Program) -> Program:
        """Check that the destination can hold experts, and that there is a layer to split.

        Raises:
            PlanError: if it cannot, or there is none.
        """
        require_free(program, "experts in the place of dense layers")
        self._layers(program)
        return program

    def run(self, program: Program) -> Program:
        """The program with experts.

        Raises:
            PlanError: if no layer can be split, or no number of experts meets the target.
            CalibrationError: if activations are not finite.
            VerificationError: if the numbers disagree with those of the dense layers with masked neurons.
        """
        layers, left = self._layers(program)
        sizes = self._sizes(program, layers)
        walk = SplitWalk(program, layers, sizes, self.by, self.seed, self.damping)
        walk.run()
        refitted = replace(program, weights=Layered((walk.changed, program.weights)))
        parts = {f"{each.name}_{part}": walk.changed[f"{each.name}_{part}"]
                 for each in layers for part in (ROUTER, ROUTER_BIAS)}  # fmt: skip
        for each in layers:
            parts |= expert_parts(refitted, each, walk.order[each.name], sizes[each.name])
        small = with_experts(program, layers, sizes, parts)
        names = {name: tuple(new) for each in layers for name, new in names_of(each, sizes[each.name]).items()}
        facts = [program.facts[kind] for kind in RETAINED if kind in program.facts]
        made_by = {"experts": self.experts, "by": self.by, "destination": program.fact(Eligible).destination.name}
        plan = program.facts.get(Plan) or Plan(program.fingerprint(), {}, {}, {})
        plan = replace(plan, made_by={**plan.made_by, **made_by})
        fact = ExpertSplit(program, sizes, walk.errors, left, names)
        return replace(small, facts={}).with_facts(*facts, plan, fact, verify_cut(walk.reference, small, {}))

    def _layers(self, program: Program) -> tuple[list[FeedForward], dict[str, str]]:
        """The layers to split, and the others with reasons."""
        layers, left = feed_forward_layers(program, self.protect)
        for each in (each for each in layers if not self._width(each)):
            left[each.name] = f"its {each.neurons} neurons are too few for {self.experts} experts"
        layers = [each for each in layers if each.name not in left]
        if not layers:
            reasons = "; ".join(f"{name}: {why}" for name, why in left.items()) or "it has no neurons between layers"
            raise PlanError(f"the model has no dense feed-forward layer that can be split into experts ({reasons})")
        return layers, left

    def _width(self, layer: FeedForward) -> int:
        """The width of the experts of a layer."""
        return int(layer.neurons * (1 - self.shared_part)) // self.experts

    def _sizes(self, program: Program, layers: Sequence[FeedForward]) -> Mapping[str, SplitSizes]:
        """The sizes of all layers; the number of active experts is that of the options."""
        widths = {each.name: self._width(each) for each in layers}
        if self.active is not None:
            return {name: SplitSizes(self.experts, self.active, width) for name, width in widths.items()}
        if self.ratio is not None:
            counts = {each.name: self._count_for(each, widths[each.name]) for each in layers}
        else:
            counts = dict.fromkeys(widths, self._count_for_all(program, layers, widths))
        return {name: SplitSizes(self.experts, counts[name], width) for name, width in widths.items()}

    def _count_for(self, layer: FeedForward, width: int) -> int:
        """The most active experts of a layer with which a token leaves out the ratio of neurons."""
        assert self.ratio is not None
        count = self.experts - ceil(self.ratio * layer.neurons / width - 1e-9)
        if count < 1:
            most = (self.experts - 1) * width / layer.neurons
            raise PlanError(
                f"a token can leave out at most {most:.1%} of the {layer.neurons} neurons before {layer.name}, all "
                f"experts but one, and the ratio is {self.ratio:.1%}; ask for less, or split into more experts"
            )
        return count

    def _count_for_all(self, program: Program, layers: Sequence[FeedForward], widths: Mapping[str, int]) -> int:
        """The most active experts with which the multiply-accumulates are saved, those of routers subtracted."""
        assert self.sparsity is not None
        total = Budget.of(program, [], 0, "macs").total
        routers = sum(each.tokens * each.hidden * self.experts for each in layers)
        by_expert = sum(each.tokens * each.macs * widths[each.name] for each in layers)
        count = self.experts - ceil((self.sparsity * total + routers) / by_expert - 1e-9)
        if count < 1:
            most = ((self.experts - 1) * by_expert - routers) / total
            raise PlanError(
                f"{self.experts} experts save at most {most:.1%} of all multiply-accumulates, with one active, and the "
                f"target is {self.sparsity:.1%}; ask for less, or split into more experts"
            )
        return count
