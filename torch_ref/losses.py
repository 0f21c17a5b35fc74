"""The losses as docs/method.md writes them down."""

import torch
from torch import Tensor
from torch.nn import functional as F

FALSE_NEGATIVE_BIAS = -1000.0


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p):
        return torch.sign(p - 0.5)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def hash_codes(logits: Tensor) -> Tensor:
    """sign(sigmoid(logits) - 0.5), the gradient of the sign taken as 1. (B, K) -> (B, K)."""
    return _StraightThroughSign.apply(torch.sigmoid(logits))


def similarities(rows: Tensor) -> Tensor:
    """Cosine of every pair of rows. (N, K) -> (N, N)."""
    return F.cosine_similarity(rows[:, None, :], rows[None, :, :], dim=-1)


def cross_entropy_with_positive_first(positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean over rows of cross-entropy between a row's positive (N,) and its negatives (N, M), which stand behind it."""
    logits = torch.cat([positives[:, None], negatives], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def negatives_of(sim: Tensor) -> Tensor:
    """Of each row all entries but its own and its positive's. (N, N) -> (N, N - 2)."""
    n = len(sim)
    own = torch.eye(n, dtype=torch.bool, device=sim.device)
    return sim[~(own | own.roll(n // 2, dims=1))].reshape(n, n - 2)


def positives_of(sim: Tensor) -> Tensor:
    """Of each row the entry half the rows further on. (N, N) -> (N,)."""
    n = len(sim)
    return sim[torch.arange(n), (torch.arange(n) + n // 2) % n]


def nt_xent(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    """NT-Xent over [z_i; z_j], each (B, K)."""
    sim = similarities(torch.cat([z_i, z_j])) / temperature
    return cross_entropy_with_positive_first(positives_of(sim), negatives_of(sim))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    q = q.detach()
    terms = p * (torch.log(p + 1e-8) - torch.log(q + 1e-8))
    terms = terms + (1 - p) * (torch.log(1 - p + 1e-8) - torch.log(1 - q + 1e-8))
    return terms.sum(dim=1).mean()


def bernoulli_kl(p_i: Tensor, p_j: Tensor) -> Tensor:
    """Mean of both directions, the second argument of each held fixed. (B, K) each."""
    return (_kl(p_i, p_j) + _kl(p_j, p_i)) / 2


def cibhash_loss(logits_i: Tensor, logits_j: Tensor, *, temperature: float = 0.3, kl_weight: float = 0.001) -> Tensor:
    """NT-Xent of the codes plus the weighted KL."""
    contrastive = nt_xent(hash_codes(logits_i), hash_codes(logits_j), temperature)
    return contrastive + kl_weight * bernoulli_kl(torch.sigmoid(logits_i), torch.sigmoid(logits_j))


def code_alignment(logits_i: Tensor, logits_j: Tensor) -> Tensor:
    """CroVCA's first term: each view's logits (B, K) are told the bits of the other."""
    bits_i, bits_j = (logits_i > 0).float(), (logits_j > 0).float()
    return (F.binary_cross_entropy_with_logits(logits_i, bits_j) + F.binary_cross_entropy_with_logits(logits_j, bits_i)) / 2


def coding_rate(logits: Tensor, epsilon: float = 0.05) -> Tensor:
    """CroVCA's second term for one view (B, K), as a loss."""
    b, k = logits.shape
    p = F.normalize(logits)
    identity = torch.eye(k, dtype=p.dtype)
    return -(k + b) / (k * b) * torch.logdet(identity + k / (b * epsilon) * p.T @ p) / 2


def nearest_center(codes: Tensor, centers: Tensor) -> Tensor:
    """Index of the center nearest to each code. (B, K), (C, K) -> (B,)."""
    return ((codes[:, None, :] - centers[None, :, :]) ** 2).sum(-1).argmin(dim=1)


def brcd_distillation_loss(
    student_codes: Tensor, teacher_codes_i: Tensor, teacher_codes_j: Tensor, clusters: Tensor, centers: Tensor,
    bit_mask: Tensor, *, alpha: float = 0.8, temperature: float = 0.3, robust: bool = True, mask_bits: bool = True,
    remove_false_negatives: bool = False, variant: str = "corrected",
) -> Tensor:
    """BRCD's distillation term; arguments as in jax_brcd.losses."""
    mask = bit_mask[clusters] if mask_bits else torch.ones_like(student_codes)
    student, teacher = student_codes * mask, teacher_codes_j * mask
    sim = similarities(torch.cat([student, teacher])) / temperature
    anchor = F.cosine_similarity(student_codes, teacher_codes_i, dim=1) / temperature
    alphas = torch.full_like(anchor, alpha)

    clusters_j = clusters
    if robust:
        clusters_j = nearest_center(teacher if variant == "released" else teacher_codes_j, centers)
        alphas[clusters_j != clusters] = 1.0
    if robust or remove_false_negatives:
        ii, ij = clusters[:, None] == clusters[None, :], clusters[:, None] == clusters_j[None, :]
        ji, jj = clusters_j[:, None] == clusters[None, :], clusters_j[:, None] == clusters_j[None, :]
        blocks = [[ii, ij], [ii, ij]] if variant == "released" else [[ii, ij], [ji, jj]]
        false_negative = torch.cat([torch.cat(row, dim=1) for row in blocks])
    else:
        false_negative = torch.zeros_like(sim, dtype=torch.bool)

    positives = alphas.repeat(2) * anchor.repeat(2) + (1 - alphas.repeat(2)) * positives_of(sim)
    return cross_entropy_with_positive_first(positives, negatives_of(sim + FALSE_NEGATIVE_BIAS * false_negative))
