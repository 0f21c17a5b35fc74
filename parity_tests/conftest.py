"""Fixtures shared by all tests: golden numbers and the material beside the repository."""

import pathlib

import numpy as np
import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def shared_path(*parts: str) -> pathlib.Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('../shared', *parts))}, which is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def shared():
    """A function from parts of a path below ../shared to that path; skips where it is absent."""
    return shared_path


@pytest.fixture(scope="session", params=[0, 1, 2], ids=lambda i: f"golden{i}")
def golden(request):
    """Inputs, losses and gradients of the published PyTorch code, one set after the other."""
    with np.load(shared_path("golden", f"shared_{request.param}.npz"), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
