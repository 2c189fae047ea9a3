"""Inputs on which an exported file and its model are compared, of other shapes than the traced ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.exporters.subjects.subject import BATCH, PAST, PRESENT, Feeds, Subject, cache_names, next_cache

_PREFILL, _STEPS, _GREEDY = 7, 2, 16
_GENERATED = 48  # tokens to sample from a model
_LONGEST = 1024  # window that a prompt exceeds; a longer prompt would take long, and the mask is of one form

#: A name, inputs, and masks of the valid positions by output name; outputs without a mask are valid everywhere.
Case = tuple[str, Feeds, Feeds]


@dataclass(frozen=True)
class Prompt:
    """Token ids of prompts and a mask that is 0 at padding, which is on the left."""

    name: str
    ids: Tensor
    mask: Tensor
    steps: int = _STEPS
    chunks: int = 1  # number of parts in which the prompt is passed


def prompts(subject: Subject) -> Iterator[Prompt]:
    """Prompts of random tokens for a decoder, of several batches and lengths, and one longer than its window."""
    vocabulary = subject.vocabulary
    for seed, batch, length, chunks in ((0, 2, _PREFILL, 1), (1, 1, _PREFILL - 2, 1), (2, 2, _PREFILL + 1, 2)):
        ids = _random(vocabulary, (batch, length), seed)
        parts = f" in {chunks} parts" if chunks > 1 else ""
        steps = _GREEDY if batch == 1 else _STEPS
        yield Prompt(f"batch {batch}, {length} tokens{parts}", ids, torch.ones_like(ids), steps, chunks)
    ids = _random(vocabulary, (2, _PREFILL), 3)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    yield Prompt("batch 2, one padded on the left", ids, mask)
    if 0 < subject.window <= _LONGEST:
        ids = _random(vocabulary, (1, subject.window + 3), 4)
        yield Prompt(f"{ids.shape[1]} tokens in 2 parts, more than the window", ids, torch.ones_like(ids), chunks=2)


def cacheless_cases(subject: Subject) -> Iterator[Case]:
    """Cases for a model without a cache, or with static sizes."""
    if subject.dynamic is None:
        return _window_cases(subject) if subject.layers else _static_cases(subject)
    return _dynamic_cases(subject)


def first_case(subject: Subject) -> Feeds:
    """Inputs of the first case: for a decoder a prompt and an empty cache."""
    if not subject.has_growing_cache:
        return next(cacheless_cases(subject))[1]
    prompt = next(prompts(subject))
    batch, length = prompt.ids.shape
    return {**step_feeds(subject, prompt.ids, prompt.mask, 0, length), **empty_cache(subject, batch)}


def step_feeds(subject: Subject, ids: Tensor, mask: Tensor, start: int, end: int) -> Feeds:
    """Inputs, other than the cache, for a decoder to process tokens `start` to `end` with the first `start` cached."""
    feeds = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
    if "position_ids" in subject.inputs:
        feeds["position_ids"] = positions(mask[:, :end])[:, start:]
    return feeds


def positions(mask: Tensor) -> Tensor:
    """Position of each token, not counting padding."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def empty_cache(subject: Subject, batch: int) -> Feeds:
    """A cache of length 0."""
    example = subject.example()
    pasts = {name: example[name] for name in cache_names(PAST, subject.layers)}
    return {name: past.new_zeros(batch, past.shape[1], 0, past.shape[3]) for name, past in pasts.items()}


def valid_positions(mask: Tensor, start: int) -> Feeds:
    """Masks of the positions at which the outputs of a decoder are not padding."""
    valid = mask.bool()
    return {"logits": valid[:, start:], PRESENT: valid}


def generated_text(subject: Subject, batch: int = 2, length: int = _GENERATED) -> Tensor:
    """Token ids of shape (batch, length) sampled from a decoder's own probabilities, after a random first one.

    A subject without a cache takes the whole text for every token.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, subject.vocabulary, (batch, 1), generator=generator)
    past = empty_cache(subject, batch)
    for position in range(length - 1):
        step = step_feeds(subject, ids, torch.ones_like(ids), position if past else 0, position + 1)
        outputs = subject.run({name: feed for name, feed in {**step, **past}.items() if name in subject.inputs})
        past = next_cache(outputs)
        probabilities = outputs["logits"][:, -1].double().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], 1)
    return ids


def _window_cases(subject: Subject) -> Iterator[Case]:
    """Cases for a decoder of static sizes: windows of a text, with positions before its start padded on the left."""
    example = subject.example()
    batch, chunk = example["input_ids"].shape
    total = example["attention_mask"].shape[1]
    text = generated_text(subject, batch)
    text = text.repeat(1, -(-total // text.shape[1]))
    for length in dict.fromkeys((total, chunk + (total - chunk) // 2, max(1, chunk // 2))):
        prefix = max(0, length - chunk)
        ids, mask = text[:, :length], torch.ones(batch, length, dtype=torch.long)
        past = empty_cache(subject, batch)
        if prefix:
            past = next_cache(subject.run({**step_feeds(subject, ids, mask, 0, prefix), **past}))
        pad = total - length
        ids, mask = (torch.nn.functional.pad(tensor, (pad, 0)) for tensor in (ids, mask))
        feeds = step_feeds(subject, ids, mask, total - chunk, total)
        past = {name: _padded(tensor, total - chunk - prefix) for name, tensor in past.items()}
        yield f"a text of {length} in a window of {total}", {**feeds, **past}, valid_positions(mask, total - chunk)


def _padded(tensor: Tensor, places: int) -> Tensor:
    """Keys or values with `places` positions of zeros before them."""
    return torch.nn.functional.pad(tensor, (0, 0, places, 0)).contiguous()


def _static_cases(subject: Subject) -> Iterator[Case]:
    example = subject.example()
    for seed in range(3):
        inputs = {n: _random_input(n, x, subject.vocabulary, x.shape, seed) for n, x in example.items()}
        yield f"fixed sizes, seed {seed}", inputs, {}
    if "input_ids" in example:
        yield from _right_padded_case(subject, {name: tensor.shape for name, tensor in example.items()})


def _dynamic_cases(subject: Subject) -> Iterator[Case]:
    example = subject.example()
    for seed, (batch, length) in enumerate(((2, _PREFILL), (1, _PREFILL - 2), (3, _PREFILL + 2))):
        shapes = _shapes(subject, batch, length)
        feeds = {n: _random_input(n, x, subject.vocabulary, shapes[n], seed) for n, x in example.items()}
        yield f"batch {batch}{f', {length} tokens' if 'input_ids' in feeds else ''}", feeds, {}
    yield from _right_padded_case(subject, _shapes(subject, 2, _PREFILL - 1))


def _shapes(subject: Subject, batch: int, length: int) -> dict[str, torch.Size]:
    """Shapes of the inputs by name, with other sizes only where they are dynamic."""
    named = pytree.tree_leaves(subject.dynamic, is_leaf=lambda node: isinstance(node, dict))
    shapes = {name: list(tensor.shape) for name, tensor in subject.example().items()}
    for shape, dims in zip(shapes.values(), named, strict=True):
        for dim, name in (dims or {}).items():
            shape[dim] = batch if name == BATCH else length
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def _right_padded_case(subject: Subject, shapes: Mapping[str, torch.Size]) -> Iterator[Case]:
    example = subject.example()
    if "attention_mask" not in example or shapes["attention_mask"][1] < 2:
        return
    batch, length = shapes["attention_mask"]
    feeds = {n: _random_input(n, x, subject.vocabulary, shapes[n], 3) for n, x in example.items()}
    feeds["attention_mask"][-1, -length // 3 :] = 0
    yield f"batch {batch}, one padded on the right", feeds, {"tokens": feeds["attention_mask"].bool()}


def _random_input(name: str, tensor: Tensor, vocabulary: int, shape: torch.Size, seed: int) -> Tensor:
    """Random contents of that shape; ones for the attention mask."""
    if tensor.is_floating_point():
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(tensor.dtype)
    if name == "attention_mask":
        return torch.ones(shape, dtype=tensor.dtype)
    return _random(vocabulary if name.endswith("input_ids") else 1, tuple(shape), seed)


def _random(vocabulary: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
