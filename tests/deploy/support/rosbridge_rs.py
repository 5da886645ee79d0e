"""``rosbridge-server-rs``: a rosbridge server by others in front of the real ROS 2 of this environment."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import pytest
from bridge_server import wait_until

LIBRARIES = Path(sys.prefix) / "lib"


def libpython() -> Path:
    """Any: the libraries of ROS's wheels leave Python's names open, and the server, which is no Python, calls none."""
    version = ".".join(platform.python_version_tuple()[:2])
    places = [Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"), Path(sys.base_prefix) / "lib"]
    places.append(Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"))
    for place in places:
        for found in sorted(place.glob("libpython3.*.so*")):
            return found.resolve()
    pytest.fail(f"rosbridge-server-rs needs libpython: apt-get install libpython{version}", False)


class RustBridge:
    """The server, on a port of its own or on the one of its predecessor."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Started, and listening. It expects a ROS that is installed in another way than by wheels."""
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        self.port = port
        shim = folder / "librmw_implementation.so"  # the wheels link to Fast DDS without it
        if not shim.is_symlink():
            shim.symlink_to(LIBRARIES / "librmw_fastrtps_cpp.so")
        packages = Path(sysconfig.get_path("purelib"))
        paths = [folder, LIBRARIES, *packages.glob("ros_*.libs")]
        environment = os.environ | {
            "LD_LIBRARY_PATH": ":".join(map(str, paths)),
            "LD_PRELOAD": str(libpython()),
            "ROS_DISTRO": "jazzy",
            "AMENT_PREFIX_PATH": sys.prefix,
        }
        self._log = (folder / f"bridge-{port}.log").open("w")
        self._process = subprocess.Popen(
            [packages / "rosbridge_server_rs/rosbridge_server_rs_jazzy", "--no-rosapi", "--bind", f"127.0.0.1:{port}"],
            env=environment, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        wait_until(self._listens, f"listening on {port}", 60)

    def _listens(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        return False

    def kill(self) -> None:
        """As kill -9."""
        self._process.kill()
        self._process.wait()
        self._log.close()
