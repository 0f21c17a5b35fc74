"""Compiled programs that outlive a run, so that the next one begins at once: JAX's persistent compilation cache, made safe.

JAX's own store of these files writes them in place, so that a run killed in the middle of one leaves a broken file that is
never written again, and bounds its size only under a lock that a read-only directory does not allow. What stands in for it here
writes files whole, knows broken ones by their digest, and lets no error of the file system reach a run.

A program is known by what is compiled, the compiler and its options, and the processor. Whoever can write to the directory can
make a run execute what they like, so it is made for its owner alone.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import warnings

import jax

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, workplace

FOLDER = "compiled"
LIMIT_BYTES = 2 * 2**30
KEPT_SHARE = 0.75  # of the limit, after the least recently used have been deleted
SUFFIX = ".program"
DIGEST_BYTES = hashlib.sha256().digest_size


def use(cache_dir: os.PathLike | str) -> bool:
    """Keeps every program that this process compiles from now on under `cache_dir`, and takes from there what it can.

    Does nothing where the user named a directory of their own (JAX_COMPILATION_CACHE_DIR). Never raises for what is wrong with
    the directory: then the run compiles for itself.

    Returns:
        Whether programs are kept here.
    """
    folder = as_path(cache_dir) / FOLDER
    if jax.config.jax_compilation_cache_dir not in (None, _used):
        return False
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
    if not os.path.isdir(folder):
        return False
    _install(ProgramFiles(folder))
    return True


_used: str | None = None


def _install(files: "ProgramFiles") -> None:
    global _used
    _used = str(files.folder)
    for name, value in (("jax_compilation_cache_dir", _used),
                        ("jax_persistent_cache_min_compile_time_secs", 0.0),
                        ("jax_persistent_cache_min_entry_size_bytes", 0),
                        # XLA's own caches fail a compilation where they cannot be written
                        ("jax_persistent_cache_enable_xla_caches", "none")):
        jax.config.update(name, value)
    with contextlib.suppress(ImportError):  # JAX has no public place for another store; without it its own serves
        from jax._src import compilation_cache

        compilation_cache.reset_cache()
        compilation_cache.get_file_cache = lambda path: (files, path)
    # Whatever is still wrong with a file, the program is compiled and the run goes on
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


class ProgramFiles:
    """Compiled programs by their keys, a file each, in the form that JAX asks of a compilation cache."""

    def __init__(self, folder: pathlib.Path, limit_bytes: int = LIMIT_BYTES):
        self.folder = self._path = folder
        self.limit_bytes = limit_bytes
        with contextlib.suppress(OSError):
            self._delete_oldest()

    def get(self, key: str) -> bytes | None:
        """The program's bytes; None where they are absent or broken."""
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        value = content[DIGEST_BYTES:]
        if hashlib.sha256(value).digest() != content[:DIGEST_BYTES]:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keeps the program's bytes where they can be written."""
        path = self._file(key)
        with contextlib.suppress(OSError, InputError), workplace(path) as place:
            # Not forced to the disk: what a crash of the machine leaves of it is known by its digest
            temporary = place / path.name
            temporary.write_bytes(hashlib.sha256(value).digest() + value)
            temporary.replace(path)

    def _file(self, key: str) -> pathlib.Path:
        return self.folder / f"{key}-{_processor()}{SUFFIX}"

    def _delete_oldest(self) -> None:
        """Makes room where the files are larger than the limit: the least recently used go first."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another run may delete it
                kept = path.stat()
                files.append((kept.st_mtime_ns, kept.st_size, path))
        total = sum(size for _, size, _ in files)
        if total <= self.limit_bytes:
            return
        for _, size, path in sorted(files):
            if total <= KEPT_SHARE * self.limit_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


@functools.cache
def _processor() -> str:
    """What tells this machine's processor from those that may lack its instructions, where several share a directory."""
    described = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        described += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return hashlib.sha256(described.encode()).hexdigest()[:8]
