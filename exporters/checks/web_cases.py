"""Cases of a few KB by which any runtime shows that it computes what ONNX Runtime does: inputs, and places of outputs.

Integers are written out. Other inputs are `wave`: element i, counted from 0, is ``((i + wave) * 7919 % 10007) / 5003.5
- 1``, the same in every language. Inputs of a cache that a step lacks are what the step before gave, at first empty.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import VerificationError
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.generation import Decoder
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.onnx_tools.sessions import OnnxRunner
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import PRESENT, Feeds, Subject, following

_PLACES, _STEPS, _PROMPT, _GREEDY = 16, 2, 8, 16
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def made(subject: Subject, runner: OnnxRunner, options: ExportOptions) -> dict[str, Any]:
    """Cases of a file that ONNX Runtime opened, and for a decoder the likeliest tokens after a prompt of its own.

    The runner should compute in floats, as wasm does even where a file allows to round activations to 8 bits.
    """
    bound = parity.FLOAT16 if options.dtype == "fp16" else parity.FLOAT32
    table: dict[str, Any] = {"bound": bound, "cases": []}
    if subject.grows:
        for text in trial_inputs.texts(subject.vocabulary):
            steps = list(_decoded(subject, runner, text, bound))
            table["cases"].append({"name": text.name, "steps": steps})
        return {**table, "greedy": _greedy(subject, runner, bound)}
    for name, feeds, valid in islice(
        trial_inputs.single(subject), 1 if subject.layers else None
    ):  # no padding in a window
        feeds = {n: x if not x.is_floating_point() else wave(x.shape, k) for k, (n, x) in enumerate(feeds.items())}
        step = _step(runner, feeds, {name: _described(x, k) for k, (name, x) in enumerate(feeds.items())}, valid, bound)
        table["cases"].append({"name": name, "steps": [step[0]]})
    return table


def check(table: Mapping[str, Any], runner: OnnxRunner) -> float:
    """Run the cases; the largest error, relative to the largest value of its output.

    Raises:
        VerificationError: if an output or a token is another.
    """
    worst = 0.0
    for case in table["cases"]:
        past: Feeds = {}
        for number, step in enumerate(case["steps"]):
            feeds = {name: _read(entry) for name, entry in step["inputs"].items()}
            batch = len(next(iter(feeds.values())))
            past = past or {n: x for n, x in Decoder(runner).empty(batch).items() if n not in feeds}
            outputs = runner.run({**past, **feeds})
            past = following(outputs) if past else past
            for name, places in step["outputs"].items():
                worst = max(worst, _compare(f"{case['name']}, step {number}: {name}", places, outputs[name], table))
    if "greedy" in table:
        _same_tokens(table["greedy"], runner)
    return worst


def type_of(value: Any) -> str:
    """The type of an input or output in the words of JavaScript: ``float16``, ``int64``."""
    name: str = value.type
    return _TYPES.get(name, name[len("tensor(") : -1])


def wave(shape: torch.Size, seed: int) -> Tensor:
    """Numbers from -1 to 1 without order, the same in every language."""
    whole = (torch.arange(shape.numel()) + seed) * 7919 % 10007
    return (whole.double() / 5003.5 - 1).float().view(shape)


def _decoded(subject: Subject, runner: OnnxRunner, text: trial_inputs.Text, bound: float) -> Iterator[dict[str, Any]]:
    """A prompt, in its parts, and the likeliest tokens after it."""
    past, done = Decoder(runner).empty(len(text.ids)), 0
    ids, mask = text.ids, text.mask
    ends = [ids.shape[1] * (part + 1) // text.chunks for part in range(text.chunks)]
    for step in range(text.chunks + _STEPS):
        end = ends[step] if step < text.chunks else ids.shape[1]
        feeds = trial_inputs.step_feeds(subject, ids, mask, done, end)
        written = {name: _described(x, 0) for name, x in feeds.items()}
        found, outputs = _step(runner, {**past, **feeds}, written, trial_inputs.valid(mask[:, :end], done), bound)
        yield found
        past, done = following(outputs), end
        if end == ids.shape[1]:
            ids = torch.cat([ids, outputs["logits"][:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _step(
    runner: OnnxRunner, feeds: Feeds, written: dict[str, Any], valid: Feeds, bound: float
) -> tuple[dict[str, Any], Feeds]:
    outputs = runner.run(feeds)
    places = {
        name: _places(x.float(), valid.get(name, valid.get("tokens")), bound)
        for name, x in outputs.items()
        if not name.startswith(PRESENT)  # what is wrong in a cache shows in the next logits
    }
    return {"inputs": written, "outputs": places}, outputs


def _described(x: Tensor, seed: int) -> dict[str, Any]:
    shape = list(x.shape)
    return {"shape": shape, "wave": seed} if x.is_floating_point() else {"shape": shape, "data": x.flatten().tolist()}


def _read(entry: Mapping[str, Any]) -> Tensor:
    shape = torch.Size(entry["shape"])
    return wave(shape, entry["wave"]) if "wave" in entry else torch.tensor(entry["data"]).view(shape)


def _places(x: Tensor, valid: Tensor | None, bound: float) -> dict[str, Any]:
    """Values at some places, and the likeliest of some rows where that is not undecided within the bound."""
    known = torch.ones_like(x, dtype=torch.bool)
    if valid is not None and valid.shape == x.shape[: valid.dim()]:
        known &= valid.bool().view(*valid.shape, *[1] * (x.dim() - valid.dim()))
    scale = float(x[known].abs().max())
    at = _some(known.flatten().nonzero().flatten().tolist())
    values = [float(f"{value:.7g}") for value in x.flatten()[at].tolist()]
    rows = x.reshape(-1, x.shape[-1])
    decided = _decided(rows, 2 * bound * scale) & known.reshape(rows.shape)[:, 0]
    best = [[row, int(rows[row].argmax())] for row in _some(decided.nonzero().flatten().tolist())]
    return {"shape": list(x.shape), "scale": scale, "at": at, "values": values, "argmax": best}


def _some(places: list[int]) -> list[int]:
    """Some of them, the last too."""
    return places[:: -max(1, len(places) // _PLACES)][:_PLACES][::-1]


def _decided(rows: Tensor, margin: float) -> Tensor:
    """Where the likeliest is so by more than a margin, by row."""
    if rows.shape[-1] < 2:
        return torch.zeros(len(rows), dtype=torch.bool)
    best = rows.topk(2, -1).values
    return best[:, 0] - best[:, 1] > margin


def _greedy(subject: Subject, runner: OnnxRunner, bound: float) -> dict[str, Any]:
    """The likeliest tokens after a prompt that the model wrote, up to one that is undecided within the bound."""
    prompt = trial_inputs.written(subject, 1, _PROMPT)
    decoder = Decoder(runner)
    tokens = list(decoder.tokens(prompt, _GREEDY))
    whole = torch.cat([prompt, torch.tensor([tokens])], 1)
    logits = decoder.step(whole, 0, decoder.empty())[0][0, _PROMPT - 1 : -1].float()
    sure = _decided(logits, 2 * bound * float(logits.abs().max())).tolist()
    return {"prompt": prompt[0].tolist(), "tokens": tokens, "decided": (*sure, False).index(False)}


def _compare(what: str, places: Mapping[str, Any], x: Tensor, table: Mapping[str, Any]) -> float:
    if list(x.shape) != places["shape"]:
        raise VerificationError(f"{what} has shape {list(x.shape)}, stored is {places['shape']}: export again")
    off = x.float().flatten()[places["at"]] - torch.tensor(places["values"])
    error = float(off.abs().max()) / float(places["scale"])
    if not error <= table["bound"]:
        raise VerificationError(f"{what} differs from what is stored by {error:.0e} relative: export again")
    rows = x.reshape(-1, x.shape[-1])
    if any(int(rows[row].argmax()) != best for row, best in places["argmax"]):
        raise VerificationError(f"{what} prefers another output than is stored: export again")
    return error


def _same_tokens(greedy: Mapping[str, Any], runner: OnnxRunner) -> None:
    count, wanted = greedy["decided"], greedy["tokens"]
    found = list(Decoder(runner).tokens(torch.tensor([greedy["prompt"]]), count))
    if found != wanted[:count]:
        raise VerificationError(f"greedy tokens are {found}, stored are {wanted[:count]}: export again")
