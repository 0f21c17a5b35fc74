"""PyTorch at its best: BRCD as matrix products, and what torch.compile needs."""

import functools
import os
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_ref.losses import bernoulli_kl, hash_codes, nearest_center

FALSE_NEGATIVE_BIAS, ALPHA = -1000.0, 0.8


def paired_cross_entropy(
    rows: Tensor, temperature: float, *, positives: Tensor | None = None, clusters: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of each of N rows' positive, half the rows on, against all others but itself: one (N, N) product.

    `positives` (N,) replace the positive logits; negatives of the same of `clusters` (N,) get -1000.
    """
    n = len(rows)
    unit = F.normalize(rows, dim=1, eps=1e-8)
    logits = unit @ unit.T / temperature
    if positives is None:
        positives = (unit * unit.roll(n // 2, dims=0)).sum(dim=1) / temperature
    if clusters is not None:
        logits = logits + FALSE_NEGATIVE_BIAS * (clusters[:, None] == clusters[None, :])
    place = torch.arange(n, device=rows.device)
    partner = (place + n // 2) % n
    logits = torch.where(place[None, :] == partner[:, None], positives[:, None], logits)
    logits = logits.masked_fill(place[None, :] == place[:, None], -torch.inf)
    return (torch.logsumexp(logits, dim=1) - positives).mean()


def distillation_loss(
    student: Tensor, teacher_i: Tensor, teacher_j: Tensor, clusters: Tensor, centers: Tensor, mask: Tensor, *,
    temperature: float = 0.3,
) -> Tensor:
    """The corrected BRCD term with bit masks and the robust option. Arguments as jax_brcd.losses.brcd_distillation_loss."""
    masked_student, masked_teacher = student * mask[clusters], teacher_j * mask[clusters]
    anchor = F.cosine_similarity(student, teacher_i, dim=1)
    structural = F.cosine_similarity(masked_student, masked_teacher, dim=1)
    clusters_j = nearest_center(teacher_j, centers)
    weight = torch.where(clusters_j != clusters, 1.0, ALPHA)
    positives = (weight * anchor + (1 - weight) * structural) / temperature
    return paired_cross_entropy(torch.cat([masked_student, masked_teacher]), temperature, positives=positives.repeat(2),
                                clusters=torch.cat([clusters, clusters_j]))


def objective(
    logits_i: Tensor, logits_j: Tensor, teacher_i: Tensor, teacher_j: Tensor, clusters: Tensor, centers: Tensor,
    mask: Tensor, *, temperature: float = 0.3, kl_weight: float = 0.001,
) -> Tensor:
    """The student's whole objective: CIBHash and the distillation term."""
    codes_i, codes_j = hash_codes(logits_i), hash_codes(logits_j)
    contrastive = paired_cross_entropy(torch.cat([codes_i, codes_j]), temperature)
    kl = bernoulli_kl(torch.sigmoid(logits_i), torch.sigmoid(logits_j))
    return contrastive + kl_weight * kl + distillation_loss(
        codes_i, teacher_i, teacher_j, clusters, centers, mask, temperature=temperature)


def compile(function: Callable) -> Callable:
    """torch.compile for one set of shapes, with no share in graphs that other cases compiled."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


@functools.cache
def why_not() -> str | None:
    """Why torch.compile cannot be used on this machine; None where it can."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8))
    except Exception as error:  # what is missing (a C++ compiler, its headers, a Python version) decides what is raised
        return f"torch.compile does not work here ({str(error).strip().splitlines()[0]})"
    return None


def use_fresh_cache() -> None:
    """Lets this process and its children compile into an empty cache, so that compile times are those of a first run."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="inductor-")
        _kept.append(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name


_kept: list[tempfile.TemporaryDirectory] = []  # removed when the process ends
