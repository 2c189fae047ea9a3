"""The report says what happened, in JSON and in words."""

import json
from pathlib import Path

import pytest
import yaml

from graphprune.errors import LoadError
from graphprune.reports.model_card import card
from graphprune.reports.report import CalibrationReport, Report, plain


def example(**changes: object) -> Report:
    """A report of a small run."""
    given: dict[str, object] = {
        "model": "some/folder",
        "recipe": "fasp",
        "destination": "stock",
        "parameters_before": 1000,
        "parameters_after": 800,
        "sparsity_asked": 0.2,
        "plan": "cafe",
        "program": "beef",
        "calibration": CalibrationReport("text.txt", 128, 512),
        "widths": {"layers.0.mlp": (64, 48)},
        "seconds": {"trace": 1.0, "refit": 2.5},
        "peak_memory": 3 << 20,
        "errors": {"masked against rewritten": 2e-7},
        "loads_with": ("`AutoModelForCausalLM.from_pretrained`, without graphprune",),
        "command": "graphprune prune some/folder --sparsity 0.2",
        "version": "0.1.0",
    }
    return Report(**{**given, **changes})  # type: ignore[arg-type]


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    example().save(tmp_path)
    assert Report.load(tmp_path).to_dict() == example().to_dict()
    table = json.loads((tmp_path / "report.json").read_text())
    assert table["sparsity_reached"] == pytest.approx(0.2)
    assert table["calibration"]["samples"] == 128


def test_the_card_says_what_matters() -> None:
    text = card(example(base_model="some/base", licence="mit"))
    for words in (
        "base_model: some/base\n",
        "license: mit\n",
        "library_name: transformers",
        "20.00% of the parameters: 1,000 became 800",
        "without graphprune",
        "`text.txt`, 128 samples of 512 tokens",
        "3.5 s (trace 1.0, refit 2.5)",
        "3 MiB",
        "| masked against rewritten | 2.0e-07 |",
        "| `layers.0.mlp` | 64 | 48 |",
        "graphprune prune some/folder --sparsity 0.2",
    ):
        assert words in text


def test_shares_are_of_all_parameters_and_the_report_counts_those_outside_the_call() -> None:
    report = example(parameters_before=200, parameters_after=120, constants=200, sparsity_asked=0.2)
    assert report.sparsity_reached == report.budget_reached == 0.2
    assert report.removed.endswith("; 200 more that the captured call does not use count as constants")


def test_the_card_of_a_plan_has_no_empty_parts() -> None:
    text = card(example(sparsity_asked=None, calibration=None, errors={}, widths={}, command="", seconds={}))
    assert "a saved plan" in text
    assert "How it was checked" not in text
    assert "Made by" not in text


def test_a_plan_is_not_called_a_model() -> None:
    text = card(example(cut=False))
    assert "# A plan to prune folder" in text
    assert "1,000 become 800" in text
    assert "pruning by graphprune" not in text


def test_hostile_names_cannot_break_the_card() -> None:
    text = card(example(model="a\n---\n| b", base_model='x"\ny: z', licence="mit\nevil: yes"))
    front = yaml.safe_load(text.split("---\n")[1])
    assert not {"y", "evil"} & front.keys() and front["base_model"] == 'x"\ny: z'
    assert r"`a --- \| b`" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"calibration": {"x": 1}}'])
def test_a_broken_report_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(LoadError, match=r"report\.json is not a report of graphprune"):
        Report.load(tmp_path)


def test_plain_values_are_json() -> None:
    given = {"a": float("nan"), "b": (1, Path("x")), 3: {True}, "c": CalibrationReport("s", 1, 2)}
    assert plain(given) == {
        "a": None,
        "b": [1, "x"],
        "3": [True],
        "c": {"source": "s", "samples": 1, "length": 2, "sha256": "", "autocast": False},
    }
