"""Export decoders as folders for onnxruntime-genai: the model, its tokenizer, and a description of both."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from graphprune.errors import ExportError
from graphprune.exporters.checks.genai_runtime import PACKAGE, SETTINGS, check_generation
from graphprune.exporters.checks.generation import token_ids
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import SUPPORTED, OnnxTarget, export_folder
from graphprune.exporters.model_folders.folder_files import copy_companion_files
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.subjects.subject import PAST, PRESENT
from graphprune.huggingface import model_folder
from graphprune.support.packages import load
from graphprune.support.packages import onnx_ir as ir

#: Type for any graph with these names; every other type is one architecture, and runs the same code.
_TYPE = "decoder"
#: Defaults of transformers where generation_config.json has no value.
_SEARCH: dict[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_beams": 1, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0,
}  # fmt: skip
_LENGTHS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length")
_ENDLESS = 10**9  # tokenizers without a limit name a far greater one


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the decoder of a Hugging Face folder with the files of onnxruntime-genai, and check generated tokens.

    Layers may differ in the sizes of their cache. Weights in fewer bits are multiplied by ONNX Runtime's MatMulNBits.

    Raises:
        PackageError: if onnxruntime-genai is missing or broken.
        ExportError: if it cannot be exported, onnxruntime-genai does not read its tokenizer, or generates
            other tokens than ONNX Runtime, or `output` may not be written.
    """
    options.require("genai", **{name: SUPPORTED[name] for name in ("dtype", "quant", "opset")})
    load(PACKAGE, "genai")
    settings = _settings(source)  # fails before the work if something is missing
    target = OnnxTarget("genai", partial(_describe, source, settings), proof=check_generation)
    return export_folder(source, output, target, options, force=force)


def check(folder: Path) -> list[str]:
    """Check once more which tokens onnxruntime-genai generates.

    Raises:
        ExportError: as `check_generation`.
    """
    return [f"onnxruntime-genai writes the {check_generation(folder)['equal_tokens']} tokens that ONNX Runtime does"]


def _describe(source: Path, settings: dict[str, Any], model: ir.Model, folder: Path) -> dict[str, Any]:
    """Write the tokenizer and genai_config.json next to the model."""
    copy_companion_files(source, folder)
    whole = {
        "model": {**_sized(model, settings), "type": _TYPE, "decoder": _decoder(model, settings)},
        "search": {
            **_search(source), "max_length": settings["context_length"],
            "past_present_share_buffer": False,  # the graph returns the longer cache as a new one
        },
    }  # fmt: skip
    (folder / SETTINGS).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return {}


def _settings(source: Path) -> dict[str, Any]:
    """Read the context length, sizes and special tokens of the source.

    Raises:
        LoadError: if it has no tokenizer.
        ExportError: if no file has the context length.
    """
    config, tokenizer = model_folder.config(source).get_text_config(), model_folder.tokenizer(source)
    lengths = *(getattr(config, name, None) for name in _LENGTHS), tokenizer.model_max_length
    length = next((n for n in lengths if isinstance(n, int) and 0 < n < _ENDLESS), None)
    if length is None:
        raise ExportError(
            f"{source / model_folder.CONFIG} does not say how many tokens a text may have, which onnxruntime-genai "
            f"must know; add {_LENGTHS[0]}"
        )
    tokens = {name: sorted(token_ids(source, name)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {name: getattr(config, name, None) for name in ("hidden_size", "num_attention_heads")}
    return {"context_length": length, "tokens": tokens, "sizes": sizes}


def _sized(model: ir.Model, settings: dict[str, Any]) -> dict[str, Any]:
    """Vocabulary, length and special tokens; numbers outside the vocabulary are omitted."""
    size = _sizes(model.graph.outputs)["logits"][-1]
    tokens = {name: [i for i in ids if 0 <= i < size] for name, ids in settings["tokens"].items()}
    end = tokens["eos_token_id"]
    single = {"bos_token_id": tokens["bos_token_id"], "pad_token_id": tokens["pad_token_id"] or end}
    special: dict[str, Any] = {name: ids[0] for name, ids in single.items() if ids}
    return {"vocab_size": size, "context_length": settings["context_length"], "eos_token_id": end, **special}


def _decoder(model: ir.Model, settings: dict[str, Any]) -> dict[str, Any]:
    """File, names and greatest sizes; the runtime reads the sizes of each layer's cache from the file itself."""
    inputs = _sizes(model.graph.inputs)
    keys = [shape for name, shape in inputs.items() if name.startswith(f"{PAST}.") and name.endswith(".key")]
    if not keys:
        raise ExportError("the model keeps no keys and values: it is no decoder and writes no text; use target onnx")
    return {
        "filename": MODEL, "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "num_hidden_layers": len(keys), "num_key_value_heads": max(shape[1] for shape in keys),
        "head_size": max(shape[3] for shape in keys),
        **{name: size for name, size in settings["sizes"].items() if isinstance(size, int)},
        "inputs": {
            **{name: name for name in inputs if not name.startswith(f"{PAST}.")},
            "past_key_names": f"{PAST}.%d.key", "past_value_names": f"{PAST}.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": f"{PRESENT}.%d.key", "present_value_names": f"{PRESENT}.%d.value",
        },
    }  # fmt: skip


def _search(source: Path) -> dict[str, Any]:
    """Sampling parameters of the model's own generation settings."""
    path = source / "generation_config.json"
    proposed = model_folder.read_json(path) if path.is_file() else {}
    return {name: default if proposed.get(name) is None else proposed[name] for name, default in _SEARCH.items()}


def _sizes(values: Any) -> dict[str, tuple[Any, ...]]:
    """Shapes by name; a dynamic dimension is no number."""
    return {value.name: tuple(value.shape) for value in values}


TARGET = ExportTarget(
    export,
    Needs(("per-layer", "stock", "free"), 32, 32, "onnxruntime-genai runs any width; blocks of stored weights hold 32"),
    check=check,
)
