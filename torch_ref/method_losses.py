"""What the distillation methods that BRCD is compared with minimise, as their papers and published code write it down."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7  # of the published logarithms


def kl_distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Hinton et al. (2015) on codes (B, K)."""
    log_q, p = F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def _relative_distances(codes: Tensor) -> Tensor:
    squares = (codes**2).sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * codes @ codes.T).clamp(min=1e-12).sqrt()
    others = ~torch.eye(len(codes), dtype=torch.bool)
    distances = distances * others
    return distances / distances[others].mean() if len(codes) > 1 else distances


def _angles(codes: Tensor) -> Tensor:
    difference = codes[None] - codes[:, None]
    equal = (difference == 0).all(dim=2, keepdim=True)  # no direction, and an infinite gradient in the limit
    direction = F.normalize(difference + equal.to(codes.dtype), dim=2) * ~equal
    return direction @ direction.transpose(1, 2)


def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Park et al. (2019)."""
    distance = F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
    return distance_weight * distance + angle_weight * F.smooth_l1_loss(_angles(student), _angles(teacher))


def _neighbour_probabilities(codes: Tensor) -> Tensor:
    unit = codes / ((codes**2).sum(dim=1, keepdim=True).sqrt() + EPSILON)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Passalis and Tefas (2018)."""
    p, q = _neighbour_probabilities(teacher), _neighbour_probabilities(student)
    return (p * torch.log((p + EPSILON) / (q + EPSILON))).mean()


def sp_loss(student: Tensor, teacher: Tensor, variant: str = "batch") -> Tensor:
    """Tung and Mori (2019); as released, each code is taken for a batch of one-bit rows and the images are summed over."""
    if variant == "released":
        return sum(sp_loss(row[:, None], code[:, None]) for row, code in zip(student, teacher, strict=True))
    return ((F.normalize(teacher @ teacher.T) - F.normalize(student @ student.T)) ** 2).mean()


def sskd_loss(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> Tensor:
    """Xu et al. (2020): four rows a sample, the upright image first."""
    def similarities(codes: Tensor) -> Tensor:
        upright = torch.arange(len(codes)) % 4 == 0
        return F.cosine_similarity(codes[~upright][:, None], codes[upright][None], dim=2) / temperature

    log_q, p = F.log_softmax(similarities(student), dim=1), F.softmax(similarities(teacher), dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def update_bank(bank: Tensor, rows: Tensor, indices: Tensor, momentum: Tensor | float) -> Tensor:
    """The bank with the rows of the images at `indices` moved to the new ones and made unit again."""
    bank = bank.clone()
    bank[indices] = F.normalize(momentum * bank[indices] + (1 - momentum) * rows.detach())
    return bank


def _noise_contrastive_loss(scores: Tensor, n_images: int) -> Tensor:
    noise = (scores.shape[1] - 1) / n_images
    true = torch.log(scores[:, 0] / (scores[:, 0] + noise + EPSILON))
    return -(true + torch.log(noise / (scores[:, 1:] + noise + EPSILON)).sum(dim=1)).mean()


def row_scores(rows: Tensor, bank: Tensor, indices: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """CRD: rows (B, D) against the bank's rows of their own image and of the negatives (B, N). (B, 1 + N)."""
    choices = bank[torch.cat([indices[:, None], negatives], dim=1)]
    return torch.exp((choices * rows[:, None]).sum(dim=2) / temperature)


def relation_scores(rows: Tensor, bank: Tensor, indices: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """CRCD: relations of rows to every image of the batch against those of the bank's rows. (B * B, 1 + N)."""
    choices, anchors = bank[torch.cat([indices[:, None], negatives], dim=1)], bank[indices]
    relations = F.normalize(rows[:, None] - anchors[None] + 1e-6, dim=2)
    of_choices = F.normalize(choices[:, None] - anchors[None, :, None] + 1e-6, dim=3)
    return torch.exp((of_choices * relations[:, :, None]).sum(dim=3) / temperature).flatten(0, 1)


def memory_loss(
    scores_of, student: Tensor, teacher: Tensor, memory: dict[str, Tensor], indices: Tensor, negatives: Tensor, *,
    temperature: float = 0.05, momentum: float = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tian et al. (2020) with `row_scores`, Zhu et al. (2021) with `relation_scores`: the loss and the memory afterwards."""
    n_images, loss, normalisers = len(memory["student"]), 0.0, []
    pairs = ((student, memory["teacher"]), (teacher, memory["student"]))
    for (rows, bank), held in zip(pairs, memory["normalisers"], strict=True):
        scores = scores_of(rows, bank, indices, negatives, temperature)
        normalisers.append(held if held > 0 else (scores.mean() * n_images).detach())
        loss = loss + _noise_contrastive_loss(scores / normalisers[-1], n_images)
    return loss, {"student": update_bank(memory["student"], student, indices, momentum),
                  "teacher": update_bank(memory["teacher"], teacher, indices, momentum),
                  "normalisers": torch.stack(normalisers)}


def transport_plan(cost: Tensor, regularisation: float) -> Tensor:
    """Sinkhorn's plan between uniform weights for each cost matrix (B, M, N)."""
    kernel = torch.exp(-cost / regularisation)
    v = torch.ones_like(cost[:, 0])
    for _ in range(100):
        u = 1 / cost.shape[1] / (kernel @ v[:, :, None])[:, :, 0]
        v = 1 / cost.shape[2] / (u[:, None] @ kernel)[:, 0]
    return u[:, :, None] * kernel * v[:, None, :]


def packd_loss(
    student: Tensor, teacher: Tensor, memory: dict[str, Tensor], indices: Tensor, negatives: Tensor, *,
    temperature: float = 0.07, momentum: float = 0.5, regularisation: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PACKD (2022) on the embeddings of images and their mixtures (M, B, D): the loss and the memory afterwards."""
    seen = memory["seen"].clone()
    bank = update_bank(memory["bank"], teacher[0], indices, momentum * seen[indices][:, None].to(teacher.dtype))
    seen[indices] = True
    similarities = torch.einsum("sbd,tbd->bst", student, teacher)
    plan = transport_plan(2 - 2 * similarities.detach(), regularisation)
    positive = (plan * similarities).sum(dim=(1, 2)) / temperature
    negative = torch.einsum("bnd,sbd->bsn", bank[negatives], student).flatten(1) / temperature
    logits = torch.cat([positive[:, None], negative], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)), {"bank": bank, "seen": seen}


def bits_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Each logit as a classifier of the teacher's bit. (B, K) each."""
    return F.binary_cross_entropy_with_logits(logits, (teacher > 0).to(logits.dtype))
