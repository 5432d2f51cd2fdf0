"""A small space to search, and a loss on it."""

import torch

#: Six coordinates, one of them with a single value.
CARDINALITIES = torch.tensor([4, 4, 3, 3, 3, 1])


def drawn(cardinalities, count, seed=0):
    """Random configurations, (count, d) integers; they may repeat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randint(int(n), (count,), generator=generator) for n in cardinalities], 1
    )


def true_loss(rows):
    """It falls with the first coordinate and rises a little with the third."""
    return torch.exp(-0.5 * rows[:, 0].double()) + 0.05 * rows[:, 2]
