"""What a measurement was made on: hardware, versions and flags; never who or where."""

import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
from typing import Any

from jax_brcd.runtime.workers import cores

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision")
FURTHER = ("onnxruntime", "openvino")  # which one suite uses, where they are
# Instruction sets that decide how fast either framework computes
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def description() -> dict[str, Any]:
    """The machine in words and numbers, as the results hold it."""
    return {
        "cpu": cpu_model(), "cores": cores(), "memory_gib": round(memory_bytes() / 2**30, 1),
        "instructions": instructions(),
        "accelerator": accelerator(), "system": platform.system(), "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in (*PACKAGES, *filter(installed, FURTHER))},
        "xla_flags": os.environ.get("XLA_FLAGS", ""), "date": datetime.date.today().isoformat(),
    }


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def instructions() -> list[str]:
    """Which of INSTRUCTIONS the CPU has."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return [name for name in INSTRUCTIONS if name in flags.split()]


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 itself; PyTorch takes several times as long where it does not."""
    return not BFLOAT16.isdisjoint(instructions())


def default_name() -> str:
    """A file name made of the CPU's model, its cores and the accelerator."""
    words = f"{cpu_model()} {cores()} cores {accelerator() or ''}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def cpu_model() -> str:
    """The CPU as it names itself; its architecture where it does not."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def accelerator() -> str | None:
    """The first device's name where JAX does not compute on the CPU."""
    import jax

    return None if jax.default_backend() == "cpu" else jax.devices()[0].device_kind


def _cpuinfo(key: str) -> str:
    path = pathlib.Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""
