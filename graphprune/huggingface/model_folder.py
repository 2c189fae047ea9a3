"""Hugging Face model folders: their configuration, class, tokenizer and model with weights."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from graphprune.errors import LoadError, because
from graphprune.huggingface import per_layer
from graphprune.huggingface.config_limits import offline, require_harmless
from graphprune.huggingface.layer_removal import shorten_config
from graphprune.huggingface.meta_models import known_class
from graphprune.ir.program import Source
from graphprune.support.packages import failed_import, transformers

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"
QUANTIZED = ("quantization_config", "compression_config")
PROGRAM = "model.pt2"  # in place of weights, for a model that no transformers class can hold
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        LoadError: if the file is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise LoadError(f"cannot read {path}{because(fault)}") from fault
    except (ValueError, RecursionError) as fault:
        raise LoadError(f"{path} is not valid JSON{because(fault)}; copy the file again") from fault
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def label_names(folder: Path) -> dict[str, int]:
    """The numbers of the classes of a classifier, by name; empty if its configuration names none."""
    named = read_json(folder / CONFIG).get("label2id") if (folder / CONFIG).is_file() else None
    pairs = named.items() if isinstance(named, dict) else ()
    return {name: number for name, number in pairs if type(number) is int}


def config(folder: Path) -> Any:
    """The configuration of the model in `folder`; code in the folder is not run.

    Raises:
        LoadError: if there is none, or transformers rejects it.
    """
    raw = _raw_config(folder)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise LoadError(
            f"{folder / CONFIG}: model_type is {kind!r}, which transformers {transformers.__version__} does not know; "
            "code in the folder is never run: build the model yourself and pass it to graphprune.trace"
        )
    with _load_errors(f"{folder / CONFIG} is not a valid configuration of a {kind} model"):
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


@contextmanager
def _load_errors(problem: str) -> Iterator[None]:
    """Convert the errors of transformers, which have many types, to a LoadError about a problem; nothing is fetched."""
    try:
        with offline():
            yield
    except LoadError:
        raise
    except Exception as fault:
        raise failed_import(fault, "transformers") or LoadError(f"{problem}{because(fault)}") from fault


def settings(source: Source) -> Any:
    """The configuration of the model that a program was loaded from, without the blocks dropped since.

    Raises:
        LoadError: if there is none.
        ExportError: if no field of it sets the number of blocks.
    """
    settings = config(source.path)
    return shorten_config(settings, source.dropped) if source.dropped else settings


def model_class(folder: Path, settings: Any) -> Any:
    """The transformers class that the configuration names in `architectures`.

    Raises:
        LoadError: if transformers has no class of these names.
    """
    names = getattr(settings, "architectures", None) or []
    if known := [kind for kind in map(known_class, names) if kind is not None]:
        return known[0]
    raise LoadError(
        f"{folder / CONFIG}: architectures is {names!r}, expected the name of a model class of transformers "
        f"{transformers.__version__}; for a custom class use graphprune.trace"
    )


def generates_text(kind: Any, settings: Any) -> bool:
    """Whether a transformers class with this configuration generates text from left to right."""
    return bool(kind.can_generate() and kind.main_input_name == "input_ids" and not settings.is_encoder_decoder)


def start_token(folder: Path) -> int:
    """The token with which the decoder of an encoder-decoder starts; padding or token 0 where none is set."""
    path = folder / GENERATION
    return start_of(config(folder).to_dict(), read_json(path) if path.is_file() else {})


def start_of(*tables: Mapping[str, Any]) -> int:
    """The token with which a decoder starts, from settings of a model and of generation."""
    names = ("decoder_start_token_id", "pad_token_id")
    return next((int(t[name]) for name in names for t in tables if isinstance(t.get(name), int)), 0)


def build(folder: Path, settings: Any) -> nn.Module:
    """A model of the configured class and sizes, in evaluation mode, with weights still to be loaded.

    Raises:
        LoadError: if no model can be built with the configured sizes.
    """
    with _load_errors(f"{folder / CONFIG}: no model can be built from it"):
        make = per_layer.build if per_layer.is_per_layer(settings) else model_class(folder, settings)
        model: nn.Module = make(settings)
    return model.eval()


def is_folder(folder: Path) -> bool:
    """Whether this is a folder whose model a transformers class can load."""
    return (folder / CONFIG).is_file() and not holds_graph(folder)


def holds_graph(folder: Path) -> bool:
    """Whether this folder holds the model as a graph (destination free)."""
    return (folder / PROGRAM).is_file()


def module(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """The model with all its weights in memory, for generation and export.

    Raises:
        LoadError: if the folder holds no complete model in safetensors.
    """
    folder = Path(folder)
    settings = config(folder)
    require_safetensors(folder)
    if per_layer.is_per_layer(settings):
        return _per_layer_module(folder, settings, dtype)
    with _load_errors(f"transformers cannot load {folder}"):
        model, info = model_class(folder, settings).from_pretrained(
            str(folder), config=settings, dtype=dtype, local_files_only=True, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    _require_complete(folder, info["missing_keys"], info["mismatched_keys"])
    return model.eval()


def tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder, or of the folder of a file.

    Raises:
        LoadError: if there is none, or it cannot be read.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise LoadError(f"{folder} has no tokenizer: expected one of {', '.join(TOKENIZERS)}")
    with _load_errors(f"transformers cannot load the tokenizer of {folder}"):
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def require_safetensors(folder: Path) -> None:
    """Check that the weights are stored as safetensors, not as pickles, which can run code.

    Raises:
        LoadError: if they are not.
    """
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise LoadError(
            f"{folder} has its weights in {pickles[0]}, which may run code when read; expected {WEIGHTS}. If you trust "
            "the file, convert it: load the model with transformers, then call model.save_pretrained(folder)"
        )
    raise LoadError(f"{folder} has no weights: expected {WEIGHTS} or {INDEX}")


def _per_layer_module(folder: Path, settings: Any, dtype: torch.dtype) -> nn.Module:
    model = build(folder, settings).to(dtype)
    stored = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    try:
        result = model.load_state_dict(stored, strict=False)
    except RuntimeError as fault:
        raise LoadError(f"{folder}: the weights do not fit {CONFIG}{because(fault)}") from fault
    tied = getattr(model, "all_tied_weights_keys", {})
    _require_complete(folder, [name for name in result.missing_keys if name not in tied], [])
    model.tie_weights()  # type: ignore[operator]
    return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """Paths of the safetensors files of the folder, from its index if there is one.

    Raises:
        LoadError: if the index is broken, or names a file that is absent or outside the folder.
    """
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise LoadError(f"{folder / INDEX} has no weight_map; copy the file again")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if Path(name).name != name:
            raise LoadError(f"{folder / INDEX} names {name!r}, expected a file in the same folder")
        if not (folder / name).is_file():
            raise LoadError(f"{folder / name} is missing, one of {len(names)} files that {INDEX} lists; copy it again")
    return [folder / name for name in names]


def _raw_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder")
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER).is_file():
            raise LoadError(
                f"{folder} holds an adapter without its base model; merge both, with merge_adapters (--merge-adapters) "
                "or peft: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder)"
            )
        raise LoadError(f"{folder} has no {CONFIG}: expected a Hugging Face model folder")
    if (folder / ADAPTER).is_file():
        raise LoadError(
            f"{folder} holds an adapter and its model: merge both, with merge_adapters (--merge-adapters), or "
            f"remove {ADAPTER} to take the model without it"
        )
    raw = read_json(folder / CONFIG)
    tables = {"": raw, **{f"{name}.": part for name, part in raw.items() if isinstance(part, dict)}}
    for name in (f"{at}{field}" for at, table in tables.items() for field in QUANTIZED if table.get(field)):
        raise LoadError(
            f"{folder / CONFIG}: the weights are quantized ({name}), expected plain floating-point ones. "
            "Load the model with transformers, call model.dequantize() and save it"
        )
    require_harmless(raw, folder / CONFIG)
    return raw


def _require_complete(folder: Path, missing: Iterable[str], mismatched: Iterable[Any]) -> None:
    """Raise a LoadError for absent weights: random numbers in their place would invalidate every score and figure."""
    if absent := sorted(missing):
        raise LoadError(f"{folder} lacks {len(absent)} weights, the first {absent[0]}; copy the files again")
    if wrong := sorted(str(entry) for entry in mismatched):
        raise LoadError(f"{folder}: {len(wrong)} weights do not have the shapes of {CONFIG}, the first {wrong[0]}")
