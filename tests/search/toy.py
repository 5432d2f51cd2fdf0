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


class LayerTable:
    """The mean over layers of a cost per layer and choice; +inf where a layer may not take it.

    Layers have two fields, of four and three values, and different choices that are not allowed:
    of layer i the fourth value of the first field where i is odd, and the third value of the second
    field with the first two of the first where i is a multiple of three.
    """

    fields = (4, 3)

    def __init__(self, layers):
        generator = torch.Generator().manual_seed(0)
        table = torch.rand(layers, 4, 3, generator=generator, dtype=torch.float64)
        self.table = table + torch.arange(4)[:, None]
        self.table[1::2, 3] = torch.inf
        self.table[::3, :2, 2] = torch.inf
        self.layers = layers
        self.cardinalities = self.fields * layers

    def each(self, rows):
        """(k, d) integers to (k, layers)."""
        first, second = rows.unflatten(1, (self.layers, 2)).unbind(2)
        return self.table[torch.arange(self.layers), first, second]

    def __call__(self, rows):
        return self.each(rows).mean(1)

    def allowed(self, count, seed=0):
        """Random configurations that are allowed, (count, d) integers."""
        generator = torch.Generator().manual_seed(seed)
        flat = self.table.flatten(1).isfinite().double()
        choices = flat.multinomial(count, replacement=True, generator=generator).T
        return torch.stack([choices // 3, choices % 3], dim=2).flatten(1)


class IncrementalLayerTable(LayerTable):
    """The same, with what single moves from allowed configurations change."""

    def changes(self, rows, start, coordinate, change):
        moved = rows[start]
        moved[torch.arange(len(moved)), coordinate] += change
        layer = coordinate // 2
        differs = self.each(moved) - self.each(rows)[start]
        return differs[torch.arange(len(moved)), layer] / self.layers
