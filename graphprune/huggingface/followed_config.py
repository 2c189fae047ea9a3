"""Configurations of models in a module that was narrowed: updated where stock classes can hold the new widths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from graphprune.errors import ExportError, because, reason_of
from graphprune.huggingface.adapters import BASE_LAYER, ranks_of
from graphprune.huggingface.config_epsilons import Literals, several_epsilons, with_epsilons
from graphprune.huggingface.config_widths import fit
from graphprune.huggingface.layer_removal import shorten_config, shorten_lists
from graphprune.huggingface.meta_models import Shapes, as_text, from_table, is_config, on_meta
from graphprune.huggingface.traced_model import named_config, outermost
from graphprune.support.undo import Undo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Raises if the traced module, or one in its place, does not agree with the graph.
Check = Callable[[nn.Module | None], object]
TRIALS = 300  # configurations tried in the search for one with the new widths
UNEVEN = "save the program with graphprune.save(program, output=folder, destination='per-layer')"
OTHER = "plan with destination='stock' or 'per-layer', or save the program with graphprune.save(program, output=folder)"


def follow(undo: Undo, module: nn.Module, shapes: Shapes, literals: Literals, check: Check) -> str:
    """Update the configurations of all models of transformers in a module to these shapes of its parameters.

    Their epsilons follow the `literals` of operators. `check` raises if the module then disagrees. Returns the reasons
    why saved folders will not load, "" if they will.
    """
    models = outermost(module)
    reasons = [_follow(undo, path, model, shapes, literals, check) for path, model in models.items()]
    reasons += [
        f"{type(part).__name__}.save_pretrained: its from_pretrained may build the widths before the cut"
        for path, part in module.named_modules()
        if not any(path == own or not own or path.startswith(f"{own}.") for own in models)
        if callable(getattr(part, "save_pretrained", None)) and not hasattr(part, "get_base_model")
    ]
    return "; ".join(filter(None, reasons))


def shorten_module(undo: Undo, module: nn.Module, entries: Sequence[str]) -> str:
    """Remove entries from the lists of a module, in place, and renumber the others.

    The configurations of models of transformers in it are updated, too; returns the reason if that is not possible.

    Raises:
        WriteBackError: if an entry is not in a ModuleList or Sequential.
    """
    shorten_lists(undo, module, entries)
    for path, model in outermost(module).items():
        prefix = f"{path}." if path else ""
        config = named_config(model)
        try:
            new = shorten_config(config, [name.removeprefix(prefix) for name in entries if name.startswith(prefix)])
        except ExportError as fault:
            return str(fault)
        update(undo, model.config, from_table(type(config), json.loads(as_text(config))), new)
    return ""


def _follow(
    undo: Undo,
    path: str,
    model: PreTrainedModel,
    shapes: Shapes,
    literals: Literals,
    check: Check,
) -> str:
    prefix = f"{path}." if path else ""
    adapters = {f"{prefix}{name}" for name in ranks_of(model)}
    own = {
        name.removeprefix(prefix).replace(BASE_LAYER, "."): shape
        for name, shape in shapes.items()
        if name.startswith(prefix) and name not in adapters
    }
    config = named_config(model)
    try:
        new = with_epsilons(fit(config, own, trials=TRIALS), literals)
    except Exception as fault:  # the constructor of a configuration may raise any exception
        return _explained(reason_of(fault))
    mark = len(undo.steps)
    update(undo, model.config, from_table(type(config), json.loads(as_text(config))), new)
    if len(undo.steps) > mark:
        try:
            check(None)
        except Exception as fault:
            undo.rollback(mark)
            return (
                "save_pretrained writes a folder that from_pretrained cannot load: the configuration is unchanged, "
                f"since the forward reads it{because(fault)}; {OTHER}"
            )
    if not path and (problem := _fault_of_rebuilt(model, new, check)):
        undo.rollback(mark)
        return _explained(f"no field of {type(config).__name__} is known to say its new widths{because(problem)}")
    if several := several_epsilons(config, literals):
        return f"save_pretrained writes one number for norms that now need several: {', '.join(several)}; {OTHER}"
    return ""


def _fault_of_rebuilt(model: PreTrainedModel, config: PreTrainedConfig, check: Check) -> Exception | None:
    """The reason why a model that is built from a config differs from this one with equal shapes; None if it agrees.

    One head of eight dimensions has the shapes of two heads of four.
    """
    try:
        rebuilt: nn.Module = on_meta(config)
        rebuilt.train(False)
        rebuilt.load_state_dict(model.state_dict(), strict=False, assign=True)
        buffers = dict(model.named_buffers())
        for name, buffer in rebuilt.named_buffers():
            if buffer.is_meta:
                owner, _, leaf = name.rpartition(".")
                rebuilt.get_submodule(owner)._buffers[leaf] = buffers[name]
        check(rebuilt)
    except Exception as fault:  # the code of a model may raise any exception
        return fault
    return None


def _explained(reason: str) -> str:
    """What a folder of the module lacks, and how to save one that loads."""
    why, _, others = reason.partition("; use destination")
    help = UNEVEN if "per-layer" in others else OTHER
    return f"save_pretrained writes a folder that from_pretrained cannot load: {why}; {help}"


def update(undo: Undo, config: PreTrainedConfig, old: PreTrainedConfig, new: PreTrainedConfig) -> None:
    """Set the fields of a configuration, and of those in it, in which `new` differs from `old`."""
    for name, value in _fields(new):
        if is_config(value) and is_config(vars(config).get(name)):
            update(undo, vars(config)[name], vars(old)[name], value)
        elif type(value) in (int, float, list) and vars(old).get(name) != value:
            undo.set_item(vars(config), name, value)


def _fields(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in vars(config).items() if not name.startswith("_"))
