"""Checks of libraries: each takes a pruned model or its ONNX file, and its numbers are compared with the original's.

Packages are imported inside, since each is installed for its own check alone.
"""

import copy
import json
from pathlib import Path

import torch
from torch import Tensor

from tools.neighbors.neighbor import (
    IDS,
    ONNX,
    PER_LAYER,
    QUESTIONS,
    STOCK,
    WEB,
    Neighbor,
    difference,
    expected,
    feeds,
    load,
    logits,
    tokenizer,
)


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

    path, slim = place / ONNX / "model.onnx", place / "slim.onnx"
    library.slim(str(path), str(slim))
    return difference(_run(slim), _run(path))


def _run(path: Path) -> Tensor:
    """Logits of an ONNX file in ONNX Runtime."""
    from graphprune.exporters.onnx_tools.sessions import open_model

    runner = open_model(path)
    return runner.run(feeds({name: value.shape for name, value in runner.inputs.items()}))["logits"]


def sentence_transformers(place: Path) -> float:
    """Embeddings are means of the last hidden states."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found,unused-ignore]
    from sentence_transformers.models import Pooling, Transformer  # type: ignore[import-not-found,unused-ignore]

    code = {"trust_remote_code": True}
    body = Transformer(str(place / PER_LAYER), model_args=code, config_args=code)
    body.tokenizer.pad_token = body.tokenizer.eos_token
    whole = SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension())], device="cpu")
    text = json.loads((place / QUESTIONS).read_text().splitlines()[0])["context"]
    ids = tokenizer(place)(text, return_tensors="pt").input_ids
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
    model = HFLM(pretrained=load(place), tokenizer=tokenizer(place), batch_size=4)
    theirs = evaluate(lm=model, task_dict={"own": task}, bootstrap_iters=0)["results"]["own"]
    names = {"acc": mine.acc, "acc_norm": mine.acc_norm}
    return max(abs(float(theirs[f"{name},none"]) - value) for name, value in names.items())


def optimum_onnx(place: Path) -> float:
    """The exported folder, opened as a model of the version of transformers that optimum-onnx needs."""
    from optimum.onnxruntime import ORTModelForCausalLM  # type: ignore[import-not-found,unused-ignore]

    model = ORTModelForCausalLM.from_pretrained(place / WEB)
    made = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return difference(made, expected(place, STOCK))


def olive(place: Path) -> float:
    """The exported file, its weights rounded to 8 bits by a workflow."""
    from olive.workflows import run  # type: ignore[import-not-found,unused-ignore]

    output = place / "olive"
    run({
        "input_model": {"type": "OnnxModel", "model_path": str(place / ONNX / "model.onnx")},
        "passes": {
            "simplify": {"type": "OnnxPeepholeOptimizer"},
            "quantize": {"type": "OnnxBlockWiseRtnQuantization", "bits": 8},
        },
        "output_dir": str(output), "cache_dir": str(place / "cache"),
    })  # fmt: skip
    return difference(_run(next(output.rglob("*.onnx"))), expected(place, PER_LAYER))


LIBRARIES = {
    "peft": Neighbor(("peft",), "trains and merges an adapter", peft),
    "torchao": Neighbor(("torchao",), "quantizes linear layers to int8", torchao, 0.1),
    "onnxslim": Neighbor(("onnxslim", "colorama"), "simplifies the ONNX file", onnxslim),
    "optimum-onnx": Neighbor(
        ("optimum-onnx", "optimum==2.1.0", "transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2"),
        "opens the folder for the web with transformers 4.57", optimum_onnx,
    ),
    "olive-ai": Neighbor(
        ("olive-ai", "lightning-utilities", "opentelemetry-api", "opentelemetry-sdk",
         "opentelemetry-semantic-conventions", "pandas", "questionary", "torchmetrics"),
        "quantizes the ONNX file to int8 by a workflow", olive, 0.1,
    ),
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
