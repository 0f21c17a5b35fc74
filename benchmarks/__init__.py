"""jax_brcd and PyTorch side by side: `python -m benchmarks.run --quick`, or one suite at a time."""

import importlib.util

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
    raise SystemExit("error: the benchmarks compare with PyTorch, which is not installed; pip install 'jax_brcd[torch]'")
