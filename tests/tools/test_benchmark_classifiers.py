"""The benchmark of classifiers assembles what it says, calibrates without padding, and sums up over seeds."""

import argparse
import gzip
import io
import struct
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import graphprune as gp
from graphprune.errors import PipelineError
from graphprune.evaluation.perplexity import classify
from graphprune.passes.reconstructions.batch_norm_statistics import Norms
from graphprune.passes.reconstructions.refit import Refit
from tests.conftest import WORDS
from tools import benchmark_classifiers
from tools.recipe_benchmark.classifiers import count, healed, passes, recovery, table, work
from tools.recipe_benchmark.record import DENSE, Record, Run
from tools.recipe_benchmark.resnet import ResNet, images
from tools.recipe_benchmark.subjects import encoder


@pytest.fixture(scope="module")
def options(tiny: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """An encoder whose embeddings lie in another folder, beside the tokenizer; and sentences."""
    path = tmp_path_factory.mktemp("encoder")
    model, base = path / "model", path / "base"
    tiny("bert").save_pretrained(model)
    stored = load_file(model / "model.safetensors")
    save_file({n: v for n, v in stored.items() if "embeddings" not in n}, model / "model.safetensors")
    base.mkdir()
    for file in folder.glob("*token*"):
        (base / file.name).write_bytes(file.read_bytes())
    embeddings = {n.removeprefix("bert."): v for n, v in stored.items() if "embeddings" in n}
    save_file(embeddings, base / "model.safetensors")
    lines = [f"{' '.join(f'w{3 + (i * j) % 50}' for j in range(1, 3 + i % 4))}\t{i % 3}" for i in range(96)]
    for name in ("train", "test"):
        (path / f"{name}.tsv.gz").write_bytes(gzip.compress("\n".join(["text\tlabel", *lines]).encode()))
    return argparse.Namespace(
        subject="encoder", healed=32, model=model, base=base, train=path / "train.tsv.gz", test=path / "test.tsv.gz"
    )


def test_an_encoder_is_put_together_from_two_places(options: argparse.Namespace, tiny: Any) -> None:
    subject = encoder(options)
    theirs: nn.Module = tiny("bert")
    (args, kwargs), _ = subject.test[0]
    with torch.no_grad():
        torch.testing.assert_close(subject.module(*args, **kwargs).logits, theirs(*args, **kwargs).logits)


def test_calibration_has_no_padding_and_is_drawn_by_the_seed(options: argparse.Namespace) -> None:
    draw = encoder(options).draw
    first, again, other = draw(40, 0), draw(40, 0), draw(40, 1)
    ids = [call[1]["input_ids"] for call, _ in first]
    assert sum(map(len, ids)) == 40 == sum(len(labels) for _, labels in first)
    assert all(int(part.min()) > 0 and int(part.max()) < WORDS for part in ids)
    assert {part.shape[1] for part in ids} == {2, 3, 4, 5}
    assert all(torch.equal(a, b[0][1]["input_ids"]) for a, b in zip(ids, again, strict=True))
    assert [part.tolist() for part in ids] != [call[1]["input_ids"].tolist() for call, _ in other]


@pytest.mark.parametrize("method", ["flap/uniform", "fisher/global/refit{by=affine},batch-norm-statistics", "liar"])
def test_half_of_the_blocks_goes_and_nothing_else(options: argparse.Namespace, method: str) -> None:
    receiver, sender = Pipe(duplex=False)
    work(Run(method, 0.5, 64, 0), options, sender)
    record = receiver.recv()
    assert not record.fault and record.removed == pytest.approx(0.5, abs=0.05)
    assert len(record.right["test"]) == 96
    whole = gp.trace(encoder(options).module, *encoder(options).example)
    blocks = count(whole, "bert.encoder.*")
    assert whole.count() - record.parameters == pytest.approx(record.removed * blocks)


def test_an_epoch_towards_the_dense_model_brings_the_outputs_nearer(options: argparse.Namespace) -> None:
    subject = encoder(options)
    program = gp.trace(subject.module, *subject.example)
    small = passes("magnitude/uniform", subject.draw(8, 0), sparsity=0.2)(program)
    before = {name: weight.detach().clone() for name, weight in small.module().named_parameters()}
    module = healed(small.module(), subject, 96, seed=0, rate=0.0005)
    (args, kwargs), _ = subject.test[0]
    with torch.no_grad():
        dense, *others = (model(*args, **kwargs).logits for model in (subject.module, small.module(), module))
    first, last = ((one - dense).square().mean() for one in others)
    assert last < first
    changed = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("bert.encoder.") for name in changed)


def test_recovery_has_options_of_its_own() -> None:
    assert recovery("flap/global/refit{by=affine}") == ("flap/global/refit{by=affine}", None)
    assert recovery("flap/global/refit{by=affine}+heal") == ("flap/global/refit{by=affine}", {})
    assert recovery("best+heal{train=norms, rate=3e-4,epochs=2}") == (
        "best", {"train": "norms", "rate": 3e-4, "epochs": 2},
    )  # fmt: skip


def test_what_comes_after_the_cut_are_passes(options: argparse.Namespace) -> None:
    drawn = encoder(options).draw(8, 0)
    text = "flap/global/refit{by=least-squares,statistics=mixed,producers=true},batch-norm-statistics"
    kinds = [type(step) for step in passes(text, drawn, sparsity=0.2).passes]
    assert kinds[-4:-1] == [gp.Rewrite, Refit, Norms]
    with pytest.raises(PipelineError, match="has no option 'way'"):
        passes("flap/global/refit{way=affine}", drawn, sparsity=0.2)


def test_a_fault_is_kept(options: argparse.Namespace) -> None:
    receiver, sender = Pipe(duplex=False)
    work(Run("magnitude/uniform", 0.999, 8, 0), options, sender)
    assert receiver.recv().fault.startswith("PlanError: the target is to remove")


def test_a_row_sums_up_over_seeds() -> None:
    dense = Record(Run(DENSE, 0.0, 0, 0), right={"test": [True] * 8 + [False] * 2})
    runs = [
        Record(Run("flap/uniform", 0.5, 8, 0, seed), removed=0.5, seconds=9, right={"test": [i < n for i in range(10)]})
        for seed, n in enumerate((4, 7, 6))
    ]
    lines = list(table([dense, *runs, Record(Run("liar", 0.5, 8, 0), fault="PlanError: no")]))
    assert lines[2:4] == [
        "| `dense` | 0.0% | 80.00% | 100.0% | 1 | 0 s |",
        "| `flap/uniform` | 50.0% | 60.00% (40.00% to 70.00%) | 75.0% | 3 | 9 s |",
    ]
    assert lines[4] == "\n`liar` at 50%, seed 0: PlanError: no"


def test_every_method_runs_with_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def one(_: object, run: Run, options: object) -> Record:
        ran.append((run.recipe, run.sparsity, run.seed))
        return Record(run, right={"test": [True]})

    monkeypatch.setattr(benchmark_classifiers, "alone", one)
    places = [f"--{name}={tmp_path / name}" for name in ("model", "train", "test", "lines")]
    monkeypatch.setattr(
        sys, "argv", ["b", "network", *places, "--sparsity", "0.3", "--methods", "flap", "--seeds", "5"]
    )
    benchmark_classifiers.main()
    assert ran == [(DENSE, 0.0, 0), ("flap", 0.3, 5)]


def test_images_are_read_and_a_small_network_is_cut(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    raw = b""
    for label in (3, 9):
        file = io.BytesIO()
        pillow.new("RGB", (32, 32), (255, 0, 28 * label)).save(file, "JPEG")
        raw += struct.pack("<BH", label, file.tell()) + file.getvalue()
    (tmp_path / "images.bin").write_bytes(raw)
    x, classes = images(tmp_path / "images.bin")
    assert x.shape == (2, 3, 32, 32) and classes.tolist() == [3, 9]
    assert float(x[0, 0, 0, 0]) == pytest.approx((1 - 0.485) / 0.229, abs=0.05)
    program = gp.trace(ResNet(blocks=1).eval(), (x,))
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    assert len(gp.analyze(program).groups) == 8 and small.count() < 0.4 * program.count()


@pytest.mark.slow
def test_resnet_20_has_the_accuracy_that_is_known(shared_data: Any) -> None:
    pytest.importorskip("PIL.Image")
    module = ResNet()
    stored = load_file(shared_data("vision/resnet20_cifar10jpeg_fp16.safetensors"))
    module.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in stored.items()})
    x, classes = images(shared_data("vision/cifar10jpeg.test.bin"))
    parts = zip(torch.split(x, 250), torch.split(classes, 250), strict=True)
    found = classify(module.eval(), [(((part,), {}), labels) for part, labels in parts])
    assert found.accuracy == pytest.approx(0.8605)
