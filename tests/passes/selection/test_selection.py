"""Widths: the target is met, the alignment kept, and what cannot be is said."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.ir.program import Source
from graphprune.passes.selection import select
from graphprune.passes.selection.select import knobs, widths_at
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.facts import Eligible
from graphprune.planning.ranking import top
from graphprune.workflows.recipes.catalogue import RECIPES


@pytest.fixture(scope="module")
def program(tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]], folder: Path) -> gp.Program:
    """The decoder in the folder, analysed: heads of 4, in 2 groups of 4, and 40 neurons in each of 2 layers."""
    traced = replace(gp.trace(tiny("llama"), (), inputs("llama")), source=Source(folder, "huggingface"))
    return gp.Pipeline((gp.Analyze(),))(traced)


def removed(program: gp.Program, plan: gp.Plan) -> float:
    return 1 - gp.apply(program, plan).count() / program.count()


def by_kind(program: gp.Program, plan: gp.Plan) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for group in gp.analyze(program).groups:
        found.setdefault(group.kind, set()).add(plan.widths.get(group.name, group.size))
    return found


@pytest.mark.parametrize("recipe", ["magnitude", "random"])
@pytest.mark.parametrize("sparsity", [0.05, 0.1, 0.25, 0.4, 0.5])
def test_the_target_is_met_as_closely_as_the_steps_allow(program: gp.Program, sparsity: float, recipe: str) -> None:
    plan = gp.plan(program, sparsity=sparsity, recipe=recipe)
    assert removed(program, plan) == pytest.approx(sparsity, abs=0.005)


def test_the_target_is_met_in_networks_of_other_shapes() -> None:
    torch.manual_seed(0)
    layers = nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 60), nn.ReLU(), nn.Linear(60, 7)
    program = gp.trace(nn.Sequential(*layers), (torch.randn(3, 5),))
    for sparsity in (0.1, 0.33, 0.66, 0.9):
        assert removed(program, gp.plan(program, sparsity=sparsity)) == pytest.approx(sparsity, abs=0.005)


def test_a_wider_coarse_step_is_tried_with_narrower_fine_ones() -> None:
    """Where 1.6 of 4 units must go, 2 are nearer than 1; but 1 and some of 100 small ones meet the target."""
    layers = nn.Linear(50, 4), nn.ReLU(), nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 7)
    program = gp.Pipeline((gp.Analyze(),))(gp.trace(nn.Sequential(*layers), (torch.randn(3, 50),)))
    coarse, fine = sorted(gp.analyze(program).groups, key=lambda group: group.size)
    budget = Budget.of(program, [Knob.of([group]) for group in (coarse, fine)], 0)
    unit = budget.cost_per_index(budget.knobs[0])
    budget = replace(budget, target=round(1.6 * unit))
    widths = widths_at(budget, {coarse.name: 0.6, fine.name: 1.0})
    assert widths[coarse.name] == 3 and budget.removed(widths) == pytest.approx(1.6 * unit, abs=7)


def test_what_rounding_leaves_is_removed_in_small_steps() -> None:
    """One of 4 units meets the target as well as 9 of 100, but is much further from the share of its layer."""
    layers = nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 7)
    program = gp.Pipeline((gp.Analyze(),))(gp.trace(nn.Sequential(*layers), (torch.randn(3, 5),)))
    budget = Budget.of(program, knobs(program.fact(Eligible), 1), 106)
    full = {knob.groups[0].name: knob.size for knob in budget.knobs}
    assert select._fill(budget, full, dict.fromkeys(full, 1.0)) == {"0.weight:0": 4, "2.weight:0": 91}


@pytest.mark.parametrize("align", [2, 4, 8, 16])
def test_dimensions_are_multiples_of_the_alignment(program: gp.Program, align: int) -> None:
    plan = gp.plan(program, sparsity=0.2, align=align)
    shapes = gp.apply(program, plan).shapes()
    cut = [shapes[name][dim] for name, dims in plan.keep.items() if name in program.parameters for dim in dims]
    assert cut and all(size % align == 0 for size in cut)
    assert removed(program, plan) == pytest.approx(0.2, abs=0.03)


def test_whole_heads_count_by_what_is_inside_them(program: gp.Program) -> None:
    groups = [g for g in gp.analyze(program).groups if g.exact]
    heads = next(g for g in groups if g.size == 2 and "q_proj" in g.name and g.name.endswith(":0.0"))
    assert heads.inner == 4  # of the values of one key/value head; a query group holds 16
    plan = gp.plan(program, ratio=0.5, align=4)
    assert plan.widths[heads.name] == 1


def test_a_target_beyond_reach_says_what_is_the_most(program: gp.Program) -> None:
    said = (
        r"the target is to remove [\d,]+ parameters \(95.0%\), but the free groups hold at most [\d,]+ \((\d+\.\d)%\) "
        r"that can be removed; ask for less, protect less, lower the alignment, "
        r"or choose a destination that allows more"
    )
    with pytest.raises(PlanError, match=said) as fault:
        gp.plan(program, sparsity=0.95)
    most = float(str(fault.value).split("at most ")[1].split("(")[1].split("%")[0]) / 100
    assert removed(program, gp.plan(program, sparsity=most - 0.001)) == pytest.approx(most, abs=0.006)
    with pytest.raises(PlanError, match="hold at most"):
        gp.plan(program, sparsity=most + 0.01)


def test_what_the_alignment_forbids_is_said_too(program: gp.Program) -> None:
    with pytest.raises(PlanError, match="hold at most .* lower the alignment"):
        gp.plan(program, sparsity=0.6, align=32)


def test_protected_parameters_stay(program: gp.Program) -> None:
    plan = gp.plan(program, sparsity=0.1, protect=("*.layers.0.*",))
    assert plan.keep and not [name for name in plan.keep if ".layers.0." in name]
    assert removed(program, plan) == pytest.approx(0.1, abs=0.005)
    with pytest.raises(PlanError, match="no group is left that magnitude may cut"):
        gp.plan(program, sparsity=0.1, protect=("*",))


def test_what_pins_a_model_without_groups_is_said() -> None:
    single = gp.trace(torch.nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(PlanError, match=r"no group at all; .* weight:0 \(it is an output, .*weight:1 \(it is an input"):
        gp.plan(single, ratio=0.5)


@pytest.mark.parametrize(
    ("glob", "words"),
    [
        ("*.mpl.*", r"did you mean model\.layers\.\*\.mlp\.gate_proj\.weight or .*up_proj\.weight or"),
        ("model.layers.0.mlp.up_prj.weight", r"did you mean model\.layers\.0\.mlp\.up_proj\.weight or"),
        ("zzz", "`graphprune inspect MODEL` lists them"),
    ],
)
def test_a_glob_that_matches_nothing_is_refused(program: gp.Program, glob: str, words: str) -> None:
    with pytest.raises(
        PlanError,
        match=f"protect {re.escape(repr(glob))} matches no parameter, module, group or kind of groups; {words}",
    ):
        gp.plan(program, sparsity=0.1, protect=("*.layers.0.*", glob))
    for name in ("lm_head.weight", "*gate_proj.weight:0"):
        gp.plan(program, sparsity=0.1, protect=(name,))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_refuses_a_glob_that_matches_nothing(program: gp.Program, recipe: str) -> None:
    batches = [((), dict(program.inputs[1]))] * 4
    share: dict[str, Any] = {"macs" if recipe == "read-me" else "sparsity": 0.1}
    with pytest.raises(PlanError, match="protect 'nothing' matches no parameter"):
        gp.plan(program, recipe=recipe, protect=("nothing",), batches=batches, **share)


def test_sensitivities_refuse_a_glob_that_matches_nothing(program: gp.Program) -> None:
    batches = [((), dict(program.inputs[1]))] * 4
    with pytest.raises(PlanError, match="protect 'nothing' matches no parameter"):
        gp.sensitivity(program, batches=batches, protect=("nothing",))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_a_ratio_holds_for_every_group(program: gp.Program, ratio: float) -> None:
    plan = gp.plan(program, ratio=ratio)
    for group in gp.analyze(program).groups:
        expected = max(1, int(group.size * (1 - ratio))) if group.exact else group.size
        assert plan.widths.get(group.name, group.size) == expected


def test_a_stock_folder_has_one_width_for_each_kind(program: gp.Program) -> None:
    plan = gp.plan(gp.Pipeline((gp.Analyze("stock"),))(program), sparsity=0.2, destination="stock")
    assert all(len(widths) == 1 for widths in by_kind(program, plan).values())
    assert removed(program, plan) == pytest.approx(0.2, abs=0.02)
    free = gp.plan(program, sparsity=0.2, destination="free")
    assert len(free.groups) > len(plan.groups)


def test_the_highest_scores_are_kept_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert top(scores, 2) == ((0, 3), (0, 1))
    assert top(scores, 3) == ((0, 2, 3), (0, 1, 2))


def test_linked_rows_differ_from_head_to_head(program: gp.Program) -> None:
    plan = gp.plan(program, ratio=0.5, recipe="random")
    linked = [g for g in gp.analyze(program).groups if g.exact and g.linked]
    assert linked and all(len(plan.groups[g.name]) == 2 for g in linked)
    assert any(len(set(plan.groups[g.name])) == 2 for g in linked)


def test_protecting_a_tied_parameter_works_by_any_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.head(self.embed(ids))
            return logits

    program = gp.trace(Tied(), (torch.randint(0, 9, (2, 3)),))
    for name in ("embed*", "head*"):
        with pytest.raises(PlanError, match="no group is left"):
            gp.plan(program, ratio=0.5, protect=(name,))
    assert gp.plan(program, ratio=0.5).widths
