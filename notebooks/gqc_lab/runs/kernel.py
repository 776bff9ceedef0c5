"""A Jupyter kernel that is forked from a process which has the slow imports behind it.

A cold kernel spends most of a short run importing.  :func:`fork_kernel` forks one from the
calling process while that is still single-threaded; the child waits, then becomes the kernel
of whichever connection file it is told.  papermill and nbclient drive it through
jupyter_client's own seam, a provisioner.  Where forking is not safe (macOS, Windows) the
kernel is started the usual way; always with this interpreter, whatever kernelspecs are
installed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

CAN_FORK = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
# Modules that papermill imports and that behave otherwise when imported in a kernel.
_LOOK_AROUND = ("tqdm.auto", "tqdm.autonotebook")
# A unix socket's path holds 107 bytes; jupyter_client appends "-ipc-1" or so to the stem.
_LONGEST_IPC_PATH = 90


def die_with_parent(parent: int) -> None:
    """Have the kernel of the system kill this process when process ``parent`` dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


class ForkedKernel:
    """A child that waits to become a kernel; the part of Popen that a provisioner needs."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, orders: int) -> None:
        self.pid = pid
        self._orders = orders
        self.returncode: int | None = None

    def become(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        order = json.dumps({"argv": argv, "env": env, "cwd": cwd}).encode()
        with os.fdopen(self._orders, "wb") as pipe:
            pipe.write(order)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def fork_kernel(log: Path) -> ForkedKernel:
    """Fork the future kernel.  Call it before this process starts a thread.

    Args:
        log: what the kernel process writes outside of cells, e.g. the trace of a crash.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return ForkedKernel(pid, writing)
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            order = pipe.read()
        if order:  # none: the parent ended without using the kernel
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
                os.dup2(source, target)
            _be_kernel(json.loads(order))
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(0)


def _be_kernel(order: dict[str, Any]) -> None:
    import faulthandler

    import ipykernel_launcher  # type: ignore[import-untyped]
    import numpy as np
    import torch

    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable()
    for name in _LOOK_AROUND:
        sys.modules.pop(name, None)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    # A fork would share its parent's streams with its siblings; a new process has its own.
    np.random.seed()  # noqa: NPY002
    torch.default_generator.seed()
    options = order["argv"][order["argv"].index("-f") :]
    sys.argv = [ipykernel_launcher.__file__, *options]
    del sys.path[0]  # as the launcher does; IPython adds "" in its own place

    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=[*options, f"--IPKernelApp.parent_handle={os.getppid()}"])


class _ForkedProvisioner(LocalProvisioner):
    """Launches by telling a waiting child to become the kernel."""

    child: ForkedKernel

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        self.child.become(cmd, kwargs["env"], str(kwargs.get("cwd") or Path.cwd()))
        self.process = self.child  # type: ignore[assignment]
        self.pid = self.pgid = self.child.pid
        return self.connection_info

    async def wait(self) -> int | None:
        while self.process is not None and self.process.poll() is None:
            await asyncio.sleep(0.01)  # the parent class sleeps ten times longer
        return await super().wait()


def manager_class(child: ForkedKernel | None, sockets: Path) -> type[AsyncKernelManager]:
    """A kernel manager for nbclient that uses ``child``, or starts a cold kernel without one.

    Args:
        sockets: a short folder of its own for the connection file; its unix sockets cannot
            clash with another run's, as port numbers could.
    """

    class Manager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.connection_file = str(sockets / "k.json")
            if CAN_FORK and len(self.connection_file) < _LONGEST_IPC_PATH:
                self.transport = "ipc"
            if child is not None:
                provisioner = _ForkedProvisioner(
                    kernel_id="warm", kernel_spec=self.kernel_spec, parent=self
                )
                provisioner.child = child
                self.provisioner = provisioner

        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return Manager
