"""Write-back: the original module, made as narrow as the rewritten graph."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from graphprune import config_widths
from graphprune.errors import ExportError, VerificationError, WriteBackError, first_line
from graphprune.facts import Refits
from graphprune.modes import evaluation
from graphprune.program import Change, Program, Rewritten
from graphprune.proof import Verification, compare, fresh_inputs

TRIALS = 64
Said = Mapping[type, set[tuple[str, str, int]]]


@dataclass(frozen=True)
class WrittenBack:
    """How well the module agrees with the graph, and why its configuration could not follow ("" if it did)."""

    verification: Verification
    config_left: str


@dataclass
class _Undo:
    """Assignments that can be taken back."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def attribute(self, thing: object, name: str, value: object) -> None:
        """Set an attribute."""
        old = getattr(thing, name)
        self.steps.append(lambda: setattr(thing, name, old))
        setattr(thing, name, value)

    def item(self, table: dict[str, Any], name: str, value: object) -> None:
        """Set an entry of a module's table of parameters or buffers."""
        old = table[name]
        self.steps.append(lambda: table.__setitem__(name, old))
        table[name] = value

    def back(self, to: int = 0) -> None:
        """Take assignments back, the last first."""
        while len(self.steps) > to:
            self.steps.pop()()


def write_back(program: Program, module: nn.Module) -> WrittenBack:
    """Narrow `module`, of which the program's original was traced, in place.

    Parameters are replaced, sizes of standard layers set, and the integer attributes from which a forward builds
    its views are found through the literals that the cut changed. On failure the module is as it was.

    Raises:
        WriteBackError: if the module is another one, or computes with a size that no attribute controls.
    """
    rewritten = program.fact(Rewritten)
    _check_names(program, module, rewritten)
    undo = _Undo()
    try:
        for name in changed_names(program, rewritten):
            _assign(undo, module, name, program)
        said = _said_by_weights(module, rewritten.original)
        _set_layer_sizes(undo, module, said)
        left = _follow_config(undo, program, module)
        verification = _settle(undo, program, module, rewritten, said)
        _set_layer_sizes(undo, module, {})  # what follows from attributes that were found
        return WrittenBack(verification, left)
    except BaseException:
        undo.back()
        raise


def changed_names(program: Program, rewritten: Rewritten) -> list[str]:
    """Parameters and buffers with new shapes or values."""
    refits = program.facts.get(Refits)
    return sorted({*rewritten.keep, *(refits.by_weight if refits else ())})


def _check_names(program: Program, module: nn.Module, rewritten: Rewritten) -> None:
    """Refuse a module whose parameters are not those of the original program."""
    have = {n: tuple(t.shape) for n, t in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    for name, shape in rewritten.original.shapes().items():
        if name in rewritten.keep and have.get(name) != shape:
            raise WriteBackError(
                f"{type(module).__name__} is not the module that was traced: {name} should have shape {shape}, "
                f"got {have.get(name, 'no such parameter')}; pass the original module, before any cut"
            )


def _assign(undo: _Undo, module: nn.Module, name: str, program: Program) -> None:
    """Give a parameter or buffer, under all its names, its new tensor."""
    aliases = [name, *(alias for alias, stored in program.ties.items() if stored == name)]
    new: Tensor | None = None
    for alias in aliases:
        path, _, leaf = alias.rpartition(".")
        owner = module.get_submodule(path)
        table: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
        old = table[leaf]
        if new is None:
            data = program.weights[name].to(old)
            new = nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
        undo.item(table, leaf, new)


def _said_by_weights(module: nn.Module, original: Program) -> Said:
    """Which integer attributes of a class equal one dimension of one parameter, in all layers of that class."""
    shapes = original.shapes()
    found: dict[type, set[tuple[str, str, int]]] = {}
    for path, layer in module.named_modules():
        own = {leaf: shapes.get(f"{path}.{leaf}") for leaf in layer._parameters}
        here = {
            (name, leaf, dim)
            for name, value in vars(layer).items() if type(value) is int and value > 1
            for leaf, shape in own.items() for dim, size in enumerate(shape or ()) if size == value
        }  # fmt: skip
        found[type(layer)] = found.get(type(layer), here) & here
    return found


def _set_layer_sizes(undo: _Undo, module: nn.Module, said: Said) -> None:
    """Let size attributes say what the weights say, by what is known of standard layers, else by what was seen."""
    for layer in module.modules():
        for name, leaf, dim in () if any(_sizes(layer)) else said.get(type(layer), ()):
            undo.attribute(layer, name, layer._parameters[leaf].shape[dim])  # type: ignore[union-attr]
        for name, value in list(_sizes(layer)):
            if getattr(layer, name) != value:
                undo.attribute(layer, name, value)


def _sizes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The size attributes of a standard layer and their values, from the shape of its weight."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(layer, nn.Linear):
        yield from zip(("out_features", "in_features"), weight.shape, strict=True)
    elif isinstance(layer, nn.Embedding):
        yield from zip(("num_embeddings", "embedding_dim"), weight.shape, strict=True)
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        yield "normalized_shape", tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        yield "num_channels", weight.shape[0]
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        yield "num_features", weight.shape[0]
    elif isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
        yield "out_channels", weight.shape[0]
        if layer.groups == layer.in_channels == layer.out_channels:  # depthwise: one group a channel, before and after
            yield from (("groups", weight.shape[0]), ("in_channels", weight.shape[0]))
        else:
            yield "in_channels", weight.shape[1] * layer.groups


def _follow_config(undo: _Undo, program: Program, module: nn.Module) -> str:
    """Let a Hugging Face configuration say the new widths, if it can; return why it cannot."""
    config = getattr(module, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return ""
    named = copy.deepcopy(config)
    named.architectures = [type(module).__name__]
    try:
        new = config_widths.fit(named, program.shapes())
    except ExportError as fault:
        return str(fault)
    for name, value in vars(new).items():
        if type(value) is int and getattr(config, name, None) != value:
            undo.attribute(config, name, value)
    return ""


def _settle(undo: _Undo, program: Program, module: nn.Module, rewritten: Rewritten, said: Said) -> Verification:
    """Try the attributes that may have made the changed literals, all of them first, until the numbers agree."""
    candidates = _candidates(module, rewritten, said)
    fault: Exception | None = None
    mark = len(undo.steps)
    for chosen in _subsets(candidates):
        for thing, name, value in (target for key in chosen for target in candidates[key]):
            undo.attribute(thing, name, value)
        try:
            return _agree(program, module)
        except (VerificationError, RuntimeError, ValueError, TypeError) as error:  # a wrong size fails in any of these
            fault = fault or error
            undo.back(mark)
    assert fault is not None  # the empty subset is always tried
    changes = ", ".join(f"{c.node}: {c.before} -> {c.after}" for c in rewritten.changes[:4])
    raise WriteBackError(
        f"{type(module).__name__} computes with a size that no attribute controls (changed literals: {changes}...): "
        f"{first_line(fault)}; use the rewritten graph module, program.module(), instead"
    ) from fault


def _candidates(
    module: nn.Module, rewritten: Rewritten, said: Said
) -> dict[tuple[str, str, int], list[tuple[object, str, int]]]:
    """Integer attributes that may have made the changed literals, by class, attribute and old value.

    An attribute counts only if it has the literal's old value in every module of its class that made such a literal.
    """
    nodes = {node.name: node for node in rewritten.original.graph.nodes}
    found: dict[tuple[str, str, int], dict[str, tuple[object, str, int]]] = defaultdict(dict)
    makers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for change in rewritten.changes:
        if isinstance(change.before, float) or isinstance(change.after, float):
            continue  # the epsilon of a norm: too small to tell what made it
        for path in _stack(nodes[change.node].meta):
            kind = type(module.get_submodule(path)).__qualname__
            makers[kind, change.before].add(path)
            known = {name for name, _, _ in said.get(type(module.get_submodule(path)), ())}
            for name in set(_integers(module.get_submodule(path), change)) - known:
                found[kind, name, change.before][path] = (module.get_submodule(path), name, change.after)
    return {key: list(t.values()) for key, t in found.items() if set(t) == makers[key[0], key[2]]}


def _stack(meta: Mapping[str, Any]) -> Iterator[str]:
    """The paths of the modules in whose forward a node was made, innermost first, the outermost left out."""
    paths = [path for path, _ in (meta.get("nn_module_stack") or {}).values()]
    return (path for path in reversed(paths) if path)


def _integers(layer: nn.Module, change: Change) -> list[str]:
    return [n for n, v in vars(layer).items() if type(v) is int and v == change.before and not n.startswith("_")]


def _subsets(keys: Iterable[tuple[str, str, int]]) -> Iterator[tuple[tuple[str, str, int], ...]]:
    """All keys, then all but one, and so on; no more than `TRIALS`."""
    every = tuple(keys)
    subsets = (subset for size in range(len(every), -1, -1) for subset in combinations(every, size))
    return (subset for _, subset in zip(range(TRIALS), subsets, strict=False))


@torch.no_grad()
def _agree(program: Program, module: nn.Module) -> Verification:
    """Compare module and graph on fresh inputs, in evaluation mode."""
    args, kwargs = fresh_inputs(program, seed=0)
    expected = program.module()(*args, **kwargs)  # first, for the module may write into its buffers
    with evaluation(module):
        return compare(expected, module(*args, **kwargs), "rewritten graph and written-back module")
