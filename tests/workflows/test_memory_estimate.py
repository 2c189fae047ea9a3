"""What a run will take of memory, told beforehand, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import WorkspaceError
from graphprune.ir.program import Program, Source
from graphprune.passes.analysis.analyze import Analyze
from graphprune.support import memory
from graphprune.workflows import memory_estimate


@pytest.mark.parametrize(
    ("words", "size"), [("4GiB", 4 << 30), ("1.5 MiB", 3 << 19), ("800MB", 800_000_000), ("12KiB", 12 << 10), ("7B", 7)]
)
def test_sizes_are_read(words: str, size: int) -> None:
    assert memory_estimate.parse(words) == size


@pytest.mark.parametrize("words", ["", "4", "much", "GiB", "4 TiB"])
def test_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(WorkspaceError, match="a size in memory is written like 4GiB or 800MB"):
        memory_estimate.parse(words)


class Wide(nn.Module):
    """Two maps with many neurons between them, whose second moments take 32 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 2048), nn.Linear(2048, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())  # type: ignore[no-any-return]


@pytest.fixture
def wide() -> Program:
    return Analyze("free")(gp.trace(Wide(), (torch.randn(4, 8),)))


def test_the_least_frugal_way_below_the_limit_is_taken(wide: Program) -> None:
    base = memory.anonymous_bytes()
    free = memory_estimate.within(wide, 1, base + (1 << 30), refits=True, aims=False)
    assert free.spill is None and free.peak <= base + (1 << 30)
    assert free.parts["solving"] > 2 * 8 * 2048**2
    tight = memory_estimate.within(wide, 1, free.peak - (16 << 20), refits=True, aims=False)
    assert tight.spill == memory_estimate.SPILL and tight.peak < free.peak
    unfitted = memory_estimate.within(wide, 1, base + (1 << 30), refits=False, aims=False)
    assert unfitted.parts["solving"] == 0 and unfitted.peak < free.peak


def test_a_limit_that_cannot_be_kept_is_refused_with_what_is_needed(wide: Program) -> None:
    with pytest.raises(WorkspaceError, match=r"takes at least .* MiB, most of it while .* --memory allows 1 MiB"):
        memory_estimate.within(wide, 1, 1 << 20, refits=True, aims=False)


def test_weights_count_if_they_are_not_stored_as_they_are_used(wide: Program) -> None:
    limit = memory.anonymous_bytes() + (1 << 30)
    half = wide.with_facts(source=Source(Path("model"), "huggingface", torch.bfloat16))
    mapped = wide.with_facts(source=Source(Path("model"), "huggingface", torch.float32))
    parts = [memory_estimate.within(p, 1, limit, refits=False, aims=False).parts["verifying"] for p in (half, mapped)]
    assert parts[1] == 0 < parts[0] <= 2 * 4 * wide.count()


def test_a_run_within_a_limit_comes_to_the_same(folder: Path, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsity": 0.2, "calibration": text, "samples": 16, "length": 8, "align": 1}
    free = gp.prune(folder, output=tmp_path / "free", **options)
    tight = gp.prune(folder, output=tmp_path / "tight", memory="20GiB", **options)
    assert free.plan.digest == tight.plan.digest
    assert (free.report.estimated_memory, tight.report.estimated_memory > 0) == (0, True)
    assert tight.report.anonymous_memory > 0
    assert "estimated)" in (tmp_path / "tight" / "README.md").read_text()


def test_best_within_a_limit_gathers_its_gradients_by_segment(folder: Path, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsity": 0.2, "calibration": text, "samples": 16, "length": 8, "align": 1}
    free = gp.prune(folder, output=tmp_path / "free", recipe="best", **options)
    tight = gp.prune(folder, output=tmp_path / "tight", recipe="best", memory="20GiB", **options)
    assert tight.report.estimated_memory > 0 == free.report.estimated_memory
    assert (tight.plan.digest, tight.report.sha256) == (free.plan.digest, free.report.sha256)
    with pytest.raises(WorkspaceError, match=r"in group-embeddings, .*best for a destination other than free"):
        gp.prune(folder, output=tmp_path / "out", recipe="best", destination="free", memory="20GiB", **options)


def test_gradients_count_in_the_estimate(wide: Program) -> None:
    limit = memory.anonymous_bytes() + (1 << 31)
    parts = memory_estimate.within(wide, 1, limit, refits=True, aims=False, differentiates=True).parts
    assert parts["differentiating"] > 4 * 2048**2 and parts["scoring"] > 3 * 8 * 2048**2 and parts["predicting"] > 0


def test_a_long_text_counts_in_the_estimate(folder: Path, text: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(text.read_text(encoding="utf-8") * 40, encoding="utf-8")
    options: dict[str, Any] = {"sparsity": 0.2, "samples": 16, "length": 8, "align": 1, "memory": "20GiB"}
    runs = [gp.prune(folder, output=tmp_path / name.stem, calibration=name, **options) for name in (text, long)]
    few, many = (run.report.estimated_memory for run in runs)
    assert many > few and many > memory_estimate.READ * long.stat().st_size
    assert runs[1].report.anonymous_memory < many


def test_recipes_that_hold_the_whole_model_cannot_promise(folder: Path, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsity": 0.2, "calibration": text, "samples": 16, "length": 8, "memory": "20GiB"}
    with pytest.raises(WorkspaceError, match=r"recipe llm-pruner runs the whole model at once in gradients"):
        gp.prune(folder, output=tmp_path / "out", recipe="llm-pruner", **options)
    with pytest.raises(WorkspaceError, match=r"recipe besa .* in allocate\{by=besa\}"):
        gp.prune(folder, output=tmp_path / "out", recipe="besa", **options)
    assert list(tmp_path.iterdir()) == []
