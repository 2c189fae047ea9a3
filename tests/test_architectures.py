"""Every architecture is cut, proved, and written back, by code that knows none of them."""

import copy
import itertools
import json
from collections import ChainMap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import graphprune as gp
from graphprune.errors import PlanError, VerificationError

KINDS = ("llama", "opt", "gpt2", "bert", "vit", "resnet-basic", "resnet-bottleneck", "mobilenet")
DECODERS = ("llama", "opt", "gpt2")
ONE = {
    "gpt2": {"n_layer": 1}, "bert": {"num_hidden_layers": 1, "max_position_embeddings": 16},
    "vit": {"num_hidden_layers": 1},
}  # fmt: skip
#: Every way to save an encoder and a network of images; the slow tests try all kinds.
QUICK = {
    ("bert", "stock"), ("vit", "stock"), ("resnet-basic", "stock"), ("resnet-basic", "free"),
}  # fmt: skip

Captured = tuple[nn.Module, dict[str, Any], gp.Program]


@pytest.fixture(scope="module")
def captured(tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]) -> Callable[[str], Captured]:
    """A model, its inputs and its analysed program, made once."""
    made: dict[str, Captured] = {}

    def capture(kind: str) -> Captured:
        if kind not in made:
            module, kwargs = tiny(kind), inputs(kind)
            program = gp.Pipeline((gp.Analyze(),))(gp.trace(module, (), kwargs))
            made[kind] = module, kwargs, program
        return made[kind]

    return capture


def logits(module: Callable[..., Any], kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return module(**kwargs).logits  # type: ignore[no-any-return]


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


@pytest.mark.parametrize(("kind", "recipe"), zip(KINDS, itertools.cycle(["magnitude", "random"])))
def test_a_cut_agrees_everywhere(kind: str, recipe: str, captured: Callable[[str], Captured]) -> None:
    module, kwargs, program = captured(kind)
    before = logits(module, kwargs)
    assert before[0].sub(before[1]).abs().max() > 0.05, "the model says the same of everything"
    plan = gp.plan(program, ratio=0.5, recipe=recipe)
    small = gp.apply(program, plan)
    assert small.count() < 0.85 * program.count()
    assert gp.verify(program, small, plan).max_error <= 1e-4
    after = logits(small.module(), kwargs)
    assert not close(after, before), "the cut changed nothing"
    narrow = copy.deepcopy(module)
    small.write_back(narrow)
    assert close(logits(narrow, kwargs), after)
    assert close(logits(module, kwargs), before), "the given module was touched"
    assert sum(p.numel() for p in narrow.parameters()) == small.count()
    use(kind, narrow, kwargs)


def use(kind: str, module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Generate, train a step, and see that gradients reach every layer."""
    if kind in DECODERS:
        ids = kwargs["input_ids"]
        written = module.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)  # type: ignore[operator]
        assert written.shape == (ids.shape[0], ids.shape[1] + 4)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    first = {name: p.detach().clone() for name, p in module.named_parameters()}
    output = module(**kwargs).logits
    output.square().mean().backward()
    optimizer.step()
    still = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in still if "embeddings" not in name and "position" not in name]
    assert any(not torch.equal(first[name], p) for name, p in module.named_parameters())
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("kind", ["llama", "resnet-basic"])
def test_a_cut_that_is_wrong_is_found(kind: str, captured: Callable[[str], Captured]) -> None:
    _, _, program = captured(kind)
    plan, other = (gp.plan(program, ratio=0.5, recipe="random", seed=seed) for seed in (0, 1))
    small = gp.apply(program, plan)
    with pytest.raises(VerificationError, match="masked and cut program.*they differ by"):
        gp.verify(program, small, other)
    name = next(n for n in plan.keep if n in program.parameters and small.weights[n].dim() > 1)
    tampered = small.weights[name].clone()
    tampered[0] += 0.5 * tampered.std()
    wrong = replace(small, weights=ChainMap({name: tampered}, small.weights))  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="they differ by .* allowed is 1e-04"):
        gp.verify(program, wrong, plan)


def test_widths_that_are_not_exact_are_cut_on_request(captured: Callable[[str], Captured]) -> None:
    _, kwargs, program = captured("llama")
    plan = gp.plan(program, ratio=0.25, exact_only=False)
    stream = next(g for g in gp.analyze(program).groups if not g.exact and g.size == 32)
    assert plan.widths[stream.name] == 24
    small = gp.apply(program, plan)
    gp.verify(program, small, plan)
    assert small.shapes()["model.embed_tokens.weight"] == (60, 24)
    assert torch.isfinite(logits(small.module(), kwargs)).all()


@pytest.fixture(scope="module")
def pruned(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """The saved decoder, pruned for a destination, once."""
    done: dict[str, tuple[Any, Path]] = {}

    def prune(destination: str) -> tuple[Any, Path]:
        if destination not in done:
            output = tmp_path_factory.mktemp(destination) / "out"
            result = gp.prune(
                folder, output=output, sparsity=0.2, calibration=text, samples=32, length=16, align=1,
                destination=destination,
            )  # fmt: skip
            done[destination] = result, output
        return done[destination]

    return prune


@pytest.mark.parametrize("destination", ["stock", "per-layer", pytest.param("free", marks=pytest.mark.slow)])
def test_the_whole_chain(
    destination: str, pruned: Callable[[str], tuple[Any, Path]], inputs: Callable[[str], dict[str, Any]]
) -> None:
    result, output = pruned(destination)
    report = json.loads((output / "report.json").read_text())
    assert result.program.count() == report["parameters_after"]
    assert 0.17 < 1 - report["parameters_after"] / report["parameters_before"] < 0.23
    ids = {"input_ids": inputs("llama")["input_ids"]}
    expected = logits(result.program.module(), {**ids, **_rest(result.program, ids)})
    loaded = gp.load(output)
    assert close(logits(loaded.module(), {**ids, **_rest(loaded, ids)}), expected)
    if destination != "free":
        stock: Any = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=destination == "per-layer")
        assert close(logits(stock.eval(), ids), expected)
        assert stock.generate(ids["input_ids"], max_new_tokens=3, min_new_tokens=3).shape == (2, 10)


@pytest.mark.parametrize(
    ("kind", "destination"),
    [
        pytest.param(kind, destination, marks=[] if (kind, destination) in QUICK else [pytest.mark.slow])
        for kind in KINDS[1:]
        for destination in ("stock", "free")
    ],
)
def test_saved_and_exported_files_agree(
    kind: str, destination: str, tiny: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model: Any = tiny(kind, **ONE.get(kind, {}))
    model.save_pretrained(tmp_path / "model")
    job = partial(gp.prune, tmp_path / "model", recipe="magnitude", sparsity=0.12, align=1, output=tmp_path / "out")
    if destination == "stock" and kind in ("resnet-basic", "mobilenet"):
        with pytest.raises(PlanError, match="no group is left that magnitude may cut for destination stock"):
            job(destination=destination)
        return
    errors = job(destination=destination).report.errors
    if destination == "stock":
        gp.export(tmp_path / "out", target="onnx", output=tmp_path / "out" / "onnx")
    checked = gp.verify_folder(tmp_path / "out" / "onnx")
    assert len(errors) > 1 and max(*errors.values(), checked.max_error or 0.0) <= 1e-4
    assert gp.load(tmp_path / "out").count() < gp.load(tmp_path / "model").count()


def _rest(program: gp.Program, ids: dict[str, Tensor]) -> dict[str, Any]:
    """The other inputs that the program takes: a mask of ones."""
    return {n: torch.ones_like(ids["input_ids"]) for n in program.inputs[1] if n == "attention_mask"}


@pytest.mark.slow  # the files of other architectures are exported above
def test_the_exported_file_agrees(pruned: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    _, output = pruned("stock")
    report = gp.export(output, target="onnx", output=tmp_path / "onnx")
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    errors = [float(e) for e in _numbers(report.facts["parity"], "relative")]
    assert errors and max(errors) <= 1e-4


def _numbers(table: Any, key: str) -> list[Any]:
    """Every value under a key, however deep."""
    inner = table.values() if isinstance(table, dict) else table if isinstance(table, list) else ()
    own = [table[key]] if isinstance(table, dict) and isinstance(table.get(key), float) else []
    return own + [number for value in inner for number in _numbers(value, key)]
