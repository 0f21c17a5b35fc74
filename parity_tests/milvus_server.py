"""python milvus_server.py COMMAND...: runs a command beside a Milvus server, whose address it finds in MILVUS_URL.

The server listens on all interfaces, so this is to be run in a network of its own, as `unshare --net` makes one.
"""

import importlib.util
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time

SECONDS = 600  # that the command may take
SET_FLAGS, UP = 0x8914, 1  # of Linux: SIOCSIFFLAGS, IFF_UP
# Milliseconds that the server waits where it would wait for seconds: tests make many small collections
SOONER = {"PROXY_TIMETICKINTERVAL": "100", "QUERYCOORD_CHECKCHANNELINTERVAL": "50", "QUERYCOORD_CHECKSEGMENTINTERVAL": "50",
          "QUERYCOORD_CHECKINTERVAL": "50", "QUERYCOORD_DISTPULLINTERVAL": "50"}


def begin_once(command: list[str], folder: pathlib.Path, place: pathlib.Path) -> None:
    """Starts this file with a command in a network of its own. What it says goes to `place`/said, and its status then to
    `place`/status. Of those who ask for the same place only the first starts it; it may outlive them, for SECONDS."""
    try:
        place.mkdir()
    except FileExistsError:
        return
    apart = ["timeout", "-k", "5", str(SECONDS), "unshare", "--map-root-user", "--net", sys.executable, __file__, *command]
    kept = 'place=$1; shift; "$@" > "$place/said" 2>&1; echo $? > "$place/ended" && mv "$place/ended" "$place/status"'
    subprocess.Popen(["sh", "-c", kept, "sh", str(place), *apart], cwd=folder, start_new_session=True)


def ended(place: pathlib.Path) -> tuple[int, str]:
    """Status and output of what was started there, once it has ended.

    Raises:
        TimeoutError: where it has not, though it was to.
    """
    deadline = time.monotonic() + SECONDS + 30
    while not (place / "status").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{place}: nothing has ended there")
        time.sleep(0.1)
    return int((place / "status").read_text()), (place / "said").read_text()


def why_not() -> str | None:
    """Why no server is started here; None where it is."""
    if "MILVUS_URL" in os.environ:
        return "MILVUS_URL names a server, which is tested here"
    if importlib.util.find_spec("milvus") is None:
        return "milvus, which brings a server, is not installed"
    try:
        subprocess.run(["unshare", "--map-root-user", "--net", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the server listens on all interfaces, and a network of its own is not to be had here ({error})"
    return None


def main(command: list[str]) -> int:
    """Runs the command; returns its status."""
    import fcntl

    from milvus import default_server

    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH22x", b"lo", UP))
    os.environ |= SOONER
    with tempfile.TemporaryDirectory() as folder:
        default_server.set_base_dir(folder)
        default_server.start()
        try:
            return subprocess.run(command, env={**os.environ, "MILVUS_URL": "milvus://127.0.0.1:19530"}, check=False).returncode
        finally:
            default_server.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
