"""What a page is given to show is what the analysis found."""

from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import LoadError, PlanError, RegistryError
from graphprune.reports.report import Report
from graphprune.reports.viewer.content import bits, content, runs_of
from graphprune.reports.viewer.module_tree import FEW, MOST, PART, Modules


def shown(program: gp.Program, **more: Any) -> Any:
    return content(program, gp.analyze(program), title="the model", **more)


def around(table: Any, place: int) -> list[str]:
    """The path of a module, and those of all around it."""
    module = table["modules"][place]
    return [module["path"], *(around(table, module["parent"]) if module["parent"] is not None else [])]


def test_groups_and_their_places_are_those_of_the_analysis(decoder: gp.Program) -> None:
    table, found = shown(decoder), gp.analyze(decoder)
    assert [group["name"] for group in table["groups"]] == [group.name for group in found.groups]
    for told, group in zip(table["groups"], found.groups, strict=True):
        places = [(table["tensors"][t]["name"], dim, role) for t, dim, role in told["places"]]
        assert places == [(place.parameter, place.dim, place.role) for place in group.places]
        linked = None if told["linked"] is None else table["groups"][told["linked"]]["name"]
        assert linked == group.linked
        assert told["cost"] == [group.cost.parameters, group.cost.macs, group.cost.kv_cache_bytes]


def test_an_axis_is_a_tree_of_its_parts(decoder: gp.Program) -> None:
    table = shown(decoder)
    (query,) = (t for t in table["tensors"] if t["name"] == "model.layers.0.self_attn.q_proj.weight")
    axis = query["dims"][0]["axis"]
    heads, per_head, pairs = axis["factors"]
    assert [axis["n"], heads["n"], per_head["n"], pairs["n"]] == [32, 2, 4, 4]
    assert [segment["n"] for segment in pairs["segments"]] == [2, 2]
    assert pairs["segments"][0]["group"] == pairs["segments"][1]["group"]


def test_a_pinned_axis_says_why_with_the_line(decoder: gp.Program) -> None:
    table = shown(decoder)
    (table_of_words,) = (t for t in table["tensors"] if t["name"] == "model.embed_tokens.weight")
    reasons = [table["reasons"][i] for i in table_of_words["dims"][0]["axis"]["reasons"]]
    assert reasons[0]["why"] == "a tensor indexes it" and "self.embed_tokens(input_ids)" in reasons[0]["code"]
    assert table_of_words["aliases"] == ["lm_head.weight"]
    assert all("/" not in reason["file"] or reason["file"].startswith("transformers/") for reason in table["reasons"])


def test_every_operator_lies_in_the_module_that_runs_it(network: gp.Program) -> None:
    table = shown(network)
    convolutions = [call for call in table["calls"] if call["operator"] in ("conv2d", "convolution")]
    owners = [around(table, call["module"])[:3] for call in convolutions]
    assert owners[0] == ["stem", ""]
    assert owners[1] == ["layer1.0.conv1", "layer1.0", "layer1"]
    assert all(call["code"] is not None for call in convolutions)
    read = [table["tensors"][t]["name"] for t in convolutions[1]["tensors"]]
    assert read == ["layer1.0.conv1.weight"]


def test_groups_of_an_operator_are_those_of_its_value(network: gp.Program) -> None:
    table, found = shown(network), gp.analyze(network)
    inner = found.by_name["layer1.0.conv1.weight:0"]
    touched = {
        call["name"] for call in table["calls"] if table["groups"].index(told(table, inner.name)) in call["groups"]
    }
    makers = {node.name for node in network.graph.nodes if "layer1_0_conv1_weight" in map(str, node.all_input_nodes)}
    assert makers < touched and len(touched) == 3, "the convolution, its norm and the activation"


def told(table: Any, name: str) -> Any:
    return next(group for group in table["groups"] if group["name"] == name)


def test_many_operators_without_a_group_are_set_apart(decoder: gp.Program) -> None:
    found = Modules(decoder, gp.analyze(decoder))
    apart = [call for call in found.calls if call.module == "model.~operators without a group"]
    assert len(apart) > FEW and not any(call.groups for call in apart)
    assert not any("norm.~" in call.module for call in found.calls), "those of a norm are few"


def test_a_graph_without_modules_is_folded_by_its_parameters(network: gp.Program) -> None:
    for node in network.graph.nodes:
        node.meta["stack_kept"] = node.meta.pop("nn_module_stack", None)
    try:
        modules = Modules(network, gp.analyze(network))
        assert {"stem", "layer1", "layer1.0", "layer1.0.conv1", "head"} <= set(modules.classes)
        assert {modules.owners[node.name] for node in network.graph.nodes if "relu" in node.name} <= {
            f"layer{i}.{j}" for i in (1, 2) for j in (0, 1)
        }
    finally:
        for node in network.graph.nodes:
            node.meta["nn_module_stack"] = node.meta.pop("stack_kept")


def test_a_module_with_too_many_operators_is_folded_in_parts() -> None:
    class Long(nn.Module):
        """Two layers, and a long way between them."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(MOST + 1):
                x = torch.relu(x)
            y: Tensor = self.last(x)
            return y

    table = shown(gp.trace(Long().eval(), (torch.randn(2, 3),)))
    parts = [module for module in table["modules"] if module["apart"]]
    assert [part["apart"] for part in parts][:2] == ["operators 1 to 50", "operators 51 to 100"]
    assert all(part["parent"] == 0 for part in parts)
    assert Counter(call["module"] for call in table["calls"]).most_common(1)[0][1] == PART


def test_a_module_that_is_called_twice_is_one_module() -> None:
    class Twice(nn.Module):
        """One layer, run two times."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(torch.relu(self.layer(x)))
            return y

    table = shown(gp.trace(Twice().eval(), (torch.randn(2, 6),)))
    assert [module["path"] for module in table["modules"]] == ["", "layer"]


def test_a_plan_says_what_stays(decoder: gp.Program, plan: gp.Plan) -> None:
    table = shown(decoder, plan=plan)
    small = gp.apply(decoder, plan)
    assert {t["name"]: tuple(t["left"]) for t in table["tensors"]} == small.shapes()
    left = sum(prod(t["left"]) for t in table["tensors"] if not t["buffer"])
    assert left == small.count()
    for group in table["groups"]:
        rows = [
            [i for i in range(group["size"]) if int(row[i // 4], 16) & (8 >> i % 4)] for row in group.get("kept", ())
        ]
        assert rows == [list(row) for row in plan.groups.get(group["name"], ())]


@given(st.integers(1, 70).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))))
def test_bits_are_read_as_they_are_written(case: tuple[int, set[int]]) -> None:
    size, kept = case
    text = bits(sorted(kept), size)
    assert len(text) == -(-size // 4)
    assert {i for i in range(4 * len(text)) if int(text[i // 4], 16) & (8 >> i % 4)} == kept


def test_a_plan_of_another_model_is_refused(network: gp.Program, plan: gp.Plan) -> None:
    with pytest.raises(PlanError, match="another model"):
        shown(network, plan=plan)


def test_numbers_colour_their_groups(network: gp.Program) -> None:
    table = shown(network, numbers={"layer1.0.conv1.weight:0": 1.0, "layer1.1.conv1.weight:0": 3.0})
    values = {group["name"]: group.get("value") for group in table["groups"] if "value" in group}
    assert values == {"layer1.0.conv1.weight:0": 1.0, "layer1.1.conv1.weight:0": 3.0}
    assert len({group["shade"] for group in table["groups"] if "value" in group}) == 2
    with pytest.raises(RegistryError, match="'nothing'"):
        shown(network, numbers={"nothing": 1.0})


def test_a_run_tells_its_widths_and_the_spread_of_its_scores(decoder: gp.Program, run: Path) -> None:
    table = shown(decoder, reports=runs_of(decoder, [run]))
    (told,) = table["runs"]
    report = Report.load(run)
    assert told["name"] == "by-magnitude" and told["widths"] == {k: list(v) for k, v in report.widths.items()}
    assert set(told["widths"]) <= set(told["scores"])
    for deciles in told["scores"].values():
        assert len(deciles) == 11 and deciles == sorted(deciles)


def test_runs_of_one_name_are_told_apart(decoder: gp.Program, run: Path, tmp_path: Path) -> None:
    other = tmp_path / run.name
    other.mkdir()
    Report.load(run).save(other)
    assert list(runs_of(decoder, [run, other])) == [str(run), str(other)]


def test_a_run_on_another_model_is_refused(decoder: gp.Program, run: Path, tmp_path: Path) -> None:
    replace(Report.load(run), parameters_before=7).save(tmp_path)
    with pytest.raises(LoadError, match=r"a model of 7 parameters"):
        runs_of(decoder, [tmp_path])
