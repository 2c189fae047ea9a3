"""Clusters of equal size by similarity: k-means in the space of a Gram matrix, with a capacity for each cluster."""

import torch
from torch import Tensor

ROUNDS = 20


def balanced_clusters(gram: Tensor, count: int, rounds: int = ROUNDS) -> Tensor:
    """Cluster of every item, shape (items,), as balanced k-means assigns them; each cluster has items / count of them.

    The centers of the first round are far from each other. In each round, items whose best cluster is much better than
    the next choose first; the assignment with the least sum of squared distances to the centers is returned.

    Args:
        gram: Inner products of all items, shape (items, items); items must be a multiple of the count.
        count: The number of clusters.
        rounds: The most rounds of assignments.
    """
    squares = gram.diagonal()
    distances = squares[:, None] - 2 * gram[:, _seeds(gram, count)] + squares[_seeds(gram, count)]
    best, least = torch.arange(len(gram)) % count, float("inf")
    for _ in range(rounds):
        clusters = _assigned(distances)
        member = torch.nn.functional.one_hot(clusters, count).to(gram) * count / len(gram)
        inner = gram @ member
        distances = squares[:, None] - 2 * inner + (member * inner).sum(0)
        total = float(distances.gather(1, clusters[:, None]).sum())
        if total >= least:
            break
        best, least = clusters, total
    return best


def _seeds(gram: Tensor, count: int) -> Tensor:
    """Items that are far from each other, the first one far from the mean."""
    squares = gram.diagonal()
    chosen = [int((squares - 2 * gram.mean(1)).argmax())]
    while len(chosen) < count:
        nearest = (squares[:, None] - 2 * gram[:, chosen] + squares[chosen]).amin(1)
        chosen.append(int(nearest.index_fill(0, torch.tensor(chosen), -1.0).argmax()))
    return torch.tensor(chosen)


def _assigned(distances: Tensor) -> Tensor:
    """The nearest cluster of each item with room, shape (items,), for distances of shape (items, clusters)."""
    items, count = distances.shape
    near = distances.topk(min(2, count), largest=False).values
    room, clusters = [items // count] * count, torch.zeros(items, dtype=torch.long)
    preferred = distances.argsort(1).tolist()
    for item in (near[:, 0] - near[:, -1]).argsort().tolist():
        chosen = next(c for c in preferred[item] if room[c])
        room[chosen] -= 1
        clusters[item] = chosen
    return clusters
