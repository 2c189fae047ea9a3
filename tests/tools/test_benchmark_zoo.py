"""The benchmark over the zoo keeps its records, its time limit and its tables in order."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import zoo
from tests.zoo.refill import refill
from tools import benchmark_zoo
from tools.zoo_benchmark import ours, pool, torch_pruning
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import Inputs
from tools.zoo_benchmark.noise import PASSED
from tools.zoo_benchmark.peers import Prune, normalises, run_all
from tools.zoo_benchmark.record import Record, Report
from tools.zoo_benchmark.subject import Subject
from tools.zoo_benchmark.table import BUDGET_COLUMNS, OUR_COLUMNS, PEER_COLUMNS, comparison, failures, table
from tools.zoo_benchmark.work import PEERS

NAME = "hf/clm/qwen2"
GOALS = {ours.NAME: Goal(ratio=0.5)}


def record(name: str = NAME, tool: str = ours.NAME, **fields: object) -> Record:
    return Record(tool, name, **fields)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_model_runs_in_a_process_of_its_own() -> None:
    found = list(pool.run_all([(ours.NAME, NAME)], jobs=1, limit=600, goals=GOALS))
    assert [(r.name, r.stage, r.exact, r.fault) for r in found] == [(NAME, "done", True, "")]


def test_a_time_limit_ends_a_model_and_says_where_it_was() -> None:
    found = list(pool.run_all([(ours.NAME, NAME), (ours.NAME, "hf/enc/bert")], jobs=2, limit=0, goals=GOALS))
    assert sorted(r.name for r in found) == [NAME, "hf/enc/bert"]
    # how far a process gets before it is ended is up to the machine
    assert [r.fault for r in found] == [f"time limit of 0 s in stage {r.stage!r}" for r in found]


def test_what_is_known_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run_some(tasks: Sequence[pool.Task], *_: object) -> Iterator[Record]:
        ran.append([name for _, name in tasks])
        yield from (record(name, exact=name == NAME) for _, name in tasks)

    monkeypatch.setattr(benchmark_zoo, "run_all", run_some)
    for extra in ([], [], ["--retry"]):
        monkeypatch.setattr(
            sys, "argv", ["benchmark_zoo", "--match", "clm/qwen2", "--json", str(tmp_path / "z.json"), *extra]
        )
        benchmark_zoo.main()
    qwens = [name for name in zoo.NAMES if "clm/qwen2" in name]
    assert ran == [qwens, [], [name for name in qwens if name != NAME]]


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_zoo, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["benchmark_zoo", "--peer", "torch-pruning"])
    with pytest.raises(SystemExit, match=r"torch-pruning is not installed: pip install -e '\.\[peers\]'"):
        benchmark_zoo.main()


def test_a_table_counts_by_family() -> None:
    passed = ["trace", "analyze"]
    times = {"trace": 2.0, "analyze": 0.01}
    written: dict[str, Any] = {"written_back": True, "padded": 0.1}
    records = [
        record(stage="done", passed=passed, seconds=times, removed=0.4, exact=True, **written),
        record(
            "hf/clm/gpt2",
            stage="done",
            passed=passed,
            seconds=times,
            removed=0.2,
            exact=True,
            remark="why",
            noise=PASSED,
        ),
        record("hf/enc/bert", stage="trace", fault="TraceError: a\nbranch"),
    ]
    assert list(table(records, OUR_COLUMNS))[2:] == [
        "| transformers: causal language models | 2 | 2 | 2 | 2 | 2 | 1 | 1 | 1 | 30% | 2.00 s | 10 ms | 0.5% |",
        "| transformers: text encoders | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | - | - | - | - |",
        "| total | 3 | 2 | 2 | 2 | 2 | 1 | 1 | 1 | 30% | 2.00 s | 10 ms | 0.5% |",
    ]
    assert list(failures(records)) == [
        "- `hf/clm/gpt2`: why",
        "- `hf/enc/bert` (trace): TraceError: a branch",
    ]


def test_a_run_by_budget_has_a_table_of_its_own() -> None:
    by_budget = [record(exact=True, removed=0.3, padded=0.1), record("hf/enc/bert", fault="no")]
    _, _, *rows = table(by_budget, BUDGET_COLUMNS)
    assert rows[-1] == "| total | 2 | 1 | 0 | 0 | 1 | 30% |"


def test_a_peer_has_a_table_of_its_own() -> None:
    done = record(passed=["prune", "run", "shapes"], seconds={"prune": 1.0}, removed=0.3, exact=True)
    assert list(table([done], PEER_COLUMNS))[-1] == "| total | 1 | 1 | 1 | 1 | 1 | 30% | 1.00 s |"


def test_tools_stand_side_by_side() -> None:
    mine = [record(exact=True, removed=0.5), record("hf/enc/bert", exact=True, removed=0.3)]
    others = [record(fault="time limit of 9 s"), record("hf/enc/bert", exact=True, removed=0.2)]
    assert list(comparison({"a": mine, "b": others}))[2:] == [
        "| transformers: causal language models | 1 | 1 (50%) | 0 (-), 1 out of time |",
        "| transformers: text encoders | 1 | 1 (30%) | 1 (20%) |",
        "| total | 2 | 2 (40%) | 1 (20%), 1 out of time |",
    ]


class Model(nn.Module):
    """A hidden layer, a norm, and two heads of which one is squashed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.plain, self.squashed = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.hidden(x))
        return self.plain(y)[:, None], torch.tanh(self.squashed(y))


def build() -> nn.Module:
    torch.manual_seed(0)
    return refill(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), 0).eval()


@pytest.fixture
def inputs() -> Inputs:
    return (torch.randn(5, 6, generator=torch.Generator().manual_seed(0)),), {}


def test_the_layers_that_make_the_outputs_are_found(inputs: Inputs) -> None:
    model = Model()
    assert torch_pruning.output_layers(model, inputs) == [model.plain, model.squashed]


def test_a_batch_norm_does_not_normalise_over_channels() -> None:
    layers = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.BatchNorm2d(8), nn.Linear(8, 8)
    assert [normalises(layer) for layer in layers] == [True, True, True, False, False]


def test_the_best_of_several_modes_counts(inputs: Inputs) -> None:
    def right(model: nn.Module, _: Inputs, ratio: float) -> None:
        keep = round(8 * ratio)
        model[0].weight = nn.Parameter(model[0].weight[:keep])  # type: ignore[index]
        model[0].bias = nn.Parameter(model[0].bias[:keep])  # type: ignore[index]
        model[2].weight = nn.Parameter(model[2].weight[:, :keep])  # type: ignore[index]

    def wrong(model: nn.Module, example: Inputs, ratio: float) -> None:
        right(model, example, ratio / 2)
        model[2].weight = nn.Parameter(model[2].weight.flip(1))  # type: ignore[index]

    def broken(model: nn.Module, example: Inputs, ratio: float) -> None:
        raise RuntimeError("no")

    def best_of(**modes: Prune) -> Record:
        found = record(tool="peer")
        run_all(modes, Subject(build, inputs, inputs, distinct=True), Report(found, lambda _: None), 0.5)
        return found

    found = best_of(broken=broken, wrong=wrong, right=right)
    assert (found.mode, found.exact, found.fault) == ("right", True, "")
    found = best_of(broken=broken, wrong=wrong)
    assert (found.mode, found.exact) == ("wrong", False)
    assert found.fault.startswith("differs from the masked original by")
    found = best_of(broken=broken)
    assert (found.mode, found.stage, found.fault) == ("broken", "prune", "RuntimeError: no")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_prunes_a_plain_model_exactly(name: str, inputs: Inputs) -> None:
    peer = PEERS[name]
    pytest.importorskip(peer.PACKAGE)
    found = record(tool="peer")
    peer.run(Subject(build, inputs, inputs, distinct=True), Report(found, lambda _: None), Goal(ratio=0.5))
    assert found.exact, found.fault
    assert found.removed > 0.3
