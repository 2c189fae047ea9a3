"""Program: an FX graph over ATen operators, weights by name, and facts about both."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.errors import WriteBackError, require_type
from graphprune.ir.checksums import checksum
from graphprune.ir.guards import ExpectedInput, Guard, InputCheck, problems
from graphprune.ir.printer import type_text
from graphprune.ir.weights import KeepByName, Weights

F = TypeVar("F")
SHOWN = 4  # inputs and conditions in a program's text
INPUT_CHECK = "_input_check"  # submodule of a program's module
Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]

#: Functions that derive facts from a program alone, where no pass has made them.
DERIVED: "dict[type, Callable[[Program], Any]]" = {}


@dataclass(frozen=True)
class Source:
    """Source of a program: a folder, a file, or the name of a callable."""

    path: Path
    kind: str  # "huggingface", "pt2", "onnx" or "python"
    dtype: torch.dtype = torch.float32  # of the stored weights
    dropped: tuple[str, ...] = ()  # entries of its lists of modules that the program does not have
    tokenizer: Path | None = None  # folder of the tokenizer, where it is another
    names: Mapping[str, str] = field(default_factory=dict)  # names in the file of weights that have others here

    @property
    def texts(self) -> Path:
        """Folder or file next to which the tokenizer is."""
        return self.tokenizer or self.path


@dataclass(frozen=True)
class Traced:
    """A model of transformers that the traced module is, or holds: it can be saved as a folder, as one that was loaded.

    `prefix` is the start of its names in the program, `settings` its configuration, and `whole` the traced module
    without weights, if it holds the model and can be copied.
    """

    prefix: str
    settings: Any
    dtype: torch.dtype
    whole: nn.Module | None = None
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewritten:
    """Fact of a cut program: the original, retained indices of its parameters and groups, and rescaled weights.

    `follow` applies the cut to the original module.
    """

    original: "Program"
    keep: KeepByName
    groups: Mapping[str, tuple[tuple[int, ...], ...]]
    scales: Mapping[str, float]
    follow: Callable[..., Any]


@dataclass(frozen=True)
class Dropped:
    """Fact of a program with dropped blocks: the original, and the names of the blocks in it.

    `follow` removes the blocks from a module, and returns the result of the write-back and a function that undoes it.
    It is None if parts of blocks were dropped, which a module cannot follow.
    """

    original: "Program"
    blocks: tuple[str, ...]
    follow: Callable[..., tuple[Any, Callable[[], None]]] | None


@dataclass(frozen=True)
class Trimmed:
    """Fact of a program with fewer tokens in its vocabulary: the original."""

    original: "Program"


@dataclass(frozen=True)
class Factored:
    """Fact of a factorized program: the original, and the rank of each factorized weight.

    `errors` holds the relative squared error of the outputs of each linear layer before and after the fit to
    calibration inputs; `left` has the reasons for weights that were not factorized. `tables` has the number of rows and
    the rank of every group of rows of embedding tables.
    """

    original: "Program"
    ranks: Mapping[str, int]
    errors: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]
    tables: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class SplitSizes:
    """Sizes of a layer that was split: the number of `experts`, those `active` for a token, and neurons of each."""

    experts: int
    active: int
    width: int


@dataclass(frozen=True)
class ExpertSplit:
    """Fact of a program whose feed-forward layers were split into experts: the original, and sizes by last weight.

    `errors` holds the relative squared error of the outputs of each layer before and after the refit, and `left` the
    reasons for groups of neurons that were not split. `parts` has the new parameters in the place of each old one.
    """

    original: "Program"
    sizes: Mapping[str, SplitSizes]
    errors: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Rotatable:
    """Fact of a program whose norm weights are fused into linear layers, so that residual streams can be rotated.

    `groups` are the streams' names in the original. `ones` names weights of norms that are all one now, `added` new
    parameters, `shortcuts` those of them that connect one stream to the next, and `changed` all with new values.
    `foreign`: no module of the model's class computes the program, because the class lacks its new layers or norms.
    """

    original: "Program"
    groups: frozenset[str]
    ones: frozenset[str]
    added: frozenset[str]
    shortcuts: frozenset[str]
    changed: frozenset[str]
    foreign: bool


@dataclass(frozen=True)
class Program:
    """Immutable graph with its weights; every pass returns a new one.

    `graph` holds one ``get_attr`` node for each parameter or buffer and one ``placeholder`` for each input leaf, and
    every node's ``meta["val"]`` is a fake tensor with its (possibly symbolic) shape. `weights` are read lazily. `ties`
    has the stored name for each further name of a shared parameter. Inputs and outputs whose names match `state` (a
    key/value cache) may be pruned; the shapes of all others are an interface. The program holds for inputs for which
    all `guards` do. `unchecked` lists what could not be compared with the model that was captured. `fixed` has
    the dimensions of parameters whose size is set outside of the graph, with the reasons. `captured` is the module in
    memory, whose parameters the weights share, if there is one. `constants` counts the parameters that the captured
    call does not use, of an auxiliary head say: they are part of the model, and no cut changes their number.
    """

    graph: fx.Graph
    weights: Weights
    parameters: frozenset[str]
    ties: Mapping[str, str]
    inputs: Inputs
    submodules: Mapping[str, nn.Module] = field(default_factory=lambda: MappingProxyType({}))
    state: tuple[str, ...] = ()
    source: Source | None = None
    traced: Traced | None = None
    facts: Mapping[type, Any] = field(default_factory=lambda: MappingProxyType({}))
    guards: tuple[Guard, ...] = ()
    unchecked: tuple[str, ...] = ()
    fixed: Mapping[str, Mapping[int, str]] = field(default_factory=lambda: MappingProxyType({}))
    captured: nn.Module | None = None
    constants: int = 0

    def __repr__(self) -> str:
        calls = sum(node.op == "call_function" for node in self.graph.nodes)
        head = f"{self.count():,} parameters in {len(self.parameters - self.ties.keys())} tensors, {calls:,} operators"
        inputs = [f"{n.name} {type_text(n.meta.get('val'))}".strip() for n in self.graph.nodes if n.op == "placeholder"]
        more = [f"{len(inputs) - SHOWN} more"] if len(inputs) > SHOWN else []
        lines = [f"Program{f' of {self.source.path}' if self.source else ''}: {head}"]
        lines.append(f"  inputs: {', '.join(inputs[:SHOWN] + more) or 'none'}")
        conditions = [guard.text for guard in self.guards[:SHOWN]]
        conditions += [f"{len(self.guards) - SHOWN} more conditions"] if len(self.guards) > SHOWN else []
        lines += [f"  holds where {', '.join(conditions)}"] if conditions else []
        lines += [f"  not compared with the model: {why}" for why in self.unchecked]
        return "\n".join(lines + ([f"  facts: {', '.join(k.__name__ for k in self.facts)}"] if self.facts else []))

    def fact(self, kind: type[F]) -> F:
        """Fact of this kind that an earlier pass made, or that can be derived.

        Raises:
            KeyError: if there is none; a pipeline checks this before anything runs.
        """
        fact: F = DERIVED[kind](self) if kind in DERIVED and kind not in self.facts else self.facts[kind]
        return fact

    def with_facts(self, *facts: object, **changes: Any) -> "Program":
        """Program with additional `facts`, and with changed fields."""
        known = {**self.facts, **{type(fact): fact for fact in facts}}
        return replace(self, facts=MappingProxyType(known), **changes)

    def without(self, *kinds: type) -> "Program":
        """Program without facts that no longer hold."""
        return replace(self, facts=MappingProxyType({k: v for k, v in self.facts.items() if k not in kinds}))

    def name(self, alias: str) -> str:
        """Stored name of a parameter, for any of its names."""
        return self.ties.get(alias, alias)

    def names(self, nodes: Iterable[fx.Node]) -> set[str]:
        """Stored names of the parameters and buffers among these nodes; other nodes are skipped."""
        return {self.name(str(node.target)) for node in nodes if node.op == "get_attr"}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of stored parameters and buffers, without reading them."""
        values = {self.name(str(n.target)): n.meta["val"] for n in self.tensors()}
        return {name: tuple(int(size) for size in val.shape) for name, val in values.items()}

    def tensors(self) -> Iterator[fx.Node]:
        """Nodes that read a parameter, a buffer or a lifted constant."""
        return (n for n in self.graph.nodes if n.op == "get_attr" and isinstance(n.meta.get("val"), Tensor))

    def written(self) -> set[str]:
        """Names of the buffers that a run writes to."""
        return self.names(node for node in self.tensors() if any(map(_writes, node.users)))

    def count(self) -> int:
        """Number of parameters; shared ones count once."""
        shapes = self.shapes()
        return sum(torch.Size(shapes[name]).numel() for name in shapes if name in self.parameters)

    def fingerprint(self) -> str:
        """Hash of the names and shapes of all parameters, equal for every capture of one model."""
        shapes = sorted((name, shape) for name, shape in self.shapes().items() if name in self.parameters)
        return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]

    def checksum(self) -> str:
        """A hash of the values of all parameters; reads every weight."""
        return checksum(self.weights[name] for name in sorted(self.parameters))

    def flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """Input leaves in the order of the placeholders."""
        named = {key: kwargs[key] for key in self.inputs[1]}
        return pytree.tree_leaves((args, named))

    def input_check(self) -> InputCheck:
        """Module that raises an InputError for leaves of inputs for which this program does not hold."""
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        examples = pytree.tree_leaves((self.inputs[0], dict(self.inputs[1])))
        return InputCheck([ExpectedInput.of(*pair) for pair in zip(nodes, examples, strict=True)], self.guards)

    def violation(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Reason why the program does not hold for inputs; None if it does."""
        check = self.input_check()
        return next(problems(check.expected, check.guards, self.flat(args, kwargs)), None)

    def module(self) -> fx.GraphModule:
        """Module that runs the graph and is called like the traced one; loads all weights.

        It raises an InputError for inputs for which the capture does not hold.
        """
        root: dict[str, Any] = dict(self.submodules)
        stored = {name: self.tensor(name) for name in self.shapes()}
        stored |= {name: stored[name].clone() for name in self.written()}  # a run must not change the program
        root |= {str(node.target): stored[self.name(str(node.target))] for node in self.tensors()}
        graph = copy_graph(self.graph)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        if placeholders:
            root[INPUT_CHECK] = self.input_check()
            with graph.inserting_after(placeholders[-1]):
                graph.call_module(INPUT_CHECK, tuple(placeholders))
        return fx.GraphModule(root, graph).eval()

    def write_back(self, module: nn.Module, **companions: Any) -> Any:
        """Apply the cuts of this program to the original `module`; see `writeback.module.write_back`.

        `companions` follow it: `optimizer`, one or several whose parameters are swapped and whose moments are cut, and
        `average`, an averaged copy. With `configuration=False`, a configuration of transformers does not.

        Raises:
            WriteBackError: if nothing was cut, or the module cannot follow; it is unchanged then.
        """
        rewritten, dropped = self.facts.get(Rewritten), self.facts.get(Dropped)
        if Factored in self.facts:
            raise WriteBackError(
                "a module has no layers for factors of a low rank; use the rewritten graph, program.module(), instead"
            )
        if ExpertSplit in self.facts:
            raise WriteBackError(
                "a module of dense layers has no router and no experts; use the rewritten graph, program.module(), "
                "instead"
            )
        if Rotatable in self.facts and self.fact(Rotatable).foreign:
            raise WriteBackError(
                "the module lacks the linear layers and norms of rotated residual streams; use the rewritten graph, "
                "program.module(), instead"
            )
        if rewritten is None and dropped is None:
            raise WriteBackError("nothing was cut from this program; apply a plan first")
        if rewritten is not None and dropped is None:
            return rewritten.follow(self, module, **companions)
        assert dropped is not None
        if dropped.follow is None:
            raise WriteBackError(
                f"parts of blocks, such as {dropped.blocks[0]}, cannot be removed from a module; use the rewritten "
                "graph, program.module(), instead"
            )
        result, undo = dropped.follow(rewritten.original if rewritten else self, module, **companions)
        if rewritten is None:
            return result
        try:
            return rewritten.follow(self, module, **companions)
        except BaseException:
            undo()
            raise

    def tensor(self, name: str) -> Tensor:
        """Weight as a module has it: kernels choose their order of summation by whether it is a parameter."""
        tensor = self.weights[name]
        trainable = tensor.is_floating_point() or tensor.is_complex()
        return nn.Parameter(tensor, trainable) if name in self.parameters else tensor


def require_program(value: object, name: str = "program") -> Program:
    """Return a program.

    Raises:
        OptionError: if the value is none, such as a module or the name of a folder.
    """
    advice = "graphprune.load makes one of a folder, a file or package.module:callable, graphprune.trace of a module"
    return require_type(name, value, Program, advice)


def _writes(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.copy_.default


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Copy of a graph with its own nodes and the same calling convention."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    copy._codegen = graph._codegen
    return copy
