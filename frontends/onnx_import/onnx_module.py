"""Module that runs an ONNX graph with operators of torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.errors import LoadError, because
from graphprune.frontends.onnx_import.known_numbers import evaluate
from graphprune.frontends.onnx_import.onnx_values import (
    FileTensor,
    NodeCall,
    UnsupportedError,
    Value,
    as_tensor,
    is_symbolic,
    known,
    to_tensor,
)  # fmt: skip
from graphprune.frontends.onnx_import.operators import TRANSLATIONS, key, quantized
from graphprune.frontends.onnx_import.plain_names import plain, plain_names
from graphprune.support.packages import onnx_ir as ir

MOST_ROUNDS = 64  # of a loop that is unrolled
STATISTICS = {"BatchNormalization": (3, 4)}  # inputs that are no parameters
_QUANTIZED = re.compile(r"(^|::)Q(Linear|Gemm|Attention|Embed|Ordered|MoE)|Quantize|Integer")
CONTROL = ("If", "Loop", "Constant")
_CONSTANTS = {"value", "value_float", "value_floats", "value_int", "value_ints"}  # attributes that hold numbers


class TranslatedGraph(nn.Module):
    """Module that computes the graph of a file; its parameters have the names of the file.

    It is called with the inputs by keywords, and returns the outputs by name. Names are made unique and plain:
    `renamed` has the names in the file.
    """

    def __init__(self, model: ir.Model, file: str, dequantize: bool = False) -> None:
        super().__init__()
        graph: Any = model.graph
        self._attributes: dict[str, str] = {}
        self.owners: dict[str, nn.Module] = {}
        self.plan = GraphRun(graph, dict(model.opset_imports), file)
        stored = {name: FileTensor(name, value.const_value, self.read) for name, value in graph.initializers.items()}
        self.stored = self._folded(stored, dequantize)
        self.plan.require_translations(self.stored)
        self.rounds = self._dequantized(dequantize)
        self._register(self.stored)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return list(plain_names(value.name for value in self.plan.graph.outputs).values())

    def _folded(self, stored: dict[str, FileTensor], dequantize: bool) -> dict[str, FileTensor]:
        """Tensors that are known before a run: those of the file, and what follows from constants alone."""
        plan = self.plan
        for node in plan.graph:
            if any(value is None or value.name not in stored for value in node.inputs if value is not None):
                continue
            results = plan.folded(node, [None if v is None else stored[v.name] for v in node.inputs], dequantize)
            for value, result in zip(node.outputs, results or (), strict=bool(results)):
                if result is not None:
                    stored[value.name] = FileTensor(value.name, result, self.read)
        return stored

    def _dequantized(self, dequantize: bool) -> bool:
        """Unpack quantized matrices; whether the file rounds activations, too.

        Raises:
            LoadError: if there are quantized numbers, and they are to be left alone.
        """
        left = [node for node in self.plan.nodes() if key(node.domain, node.op_type) in quantized.NAMES]
        left = [node for node in left if not all(value.name in self.stored for value in node.outputs)]
        if left and not dequantize:
            raise LoadError(
                f"{self.plan.file}: node {left[0].name or left[0].outputs[0].name!r} "
                f"({key(left[0].domain, left[0].op_type)}) computes with quantized numbers, whose axes cannot be cut; "
                "graphprune.load(file, dequantize=True), or --dequantize, turns them into floating-point numbers"
            )
        codes = dict(self.stored)  # several nodes may read one tensor
        for node in left:
            inputs = tuple(None if v is None else codes.get(v.name) for v in node.inputs)
            if len(inputs) > 1 and inputs[1] is not None:
                name = node.inputs[1].name
                if (numbers := quantized.stored_floats(NodeCall(node, inputs, self.plan.opset))) is not None:
                    self.stored[name] = FileTensor(name, numbers, self.read)
        return any(node.op_type in quantized.ROUNDING for node in left)

    def _register(self, stored: Mapping[str, FileTensor]) -> None:
        statistics = {
            node.inputs[index].name
            for node in self.plan.nodes()
            for index in STATISTICS.get(node.op_type, ())
            if index < len(node.inputs) and node.inputs[index] is not None
        }
        used = {value.name for node in self.plan.nodes() for value in node.inputs if value is not None}
        used |= {value.name for value in self.plan.graph.outputs}
        for name, tensor in stored.items():
            if name not in used or math.prod(tensor.shape) == 0 or not (tensor.shape or not tensor.is_weight):
                continue
            if not tensor.is_weight and (not tensor.shape or tensor.array.dtype.kind not in "iufb"):
                continue
            self._add(name, tensor, tensor.is_weight and name not in statistics)

    def _add(self, name: str, tensor: FileTensor, is_parameter: bool) -> None:
        """Register a tensor under its name; a dot begins a submodule."""
        *path, leaf = (part or "_" for part in plain(name).split("."))
        owner: nn.Module = self
        for part in path:
            inner = owner._modules.get(part)
            if inner is None:
                while hasattr(owner, part):
                    part += "_"
                inner = owner._modules.get(part) or nn.Module()
                owner._modules[part] = inner
            owner = inner
        while hasattr(owner, leaf):
            leaf += "_"
        numbers = to_tensor(tensor.array)
        if is_parameter:
            owner._parameters[leaf] = nn.Parameter(numbers, requires_grad=False)
        else:
            owner._buffers[leaf] = numbers
        self._attributes[name] = leaf
        self.owners[name] = owner

    def renamed(self) -> dict[str, str]:
        """Names in the file of parameters and buffers whose attributes have other names."""
        paths = {id(module): prefix for prefix, module in self.named_modules()}
        own = {name: f"{paths[id(self.owners[name])]}.{leaf}".lstrip(".") for name, leaf in self._attributes.items()}
        return {attribute: name for name, attribute in own.items() if attribute != name}

    def read(self, name: str) -> Tensor:
        """Parameter, buffer or constant of this name in the file."""
        if name not in self._attributes:
            return as_tensor(self.stored[name].array)
        owner, leaf = self.owners[name], self._attributes[name]
        tensor: Tensor | None = owner._parameters.get(leaf)
        tensor = owner._buffers[leaf] if tensor is None else tensor
        assert tensor is not None
        return tensor

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name.

        Raises:
            LoadError: if a node cannot be translated; it names the node and its operator.
        """
        plan: GraphRun = self.plan
        env: dict[str, Value] = dict(self.stored)
        env.update(zip([value.name for value in plan.inputs], inputs.values(), strict=True))
        plan.run(plan.graph, env)
        values = [as_tensor(env[value.name]) for value in plan.graph.outputs]
        return dict(zip(self.outputs, values, strict=True))


class GraphRun:
    """Interpreter of a graph and its subgraphs."""

    def __init__(self, graph: Any, opsets: Mapping[str, int], file: str) -> None:
        self.graph, self.file = graph, file
        self.opset = opsets.get("", opsets.get("ai.onnx", 1))
        self.inputs = [value for value in graph.inputs if value.name not in graph.initializers]
        self.watch: dict[str, Tensor] | None = None
        self.rounding = False  # of activations, as in the file

    def nodes(self) -> Iterator[Any]:
        """Nodes of the graph and of all graphs in it."""
        yield from self.graph.all_nodes()

    def folded(
        self, node: Any, inputs: Sequence[FileTensor | None], dequantize: bool
    ) -> Sequence[np.ndarray | None] | None:
        """Values of a node of constants; None if it must run."""
        if node.op_type == "Constant":
            return [_constant(node)] if _CONSTANTS & {*node.attributes} else None
        call = NodeCall(node, tuple(inputs), self.opset)
        if key(node.domain, node.op_type) not in quantized.NAMES:
            return evaluate(call)
        return [quantized.dequantized(call)] if node.op_type == "DequantizeLinear" and dequantize else None

    def require_translations(self, known_values: Mapping[str, Any]) -> None:
        """Check that every node that runs has a translation.

        Raises:
            LoadError: if one has none; it names the node and its operator.
        """
        names = [
            (node, key(node.domain, node.op_type)) for node in self.nodes()
            if not all(value.name in known_values for value in node.outputs)
        ]  # fmt: skip
        unknown = [(node, name) for node, name in names if name not in (*CONTROL, *TRANSLATIONS)]
        if unknown:
            node, name = unknown[0]
            kinds = ", ".join(sorted({name for _, name in unknown}))
            way_out = (
                "it computes with quantized numbers: take the file before it was quantized"
                if _QUANTIZED.search(name)
                else "register a function of torch for it in graphprune.frontends.onnx_import.operators.TRANSLATIONS"
            )
            raise LoadError(
                f"{self.file}: node {node.name or node.outputs[0].name!r} has the operator {name}, which is not "
                f"translated ({len(unknown)} such nodes: {kinds}); {way_out}"
            )

    def run(self, graph: Any, env: dict[str, Value]) -> None:
        """Compute all values of a graph."""
        for node in graph:
            if node.outputs and all(value.name in env for value in node.outputs):
                continue  # computed from constants
            values = self._values(node, env)
            for value, result in zip(node.outputs, values, strict=False):
                env[value.name] = result
                if self.watch is not None and isinstance(result, Tensor):
                    self.watch[value.name] = result

    def _values(self, node: Any, env: dict[str, Value]) -> Sequence[Value]:
        inputs = tuple(None if value is None else env[value.name] for value in node.inputs)
        call = NodeCall(node, inputs, self.opset, self.rounding)
        try:
            if node.op_type in ("If", "Loop") and node.domain in ("", "ai.onnx"):
                return self._branch(call, env) if node.op_type == "If" else self._loop(call, env)
            if node.op_type == "Constant":
                return [_constant(node)]
            results = evaluate(call)
            if results is None:
                results = TRANSLATIONS[key(node.domain, node.op_type)](call)
            return results if isinstance(results, tuple) else (results,)
        except LoadError:
            raise
        except (UnsupportedError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as fault:
            raise LoadError(
                f"{self.file}: node {node.name or node.outputs[0].name!r} ({key(node.domain, node.op_type)}) cannot be "
                f"translated{because(fault)}"
            ) from fault

    def _branch(self, call: NodeCall, env: dict[str, Value]) -> Sequence[Value]:
        """Outputs of the branch that the sizes of the inputs choose."""
        condition = known(call.inputs[0])
        if condition is None or is_symbolic(condition.reshape(-1)[0]):
            raise UnsupportedError(
                "values of the inputs decide which branch runs; export the model for one of them, or put this branch "
                "in the place of the node"
            )
        branch = call.attribute("then_branch" if condition.reshape(-1)[0] else "else_branch")
        return self._body(branch, env)

    def _body(self, graph: Any, env: Mapping[str, Value]) -> list[Value]:
        inner = dict(env)
        for name, value in graph.initializers.items():
            inner[name] = FileTensor(name, value.const_value)
        self.run(graph, inner)
        return [inner[value.name] for value in graph.outputs]

    def _loop(self, call: NodeCall, env: dict[str, Value]) -> Sequence[Value]:
        """Outputs of a loop that is unrolled."""
        trips = None if call.inputs[0] is None else known(call.inputs[0])
        if trips is None or is_symbolic(trips.reshape(-1)[0]) or int(trips.reshape(-1)[0]) > MOST_ROUNDS:
            raise UnsupportedError(f"the number of rounds is not a constant of at most {MOST_ROUNDS}")
        body, state, scans = call.attribute("body"), list(call.inputs[2:]), []
        names = [value.name for value in body.inputs]
        condition: Value = np.array(True)
        for i in range(int(trips.reshape(-1)[0])):
            values = [np.array(i, dtype=np.int64), condition, *state]
            condition, *rest = self._body(body, {**env, **dict(zip(names, values, strict=True))})
            if (going_on := known(condition)) is None:
                raise UnsupportedError("values of the inputs decide when it ends")
            state = rest[: len(state)]
            scans.append(rest[len(state) :])
            if not going_on.reshape(-1)[0]:
                break
        return [*state, *(torch.stack([as_tensor(v) for v in column]) for column in zip(*scans, strict=True))]


def _constant(node: Any) -> np.ndarray:
    """Value of a node that holds a constant."""
    name, attribute = next(iter(node.attributes.items()))
    value = attribute.value
    if name == "value":
        array: np.ndarray = value.numpy()
        return array
    if name in ("value_float", "value_floats"):
        return np.array(value, dtype=np.float32)
    if name in ("value_int", "value_ints"):
        return np.array(value, dtype=np.int64)
    raise UnsupportedError(f"a constant of the kind {name}")
