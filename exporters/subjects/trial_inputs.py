"""Inputs on which an exported file and its model are compared, in shapes other than those that were traced."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.exporters.subjects.subject import PAST, PRESENT, Feeds, Subject, cache_names, following

_PREFILL, _STEPS, _GREEDY = 7, 2, 16
_WRITTEN = 48  # tokens that a model writes about itself

#: A name, inputs, and by name of an output the places in it where it means something; all of it, if not given.
Case = tuple[str, Feeds, Feeds]


@dataclass(frozen=True)
class Text:
    """Sequences of token ids and where they are no padding, which is on the left."""

    name: str
    ids: Tensor
    mask: Tensor
    steps: int = _STEPS
    chunks: int = 1  # the prompt is given in so many parts


def texts(vocabulary: int) -> Iterator[Text]:
    """Prompts of random tokens for a decoder, of several batches and lengths."""
    for seed, batch, length, chunks in ((0, 2, _PREFILL, 1), (1, 1, _PREFILL - 2, 1), (2, 2, _PREFILL + 1, 2)):
        ids = _random(vocabulary, (batch, length), seed)
        parts = f" in {chunks} parts" if chunks > 1 else ""
        steps = _GREEDY if batch == 1 else _STEPS
        yield Text(f"batch {batch}, {length} tokens{parts}", ids, torch.ones_like(ids), steps, chunks)
    ids = _random(vocabulary, (2, _PREFILL), 3)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    yield Text("batch 2, one padded on the left", ids, mask)


def single(subject: Subject) -> Iterator[Case]:
    """What a model without a cache, or one of fixed sizes, is called with."""
    if subject.dynamic is None:
        return _windows(subject) if subject.layers else _fixed(subject)
    return _plain(subject)


def first(subject: Subject) -> Feeds:
    """The inputs of the first case: for a decoder a prompt and an empty cache."""
    if not subject.grows:
        return next(single(subject))[1]
    text = next(texts(subject.vocabulary))
    return {**step_feeds(subject, text.ids, text.mask, 0, text.ids.shape[1]), **empty(subject, len(text.ids))}


def step_feeds(subject: Subject, ids: Tensor, mask: Tensor, done: int, end: int) -> Feeds:
    """The inputs, but for the cache, by which a decoder that knows `done` tokens reads on to the one before `end`."""
    feeds = {"input_ids": ids[:, done:end], "attention_mask": mask[:, :end]}
    if "position_ids" in subject.inputs:
        feeds["position_ids"] = positions(mask[:, :end])[:, done:]
    return feeds


def positions(mask: Tensor) -> Tensor:
    """The place of each token among those that are not padding."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def empty(subject: Subject, batch: int) -> Feeds:
    """A cache of length 0."""
    example = subject.example()
    pasts = {name: example[name] for name in cache_names(PAST, subject.layers)}
    return {name: past.new_zeros(batch, past.shape[1], 0, past.shape[3]) for name, past in pasts.items()}


def valid(mask: Tensor, done: int) -> Feeds:
    """Where the outputs of a decoder mean something."""
    whole = mask.bool()
    return {"logits": whole[:, done:], PRESENT: whole}


def written(subject: Subject, batch: int = 2, length: int = _WRITTEN) -> Tensor:
    """Token ids that a decoder writes of itself, drawn by its own probabilities, after a random first one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, subject.vocabulary, (batch, 1), generator=generator)
    past = empty(subject, batch)
    for done in range(length - 1):
        mask = torch.ones_like(ids)
        outputs = subject.run({**step_feeds(subject, ids, mask, done, done + 1), **past})
        past = following(outputs)
        chances = outputs["logits"][:, -1].double().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    return ids


def _windows(subject: Subject) -> Iterator[Case]:
    """A decoder of fixed sizes in the middle of texts: what is not there yet is padding on the left."""
    example = subject.example()
    batch, here = example["input_ids"].shape
    total = example["attention_mask"].shape[1]
    text = written(subject, batch)
    text = text.repeat(1, -(-total // text.shape[1]))
    for length in dict.fromkeys((total, here + (total - here) // 2, max(1, here // 2))):
        before = max(0, length - here)
        ids, mask = text[:, :length], torch.ones(batch, length, dtype=torch.long)
        known = empty(subject, batch)
        if before:
            known = following(subject.run({**step_feeds(subject, ids, mask, 0, before), **known}))
        pad = total - length
        ids, mask = (torch.nn.functional.pad(tensor, (pad, 0)) for tensor in (ids, mask))
        feeds = step_feeds(subject, ids, mask, total - here, total)
        past = {name: _padded(tensor, total - here - before) for name, tensor in known.items()}
        yield f"a text of {length} in a window of {total}", {**feeds, **past}, valid(mask, total - here)


def _padded(tensor: Tensor, places: int) -> Tensor:
    """Keys or values with zeros before them."""
    return torch.nn.functional.pad(tensor, (0, 0, places, 0)).contiguous()


def _fixed(subject: Subject) -> Iterator[Case]:
    example = subject.example()
    for seed in range(3):
        feeds = {name: _vary(name, tensor, subject.vocabulary, tensor.shape, seed) for name, tensor in example.items()}
        yield f"fixed sizes, seed {seed}", feeds, {}
    yield from _right_padded(subject, example["input_ids"].shape if "input_ids" in example else None)


def _plain(subject: Subject) -> Iterator[Case]:
    example = subject.example()
    for seed, (batch, length) in enumerate(((2, _PREFILL), (1, _PREFILL - 2), (3, _PREFILL + 2))):
        feeds = {}
        for name, tensor in example.items():
            shape = torch.Size((batch, *tensor.shape[1:]) if tensor.is_floating_point() else (batch, length))
            feeds[name] = _vary(name, tensor, subject.vocabulary, shape, seed)
        yield f"batch {batch}{f', {length} tokens' if 'input_ids' in feeds else ''}", feeds, {}
    yield from _right_padded(subject, torch.Size((2, _PREFILL - 1)))


def _right_padded(subject: Subject, shape: torch.Size | None) -> Iterator[Case]:
    example = subject.example()
    if "attention_mask" not in example or shape is None or shape[1] < 2:
        return
    feeds = {name: _vary(name, tensor, subject.vocabulary, shape, 3) for name, tensor in example.items()}
    feeds["attention_mask"][-1, -shape[1] // 3 :] = 0
    yield f"batch {shape[0]}, one padded on the right", feeds, {"tokens": feeds["attention_mask"].bool()}


def _vary(name: str, tensor: Tensor, vocabulary: int, shape: torch.Size, seed: int) -> Tensor:
    """Other contents of that shape."""
    if tensor.is_floating_point():
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(tensor.dtype)
    if name == "attention_mask":
        return torch.ones(shape, dtype=tensor.dtype)
    return _random(vocabulary if name.endswith("input_ids") else 1, tuple(shape), seed)


def _random(vocabulary: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
