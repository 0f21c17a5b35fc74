"""Weight files, safetensors and PyTorch's own, read without executing what is in them; and torchvision's downloads."""

import pathlib

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jax_brcd.data.download import download
from jax_brcd.runtime.errors import InputError

# torchvision's ImageNet weights (IMAGENET1K_V1; SWAG linear for vit_h_14). The name ends in 8 digits of the file's sha256.
URL = "https://download.pytorch.org/models/"
IMAGENET_FILES = {
    "vit_b_16": "vit_b_16-c867db91.pth",
    "vit_b_32": "vit_b_32-d86f8d99.pth",
    "vit_l_16": "vit_l_16-852ce7e3.pth",
    "vit_l_32": "vit_l_32-c7638314.pth",
    "vit_h_14": "vit_h_14_lc_swag-c1eb923e.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "efficientnet_b0": "efficientnet_b0_rwightman-7f5810bc.pth",
    "efficientnet_b1": "efficientnet_b1_rwightman-bac287d4.pth",
    "efficientnet_b2": "efficientnet_b2_rwightman-c35c1473.pth",
    "efficientnet_b3": "efficientnet_b3_rwightman-b3899882.pth",
    "efficientnet_b4": "efficientnet_b4_rwightman-23ab8bcd.pth",
    "efficientnet_b5": "efficientnet_b5_lukemelas-1a07897c.pth",
    "efficientnet_b6": "efficientnet_b6_lukemelas-24a108a5.pth",
    "efficientnet_b7": "efficientnet_b7_lukemelas-c5b4e57e.pth",
    "efficientnet_v2_s": "efficientnet_v2_s-dd5fe13b.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "mobilenet_v3_large": "mobilenet_v3_large-8738ca79.pth",
    "convnext_tiny": "convnext_tiny-983f1562.pth",
}


def imagenet_weights(name: str, folder: pathlib.Path) -> pathlib.Path:
    """torchvision's ImageNet weights of a backbone, downloaded into `folder` when absent.

    Raises:
        InputError: for a backbone that torchvision has no weights of, or offline.
    """
    if name not in IMAGENET_FILES:
        raise InputError(f"no ImageNet weights of '{name}' exist; give a weight file, or one of {', '.join(IMAGENET_FILES)}")
    path = folder / IMAGENET_FILES[name]
    if path.exists():
        return path
    return download(URL + path.name, path, algorithm="sha256", checksum=path.stem.rsplit("-", 1)[-1])


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A state_dict from a .safetensors, .pth or .pt file; half precision comes as float32.

    Raises:
        InputError: for a file that is absent, truncated or no flat dictionary of tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weight file; check the path")
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    if path.suffix not in readers:
        raise InputError(f"{path}: unknown kind of weight file; give a .safetensors, .pth or .pt file")
    return readers[path.suffix](path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError) as error:  # the latter: a type that NumPy lacks
        raise InputError(f"{path}: truncated or no safetensors file of float tensors ({error}); fetch it again") from None
    return {name: _upcast(tensor) for name, tensor in tensors.items()}


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(f"{path}: reading it needs PyTorch; pip install 'jax_brcd[torch]', or give .safetensors") from None
    with open(path, "rb") as file:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # damaged bytes make the restricted unpickler raise almost anything
            raise InputError(f"{path}: truncated, or more than tensors in it; fetch it again, "
                             "or save model.state_dict() alone") from None
    flat = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items())
    if not flat:
        raise InputError(f"{path}: not a flat state_dict of tensors; save model.state_dict() alone")
    # NumPy has no bfloat16 of PyTorch's, so the cast comes first
    return {name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
            for name, tensor in tensors.items()}


def _upcast(tensor: np.ndarray) -> np.ndarray:
    half = tensor.dtype in (np.float16, ml_dtypes.bfloat16)
    return tensor.astype(np.float32) if half else tensor
