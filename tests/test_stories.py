"""A trained model of 260,000 parameters that tells stories, pruned as a user would."""

import gzip
from collections.abc import Callable
from pathlib import Path

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
