"""Cards say what the hub wants to know, in its words, and name no folder of the machine they were made on."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import graphprune as gp
from graphprune.huggingface.card_facts import CardFacts, card_facts
from graphprune.reports.model_card import card, without_folders
from graphprune.reports.report import Quality
from tests.reports.test_report import example

MEASURED: dict[str, Any] = {
    "base_model": "some/base", "licence": "mit", "task": "text-generation",
    "quality": (Quality("/home/me/wiki.txt", 4, 32, 9.0, 9.5), Quality("other.txt", 4, 32, 9.0, None)),
    "metrics": {"accuracy": (0.9, 0.8)},
}  # fmt: skip


def _front(text: str) -> Any:
    return ModelCard(text).data


def test_the_front_matter_is_that_of_the_hub() -> None:
    """Read again by the hub's own library, as its validation reads it before anything is sent."""
    data = _front(card(example(**MEASURED)))
    assert (data.base_model, data.license, data.pipeline_tag) == ("some/base", "mit", "text-generation")
    assert data.to_dict()["base_model_relation"] == "finetune" and data.library_name == "transformers"
    results = [(one.dataset_name, one.metric_type, one.metric_value, one.task_type) for one in data.eval_results or ()]
    assert results == [
        ("wiki.txt", "perplexity", 9.5, "text-generation"), ("test data", "accuracy", 0.8, "text-generation"),
    ]  # fmt: skip
    assert data.model_name == "some/base, pruned"


def test_a_healed_model_has_the_figures_after_it() -> None:
    healing = {"perplexity": {"/data/wiki.txt": (9.5, 9.1)}, "curve": [], "best": 0, "teacher": "/models/dense"}
    more = {"tokens": 10, "unit": "tokens", "steps": 1, "train": "all", "aim": "teacher", "command": ""}
    text = card(example(**MEASURED, healing={**healing, **more}))
    assert [one.metric_value for one in _front(text).eval_results or ()] == [9.1]
    assert "towards `dense`" in text


def test_a_plan_claims_no_figures() -> None:
    assert "model-index" not in yaml.safe_load(card(example(**MEASURED, cut=False)).split("---\n")[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("graphprune prune /home/me/model --data '/my data/c4.txt'", "graphprune prune model --data 'c4.txt'"),
        ("gp.prune('C:\\models\\dense', output=\"/tmp/out/\")", "gp.prune('dense', output=\"out\")"),
        ("| Model | `~/models/m` |", "| Model | `m` |"),
        ("--output=/tmp/out some/base and/or 1 / 2", "--output=out some/base and/or 1 / 2"),
        ("see https://huggingface.co/some/base", "see https://huggingface.co/some/base"),
    ],
)  # fmt: skip
def test_paths_of_a_machine_are_names(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_what_a_source_tells_of_itself(tmp_path: Path) -> None:
    source = tmp_path / "models--some--net-1.5" / "snapshots" / "0123"
    source.mkdir(parents=True)
    (source / "config.json").write_text('{"architectures": ["NewForCausalLM"]}')
    assert card_facts(source) == CardFacts("some/net-1.5", "0123", None, "text-generation")
    (source / "README.md").write_text("---\nlicense: mit\npipeline_tag: fill-mask\nbase_model: [a/b, c/d]\n---\n")
    assert card_facts(source) == CardFacts("some/net-1.5", "0123", "mit", "fill-mask")
    assert card_facts(source.rename(tmp_path / "mine")).base_model == "a/b"
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: [\n---\n")
    assert card_facts(tmp_path / "mine") == CardFacts(None, None, None, "text-generation")
    assert card_facts(tmp_path / "none") == card_facts(object()) == CardFacts()


def test_a_card_of_a_run_names_no_folder(folder: Path, tmp_path: Path) -> None:
    gp.prune(folder, recipe="magnitude", sparsity=0.1, align=1, output=tmp_path / "out", plan_only=True)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path.parent) not in text and _front(text).pipeline_tag == "text-generation"
