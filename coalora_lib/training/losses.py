"""Losses beyond the model's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from coalora_lib.training.batches import IGNORED


def next_token_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A causal model's predictions and what they are of, without padding.

    (batch, length, vocabulary) and (batch, length), the tokens, IGNORED where none is to be
    predicted, to (predictions, vocabulary) and (predictions,).
    """
    targets = labels[:, 1:]
    counted = targets != IGNORED
    return logits[:, :-1][counted], targets[counted]


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions (Hinton et al., arXiv 1503.02531).

    Logits are (batch, classes), labels (batch,); or (batch, length, vocabulary) of a causal model,
    labels (batch, length): then the mean is over the tokens that have a label.
    """
    if student.ndim == 3:
        teacher, _ = next_token_logits(teacher, labels)
        student, _ = next_token_logits(student, labels)
    soft_student = F.log_softmax(_at_least_float(student) / temperature, dim=-1)
    soft_teacher = F.log_softmax(_at_least_float(teacher) / temperature, dim=-1)
    divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def _at_least_float(logits: Tensor) -> Tensor:
    return logits if logits.element_size() >= 4 else logits.float()
