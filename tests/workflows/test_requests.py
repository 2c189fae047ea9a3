"""What to remove, in the words of a user: widths, ratios by name, indices, blocks, protected dimensions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import OptionError, PlanError
from graphprune.workflows.option_fields import described, words_of
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.reduction import rounding
from graphprune.workflows.runs import run_file
from tests.recipes import pipeline_of


class Feed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, width), nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y)  # type: ignore[no-any-return]


class Net(nn.Module):
    """Blocks of neurons around one of heads, between a fixed input and a fixed output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(5, 12), nn.ModuleList([Feed(16), Feed(16), Attend(), Feed(24)])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def program() -> gp.Program:
    torch.manual_seed(0)
    return gp.trace(Net(), (torch.randn(2, 6, 5),))


def plan(program: gp.Program, **options: Any) -> gp.Plan:
    """The plan of these options, which is applied and verified."""
    chosen = gp.plan(program, **options)
    gp.verify(program, gp.apply(program, chosen), chosen)
    return chosen


def up(block: int) -> str:
    return f"blocks.{block}.up.weight:0"


def test_widths_are_exactly_those_requested(program: gp.Program, caplog: pytest.LogCaptureFixture) -> None:
    widths = {"blocks.3.up": 5, "neurons": 7, "heads": 2}
    chosen = plan(program, widths=widths, align=4)
    heads = {name: width for name, width in chosen.widths.items() if "up" not in name}
    assert {name: width for name, width in chosen.widths.items() if "up" in name} == {up(0): 7, up(1): 7, up(3): 5}
    assert list(heads.values()) == [2] and chosen.labels[next(iter(heads))] == ("heads", 3)
    assert f"{up(3)} has the requested width 5, which is no multiple of 4" in caplog.text
    assert plan(program, widths={"*.up": 7}, protect=["blocks.1"]).widths == {up(0): 7, up(3): 7}
    assert plan(program, widths={"blocks.*:neurons": 7, "heads": 3}).widths == {up(0): 7, up(1): 7, up(3): 7}


def test_the_rest_meets_the_sparsity(program: gp.Program) -> None:
    for options in ({}, {"shots": 3}):
        chosen = plan(program, widths={"blocks.0.up": 15}, drop={"blocks.1.up": [0, 9]}, sparsity=0.3, **options)
        assert chosen.widths[up(0)] == 15
        assert chosen.groups[up(1)] == (tuple(i for i in range(16) if i not in (0, 9)),)
        assert gp.apply(program, chosen).count() == pytest.approx(0.7 * program.count(), rel=0.02)


def test_the_very_indices_are_removed_whatever_the_score(program: gp.Program) -> None:
    torch.manual_seed(1)
    batches: Any = (((torch.randn(8, 6, 5),), {}),)
    for recipe in ("magnitude", "osscar"):  # which swaps indices after the selection
        chosen = plan(program, drop={"blocks.0.up": [3, 0], "heads": [1]}, recipe=recipe, batches=batches)
        assert chosen.groups[up(0)] == (tuple(i for i in range(16) if i not in (0, 3)),)
        assert [rows for name, rows in chosen.groups.items() if name != up(0)] == [((0, 2),)]


def test_ratios_by_name(program: gp.Program) -> None:
    assert plan(program, ratio={"blocks.0.*": 0.25, "neurons": 0.5}).widths == {up(0): 12, up(1): 8, up(3): 12}
    assert plan(program, ratio={"blocks.3": 0, "*:neurons": 0.5}).widths == {up(0): 8, up(1): 8}


def test_a_dimension_of_a_parameter_is_protected(program: gp.Program) -> None:
    assert plan(program, ratio={"neurons": 0.5}, protect=["blocks.0.down.weight:1", "blocks.3"]).widths == {up(1): 8}
    with pytest.raises(PlanError, match="names only groups that are not cut: they are protected"):
        gp.plan(program, ratio={"blocks.0": 0.5}, protect=["blocks.0.up"])


def test_the_very_blocks_are_dropped_and_names_remain_those_of_the_whole_model(program: gp.Program) -> None:
    assert plan(program, drop_blocks=[1, "blocks.2"]).blocks == ("blocks.1", "blocks.2")
    chosen = plan(program, drop_blocks=[0], widths={"blocks.3.up": 6}, protect=["blocks.1"])
    assert chosen.blocks == ("blocks.0",)
    assert chosen.widths == {up(2): 6}, "block 3 is entry 2 of the shorter list"
    short = plan(program, drop_blocks=[0], sparsity=0.4)
    dropped = gp.apply(program, short).count()
    assert short.blocks == ("blocks.0",) and dropped == pytest.approx(0.6 * program.count(), rel=0.03)


def test_short_forms_of_budgets(program: gp.Program) -> None:
    options = PruneOptions("model", output="out", macs=0.5)
    assert (options.sparsity, options.budget, options.macs) == (0.5, "macs", None)
    assert PruneOptions("m", output="o", latency=0.5).budget == "latency"
    old = PruneOptions("m", output="o", latency=Path("t.json"), sparsity=0.2)
    assert (old.latency, old.latency_table, old.budget) == (None, "t.json", "parameters")
    assert gp.plan(program, macs=0.3).digest == gp.plan(program, sparsity=0.3, budget="macs").digest


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"macs": 0.5, "sparsity": 0.2}, "give one of sparsity, macs, latency, got sparsity and macs"),
    ({"macs": 0.5, "budget": "kv_cache"}, "macs is a share of the multiply-accumulates, and the budget is kv_cache"),
    ({"macs": 0.5, "ratio": {"*": 0.5}}, r"give either macs \(a share of all multiply-accumulates\) or ratio"),
    ({"ratio": {"*": 1.5}}, r"ratio must lie between 0 and 1 .*, or be numbers by name, as in \{\"layer3.\*\": 0.3\}"),
    ({"ratio": {}, "widths": {"neurons": 0}}, "widths must be whole numbers of at least 1 by name"),
    (
        {"widths": {"neurons": 7.5}},
        r"widths must be whole numbers of at least 1 by name, as in \{\"layer3.\*\": 64\}, got",
    ),
    (
        {"drop": {"neurons": 3}},
        r"drop must be whole numbers of at least 0 by name, as in \{\"layer3.\*\": \[0, 7\]\}, got",
    ),
    ({"drop_blocks": 3}, "drop_blocks must be a sequence of numbers, got 3"),
    ({"ratio": {"neurns": 0.5}}, r"ratio 'neurns' matches no .*; did you mean neurons\?"),
    ({"ratio": {"*": 0.5, "blocks.0": 0.2}}, r"'blocks.0' has no effect, since '\*' comes first"),
    ({"ratio": {"head": 0.5}}, r"ratio 'head' has no width that can be cut \(head.weight, dimension 0: .*output"),
    ({"widths": {"neurons": 17}}, rf"{up(0)} has 16 neurons and can retain 1, 2, 3, ..., 15 or 16, not 17"),
    ({"widths": {"blocks.2.q": 2}}, r"'blocks.2.q' names heads and .*; name one kind, as in 'blocks.2.q:heads'"),
    ({"widths": {"blocks.0": 4}, "protect": ["blocks.0"]}, "'blocks.0' names only protected groups; omit one"),
    ({"widths": {"*.up": 4}, "drop": {"blocks.0.up": [1]}}, "widths .* and drop 'blocks.0.up' both name group"),
    ({"widths": {"blocks.*.up": 1}, "sparsity": 0.2}, r"remove \S+ parameters .*, more than the \d+ of the sparsity"),
    ({"drop": {"blocks.0.up": [16]}}, r"has the neurons 0 to 15, and no 16"),
    ({"drop": {"blocks.0.up": [1, 1]}}, "has the index 1 twice"),
    ({"drop": {"blocks.0.up": range(16)}}, "can retain 1, 2, 3, ..., 15 or 16, not 0"),
    ({"drop_blocks": [7]}, "there is no block 7 that can be dropped; choose one of blocks.0, blocks.1"),
    ({"drop_blocks": [0, 1, 2, 3]}, "all 4 blocks that can be dropped are named"),
    ({"drop_blocks": [0], "sparsity": 0.1}, r"the named blocks hold \S+ of all parameters, more than the sparsity 0.1"),
    ({"drop_blocks": [0], "widths": {"blocks.0.up": 4}}, "widths 'blocks.0.up' names only what is in dropped blocks"),
    ({"protect": ["blocks.7"], "ratio": 0.5}, "protect 'blocks.7' matches no .*; did you mean blocks.3 or"),
    ({"recipe": "sleb", "widths": {"neurons": 4}, "batches": ()}, "recipe sleb cuts no groups, which widths, drop"),
    ({"recipe": "sleb", "drop_blocks": [1], "sparsity": 0.2}, "recipe sleb chooses the blocks to drop"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_what_cannot_be_done_is_one_error(program: gp.Program, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        gp.plan(program, **options)


def test_every_way_has_a_flag_and_a_line_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def captured(**options: Any) -> None:
        seen.update(options)
        raise OptionError("seen")

    monkeypatch.setattr("graphprune.api.prune", captured)
    flags = ["--widths", "neurons=1024,KV heads=6", "--drop", "a.b=0,7,c=3", "--drop-blocks", "1,layers.3"]
    CliRunner().invoke(app, ["prune", "model", *flags, "--output", "out", "--ratio", "layer3.*=0.3,*=0.5"])
    expected = {"widths": {"neurons": 1024, "KV heads": 6}, "drop": {"a.b": (0, 7), "c": (3,)}}
    expected |= {"drop_blocks": (1, "layers.3"), "ratio": {"layer3.*": 0.3, "*": 0.5}, "model": "model"}
    assert seen == {**expected, "output": "out"}
    options = PruneOptions(**seen)
    words = [word for name in ("widths", "drop", "drop_blocks", "ratio")
             for word in words_of(described(PruneOptions)[name], getattr(options, name))]  # fmt: skip
    assert words == [*flags, "--ratio", "layer3.*=0.3,*=0.5"]
    (tmp_path / "run.yaml").write_text(run_file.text(options))
    assert PruneOptions(**run_file.read(tmp_path / "run.yaml", PruneOptions), output="out") == options
    for flag, value in {"--latency": "0.5", "--macs": "0.25"}.items():
        CliRunner().invoke(app, ["prune", "model", flag, value, "--output", "out"])
        assert seen.pop(flag[2:]) == float(value)
    for wrong in ("neurons", "neurons=many", "neurons=1,neurons=2", "=3"):
        result = CliRunner().invoke(app, ["prune", "model", "--widths", wrong, "--output", "out"])
        assert result.exit_code == 2 and f"error: --widths '{wrong}' " in result.stderr


def test_pipelines_hold_the_requests_as_text() -> None:
    text = str(pipeline_of("magnitude", widths={"neurons": 7}, drop={"a": [1, 2]}, drop_blocks=[1, 3]))
    assert text.startswith("analyze | drop-blocks{blocks=1;3} | analyze{widths='neurons=7',drop='a=1,2'} | score")
    assert "allocate{ratio='*=0.0'}" in text and str(gp.Pipeline.parse(text)) == text
    assert str(pipeline_of("sleb", drop_blocks=[1])) == "analyze | drop-blocks{blocks=1}"


def test_a_stock_class_has_one_width_for_all_layers(folder: Path) -> None:
    llama = gp.load(folder)
    with pytest.raises(PlanError, match="destination stock has one width for the 2 groups .*, and 32 of 1 of them"):
        gp.plan(llama, destination="stock", widths={"model.layers.0.mlp": 32})
    with pytest.raises(PlanError, match="destination stock has one width for all neurons of the kind .* 0.5 for"):
        gp.plan(llama, destination="stock", ratio={"model.layers.0.mlp": 0.5})
    chosen = gp.plan(llama, destination="stock", widths={"neurons": 33}, align=8)
    assert {width for name, width in chosen.widths.items() if "mlp" in name} == {33}
    assert "multiples of 8 and the same in all layers except requested ones" in rounding(llama, chosen)
    short = gp.plan(llama, destination="stock", drop_blocks=[1], widths={"neurons": 33})
    assert short.blocks == ("model.layers.1",) and set(short.widths.values()) == {33}
