"""Run whole programs a node at a time with few weights in memory, for models that exceed it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.errors import InputError
from graphprune.execution.liveness import Watch
from graphprune.execution.segments import activation_nodes, evaluate_node, split
from graphprune.ir.guards import InputCheck
from graphprune.ir.program import Inputs, Program
from graphprune.ir.weights import Layered

NOTHING: Watch = MappingProxyType({})
Observer = Callable[[Any], None] | None


def run(program: Program, cases: Sequence[Inputs], seeds: Sequence[int]) -> list[Any]:
    """Outputs of ``program.module()`` on each case, as `attempt` has them; an error of any case is raised.

    Raises:
        InputError: if the program does not hold for some inputs.
    """
    outputs = attempt(program, cases, seeds)
    for output in outputs:
        if isinstance(output, Exception):
            raise output
    return outputs


def continued(program: Program, inputs: Inputs, seed: int) -> Program:
    """Program as a call on `inputs` leaves it: its buffers hold what the run wrote to them.

    Raises:
        InputError: if the program does not hold for the inputs.
    """
    [case] = _cases(program, [inputs], [seed])
    if case.error is not None:
        raise case.error
    return replace(program, weights=Layered((case.written, program.weights)))


def attempt(program: Program, cases: Sequence[Inputs], seeds: Sequence[int], watch: Watch = NOTHING) -> list[Any]:
    """Outputs of ``program.module()`` on copies of each case's inputs, bit for bit, without loading all weights.

    A case that the program does not accept has its error instead.
    A weight is read for all cases at the first node of a segment that uses it, and dropped after the last: at most the
    weights of one segment are held, most often those of one operator. Values are dropped after their last use. Every
    case draws the random numbers of its seed, and has its own copy of each buffer that a run writes to. Functions in
    `watch` see the values of the nodes of these names.

    Raises:
        LoadError: if a weight cannot be read.
    """
    return [case.error or case.outputs() for case in _cases(program, cases, seeds, watch)]


@torch.no_grad()
def _cases(program: Program, cases: Sequence[Inputs], seeds: Sequence[int], watch: Watch = NOTHING) -> "list[_Case]":
    """Runs of all cases up to their outputs."""
    with torch.random.fork_rng(devices=[]):
        check = program.input_check()
        runs = [_Case.start(program, inputs, seed, check) for inputs, seed in zip(cases, seeds, strict=True)]
        reads, values = _reads(program), _last_uses(program)
        last_reads = _last_reads(program, reads)
        held: dict[str, Tensor] = {}
        for node in program.graph.nodes:
            if node.op == "output":
                break
            if node.op != "call_function":
                continue
            held |= {name: program.tensor(name) for name in reads[node] if name not in held}
            for case in runs:
                case.step(node, held, values.get(node, ()), watch.get(node.name))
            if all(case.error for case in runs):
                break
            for name in last_reads.get(node, ()):
                del held[name]
        return runs


@dataclass
class _Case:
    """Run of one case: its live values, the buffers that it writes to, and the state of its random numbers."""

    program: Program
    values: dict[str, Any]
    written: Mapping[str, Tensor]
    draws: Tensor
    error: Exception | None = None

    @classmethod
    def start(cls, program: Program, inputs: Inputs, seed: int, check: InputCheck) -> "_Case":
        args, kwargs = inputs
        try:
            check(*program.flat(args, kwargs))
        except InputError as error:
            return cls(program, {}, {}, torch.get_rng_state(), error)
        leaves = pytree.tree_map_only(Tensor, Tensor.clone, program.flat(args, kwargs))
        names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        torch.manual_seed(seed)
        written = {name: program.weights[name].clone() for name in program.written()}
        return cls(program, dict(zip(names, leaves, strict=True)), written, torch.get_rng_state())

    def step(self, node: fx.Node, held: Mapping[str, Tensor], last_used: Sequence[str], observe: Observer) -> None:
        """Evaluate a node, and drop values; an error ends the case, which retains no values then."""
        if self.error is not None:
            return
        torch.set_rng_state(self.draws)
        try:
            self.values[node.name] = evaluate_node(node, self.values, lambda n: self._attribute(n, held))
            if observe is not None:
                observe(self.values[node.name])
        except Exception as error:  # operators raise any exception
            self.error = error
            self.values.clear()
            return
        self.draws = torch.get_rng_state()
        for name in last_used:
            del self.values[name]

    def outputs(self) -> Any:
        """Values of the output node, in the structure that the module returns."""

        def value(node: fx.Node) -> Any:
            return self._attribute(node, self.program.weights) if node.op == "get_attr" else self.values[node.name]

        flat = pytree.tree_map_only(fx.Node, value, self.program.graph.output_node().args[0])
        return self.program.graph.process_outputs(flat)

    def _attribute(self, node: fx.Node, weights: Mapping[str, Tensor]) -> Any:
        name = self.program.name(str(node.target))
        if name in self.written:
            return self.written[name]
        return self.program.submodules[name] if name in self.program.submodules else weights[name]


def _reads(program: Program) -> dict[fx.Node, list[str]]:
    """Names of the weights that each operator reads, without buffers that a run writes to: each case has its own."""
    shared = program.shapes().keys() - program.written()
    reads = {}
    for node in program.graph.nodes:
        names = dict.fromkeys(program.name(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr")
        reads[node] = [name for name in names if name in shared]
    return reads


def _last_uses(program: Program) -> dict[fx.Node, list[str]]:
    """Values by the node that uses them last."""
    by_node: dict[fx.Node, list[str]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        for used in (node, *node.all_input_nodes):  # an unused value is dropped at once
            if used not in seen and used.op != "get_attr":
                seen.add(used)
                by_node.setdefault(node, []).append(used.name)
    return by_node


def _last_reads(program: Program, reads: Mapping[fx.Node, Sequence[str]]) -> dict[fx.Node, list[str]]:
    """Weights by the node of a segment that reads them last; outside of segments, every node reads its own."""
    segments = [segment.nodes for segment in split(program, {node.name for node in activation_nodes(program)})]
    inside = {node for nodes in segments for node in nodes}
    alone = [(node,) for node in program.graph.nodes if node.op == "call_function" and node not in inside]
    by_node: dict[fx.Node, list[str]] = {}
    for nodes in (*segments, *alone):
        last = {name: node for node in nodes for name in reads[node]}
        for name, node in last.items():
            by_node.setdefault(node, []).append(name)
    return by_node
