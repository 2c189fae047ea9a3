"""Options are written once: Python, command line, file, report and documentation show the same ones."""

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mypy import api as mypy
from torch import nn

import graphprune as gp
from graphprune.errors import OptionError
from graphprune.healing.heal_options import HealOptions
from graphprune.passes.allocation.search import Search
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.measure_latency import MeasureLatency
from graphprune.passes.sensitivity.measure_sensitivity import MeasureSensitivity
from graphprune.workflows.option_fields import about, described, words_of
from graphprune.workflows.options import PlanOptions, PruneOptions, SensitivityOptions
from graphprune.workflows.runs.run_record import identity

ROOT = Path(__file__).parents[2]
FUNCTIONS = {
    gp.prune: PruneOptions, gp.plan: PlanOptions, gp.sensitivity: SensitivityOptions, gp.heal: HealOptions,
}  # fmt: skip
TYPED = """\
from graphprune.workflows.option_fields import takes
from graphprune.workflows.options import PruneOptions

@takes(PruneOptions)
def prune(options: PruneOptions) -> int:
    return 1

"""


@pytest.fixture
def program() -> gp.Program:
    torch.manual_seed(0)
    return gp.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (torch.randn(3, 6),))


def options(**given: Any) -> PruneOptions:
    return PruneOptions("model", **{"output": "out", "sparsity": 0.2, **given})


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS.items())
def test_help_shows_every_option(function: Any, kind: type) -> None:
    assert inspect.isfunction(function)
    shown = inspect.signature(function).parameters
    assert shown.keys() == described(kind).keys() == {one.name for one in fields(kind)}
    for name, one in described(kind).items():
        assert shown[name].annotation == one.type and f"\n    {name}: " in str(function.__doc__)
        assert about(one).help.endswith(".")
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    assert next(iter(shown.values())).kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_options_and_passes_have_one_default() -> None:
    pairs = [
        (PruneOptions, Calibrate, ("samples", "length", "seed", "autocast", "device")),
        (PruneOptions, Search, ("trials", "seed", "budget")),
        (PruneOptions, MeasureLatency, ("runtime",)),
        (SensitivityOptions, MeasureSensitivity, ("ratios",)),
    ]
    for kind, step, names in pairs:
        assert all(described(kind)[name].default == getattr(step, name) for name in names), step


def test_a_wrong_keyword_is_named_with_the_near_one(program: gp.Program) -> None:
    wrong: Any = gp.prune
    with pytest.raises(TypeError, match=r"prune\(\) has no option 'sparsty'; did you mean sparsity\?"):
        wrong("model", output="out", sparsty=0.2)
    with pytest.raises(TypeError, match=r"prune\(\): missing a required argument: 'output'"):
        wrong("model", sparsity=0.2)
    with pytest.raises(TypeError, match="missing a required argument: 'sparsity', 'macs', .* or 'pipeline'"):
        gp.prune("model", output="out")
    wrong = gp.plan
    with pytest.raises(TypeError, match=r"plan\(\) has no option 'zzz'; see help\(graphprune.plan\)$"):
        wrong(program, zzz=1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"protect": "lm_head*"}, r'protect must be a sequence: write protect=\("lm_head\*",\)$'),
    ({"evaluate": Path("text.txt")}, r'evaluate must be a sequence: write evaluate=\("text.txt",\)$'),
    ({"protect": (1,)}, r"protect must be a sequence of texts, got \(1,\)$"),
    ({"samples": 0}, "samples must be a positive whole number, got 0$"),
    ({"samples": 2.5}, "samples must be a positive whole number, got 2.5$"),
    ({"samples": True}, "samples must be a positive whole number, got True$"),
    ({"length": 1}, "length must be a whole number of at least 2, got 1$"),
    ({"seed": "7"}, "seed must be a whole number of at least 0, got '7'$"),
    ({"coarse": "half"}, "coarse must be a number, got 'half'$"),
    ({"autocast": 1}, "autocast must be true or false, got 1$"),
    ({"recipe": None}, "recipe must be a text, got None$"),
    ({"metric": "accuracy"}, "metric must be a function, or the name package.module:name, got 'accuracy'$"),
    ({"data": "loader"}, "data must be an iterable of batches, or the name package.module:name, got 'loader'$"),
    ({"metric": print}, "metric is for data: give data, an iterable of batches"),
    ({"data": [], "calibration": "pydoc"}, "give either data or a calibration text"),
    ({"calibration": 3}, "calibration must be a path, got 3$"),
    ({"loss": "mse"}, "loss must be a function, or the name package.module:name, got 'mse'$"),
    ({"ratio": 0.2}, "give either sparsity .* or ratio"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_values_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(**given)


def test_numbers_may_be_those_of_arrays_and_tensors() -> None:
    known = options(sparsity=None, drop={"a": torch.tensor([3, 0]), "b": {2, 1}, "c": range(2)})
    assert known.drop == {"a": (3, 0), "b": (1, 2), "c": (0, 1)}
    assert options(sparsity=None, drop_blocks={"blocks.2", 1}).drop_blocks == (1, "blocks.2")
    known = options(sparsity=np.float32(0.5), widths={"a": np.int64(4)}, samples=torch.tensor(8))
    assert (known.sparsity, known.widths, known.samples) == (0.5, {"a": 4}, 8) and type(known.samples) is int
    with pytest.raises(OptionError, match="drop must be whole numbers of at least 0 by name"):
        options(drop={"a": np.array([0.5])})


def test_ratios_are_several_numbers(program: gp.Program) -> None:
    wrong: Any = 0.5
    with pytest.raises(OptionError, match="ratios must be a sequence of numbers, got 0.5$"):
        gp.sensitivity(program, ratios=wrong)


def test_a_device_that_is_missing_is_refused_for_every_recipe() -> None:
    for recipe in ("magnitude", "fasp"):
        with pytest.raises(gp.GraphpruneError, match="there is no device 'moon'"):
            gp.prune("no/such/model", output="out", sparsity=0.2, recipe=recipe, device="moon")


def test_types_are_seen_by_editors(program: gp.Program) -> None:
    """mypy --strict fails where a wrong type needs no comment, and where a right call has an error."""
    with pytest.raises(OptionError):
        gp.prune("model", output="out", sparsity="many")  # type: ignore[arg-type]
    with pytest.raises(OptionError):
        gp.plan(program, sparsity=0.2, protect="a*")  # type: ignore[arg-type]
    with pytest.raises(OptionError):
        gp.sensitivity(program, samples="many")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        gp.plan(program, sparsty=0.2)  # type: ignore[call-arg]
    plan: gp.Plan = gp.plan(program, sparsity=0.2, protect=["2.bias"], recipe="magnitude", align=1)
    assert plan.groups


CALLS = {
    'number: int = prune("model", output="out", sparsity=0.2, protect=("a*",), evaluate=["t.txt"])': "",
    'prune("model", output="out", sparsity="many")': 'incompatible type "str"; expected "float | None"',
    'prune("model", output="out", protect="a*")': 'Argument "protect" to "prune" has incompatible type "str"',
    'prune("model", output="out", sparsty=0.2)': 'Unexpected keyword argument "sparsty"',
    'prune(output="out")': 'Missing positional argument "model"',
}


def test_a_type_checker_knows_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "call.py").write_text(TYPED + "\n".join(CALLS))
    sources = ("workflows/options", "workflows/source_options", "workflows/option_fields",
                   "workflows/goals/goal_options", "planning/goals",
               "statistics/data_files", "errors")  # fmt: skip
    files = [str(tmp_path / "call.py"), *(f"graphprune/{name}.py" for name in sources)]
    flags = ["--strict", "--follow-imports=skip", "--cache-dir", str(tmp_path / "cache"), "--config-file="]
    answer, _, _ = mypy.run([*flags, "--explicit-package-bases", *files])
    errors = [line for line in answer.splitlines() if ": error:" in line]
    assert len(errors) == len(CALLS) - 1, answer
    for number, message in enumerate(CALLS.values(), TYPED.count("\n") + 1):
        assert message in "".join(line for line in errors if f"call.py:{number}:" in line), answer


def test_an_unfinished_run_is_known_by_what_its_outcome_depends_on(tmp_path: Path) -> None:
    def same(**changed: Any) -> bool:
        return identity(options()) == identity(replace(options(), **changed))

    assert same(force=True) and same(scratch="elsewhere") and same(restart=True)
    for changed in ({"device": "cuda"}, {"memory": "4GiB"}, {"sparsity": 0.3}, {"output": "x"}, {"protect": ("a*",)}):
        assert not same(**changed), changed
    near, far = torch.zeros(2000), torch.zeros(2000)
    mixture = options(calibration=f"dense + {tmp_path / 'a.txt'}")
    (tmp_path / "a.txt").write_text("one")
    before = identity(mixture)
    (tmp_path / "a.txt").write_text("another")
    assert identity(mixture) != before
    far[1000] = 1  # which is not printed
    assert identity(options(batches=(((near,), {}),))) != identity(options(batches=(((far,), {}),)))


def test_flags_of_an_option() -> None:
    def words(**given: Any) -> list[str]:
        (name,) = given
        return list(words_of(described(PruneOptions)[name], getattr(options(**given), name)))

    assert words(exact_only=False) == ["--inexact"]
    assert words(plan_only=True) == ["--plan-only"]
    assert words(protect=("a*", "b*")) == ["--protect", "a*", "--protect", "b*"]
    assert words(samples=4) == ["--samples", "4"]
    ratios = described(SensitivityOptions)["ratios"]
    assert list(words_of(ratios, (0.1, 0.5))) == ["--ratios", "0.1,0.5"]
