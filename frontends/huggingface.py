"""Load a Hugging Face folder as a program; its weights are read from disk when they are needed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from graphprune.errors import LoadError
from graphprune.frontends import FRONTENDS, Frontend, checkpoints, modules
from graphprune.frontends.inputs import example_inputs
from graphprune.frontends.skeletons import is_fake, skeleton
from graphprune.frontends.trace_check import CapturedModule, check
from graphprune.huggingface import model_folder
from graphprune.huggingface.meta_models import is_config
from graphprune.ir.program import Program, Source
from graphprune.ir.weights import Layered, Stored
from graphprune.support import cache
from graphprune.support.packages import transformers

log = logging.getLogger(__name__)


def load(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> Program:
    """Capture the model of a Hugging Face folder; floating-point weights are read as `dtype`.

    Raises:
        LoadError: if the folder holds no complete model in safetensors, of a class that transformers has.
        TraceError: if torch.export refuses the model.
    """
    folder = Path(folder)
    settings = model_folder.config(folder)
    _without_cache(settings)
    stored = checkpoints.entries(folder)
    model = skeleton(lambda: _build(folder, settings), dtype)
    places = _places(folder, model, stored)
    inputs = example_inputs(folder, model)
    subject = CapturedModule.of(model)
    program = modules.from_exported(
        modules.export(model, (), inputs), ((), inputs),
        source=Source(folder, "huggingface", checkpoints.stored_dtype(stored)),
    )  # fmt: skip
    _warn_of_unused(folder, program, places)
    return check(program, subject).with_facts(weights=_weights(program.weights, places, dtype))


def _without_cache(settings: Any) -> None:
    """Turn the cache off in a configuration and in those inside it, of a decoder behind an image encoder say."""
    if hasattr(settings, "use_cache"):
        settings.use_cache = False
    for part in vars(settings).values():
        if is_config(part):
            _without_cache(part)


def _build(folder: Path, settings: Any) -> nn.Module:
    with transformers.initialization.no_init_weights():
        model = model_folder.build(folder, settings)
    model.tie_weights()  # type: ignore[operator]
    return model


def _places(folder: Path, model: nn.Module, stored: Mapping[str, checkpoints.Entry]) -> dict[str, checkpoints.Entry]:
    """Entry of every weight; in a converted copy, if transformers computes weights from other stored tensors."""
    matched = checkpoints.match(model, stored)
    if (absent := checkpoints.missing(model, matched)) and checkpoints.are_computed(model, absent):
        stored = checkpoints.entries(_converted(folder))
        matched = checkpoints.match(model, stored)
    if absent := checkpoints.missing(model, matched):
        raise LoadError(
            f"{folder} lacks {len(absent)} weights of {type(model).__name__}, the first {absent[0]}; copy the files "
            f"again, or name the class that was saved in {model_folder.CONFIG}: architectures"
        )
    checkpoints.check_types(folder, model, matched)
    checkpoints.check_shapes(folder, model, matched)
    _report_unused(folder, stored, matched)
    return matched


def _report_unused(
    folder: Path, stored: Mapping[str, checkpoints.Entry], matched: Mapping[str, checkpoints.Entry]
) -> None:
    used = {entry.key for entry in matched.values()}
    if unused := sorted(set(stored) - used):
        log.info("%s: %d stored tensors belong to no weight, the first %s", folder, len(unused), unused[0])


def _warn_of_unused(folder: Path, program: Program, places: Mapping[str, checkpoints.Entry]) -> None:
    """Warn of weights that the captured call does not use, as those of an image encoder for a text alone."""
    used = program.shapes().keys()
    unused = [name for name in places if program.name(name) not in used and program.name(name) in program.weights]
    if unused:
        log.warning(
            "%s: %d weights, the first %s, are not used by a call with %s alone, and are not pruned; trace the model "
            "with inputs that use them to prune those, too",
            folder, len(unused), unused[0], ", ".join(program.inputs[1]),
        )  # fmt: skip


def _converted(folder: Path) -> Path:
    """Copy of the weights under the names and in the shapes of the model class, made once."""

    def convert(target: Path) -> None:
        log.info("%s: converting the weights to the layout of transformers once, into %s", folder, target.parent)
        save_file(_unshared(model_folder.module(folder)), target / model_folder.WEIGHTS)

    return cache.once("converted", [folder / model_folder.CONFIG, *model_folder.weight_files(folder)], convert)


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """State of a model with every tensor once; a shared one under its first name."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {n: t.detach().contiguous() for n, t in state.items() if first.setdefault(id(t), n) == n}


def _weights(captured: Mapping[str, Tensor], places: Mapping[str, checkpoints.Entry], dtype: torch.dtype) -> Layered:
    """Weights of the program: stored tensors, and buffers that were computed while the model was built."""
    stored = {name: (places[name].path, places[name].key) for name in captured if name in places}
    computed = {name: tensor for name, tensor in captured.items() if name not in stored}
    if fake := [name for name, tensor in computed.items() if is_fake(tensor)]:
        raise LoadError(f"no stored tensor holds {fake[0]}, which the model computes while it is built")
    stamps = {entry.path: entry.stamp for entry in places.values()}
    return Layered((Stored(stored, dtype, stamps), computed))


def _is_folder(text: str) -> bool:
    return model_folder.is_folder(Path(text))


FRONTENDS.register("huggingface")(
    Frontend("a Hugging Face folder (config.json and model.safetensors)", _is_folder, load),
)
