"""Residual streams are rotated, which changes nothing, and cut along their principal axes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.algebra import resolve
from graphprune.axes.groups import Dependencies
from graphprune.errors import PipelineError, PlanError, WriteBackError
from graphprune.execution.equivalence import mask_program
from graphprune.execution.output_comparison import Verification
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program, Rewritten, Rotatable
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.rotation.fuse_norms import FuseNorms
from graphprune.passes.rotation.rotate import Rotate
from graphprune.passes.selection.select import Select
from graphprune.pipeline import Pipeline
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Plan
from graphprune.statistics.moments import Statistics

Tiny = Callable[..., nn.Module]
Inputs = Callable[[str], dict[str, Any]]
ANALYZE = gp.Analyze(exact_only=False)


class Block(nn.Module):
    """A residual branch behind a norm."""

    def __init__(self, width: int, layered: bool, biases: bool) -> None:
        super().__init__()
        self.norm, self.down = norm(width, layered), nn.Linear(20, width, bias=biases)
        self.up = nn.Linear(width, 20, bias=biases)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))  # type: ignore[no-any-return]


def norm(width: int, layered: bool) -> nn.Module:
    """A norm of either kind, whose parameters do something."""
    made = nn.LayerNorm(width) if layered else nn.RMSNorm(width)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


class Stack(nn.Module):
    """An embedding, blocks, a norm and a head, which may be the embedding itself."""

    def __init__(
        self, tied: bool = False, between: nn.Module | None = None, layered: bool = False, biases: bool = True
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 12), nn.Linear(12, 30, bias=False)
        self.blocks = nn.ModuleList(Block(12, layered, biases) for _ in range(3))
        self.between, self.norm = between or nn.Identity(), norm(12, layered)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.between(self.embed(ids))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def ids(seed: int) -> Tensor:
    return torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(seed))


def stack(**options: Any) -> Program:
    torch.manual_seed(0)
    return trace(Stack(**options).double(), (ids(0),))


def data(moments: str = "full") -> Calibrate:
    return Calibrate(batches=tuple(((ids(i),), {}) for i in range(1, 9)), moments=moments)


def rotated(program: Program, shortcuts: bool) -> Program:
    return Pipeline((ANALYZE, FuseNorms(shortcuts), data(), Rotate()))(program)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shortcuts", [False, True])
def test_a_rotation_changes_nothing(tied: bool, shortcuts: bool) -> None:
    program = stack(tied=tied)
    small = rotated(program, shortcuts)
    torch.testing.assert_close(small.module()(ids(5)), program.module()(ids(5)), rtol=1e-10, atol=1e-10)
    assert small.fact(Verification).max_error <= 1e-12
    fact = small.fact(Rotatable)
    assert len(fact.shortcuts) == (3 if shortcuts else 0)
    assert fact.added - fact.shortcuts == ({"norm.weight_square"} if tied else set())
    assert len(small.fact(Eligible).groups) == (4 if shortcuts else 1)
    assert all(bool((small.weights[name] == 1).all()) for name in fact.ones) and len(fact.ones) == 4
    assert small.count() == program.count() + 144 * len(fact.added)


def test_one_width_can_be_requested_for_all_streams() -> None:
    program = stack()
    options: dict[str, Any] = {"recipe": "slicegpt", "batches": data().batches}
    plan = gp.plan(program, widths={"hidden size": 7}, **options)
    assert len(plan.widths) == 4 and set(plan.widths.values()) == {7}
    for wrong in ({"widths": {"neurons": 7}}, {"drop": {"embed": [3]}}):
        with pytest.raises(PlanError, match="only one width for all can be requested"):
            gp.plan(program, **wrong, **options)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shortcuts", [False, True])
def test_layer_norms_become_rms_norms_of_centred_streams(tied: bool, shortcuts: bool, biases: bool) -> None:
    program = stack(tied=tied, layered=True, biases=biases)
    small = rotated(program, shortcuts)
    torch.testing.assert_close(small.module()(ids(5)), program.module()(ids(5)), rtol=1e-10, atol=1e-10)
    assert torch.ops.aten.layer_norm.default not in {node.target for node in small.graph.nodes}
    fact = small.fact(Rotatable)
    squares = {name for name in fact.added if name.endswith("_square")}
    assert len(squares) == (1 if biases else 4)  # where no bias takes that of the norm, its weight needs a map
    assert fact.foreign and len(fact.ones) == 4
    assert ("embed.weight_centre" in fact.added) == tied
    cut = Pipeline.parse("allocate{ratio=0.25},select,rewrite,verify", tuple(small.facts))(small)
    assert cut.fact(Verification).max_error <= 1e-10 and set(cut.fact(Plan).widths.values()) == {9}
    with pytest.raises(WriteBackError, match="lacks the linear layers and norms"):
        cut.write_back(Stack(tied, None, True, biases).double())


def test_streams_lie_along_their_principal_axes() -> None:
    small = rotated(stack(), True)
    again = data()(small)
    for group in small.fact(Eligible).groups:
        maps = [c for c in again.fact(Dependencies).consumers_of(group) if "shortcuts" not in c.weight]
        second = again.fact(Statistics).moments[maps[0].node].gram
        found, scores = second.diagonal(), small.fact(Scores).by_group[group.name][0]
        torch.testing.assert_close(second, found.diag(), rtol=1e-5, atol=1e-5 * float(found.max()))
        torch.testing.assert_close(found, scores, rtol=1e-5, atol=1e-8)
        assert bool((found.diff() <= 1e-8).all())


@pytest.mark.parametrize("shortcuts", [False, True])
def test_a_cut_projects_the_stream_on_the_first_axes(shortcuts: bool) -> None:
    program = stack()
    start = rotated(program, shortcuts)
    small = Pipeline.parse("allocate{ratio=0.25},select,rewrite,verify", tuple(start.facts))(start)
    assert set(small.fact(Plan).widths.values()) == {9} and small.fact(Verification).max_error <= 1e-10
    assert all(rows == (tuple(range(9)),) for rows in small.fact(Plan).groups.values())
    before, plan = small.fact(Rewritten).original, small.fact(Plan)
    reference = mask_program(before, plan.keep).module()(ids(7))
    torch.testing.assert_close(small.module()(ids(7)), reference, rtol=1e-9, atol=1e-9)
    shapes = small.shapes()
    primes = {g.prime for g in before.fact(Eligible).groups}
    for name, dims in before.fact(Dependencies).tensors.items():
        assert shapes[name] == tuple(9 if resolve(axis) in primes else axis.size for axis in dims)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_budgets_count_what_is_added(shortcuts: bool) -> None:
    program = stack(tied=True)
    start = rotated(program, shortcuts)
    small = Pipeline.parse("allocate{sparsity=0.2},select,rewrite,verify", tuple(start.facts))(start)
    assert small.count() == pytest.approx(0.8 * program.count(), rel=0.06)


def test_what_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be rotated, because an operator other than linear layers and norms"):
        Pipeline((ANALYZE, FuseNorms()))(stack(between=nn.ReLU()))
    with pytest.raises(PlanError, match="cannot be rotated"):
        Pipeline((ANALYZE, FuseNorms()))(stack(between=nn.LayerNorm(12)))  # its output is the stream itself
    with pytest.raises(PlanError, match="no residual stream can be rotated"):
        Pipeline((ANALYZE, FuseNorms()))(trace(nn.Linear(4, 4), (torch.randn(2, 4),)))
    with pytest.raises(PlanError, match=r"put analyze\{exact_only=false\} before fuse-norms"):
        Pipeline((gp.Analyze(), FuseNorms()))(stack())
    with pytest.raises(PipelineError, match=r"rotate, needs FullMoments, .* calibrate\{moments=full\}"):
        Pipeline((ANALYZE, FuseNorms(), data("diagonal"), Rotate()))
    with pytest.raises(
        WriteBackError, match="the module lacks the linear layers and norms of rotated residual streams"
    ):
        FuseNorms()(ANALYZE(stack())).write_back(Stack().double())


def test_refits_follow(tiny: Tiny, inputs: Inputs) -> None:
    program = trace(tiny("llama", use_cache=False), (), inputs("llama"))
    calls = Calibrate(batches=tuple(((), inputs("llama")) for _ in range(2)), moments="full")
    start = Pipeline((ANALYZE, FuseNorms(False), calls, Rotate()))(program)
    text = "allocate{ratio=0.2},select,rewrite,refit,verify"
    small = Pipeline.parse(text, tuple(start.facts))(start)
    assert small.fact(Verification).max_error <= 1e-4


def test_saved_with_its_cache_and_loaded_again(tiny: Tiny, folder: Path, text: Path, tmp_path: Path) -> None:
    source = tmp_path / "shallow"
    tiny("llama", num_hidden_layers=1).save_pretrained(source)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((folder / name).read_bytes())
    options: Any = {"samples": 8, "length": 32, "align": 1, "calibration": text, "sparsity": 0.1}
    with pytest.raises(PlanError, match="stock cannot hold rotated streams.* layers such as .* use destination free"):
        gp.prune(source, output=tmp_path / "no", recipe="slicegpt", destination="stock", **options)
    out = tmp_path / "out"
    made = gp.prune(source, output=out, recipe="slicegpt", destination="free", **options)
    assert made.program is not None
    assert made.report.sparsity_reached == pytest.approx(0.1, abs=0.04) and max(made.report.errors.values()) <= 1e-4
    assert made.report.notes[-1] == "rotated 1 residual streams, which added 3 linear layers"
    again = gp.load(out)
    assert again.count() == made.program.count() == made.report.parameters_after
    with pytest.raises(PlanError, match="a plan has no rotations, which come from calibration"):
        gp.apply_plan(source, out / "plan.json", output=tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_decoders_with_layer_norms_are_saved_too(
    folder: Path, text: Path, tiny: Tiny, tmp_path: Path, kind: str
) -> None:
    source, out = tmp_path / kind, tmp_path / "out"
    tiny(kind).save_pretrained(source)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((folder / name).read_bytes())
    options: Any = {"samples": 8, "length": 32, "align": 1, "destination": "free", "sparsity": 0.1}
    made = gp.prune(source, output=out, recipe="slicegpt", calibration=text, **options)
    assert made.report.sparsity_reached == pytest.approx(0.1, abs=0.02) and max(made.report.errors.values()) <= 1e-4
    assert gp.load(out).count() == made.report.parameters_after
    gp.verify_folder(out)


def test_one_rotation_of_all_needs_nothing_new(tiny: Tiny, inputs: Inputs, text: Path, tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=False, use_cache=False)
    program = trace(model, (), inputs("llama"))
    calls = Calibrate(batches=(((), inputs("llama")),), moments="full")
    start = Pipeline((ANALYZE, FuseNorms(False), calls, Rotate(), Allocate(ratio=0.25), Select()))(program)
    small = Pipeline.parse("rewrite,verify", tuple(start.facts))(start)
    assert not small.fact(Rotatable).added
    small.write_back(model)
    assert model.config.hidden_size == 24  # type: ignore[union-attr]
    logits = model(**inputs("llama")).logits
    torch.testing.assert_close(logits, small.module()(**inputs("llama")).logits, rtol=1e-4, atol=1e-4)


def test_a_saved_class_holds_one_rotation(folder: Path, text: Path, tiny: Tiny, tmp_path: Path) -> None:
    source, out = tmp_path / "untied", tmp_path / "out"
    tiny("llama", tie_word_embeddings=False).save_pretrained(source)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((folder / name).read_bytes())
    found = gp.prune(
        source, output=out, recipe="slicegpt-whole", sparsity=0.2, calibration=text, samples=8, length=32, align=2
    )
    assert found.report.sparsity_reached == pytest.approx(0.2, abs=0.05)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.hidden_size == found.plan.widths["model.embed_tokens.weight:1"] < 32
