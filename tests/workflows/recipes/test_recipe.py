"""A recipe is its text: options fill the fields that it leaves open, and a few change its passes."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from graphprune.cli.commands import app
from graphprune.errors import CalibrationError, PipelineError, PlanError, RegistryError
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.pipeline import Pipeline, live
from graphprune.workflows.recipes.catalogue import RECIPES
from graphprune.workflows.recipes.recipe import pipeline, plan_pipeline, require_data, sensitivity_pipeline
from tests.recipes import options_of, pipeline_of

DATA: dict[str, Any] = {"sparsity": 0.2, "calibration": "t.txt"}


def test_options_fill_what_the_text_leaves_open() -> None:
    text = "analyze | calibrate{samples=7} | score{by=fasp,seed=3} | allocate{ratio=0.5} | select | rewrite"
    passes = pipeline_of(pipeline=text, **DATA, samples=9, seed=5, align=8, protect=["a*"])
    assert str(passes) == (
        "analyze{protect=a*} | calibrate{text=t.txt,samples=7,seed=5,moments=diagonal} | score{by=fasp,seed=3} | "
        "allocate{ratio=0.5,seed=5} | select{align=8} | rewrite"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("analyze,score{by=fasp},allocate{ratio=0.5},select,rewrite", r"2, score\{by=fasp\}, needs Statistics.*: cal"),
        ("analyze | calibrate{moments=diagonal} | score{by=osscar}", r"FullMoments.*: calibrate\{moments=full\}$"),
        ("analyze | calibrate{producers=false} | score{by=goa}", r"ProducerMoments.*: calibrate\{producers=true\}$"),
        ("analyze | calibrate | score{by=taylor}", "needs GradientSums, ParameterGradients.*: gradients$"),
        ("analyze | calibrate | gradients{of=parameters} | score{by=k-obs}", r": gradients\{of=outputs\}$"),
        ("analyze | score | allocate{by=besa,sparsity=0.1}", "allocate.*needs Calibration.*: calibrate$"),
        ("analyze | calibrate | drop-blocks{count=1} | score{by=fasp}", "needs Eligible, Statistics.*: analyze, calib"),
        ("analyze | calibrate | allocate-ranks{by=growth,ratio=0.5}", r"FactorGradients.*: gradients, .*of=layers\}$"),
        ("analyze | iterative{steps=[score{by=fasp} | allocate{ratio=0.5} | select]}", "needs Statistics"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused_when_the_pipeline_is_made(text: str, words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        Pipeline.parse(text)


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("score{by=osscar}", "moments=full"),
        ("score{by=goa}", "moments=full,producers=true"),
        ("score{by=magnitude} | allocate{by=besa,sparsity=0.1}", "moments=none"),
        ("score{by=magnitude}", ""),
    ],
)
def test_calibration_gathers_what_later_passes_need(text: str, resolved: str) -> None:
    step = Pipeline.parse(f"analyze | calibrate | {text}").passes[1]
    assert str(step) == (f"calibrate{{{resolved}}}" if resolved else "calibrate")


@pytest.mark.parametrize("name", RECIPES)
def test_no_pass_of_a_recipe_is_idle(name: str) -> None:
    passes = pipeline_of(name, **DATA).passes
    assert live(passes) == passes


PLANS = {
    "fasp": "analyze | calibrate{text=t.txt,moments=diagonal} | score{by=fasp} | allocate{sparsity=0.2} | select",
    "spa": "analyze | score{by=spa} | allocate{sparsity=0.2} | select",
    "mpifa": "analyze | allocate-ranks{sparsity=0.2}",
    "sleb": "analyze | calibrate{text=t.txt,moments=none} | drop-blocks{by=sleb,sparsity=0.2}",
    "best": "analyze{experts=true} | calibrate{text=t.txt,moments=full} | gradients{of=outputs,most=8} | "
    "score{by=growth-osscar} | allocate{by=balanced,sparsity=0.2} | select",
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_takes_the_passes_whose_facts_lead_to_it(name: str) -> None:
    assert str(plan_pipeline(options_of(name, **DATA))) == PLANS[name]


def test_a_pipeline_without_a_plan() -> None:
    with pytest.raises(PlanError, match="recipe pipeline makes no plan"):
        plan_pipeline(options_of(pipeline="analyze | calibrate", **DATA))


CHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("magnitude", {"score": "fasp"}, "analyze | calibrate{text=t.txt,moments=diagonal} | score{by=fasp} | "),
    ("fasp-no-refit", {"score": "prunenet"}, "analyze | score{by=prunenet} | allocate{sparsity=0.2} | "),
    ("fasp", {"score": "k-obs"}, "gradients{of=outputs,most=8} | score{by=k-obs}"),
    ("transact", {"score": "fisher"}, "moments=none} | gradients{of=parameters} | score{by=fisher} | allo"),
    ("transact", {"refit": "mask"}, "refit=[refit{by=mask}]} | rewrite | refit{by=mask}"),
    ("transact", {"refit": "none"}, "select]} | rewrite | verify"),
    ("fasp", {"allocation": "global"}, "allocate{by=global,sparsity=0.2}"),
    ("adapruner", {"allocation": "global"}, "search{allocation=global,sparsity=0.2} | allocate{by=global,"),
    ("fasp", {"refit": "none"}, "select | rewrite | verify"),
    ("magnitude", {"refit": "obs"}, "select | rewrite | calibrate{text=t.txt,moments=none} | refit{by=obs} | verify"),
    ("fasp", {"shots": 2}, "iterative{rounds=2,steps=[calibrate{text=t.txt,moments=diagonal} | score{by=fasp} | "
     "allocate{sparsity=0.2} | select],refit=[refit]} | rewrite | refit | verify"),
    ("transact", {"shots": 1}, "producers=true} | score{by=transact} | allocate{sparsity=0.2} | select | rewrite | "),
    ("osscar", {"shots": 2}, "select],refit=[refit]} | local-search | rewrite"),
    ("best", {"shots": 2}, "{of=layers,most=8} | score{by=growth-osscar} | group-embeddings{sparsity=0.2} | "
     "allocate{by=balanced,sparsity=0.2,part=0.6"),
    ("comp", {"coarse": 0.25}, "drop-blocks{by=comp,sparsity=0.2,least=0,part=0.25} | analyze | calibrate"),
    ("comp", {"coarse": 0}, "analyze | calibrate{text=t.txt,moments=full} | score{by=comp} | "),
    ("comp", {"sparsity": None, "ratio": 0.2}, "moments=full} | score{by=comp} | allocate{ratio=0.2} | "),
    ("sleb", {"sparsity": None, "ratio": 0.2}, "drop-blocks{by=sleb,ratio=0.2}"),
    ("best", {"sparsity": None, "ratio": 0.2},
     "allocate{by=balanced,ratio=0.2} | select | rewrite | merge-experts | refit{"),
    ("best", {"budget": "kv_cache"},
     "allocate{by=balanced,sparsity=0.2,budget=kv_cache} | select | rewrite | merge-experts | refit{"),
    ("fasp", {"sensitivity": "t.json"}, "allocate{by=sensitivity,sparsity=0.2,table=t.json} | select"),
    ("flap", {"sensitivity": "t.json"}, "allocate{by=sensitivity,sparsity=0.2,table=t.json,refitted=false}"),
    ("fasp", {"budget": "latency", "latency": "l.json", "runtime": "torch"},
     "analyze | measure-latency{by=fasp,runtime=torch,table=l.json} | calibrate{"),
    ("comp", {"budget": "latency", "coarse": 0}, "analyze | measure-latency{by=comp} | calibrate{"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "part"), CHANGED)
def test_options_that_change_the_passes(name: str, options: dict[str, Any], part: str) -> None:
    assert part in str(pipeline_of(name, **{**DATA, **options}))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sleb", {"score": "fasp"}, "recipe sleb has no pass score whose method could be replaced"),
        ("slicegpt", {"score": "fasp"}, "recipe slicegpt has no pass score"),
        ("mpifa", {"allocation": "global"}, "recipe mpifa has no pass allocate"),
        ("sleb", {"refit": "mask"}, "recipe sleb has no pass rewrite"),
        ("shortgpt", {"sensitivity": "t"}, "recipe shortgpt cannot follow a table of sensitivities"),
        ("comp", {"sensitivity": "t"}, "recipe comp cannot follow a table of sensitivities"),
        ("transact", {"sensitivity": "t"}, "recipe transact cannot follow .* with --shots 1"),
    ],
)
def test_what_a_recipe_cannot_follow(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        pipeline_of(name, **DATA, **options)


def test_names_that_do_not_exist() -> None:
    for option in ("score", "allocation", "refit"):
        with pytest.raises(RegistryError, match="'nothing'; "):
            pipeline_of("fasp", **DATA, **{option: "nothing"})


def test_sensitivities_are_those_of_the_groups_that_the_score_cuts() -> None:
    for name, steps in {"comp": "calibrate{text=t.txt,moments=full} | score{by=comp}",
                        "transact": "calibrate{text=t.txt,moments=full,producers=true} | score{by=transact}",
                        "magnitude": "score | calibrate{text=t.txt,moments=none}"}.items():  # fmt: skip
        passes = sensitivity_pipeline(options_of(name, calibration="t.txt"), (0.5,))
        by = "by=mask" if name == "comp" else ""
        assert str(passes).startswith(f"analyze | {steps} | measure-sensitivity{{ratios=0.5{',' + by if by else ''}}}")
    for name in ("adapruner", "sleb"):
        with pytest.raises(PlanError, match=f"recipe {name} does not score groups by one method"):
            sensitivity_pipeline(options_of(name), (0.5,))


def test_data_are_asked_for_before_the_model_is_loaded() -> None:
    with pytest.raises(CalibrationError, match="recipe transact needs calibration data; name a text"):
        require_data(pipeline_of("transact", sparsity=0.2).passes, options_of("transact"))
    require_data(pipeline_of("magnitude", sparsity=0.2).passes, options_of("magnitude"))
    passes = pipeline(options_of("fasp", **DATA), tokens=64)
    assert any(isinstance(step, Calibrate) and step.tokens == 64 for step in passes.passes)


def test_recipes_are_listed_with_their_texts() -> None:
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert listed.keys() == RECIPES.keys()
    assert listed["kwon"] == {
        "name": "kwon",
        "description": RECIPES["kwon"].description,
        "source": "arXiv:2204.09656",
        "text": "analyze | calibrate | gradients | score{by=fisher} | allocate{by=kwon} | select | rewrite | "
        "refit{by=mask} | verify",
        "variants": {},
        "needs": ["calibration", "gradients"],
        "score": "fisher",
        "allocation": "kwon",
        "refit": "mask",
    }
