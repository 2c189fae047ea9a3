"""A trained model of 260,000 parameters that tells stories, pruned as a user would."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp

SPARSITY = 0.2


def test_a_trained_model_is_pruned_and_the_refit_helps(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    model, stories = shared_data("stories260k"), shared_data("text/tinystories.2MiB.txt.gz")
    whole = gzip.decompress(stories.read_bytes()).decode()
    for name, part in (("first", whole[: len(whole) // 2]), ("second", whole[len(whole) // 2 :])):
        (tmp_path / f"{name}.txt").write_text(part, encoding="utf-8")
    perplexity = {"dense": _perplexity(model, tmp_path)}
    for recipe in ("fasp", "fasp-no-refit"):
        output = tmp_path / recipe
        result = gp.prune(
            model, output=output, recipe=recipe, sparsity=SPARSITY, calibration=tmp_path / "first.txt", samples=64,
            length=256, align=1,
        )  # fmt: skip
        assert abs(result.report.sparsity_reached - SPARSITY) < 0.01
        perplexity[recipe] = _perplexity(output, tmp_path)
    assert perplexity["dense"] < perplexity["fasp"] < perplexity["fasp-no-refit"]
    assert perplexity["fasp"] < 2 * perplexity["dense"]


def _perplexity(folder: Path, texts: Path) -> float:
    return gp.evaluate(folder, texts / "second.txt", length=256, windows=32).perplexity


@pytest.mark.slow
@pytest.mark.parametrize("destination", ["stock", "free"])
@pytest.mark.parametrize("recipe", ["shortgpt", "sleb"])
def test_a_layer_less_is_a_model_still(
    shared_data: Callable[[str], Path], tmp_path: Path, recipe: str, destination: str
) -> None:
    folder, out = shared_data("stories260k"), tmp_path / "out"
    text = tmp_path / "text.txt"
    whole = gzip.decompress(shared_data("text/tinystories.2MiB.txt.gz").read_bytes()).decode()
    text.write_text(whole[: len(whole) // 4], encoding="utf-8")
    options: Any = {"calibration": text, "samples": 16, "length": 128, "destination": destination}
    found = gp.prune(folder, output=out, recipe=recipe, sparsity=0.17, **options)
    assert len(found.plan.blocks) == 1 and found.report.parameters_after < 0.85 * found.report.parameters_before
    gp.verify_folder(out)
    again = gp.apply_plan(folder, out / "plan.json", output=tmp_path / "again")
    assert again.report.parameters_after == found.report.parameters_after
    planned = gp.prune(folder, output=tmp_path / "plan", recipe=recipe, sparsity=0.17, plan_only=True, **options)
    assert planned.plan.digest == found.plan.digest and planned.program is None and not planned.report.cut
