"""Images as torchvision's workers see them. Apart from the suites, because each worker process imports this."""

import torch
from torch.utils.data import Dataset

from torch_ref.augment import training_view


class ViewedImages(Dataset):
    """One random view of each of the images (n, 3, height, width), uint8."""

    def __init__(self, images: torch.Tensor, size: int):
        self.images, self.view = images.share_memory_(), training_view(size, True)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.view(self.images[index])
