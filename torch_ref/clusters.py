"""Bit masks of clusters (docs/method.md, "What the student sees before training")."""

import torch
from torch import Tensor


def bit_masks(codes: Tensor, clusters: Tensor, n_clusters: int, margin: float, variant: str = "corrected") -> Tensor:
    """(n, K) codes -> (C, K) mask: 1 where |mean of the cluster's codes| > margin; all 0 as released."""
    mask = torch.zeros(n_clusters, codes.shape[1])
    if variant == "released":
        return mask
    for number in range(n_clusters):
        members = codes[clusters == number]
        if len(members):
            mask[number] = (members.mean(dim=0).abs() > margin).float()
    return mask
