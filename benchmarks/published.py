"""BRCD in the published style: PyTorch, Python loops over the images of a batch, and every pair's product kept, (N, N, K).

Written from docs/method.md. The values are torch_ref's; only how they are come by differs. Where the published code loops over
the images, so does this: the nearest center, the weights, and the matrix that says which entries are negatives.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ref.losses import bernoulli_kl, hash_codes

FALSE_NEGATIVE_BIAS, ALPHA = -1000.0, 0.8
similarity = nn.CosineSimilarity(dim=2)


def contrastive_loss(
    rows: Tensor, temperature: float, *, weights: Tensor | None = None, anchor: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each of N = 2B rows (N, K), its positive half the rows on.

    With `anchor` (N,), the positive logit is that by `weights` (N,) and the row's own by the rest. `bias` (N, N) is added to
    the negatives.
    """
    n = len(rows)
    sim = similarity(rows.unsqueeze(1), rows.unsqueeze(0)) / temperature
    is_negative = torch.ones(n, n, dtype=torch.bool)
    for row in range(n):
        is_negative[row, row] = False
        is_negative[row, (row + n // 2) % n] = False
    positives = torch.cat([torch.diag(sim, n // 2), torch.diag(sim, -(n // 2))])
    if anchor is not None:
        positives = weights * anchor + (1 - weights) * positives
    negatives = sim[is_negative].view(n, n - 2)
    if bias is not None:
        negatives = negatives + bias[is_negative].view(n, n - 2)
    logits = torch.cat([positives.unsqueeze(1), negatives], dim=1)
    return F.cross_entropy(logits, torch.zeros(n, dtype=torch.long), reduction="sum") / n


def distillation_loss(
    student: Tensor, teacher_i: Tensor, teacher_j: Tensor, clusters: Tensor, centers: Tensor, mask: Tensor, *,
    temperature: float = 0.3,
) -> Tensor:
    """The corrected BRCD term with bit masks and the robust option. Arguments as jax_brcd.losses.brcd_distillation_loss."""
    batch = len(student)
    clusters_j = torch.stack([((code - centers) ** 2).sum(dim=1).argmin() for code in teacher_j])
    weights = torch.full((2 * batch,), ALPHA)
    for image in range(batch):
        if clusters_j[image] != clusters[image]:
            weights[image] = weights[image + batch] = 1.0
    both = torch.cat([clusters, clusters_j])
    bias = FALSE_NEGATIVE_BIAS * (both.unsqueeze(1) == both.unsqueeze(0)).float()
    anchor = F.cosine_similarity(student, teacher_i, dim=1) / temperature
    rows = torch.cat([student * mask[clusters], teacher_j * mask[clusters]])
    return contrastive_loss(rows, temperature, weights=weights, anchor=torch.cat([anchor, anchor]), bias=bias)


def objective(
    logits_i: Tensor, logits_j: Tensor, teacher_i: Tensor, teacher_j: Tensor, clusters: Tensor, centers: Tensor,
    mask: Tensor, *, temperature: float = 0.3, kl_weight: float = 0.001,
) -> Tensor:
    """The student's whole objective: CIBHash and the distillation term."""
    codes_i, codes_j = hash_codes(logits_i), hash_codes(logits_j)
    contrastive = contrastive_loss(torch.cat([codes_i, codes_j]), temperature)
    kl = bernoulli_kl(torch.sigmoid(logits_i), torch.sigmoid(logits_j))
    return contrastive + kl_weight * kl + distillation_loss(
        codes_i, teacher_i, teacher_j, clusters, centers, mask, temperature=temperature)


def mean_average_precision(
    queries: np.ndarray, database: np.ndarray, query_labels: np.ndarray, labels: np.ndarray, k: int
) -> float:
    """mAP@k in a NumPy loop: for each query all distances, a full sort of them (ties in any order), its top k."""
    total = 0.0
    for query, query_label in zip(queries, query_labels, strict=True):
        relevant = labels @ query_label > 0
        distances = 0.5 * (database.shape[1] - database @ query)
        places = np.flatnonzero(relevant[np.argsort(distances)[:k]]) + 1
        if len(places):
            total += float(np.mean(np.arange(1, len(places) + 1) / places))
    return total / len(queries)
