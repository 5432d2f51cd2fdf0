"""A run in one picture: bits of its layers at each budget, metrics, the training loss."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from coalora_lib.recipes.using import Reported


def picture_of_run(found: Reported, path: Path) -> None:
    """Write a picture of what :func:`~coalora_lib.recipes.report` found."""
    figure, (layers, metrics, losses) = plt.subplots(
        1, 3, figsize=(13, 4.2), width_ratios=(1.4, 1, 1), layout="constrained"
    )
    bits = np.array(list(found.layers.values()))
    image = layers.imshow(bits, aspect="auto", cmap="cividis", interpolation="nearest")
    layers.set_xticks(range(len(found.sizes)), [f"{each['bits']:.2f}" for each in found.sizes])
    layers.set(xlabel="mean bits per parameter", ylabel="layer", title="Bits of each layer")
    figure.colorbar(image, ax=layers)
    rows = found.outcome["metrics"]
    for name in rows[0]:
        if name not in ("bits", "loss"):
            values = [row[name] for row in rows]
            metrics.plot([row["bits"] for row in rows], values, "o-", label=name)
    metrics.set(xlabel="mean bits per parameter", title="On the validation texts")
    metrics.legend()
    steps = found.outcome["losses"]
    losses.plot(range(1, len(steps) + 1), steps, alpha=0.4, color="C0")
    window = max(1, len(steps) // 20)
    if len(steps) > window:
        smooth = np.convolve(steps, np.ones(window) / window, "valid")
        losses.plot(range(window, len(steps) + 1), smooth, color="C0")
    losses.set(xlabel="step", ylabel="loss", title="Training")
    figure.savefig(path.expanduser(), dpi=120)
    plt.close(figure)
