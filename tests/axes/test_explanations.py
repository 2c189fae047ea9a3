"""What cannot be cut, and why: the operator, the line of model code and the reason; and how much is free in all."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune.axes.explanations import Freedom
from graphprune.axes.groups import Dependencies
from graphprune.cli.commands import app
from graphprune.errors import RegistryError

HERE = Path(__file__)


class Net(nn.Module):
    """Channels that are free, a kernel, a split dimension, a norm, an operator without a rule, something unused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.narrow, self.heads, self.norm = nn.Conv2d(16, 8, 1), nn.Linear(8, 12), nn.LayerNorm(12)
        self.odd, self.last = nn.Linear(12, 6), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # a kernel
        x = x + self.narrow(self.wide(x).relu())
        y = self.heads(x.mean((2, 3))).unflatten(1, (3, 4)).relu().flatten(1)
        y = self.odd(self.norm(y))  # a norm
        y = torch.renorm(y, 2, 0, 1.0)  # no rule
        return self.last(y * self.scale)  # type: ignore[no-any-return]


def line(marked: str) -> tuple[int, str]:
    """Number and text of the line of this file that ends so."""
    lines = HERE.read_text(encoding="utf-8").splitlines()
    return next((i, text.strip()) for i, text in enumerate(lines, start=1) if text.endswith(f"# {marked}"))


@pytest.fixture(scope="module")
def found() -> Dependencies:
    torch.manual_seed(0)
    return gp.analyze(gp.trace(Net(), (torch.randn(2, 3, 8, 8),)))


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A name by which the command line finds the network."""
    (tmp_path / "named.py").write_text(
        f"import importlib.util, torch\nspec = importlib.util.spec_from_file_location('own', {str(HERE)!r})\n"
        "own = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(own)\n"
        "def net():\n    return own.Net(), (torch.randn(2, 3, 8, 8),), {}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "named:net"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_reason_names_the_operator_and_the_line(found: Dependencies) -> None:
    (stem,) = found.explain("stem.weight")
    number, code = line("a kernel")
    assert str(stem).splitlines() == [
        "stem.weight  8 x 3 x 3 x 3  can be cut exactly",
        "  dimension 0: 8",
        "    8 can be cut exactly, group stem.weight:0",
        "  dimension 1: 3",
        "    3 cannot be cut",
        "      because it is an input: x",
        *(["  dimension 2: 3", "    3 cannot be cut",
           f"      because it is a kernel size (conv2d, {HERE}:{number}): {code}"]),
        *(["  dimension 3: 3", "    3 cannot be cut",
           f"      because it is a kernel size (conv2d, {HERE}:{number}): {code}"]),
    ]  # fmt: skip


def test_every_reason_is_given(found: Dependencies) -> None:
    (odd,) = found.explain("odd.weight")
    number, code = line("no rule")
    (part,) = odd.dimensions[0].parts
    assert [str(reason) for reason in part.reasons] == [
        f"aten.renorm.default has no rule (renorm, {HERE}:{number}): {code}"
    ]
    (last,) = found.explain("last.bias")
    assert [reason.why for reason in last.dimensions[0].parts[0].reasons] == ["it is an output"]
    assert (odd.freedom, last.freedom) == (Freedom.INEXACT, Freedom.PINNED)


def test_an_axis_that_meets_several_operators_has_all_their_reasons() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            return y[:, 3], torch.renorm(y, 2, 0, 1.0).sum(1)

    (weight,) = gp.analyze(gp.trace(Both(), (torch.randn(4, 6),))).explain("a.weight")
    whys = [reason.why for reason in weight.dimensions[0].parts[0].reasons]
    assert whys == ["index 3 is taken from it", "aten.renorm.default has no rule"]


def test_the_structure_of_a_dimension_is_told(found: Dependencies) -> None:
    (heads,) = found.explain("heads.weight")
    assert [dimension.structure for dimension in heads.dimensions] == ["12 = 3 x 4", "8"]
    assert heads.dimensions[0].marked(["~", "!"]) == "12 = 3~ x 4!"
    number, code = line("a norm")
    (norm,) = found.explain("norm.weight")
    reason = norm.dimensions[0].parts[0].reasons[0]
    assert (norm.freedom, reason.why, reason.operator) == (Freedom.INEXACT, "it is normalized here", "layer_norm")
    assert (reason.place, reason.code) == (f"{HERE.name}:{number}", code)


def test_what_has_size_one_or_is_a_number_has_nothing_to_cut(found: Dependencies) -> None:
    assert str(found.explain("scale")[0]).splitlines()[1:] == ["  dimension 0: 1", "    there is nothing to cut"]


def test_shapes_that_cannot_be_aligned_are_explained() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)
            z: Tensor = y + self.a(x).view(-1, 3, 2).transpose(1, 2).reshape(-1, 6) * F.pad(self.b(x)[:, :5], (0, 1))
            return z

    reasons = [r for e in gp.analyze(gp.trace(Mixed(), (torch.randn(4, 6),))).explain() for d in e.dimensions
               for part in d.parts for r in part.reasons]  # fmt: skip
    assert any(r.why.startswith("shapes cannot be aligned: ") and r.operator and r.line for r in reasons)


def test_the_shares_add_up(found: Dependencies) -> None:
    shares = found.freedom
    sizes = {e.parameter: prod(d.size for d in e.dimensions) for e in found.explain()}
    assert sum(shares.counts.values()) == shares.total == sum(sizes.values())
    assert (
        shares.counts[Freedom.PINNED] == sizes["last.bias"] + sizes["last.weight"] + sizes["odd.bias"] + sizes["scale"]
    )
    removable = list(shares.removable.values())
    assert removable == sorted(removable) and removable[-1] < shares.total
    assert str(shares).splitlines()[0] == f"{shares.total:,} parameters"
    assert f"{shares.share(shares.counts[Freedom.PINNED]):6.1%}  cannot be cut" in str(shares)


@pytest.mark.parametrize("exact_only", [True, False])
def test_what_can_go_at_most_is_what_goes(exact_only: bool, found: Dependencies) -> None:
    program = gp.trace(Net(), (torch.randn(2, 3, 8, 8),))
    plan = gp.plan(program, ratio=0.999, recipe="magnitude", exact_only=exact_only)
    gone = program.count() - gp.apply(program, plan).count()
    assert gone == found.freedom.removable[Freedom.EXACT if exact_only else Freedom.INEXACT]


def test_a_model_of_which_nothing_can_be_cut() -> None:
    bare = gp.analyze(gp.trace(nn.Linear(3, 2), (torch.randn(4, 3),)))
    assert str(bare.freedom) == "8 parameters\n  100.0%  cannot be cut"
    none = gp.analyze(gp.trace(nn.ReLU(), (torch.randn(4, 3),)))
    assert (str(none.freedom), none.explain()) == ("0 parameters", ())


def test_names_and_globs(found: Dependencies) -> None:
    assert [e.parameter for e in found.explain("*.bias")] == [
        "stem.bias", "wide.bias", "narrow.bias", "heads.bias", "norm.bias", "odd.bias", "last.bias",
    ]  # fmt: skip
    with pytest.raises(RegistryError, match=r"no parameter 'stem\.wight'; did you mean stem\.weight"):
        found.explain("stem.wight")
    with pytest.raises(RegistryError, match="^no parameter 'zzz'; `graphprune inspect MODEL` lists them$"):
        found.explain("zzz")


def test_inspect_tells_a_convolutional_network(net: str) -> None:
    out = run("inspect", net)
    number, code = line("no rule")
    for words in (
        "named:net: 743 parameters", "can be cut exactly; at most", "can be cut approximately; at most",
            "cannot be cut",
        "8; 3![1]; 3![2]; 3![2]", "12 = 3~[3] x 4~[3]", "it is an input: x", "it is a kernel size",
        "aten.renorm.default has no rule", f"test_explanations.py:{number}", code,
    ):  # fmt: skip
        assert words in out, words


def test_inspect_tells_one_parameter_in_full(net: str) -> None:
    out = run("inspect", net, "--parameter", "odd.b*")
    number, code = line("no rule")
    assert out == (
        "odd.bias  6  cannot be cut\n  dimension 0: 6\n    6 cannot be cut\n"
        f"      because aten.renorm.default has no rule (renorm, {HERE}:{number}): {code}\n"
    )
    done = CliRunner().invoke(app, ("inspect", net, "--parameter", "none"))
    assert (done.exit_code, done.stderr) == (2, "error: no parameter 'none'; `graphprune inspect MODEL` lists them\n")


def test_inspect_json_holds_everything(net: str) -> None:
    table = json.loads(run("inspect", net, "--json"))
    assert table["freedom"]["total"] == table["parameters"] == 743
    stem = next(e for e in table["explanations"] if e["parameter"] == "stem.weight")
    number, code = line("a kernel")
    assert (stem["freedom"], stem["dimensions"][2]["structure"]) == ("exactly", "3")
    assert stem["dimensions"][2]["parts"] == [{
        "size": 3, "freedom": "not at all", "group": "", "reasons": [{
            "why": "it is a kernel size", "node": "conv2d", "operator": "conv2d", "file": str(HERE), "line": number,
            "code": code,
        }],
    }]  # fmt: skip
    some = json.loads(run("inspect", net, "--parameter", "wide.*", "--json"))["explanations"]
    assert [e["parameter"] for e in some] == ["wide.weight", "wide.bias"]


def test_inspect_tells_a_transformer_in_a_folder_by_kinds_of_layers(folder: Path) -> None:
    out = run("inspect", str(folder))
    for words in (
        "can be cut exactly; at most", "can be cut once averages are rescaled; at most",
        "model.layers.*.self_attn.q_proj.weight", "32 = 2 x 4 x (2 | 2); 32~[1]", "8 = 2 x (2 | 2); 32~[1]",
        "60![2,3]; 32~[1]", "it is averaged here", "mean.dim", "modeling_llama.py:", "a tensor indexes it", "embedding",
        "it is an output",
    ):  # fmt: skip
        assert words in out, words
    assert "layers.1." not in out and len(out.splitlines()) < 60


def test_a_saved_program_is_explained_by_the_lines_that_made_it(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),)), tmp_path / "net.pt2")
    number, code = line("no rule")
    (bias,) = gp.analyze(gp.load(tmp_path / "net.pt2")).explain("odd.bias")
    assert f"aten.renorm.default has no rule (renorm, {HERE}:{number}): {code}" in str(bias)
