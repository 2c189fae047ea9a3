"""Test cases of a few KB to check any runtime against ONNX Runtime: inputs, and samples of the expected outputs.

Integer inputs are written out. Element i of a floating-point input, counted from 0, is ``((i + wave) * 7919 % 10007) /
5003.5 - 1``, the same in every language. Cache inputs that a step omits are the outputs of the previous step, at first
empty.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import VerificationError
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.generation import Decoder
from graphprune.exporters.checks.parity import decisive, typical_size
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.onnx_tools.sessions import OnnxRunner
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import PRESENT, Feeds, Subject, next_cache

_SAMPLES, _STEPS, _PROMPT, _GREEDY = 16, 2, 8, 16
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def cases_of(subject: Subject, runner: OnnxRunner, options: ExportOptions) -> dict[str, Any]:
    """Test cases of a file opened in ONNX Runtime, and for a decoder the greedy tokens after a prompt it generated.

    The runner should compute in floating point, as wasm does even if a file allows 8-bit activations.
    """
    bound = parity.FLOAT16 if options.dtype == "fp16" else parity.FLOAT32
    table: dict[str, Any] = {"bound": bound, "cases": []}
    if subject.has_growing_cache:
        for text in trial_inputs.prompts(subject):
            steps = list(_decoded(subject, runner, text, bound))
            table["cases"].append({"name": text.name, "steps": steps})
        return {**table, "greedy": _greedy(subject, runner, bound)}
    for name, feeds, valid in islice(
        trial_inputs.cacheless_cases(subject), 1 if subject.layers else None
    ):  # no padding in a window
        feeds = {n: x if not x.is_floating_point() else wave(x.shape, k) for k, (n, x) in enumerate(feeds.items())}
        step = _step(runner, feeds, {name: _described(x, k) for k, (name, x) in enumerate(feeds.items())}, valid, bound)
        table["cases"].append({"name": name, "steps": [step[0]]})
    return table


def check(table: Mapping[str, Any], runner: OnnxRunner) -> float:
    """Run the cases and return the largest error, relative to the typical value of its output.

    Raises:
        VerificationError: if an output or a token differs.
    """
    worst = 0.0
    for case in table["cases"]:
        past: Feeds = {}
        for number, step in enumerate(case["steps"]):
            feeds = {name: _read(entry) for name, entry in step["inputs"].items()}
            batch = len(next(iter(feeds.values())))
            past = past or {n: x for n, x in Decoder(runner).empty(batch).items() if n not in feeds}
            outputs = runner.run({**past, **feeds})
            past = next_cache(outputs) if past else past
            for name, samples in step["outputs"].items():
                worst = max(worst, _compare(f"{case['name']}, step {number}: {name}", samples, outputs[name], table))
    if "greedy" in table:
        _same_tokens(table["greedy"], runner)
    return worst


def type_of(value: Any) -> str:
    """The type of an input or output under its JavaScript name: ``float16``, ``int64``."""
    name: str = value.type
    return _TYPES.get(name, name[len("tensor(") : -1])


def wave(shape: torch.Size, seed: int) -> Tensor:
    """Pseudo-random numbers from -1 to 1, the same in every language."""
    whole = (torch.arange(shape.numel()) + seed) * 7919 % 10007
    return (whole.double() / 5003.5 - 1).float().view(shape)


def _decoded(
    subject: Subject, runner: OnnxRunner, prompt: trial_inputs.Prompt, bound: float
) -> Iterator[dict[str, Any]]:
    """Steps of a prompt, in its parts, and of the greedy tokens after it."""
    past, start = Decoder(runner).empty(len(prompt.ids)), 0
    ids, mask = prompt.ids, prompt.mask
    ends = [ids.shape[1] * (part + 1) // prompt.chunks for part in range(prompt.chunks)]
    for step in range(prompt.chunks + _STEPS):
        end = ends[step] if step < prompt.chunks else ids.shape[1]
        feeds = trial_inputs.step_feeds(subject, ids, mask, start, end)
        described = {name: _described(x, 0) for name, x in feeds.items()}
        valid = trial_inputs.valid_positions(mask[:, :end], start)
        record, outputs = _step(runner, {**past, **feeds}, described, valid, bound)
        yield record
        past, start = next_cache(outputs), end
        if end == ids.shape[1]:
            ids = torch.cat([ids, outputs["logits"][:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _step(
    runner: OnnxRunner, feeds: Feeds, described: dict[str, Any], valid: Feeds, bound: float
) -> tuple[dict[str, Any], Feeds]:
    outputs = runner.run(feeds)
    samples = {
        name: _samples(x.float(), valid.get(name, valid.get("tokens")), bound)
        for name, x in outputs.items()
        if not name.startswith(PRESENT)  # an error in the cache shows in the next logits
    }
    return {"inputs": described, "outputs": samples}, outputs


def _described(x: Tensor, seed: int) -> dict[str, Any]:
    shape = list(x.shape)
    return {"shape": shape, "wave": seed} if x.is_floating_point() else {"shape": shape, "data": x.flatten().tolist()}


def _read(entry: Mapping[str, Any]) -> Tensor:
    shape = torch.Size(entry["shape"])
    return wave(shape, entry["wave"]) if "wave" in entry else torch.tensor(entry["data"]).view(shape)


def _samples(x: Tensor, valid: Tensor | None, bound: float) -> dict[str, Any]:
    """Values at some positions, and the argmax of some rows in which it is decided by more than the bound."""
    valid_mask = torch.ones_like(x, dtype=torch.bool)
    if valid is not None and valid.shape == x.shape[: valid.dim()]:
        valid_mask &= valid.bool().view(*valid.shape, *[1] * (x.dim() - valid.dim()))
    scale = float(typical_size(x[valid_mask]))
    positions = _spread((valid_mask & x.isfinite()).flatten().nonzero().flatten().tolist())
    values = [float(f"{value:.7g}") for value in x.flatten()[positions].tolist()]
    rows = x.reshape(-1, x.shape[-1])
    decided = decisive(rows, bound) & valid_mask.reshape(rows.shape)[:, 0]
    argmax = [[row, int(rows[row].argmax())] for row in _spread(decided.nonzero().flatten().tolist())]
    return {"shape": list(x.shape), "scale": scale, "at": positions, "values": values, "argmax": argmax}


def _spread(items: list[int]) -> list[int]:
    """About `_SAMPLES` evenly spaced items, with the last."""
    return items[:: -max(1, len(items) // _SAMPLES)][:_SAMPLES][::-1]


def _greedy(subject: Subject, runner: OnnxRunner, bound: float) -> dict[str, Any]:
    """Greedy tokens after a generated prompt; ``decided`` counts those before the first margin below the bound."""
    prompt = trial_inputs.generated_text(subject, 1, _PROMPT)
    decoder = Decoder(runner)
    tokens = list(decoder.tokens(prompt, _GREEDY))
    ids = torch.cat([prompt, torch.tensor([tokens])], 1)
    logits = decoder.step(ids, 0, decoder.empty())[0][0, _PROMPT - 1 : -1].float()
    decided = decisive(logits, bound).tolist()
    return {"prompt": prompt[0].tolist(), "tokens": tokens, "decided": (*decided, False).index(False)}


def _compare(label: str, samples: Mapping[str, Any], x: Tensor, table: Mapping[str, Any]) -> float:
    if list(x.shape) != samples["shape"]:
        raise VerificationError(f"{label} has shape {list(x.shape)}, expected {samples['shape']}: export again")
    values = torch.tensor(samples["values"])
    scales = values.abs().clamp(min=float(samples["scale"]))
    error = float(((x.float().flatten()[samples["at"]] - values).abs() / scales).amax()) if len(values) else 0.0
    if not error <= table["bound"]:
        raise VerificationError(f"{label} differs from the stored values by {error:.0e} (relative): export again")
    rows = x.reshape(-1, x.shape[-1])
    if any(int(rows[row].argmax()) != argmax for row, argmax in samples["argmax"]):
        raise VerificationError(f"{label} has another most likely output than the stored one: export again")
    return error


def _same_tokens(greedy: Mapping[str, Any], runner: OnnxRunner) -> None:
    count, expected = greedy["decided"], greedy["tokens"]
    tokens = list(Decoder(runner).tokens(torch.tensor([greedy["prompt"]]), count))
    if tokens != expected[:count]:
        raise VerificationError(f"greedy tokens are {tokens}, expected {expected[:count]}: export again")
