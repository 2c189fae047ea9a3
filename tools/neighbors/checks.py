"""Checks of neighbors: each loads a pruned model, and its numbers are compared with those of the original.

A check takes the folder of the models (see `run.prepare`) and returns the largest difference, relative to the largest
number. Packages are imported inside, since each is installed for its own check alone.
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

Check = Callable[[Path], float]
PER_LAYER, ONNX, QUESTIONS = "per-layer", "onnx", "questions.jsonl"
IDS = torch.arange(3, 17).view(2, 7)


@dataclass(frozen=True)
class Neighbor:
    """A package: what pip installs, what is done with it, and the bound of the difference."""

    requirements: tuple[str, ...]
    does: str
    check: Check
    bound: float = 1e-4


def load(place: Path) -> Any:
    """The pruned model by transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(place / PER_LAYER, trust_remote_code=True)
    return model.eval()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def peft(place: Path) -> float:
    """An adapter of rank 4 is trained for a step and merged: the merged model has the numbers of the adapted one."""
    from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found,unused-ignore]

    model = load(place)
    before = logits(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    start = difference(logits(adapted), before)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    trained = logits(adapted)
    assert difference(trained, before) > 1e-4, "training changed nothing"
    return max(start, difference(logits(adapted.merge_and_unload()), trained))


def torchao(place: Path) -> float:
    """Linear layers in 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found,unused-ignore]

    model = load(place)
    small = copy.deepcopy(model)
    quantize_(small, Int8WeightOnlyConfig())
    assert any("Int8" in type(p).__name__ or "Quantized" in type(p).__name__ for p in small.parameters())
    return difference(logits(small), logits(model))


def onnxslim(place: Path) -> float:
    """The exported file, simplified."""
    import onnxslim as library  # type: ignore[import-not-found,unused-ignore]

    from graphprune.exporters.onnx_tools.sessions import open_model

    path, slim = place / ONNX / "model.onnx", place / "slim.onnx"
    library.slim(str(path), str(slim))
    outputs = []
    for file in (slim, path):
        runner = open_model(file)
        feeds: dict[str, Tensor] = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        feeds["position_ids"] = torch.arange(IDS.shape[1]).expand_as(IDS)
        for name, value in runner.inputs.items():
            if name not in feeds:
                feeds[name] = torch.zeros(2, int(value.shape[1]), 0, int(value.shape[3]))
        outputs.append(runner.run({name: feeds[name] for name in runner.inputs})["logits"])
    return difference(*outputs)


def sentence_transformers(place: Path) -> float:
    """Embeddings are means of the last hidden states."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found,unused-ignore]
    from sentence_transformers.models import Pooling, Transformer  # type: ignore[import-not-found,unused-ignore]

    code = {"trust_remote_code": True}
    body = Transformer(str(place / PER_LAYER), model_args=code, config_args=code)
    body.tokenizer.pad_token = body.tokenizer.eos_token
    whole = SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension())], device="cpu")
    text = json.loads((place / QUESTIONS).read_text().splitlines()[0])["context"]
    ids = AutoTokenizer.from_pretrained(place / PER_LAYER)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = load(place).model(input_ids=ids).last_hidden_state.mean(1)[0]
    return difference(torch.as_tensor(whole.encode(text)), expected)


def lm_eval(place: Path) -> float:
    """Accuracies of a task of its own on the same questions: both are those of `graphprune ask`."""
    from lm_eval.api.task import ConfigurableTask  # type: ignore[import-not-found,unused-ignore]
    from lm_eval.evaluator import evaluate  # type: ignore[import-not-found,unused-ignore]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found,unused-ignore]

    from graphprune.evaluation.multiple_choice import ask

    path = place / QUESTIONS
    mine = ask(place / PER_LAYER, path)
    task = ConfigurableTask(config={
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{context}}",
        "doc_to_choice": "choices", "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    })  # fmt: skip
    model = HFLM(pretrained=load(place), tokenizer=AutoTokenizer.from_pretrained(place / PER_LAYER), batch_size=4)
    theirs = evaluate(lm=model, task_dict={"own": task}, bootstrap_iters=0)["results"]["own"]
    names = {"acc": mine.acc, "acc_norm": mine.acc_norm}
    return max(abs(float(theirs[f"{name},none"]) - value) for name, value in names.items())


NEIGHBORS = {
    "peft": Neighbor(("peft",), "trains and merges an adapter", peft),
    "torchao": Neighbor(("torchao",), "quantizes linear layers to int8", torchao, 0.1),
    "onnxslim": Neighbor(("onnxslim", "colorama"), "simplifies the ONNX file", onnxslim),
    "sentence-transformers": Neighbor(
        ("sentence-transformers", "scikit-learn", "scipy", "joblib", "threadpoolctl", "cloudpickle", "narwhals"),
        "embeds a sentence",
        sentence_transformers,
    ),
    "lm-eval": Neighbor(
        ("lm-eval", "evaluate", "datasets", "sacrebleu", "rouge-score", "sqlitedict", "word2number", "more-itertools",
         "pytablewriter", "dill", "xxhash", "multiprocess", "pyarrow", "pandas", "python-dateutil", "pytz", "tzdata",
         "six", "zstandard", "jsonlines", "portalocker", "tabulate", "lxml", "colorama", "absl-py", "nltk", "joblib"),
        "has the accuracies of `graphprune ask`, to the last digit", lm_eval, 0.0,
    ),
}  # fmt: skip


if __name__ == "__main__":  # in the process that has the package
    name, folder = sys.argv[1:]
    torch.manual_seed(0)
    apart = NEIGHBORS[name].check(Path(folder))
    sys.stdout.write(json.dumps({"version": version(name), "difference": apart}) + "\n")
