"""Whole programs, run a node at a time with few of their weights in memory: for models that are larger than it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.execution.segments import activation_nodes, evaluate_node, split
from graphprune.ir.program import Inputs, Program


@torch.no_grad()
def run(program: Program, cases: Sequence[Inputs], seeds: Sequence[int]) -> list[Any]:
    """What ``program.module()`` makes of copies of each case's inputs, bit for bit, without loading all weights.

    A weight is read, for all cases at once, when the first node of a segment asks for it, and dropped after the last
    one there that does: at most the weights of one segment are held, most often that of one operator. Values are
    dropped after their last use. Every case draws the random numbers of its seed, and has its own copy of each buffer
    that a run writes into.

    Raises:
        LoadError: if a weight cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        runs = [_Case.start(program, inputs, seed) for inputs, seed in zip(cases, seeds, strict=True)]
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
                case.step(node, held)
                case.drop(values.get(node, ()))
            for name in last_reads.get(node, ()):
                del held[name]
        return [case.outputs() for case in runs]


@dataclass
class _Case:
    """One run: the values that are alive, the buffers that it writes into, and the state of its random numbers."""

    program: Program
    values: dict[str, Any]
    written: Mapping[str, Tensor]
    draws: Tensor

    @classmethod
    def start(cls, program: Program, inputs: Inputs, seed: int) -> "_Case":
        args, kwargs = inputs
        leaves = pytree.tree_map_only(Tensor, Tensor.clone, program.flat(args, kwargs))
        names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        torch.manual_seed(seed)
        written = {name: program.weights[name].clone() for name in program.written()}
        return cls(program, dict(zip(names, leaves, strict=True)), written, torch.get_rng_state())

    def step(self, node: fx.Node, held: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(self.draws)
        self.values[node.name] = evaluate_node(node, self.values, lambda n: self._attribute(n, held))
        self.draws = torch.get_rng_state()

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            del self.values[name]

    def outputs(self) -> Any:
        """The values of the output node, in the structure that the module returns."""

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
    """The names of the weights that each operator reads; what a run writes into belongs to each case."""
    shared = program.shapes().keys() - program.written()
    found = {}
    for node in program.graph.nodes:
        names = dict.fromkeys(program.name(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr")
        found[node] = [name for name in names if name in shared]
    return found


def _last_uses(program: Program) -> dict[fx.Node, list[str]]:
    """Which values no node after this one uses."""
    found: dict[fx.Node, list[str]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        for used in (node, *node.all_input_nodes):  # a value that nobody uses is dropped at once
            if used not in seen and used.op != "get_attr":
                seen.add(used)
                found.setdefault(node, []).append(used.name)
    return found


def _last_reads(program: Program, reads: Mapping[fx.Node, Sequence[str]]) -> dict[fx.Node, list[str]]:
    """Which weights no node of the same segment reads after this one; outside segments, every node reads anew."""
    segments = [segment.nodes for segment in split(program, {node.name for node in activation_nodes(program)})]
    inside = {node for nodes in segments for node in nodes}
    alone = [(node,) for node in program.graph.nodes if node.op == "call_function" and node not in inside]
    found: dict[fx.Node, list[str]] = {}
    for nodes in (*segments, *alone):
        last = {name: node for node in nodes for name in reads[node]}
        for name, node in last.items():
            found.setdefault(node, []).append(name)
    return found
