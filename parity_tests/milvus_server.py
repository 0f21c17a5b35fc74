"""python milvus_server.py COMMAND...: runs a command beside a Milvus server, whose address it finds in MILVUS_URL.

The server listens on all interfaces, so this is to be run in a network of its own, as `unshare --net` makes one.
"""

import fcntl
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile

SET_FLAGS, UP = 0x8914, 1  # of Linux: SIOCSIFFLAGS, IFF_UP
# Milliseconds that the server waits where it would wait for seconds: tests make many small collections
SOONER = {"PROXY_TIMETICKINTERVAL": "100", "QUERYCOORD_CHECKCHANNELINTERVAL": "50", "QUERYCOORD_CHECKSEGMENTINTERVAL": "50",
          "QUERYCOORD_CHECKINTERVAL": "50", "QUERYCOORD_DISTPULLINTERVAL": "50"}


def begin(command: list[str], folder: pathlib.Path) -> subprocess.Popen:
    """Starts this file with a command, in a network of its own and a group of processes of its own; output goes to a pipe."""
    network = ["unshare", "--map-root-user", "--net"]
    return subprocess.Popen([*network, sys.executable, __file__, *command], cwd=folder, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def why_not() -> str | None:
    """Why no server is started here; None where it is."""
    try:
        subprocess.run(["unshare", "--map-root-user", "--net", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the server listens on all interfaces, and a network of its own is not to be had here ({error})"
    return None


def main(command: list[str]) -> int:
    """Runs the command; returns its status."""
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
