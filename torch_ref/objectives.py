"""The teacher's other hashing objectives: Bi-half, GreedyHash, ITQ and CroVCA."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ref.losses import cibhash_loss, code_alignment, coding_rate, similarities


class _BiHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, gamma):
        order = logits.argsort(dim=0, descending=True, stable=True)
        codes = torch.full_like(logits, -1.0)
        for bit in range(logits.shape[1]):
            codes[order[: len(logits) // 2, bit], bit] = 1.0
        ctx.save_for_backward(logits, codes)
        ctx.gamma = gamma
        return codes

    @staticmethod
    def backward(ctx, gradient):
        logits, codes = ctx.saved_tensors
        return gradient + ctx.gamma * (logits - codes) / codes.numel(), None


def bihalf_codes(logits: Tensor, gamma: float) -> Tensor:
    """+1 for the upper half of each bit's logits, -1 for the lower (Li and van Gemert, AAAI 2021). (N, K) -> (N, K)."""
    return _BiHalf.apply(logits, gamma)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return torch.sign(logits)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def greedy_codes(logits: Tensor) -> Tensor:
    """sign(logits) with the identity's gradient (Su et al., NeurIPS 2018)."""
    return _Sign.apply(logits)


def similarity_loss(codes: Tensor, features: Tensor) -> Tensor:
    """Mean squared difference of the cosines of codes and of features over all pairs of rows. (N, K), (N, D)."""
    others = ~torch.eye(len(codes), dtype=torch.bool)
    return F.mse_loss(similarities(codes)[others], similarities(features)[others])


def bihalf_loss(features: Tensor, logits: Tensor, *, gamma: float = 6.0) -> Tensor:
    """Rows are both views of a batch. (N, D), (N, K)."""
    return similarity_loss(bihalf_codes(logits, gamma), features)


def greedyhash_loss(features: Tensor, logits: Tensor, *, penalty: float = 0.1) -> Tensor:
    """Rows are both views of a batch. (N, D), (N, K)."""
    return similarity_loss(greedy_codes(logits), features) + penalty * (logits.abs() - 1).abs().pow(3).mean()


def iterative_quantisation(projected: Tensor, rotation: Tensor, iterations: int) -> Tensor:
    """ITQ's rotation (Gong et al., TPAMI 2013). (n, K), (K, K) -> (K, K)."""
    for _ in range(iterations):
        codes = torch.where(projected @ rotation >= 0, 1.0, -1.0).to(projected.dtype)
        left, _, right = torch.linalg.svd(projected.T @ codes)
        rotation = left @ right
    return rotation


def itq_head(features: Tensor, bits: int, *, seed: int, iterations: int = 50) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of the linear head that ITQ gives. (n, D) features of the un-augmented training images."""
    features = features.double()
    mean = features.mean(dim=0)
    components = torch.linalg.svd(features - mean, full_matrices=False).Vh[:bits]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * largest.sign()  # so that both frameworks start from the same point
    start = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).normal(size=(bits, bits)))).Q
    rotation = iterative_quantisation((features - mean) @ components.T, start, iterations)
    weight = rotation.T @ components
    return weight.float(), -(weight @ mean).float()


def crovca_loss(logits: Tensor, *, weight: float = 0.1, epsilon: float = 0.05) -> Tensor:
    """Moummad et al. (2025); rows are both views of a batch. (N, K)."""
    views = logits.chunk(2)
    return code_alignment(*views) + weight * sum(coding_rate(view, epsilon) for view in views) / 2


# name -> loss of (features of both views, logits of both views, the run's configuration); ITQ has none
LOSSES = {
    "cibhash": lambda features, logits, config: cibhash_loss(
        *logits.chunk(2), temperature=config.teacher.teacher_temperature, kl_weight=config.teacher.teacher_kl_weight),
    "bihalf": lambda features, logits, config: bihalf_loss(features, logits, gamma=config.hashing.bihalf_gamma),
    "greedyhash": lambda features, logits, config: greedyhash_loss(
        features, logits, penalty=config.hashing.greedyhash_penalty),
    "crovca": lambda features, logits, config: crovca_loss(
        logits, weight=config.hashing.crovca_weight, epsilon=config.hashing.crovca_epsilon),
}


def adam(parameters: Iterable[nn.Parameter], rate: float, steps: int, hashing):
    """The published optimizer and what changes its rate after each step: nothing."""
    return torch.optim.Adam(parameters, lr=rate), None


def crovca_adamw(parameters: Iterable[nn.Parameter], rate: float, steps: int, hashing):
    """AdamW whose rate falls by a cosine over all steps."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=hashing.crovca_weight_decay)
    final = min(hashing.crovca_final_lr, rate)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=final)


OPTIMIZERS = {"crovca": crovca_adamw}  # of (parameters, rate, steps, the objective's settings); of the others `adam`
# The head that an objective learns, by its settings; of the others the backbone's own
HEADS = {"crovca": lambda hashing: f"hashcoder_{hashing.crovca_head}"}
