"""What the documents tell a reader to write works as written."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from graphprune.axes.groups import Dependencies
from graphprune.exporters import EXPORTERS
from graphprune.frontends.loading import load
from graphprune.frontends.modules import trace
from graphprune.ir.program import Dropped, Program
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.depth import IMPORTANCES
from graphprune.passes.depth.drop_blocks import Drop
from graphprune.passes.operators import RULES
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.scores import SCORES
from graphprune.pipeline import PASSES, Pipeline
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.interfaces import Evidence
from graphprune.statistics.moments import Moments, Statistics
from tests.docs.blocks import blocks
from tools import pass_table
from tools.documents import documents

ROOT = Path(__file__).parents[2]
DOCUMENTS = (*documents(), ROOT / "passes/README.md", ROOT / "exporters/README.md")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)?(?:#([^)]+))?\)")


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    tables = [registry._table for registry in (RULES, SCORES, ALLOCATIONS, RECONSTRUCTIONS, IMPORTANCES, EXPORTERS)]
    before = [dict(table) for table in tables]
    RULES._table.pop(torch.ops.aten.glu.default, None)
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture(scope="module")
def small() -> tuple[Program, Dependencies]:
    layers = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    program = trace(nn.Sequential(*layers), (torch.randn(3, 4),))
    return program, analyze(program)


def run_example(document: str, heading: str) -> dict[str, Any]:
    """Run the first Python block under a heading; return the names that it makes."""
    section = (ROOT / document).read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    names: dict[str, Any] = {"__name__": "example"}
    exec(next(block.code for block in blocks(section) if block.kind == "python"), names)
    return names


def moments(features: int) -> Moments:
    found = Moments.empty(features)
    found.add(torch.randn(50, features, generator=torch.Generator().manual_seed(0)))
    return found


def test_the_example_of_a_rule_is_a_rule() -> None:
    run_example("passes/README.md", "Write a rule")
    example = next(RULES[torch.ops.aten.glu.default].examples())
    found = analyze(trace(example.module, example.args))
    assert [(group.size, group.exact) for group in found.groups] == [(8, True)]
    assert not found.opaque


def test_the_example_of_a_score_is_a_score(small: tuple[Program, Dependencies]) -> None:
    program, found = small
    run_example("passes/README.md", "Write a score")
    statistics = Statistics({consumer.node: moments(consumer.axis.size) for consumer in found.consumers})
    scores = SCORES["energy"].score(found.groups[0], Evidence(program, found, statistics))
    assert torch.equal(scores[0], moments(8).squares)


def test_the_example_of_an_allocation_meets_the_budget(small: tuple[Program, Dependencies]) -> None:
    program, found = small
    run_example("passes/README.md", "Write an allocation")
    budget = Budget(found, [Knob.of([group]) for group in found.groups], 40, program.parameters)
    shares = ALLOCATIONS["rising"].shares(budget, {}, Evidence(program, found, None))
    first, second = (shares[group.name] for group in found.groups)
    assert second < first < 1
    assert budget.removed(budget.widths(shares)) == pytest.approx(40, abs=0.1)


def test_the_example_of_an_importance_ranks_blocks() -> None:
    run_example("passes/README.md", "Write an importance of blocks")

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            nn.init.ones_(self.get_parameter("blocks.1.weight"))
            nn.init.zeros_(self.get_parameter("blocks.2.weight"))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + torch.tanh(block(x))
            return x

    calls: tuple[Any, ...] = (((torch.randn(3, 4),), {}),)
    program = Pipeline((Analyze(), Calibrate(batches=calls)))(trace(Residual(), calls[0][0]))
    assert Drop("weight", count=2)(program).fact(Dropped).blocks == ("blocks.0", "blocks.2")


def test_the_example_of_a_reconstruction_keeps_the_energy() -> None:
    run_example("passes/README.md", "Write a reconstruction")
    weight, kept, seen = torch.randn(3, 8), torch.tensor([0, 2, 3, 7]), moments(8)
    new = RECONSTRUCTIONS["rescale"].refit(weight, kept, seen, None, None).weight
    inner = seen.gram[kept][:, kept].float()
    assert ((new @ inner) * new).sum() == pytest.approx(float(((weight @ seen.gram.float()) * weight).sum()), rel=1e-4)


def test_the_example_of_an_exporter_exports(tmp_path: Path) -> None:
    target = run_example("exporters/README.md", "Write an exporter")["TARGET"]
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    report = target.export(tmp_path / "model", tmp_path / "out")
    assert report.facts["max_error"] < 1e-2
    assert load_file(tmp_path / "out" / "half.safetensors")["lm_head.weight"].dtype == torch.float16


def test_the_most_coupled_group_is_as_told(shared_data: Callable[[str], Path]) -> None:
    graph = analyze(load(shared_data("stories260k"))).to_networkx()
    groups = [name for name, node in graph.nodes.items() if node["kind"] == "group"]
    most = max(groups, key=graph.degree)
    told = (ROOT / "tools/docs/pages/graph.md").read_text(encoding="utf-8")
    assert f"it is `{most}`: the residual stream, in {graph.degree(most)} dimensions." in told


def test_the_tables_of_passes_are_those_of_the_registry() -> None:
    for path, written in ((pass_table.README, pass_table.in_readme), (pass_table.MODULE, pass_table.in_module)):
        text = path.read_text(encoding="utf-8")
        assert text == written(text), f"{path}: run python tools/pass_table.py"
    assert {name for _, name, _, _ in pass_table.rows()} == set(PASSES)


@pytest.mark.parametrize("document", [str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for file, heading in LINK.findall(path.read_text(encoding="utf-8")):
        target = path.parent / file if file else path
        assert target.exists(), file
        heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in set(map(anchor, heads)), f"{file}#{heading}"


def anchor(heading: str) -> str:
    """The name by which a link finds a heading."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def test_every_figure_has_a_place_in_one_document() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in documents())
    begun, ended = (re.findall(rf"<!-- {end}(benchmark_\w+|cost_model) -->", text) for end in ("", "/"))
    assert begun == ended and len(set(begun)) == len(begun) > 10


def test_writing_a_model_larger_than_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    run_example("exporters/README.md", "Models larger than memory")
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
