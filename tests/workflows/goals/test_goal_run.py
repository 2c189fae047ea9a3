"""Pruning to goals: claims hold in an independent measurement, contradictions are named, killed runs continue."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graphprune as gp
from graphprune.errors import CalibrationError, OptionError, PlanError
from graphprune.statistics import texts
from graphprune.workflows.goals.goal_trials import ShareTrials

Options = dict[str, Any]


class Wide(nn.Module):
    """Three linear layers; the first inputs alone determine the class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


def samples(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 16, 6, generator=torch.Generator().manual_seed(seed))
    return [(part, part[:, :3].argmax(1)) for part in x]


def loss(output: Tensor, batch: Any) -> Tensor:
    return cross_entropy(output, batch[1])


def accuracy(output: Tensor, batch: Any) -> Tensor:
    right: Tensor = (output.argmax(1) == batch[1]).double().mean()
    return right


@pytest.fixture(scope="module")
def trained() -> Wide:
    torch.manual_seed(0)
    module = Wide()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for batch in samples(150, 0):
        optimizer.zero_grad()
        loss(module(batch[0]), batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


def right(module: nn.Module, seed: int) -> float:
    with torch.no_grad():
        return sum(float(accuracy(module(x), (x, y))) for x, y in samples(60, seed)) / 60


def test_a_module_is_pruned_to_an_accuracy(trained: Wide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.workflows.free_destination._export", lambda program, folder: ("ONNX", 0.0))
    module = copy.deepcopy(trained)
    result = gp.prune(
        module, data=samples(96, 1), loss=loss, goal=["accuracy >= 0.96x"], frontier=True, frontier_at=[0.5]
    )
    report = result.report
    (goal,) = report.goals
    assert goal["goal"] == "accuracy >= 0.96x" and goal["met"] and goal["units"] == 32
    assert 0.96 <= goal["low"] <= goal["value"] <= goal["high"]
    assert right(module, 2) >= 0.95 * right(trained, 2)
    assert report.sparsity_reached > 0.3 and report.sparsity_asked is not None
    assert sum(p.numel() for p in module.parameters()) == report.parameters_after
    assert "accuracy >= 0.96x, by " in report.request and any("trials, from one calibration" in n for n in report.notes)
    result.save(tmp_path / "out")
    points = json.loads((tmp_path / "out" / "frontier.json").read_text())["points"]
    assert points[0]["share"] == 0 and points[0]["accuracy"]["value"] == pytest.approx(goal["dense"])
    sizes = [point["parameters"]["value"] for point in points]
    assert sizes == sorted(sizes, reverse=True) and any(abs(point["share"] - 0.5) < 1e-6 for point in points)
    assert all(point["latency on torch"]["value"] > 0 for point in points)
    assert "| removed | parameters |" in (tmp_path / "out" / "frontier.md").read_text()
    assert "<svg" in (tmp_path / "out" / "frontier.html").read_text()


def test_goals_out_of_reach_say_how_near_one_comes_and_leave_the_module(trained: Wide) -> None:
    module, size = copy.deepcopy(trained), sum(p.numel() for p in trained.parameters())
    with pytest.raises(PlanError, match=r"the dense model itself, accuracy is 9.*%.*accuracy >= 0.98x"):
        gp.prune(module, data=samples(30, 1), loss=loss, goal=["accuracy >= 99.9 %"])
    both = ["accuracy >= 0.99x", "parameters <= 8 %"]
    with pytest.raises(PlanError, match=r"together: where 'parameters <= 8 %' is met, accuracy is 0.*where 'accuracy"):
        gp.prune(module, data=samples(96, 1), loss=loss, goal=both)
    with pytest.raises(PlanError, match=r"the most that can be removed is 9\d.\d%, and with it parameters is 143"):
        gp.prune(module, data=samples(30, 1), loss=loss, goal=["parameters <= 10"])
    assert sum(p.numel() for p in module.parameters()) == size


def test_counts_and_a_quality_take_the_least_cut(trained: Wide) -> None:
    goals = ["parameters <= 60 %", "accuracy >= 0.9x"]
    result = gp.prune(copy.deepcopy(trained), data=samples(96, 1), loss=loss, goal=goals)
    assert 0.57 < result.report.parameters_after / result.report.parameters_before <= 0.6
    assert all(goal["met"] for goal in result.report.goals)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": ["accuracy >= 0.9x"], "sparsity": 0.2}, "either a goal or an amount"),
        ({"goal": ["perplexity <= 2x"]}, "confirmed on a text; give --text FILE"),
        ({"goal": ["metric >= 0.9x"]}, "needs a metric"),
        ({"goal": ["sise <= 1 MB"]}, "did you mean size"),
        ({"frontier": True, "ratio": 0.5}, "give goal or sparsity, too"),
        ({"sparsity": 0.2, "quant": "int8"}, "smallest model at a perplexity"),
    ],
)
def test_options_that_do_not_fit(trained: Wide, options: Options, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        gp.prune(trained, data=samples(9, 1), loss=loss, **options)


def test_too_little_data_to_confirm_is_refused(trained: Wide) -> None:
    with pytest.raises(CalibrationError, match=r"the data has 3 batches, of which one in 3 confirms"):
        gp.prune(trained, data=samples(3, 1), loss=loss, goal=["accuracy >= 0.9x"])


@pytest.fixture
def quick(folder: Path, text: Path, tmp_path: Path) -> Iterator[Options]:
    """Options of a small decoder in files; destination stock writes no ONNX files."""
    yield {
        "model": folder, "text": text, "output": tmp_path / "out", "samples": 16, "length": 24, "windows": 24,
        "destination": "stock", "align": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_decoder_is_pruned_to_its_cache_and_size(quick: Options) -> None:
    result = gp.prune(**{**quick, "text": None}, recipe="magnitude", goal=["kv <= 50 %"])
    assert result.report.budget == "kv_cache" and result.report.amounts is not None
    before, after = result.report.amounts
    assert after <= before / 2
    (goal,) = result.report.goals
    assert goal["value"] == after / before and goal["units"] == 1
    config = json.loads((quick["output"] / "config.json").read_text())
    assert config["num_key_value_heads"] == 1


@pytest.mark.slow
def test_a_killed_search_continues_with_its_trials(quick: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    goals, tried = ["perplexity <= 1.2x"], list[float]()
    pruned = ShareTrials.pruned

    def killed(self: ShareTrials, share: float) -> Any:
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(share)
        return pruned(self, share)

    monkeypatch.setattr(ShareTrials, "pruned", killed)
    with pytest.raises(KeyboardInterrupt):
        gp.prune(**quick, goal=goals)
    assert not quick["output"].exists()
    records = json.loads((quick["output"].parent / ".out.run/0/trials.json").read_text().partition("\n")[2])
    first = records["trials"][0]["share"]
    again = list[float]()

    def noted(self: ShareTrials, share: float) -> Any:
        again.append(share)
        return pruned(self, share)

    monkeypatch.setattr(ShareTrials, "pruned", noted)
    result = gp.prune(**quick, goal=goals)
    assert first not in again[:-1] and not (quick["output"].parent / ".out.run").exists()
    (goal,) = result.report.goals
    assert goal["met"] and goal["units"] == 24
    tokenizer = transformers.AutoTokenizer.from_pretrained(quick["model"])
    windows = texts.windows(tokenizer, texts.read(quick["text"]), 24)[-24:]
    dense, small = (gp.load(path).module() for path in (quick["model"], quick["output"]))
    losses = []
    for module in (dense, small):
        with torch.no_grad():
            logits = module(input_ids=windows, attention_mask=torch.ones_like(windows)).logits
        losses.append(float(cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())))
    assert goal["value"] == pytest.approx(float(torch.tensor(losses[1] - losses[0]).exp()), rel=1e-3)
