"""Kernels of runs: forked from a process that has imported much, or started from scratch.

A kernel that is started from scratch spends most of a short run importing.  The standard library's
fork server imports pandas and, for runs that use it, torch, runs nothing, and forks each kernel on
request.  papermill and nbclient drive both kinds through jupyter_client's own seam, a provisioner.
Where forking is not safe (macOS, Windows) every kernel is started from scratch; always with this
interpreter, whatever kernelspecs are installed.
"""

import atexit
import contextlib
import ctypes
import fcntl
import multiprocessing.process
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

CAN_FORK = sys.platform == "linux"
_THREAD_COUNTS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
# Not plotly: what it finds at import decides how it shows figures.
_PRELOADED = [
    "gqc_lab.runs.kernel", "ipykernel.kernelapp", "ipykernel_launcher", "IPython.core.debugger",
    "IPython.core.completerlib", "IPython.core.oinspect", "IPython.extensions.storemagic",
    "pandas.io.formats.html", "pyarrow.pandas_compat", "pyarrow.vendored.version",
    "pyarrow.parquet",
]  # fmt: skip
# What a run with torch imports for its first optimizer, data (and scipy.stats, for an interval) and
# figure as well.  Not DuckDB, which ends a fork server with a page about what it leaked.
_WITH_TORCH = ["torch._dynamo", "sklearn.datasets", "nbformat", "plotly.graph_objects"]
_PR_SET_PDEATHSIG = 1
# A unix socket's path holds 107 bytes, of which some 50 are ours below the temporary folder.
_LONGEST_PLACE = 40
_SOCKETS = "gqc-sockets-"
_STREAM = "--IPKernelApp.outstream_class=gqc_lab.runs.output.BoundedStream"
# By threads, as libraries read the count on import, and whether torch is loaded.
_servers: dict[tuple[int, bool], forkserver.ForkServer] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """Make a folder for a kernel's sockets, in the one that this process keeps for all of them."""
    with _lock:
        parent = _sockets()
    with tempfile.TemporaryDirectory(prefix="", dir=parent) as folder:
        yield Path(folder)


@cache
def _sockets() -> Path:
    """Make this process's folder, locked while it lives, and remove those of killed processes."""
    place = tempfile.gettempdir()
    if len(place) > _LONGEST_PLACE:
        place = "/tmp"
    for left in Path(place).glob(f"{_SOCKETS}*"):
        with contextlib.suppress(OSError), _locked(left):
            if time.time() - left.stat().st_mtime > 10:  # else it may be about to be locked
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=_SOCKETS, dir=place))
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)  # until this process ends
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder.  Raises: BlockingIOError: another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def preload(threads: int, has_torch: bool) -> None:
    """Let the fork server for runs of ``threads`` threads begin its imports; returns at once."""
    if CAN_FORK:
        with _lock:
            _server(threads, has_torch)


def _server(threads: int, has_torch: bool) -> forkserver.ForkServer:
    server = _servers.setdefault((threads, has_torch), forkserver.ForkServer())
    server.set_forkserver_preload([*_PRELOADED, *_WITH_TORCH * has_torch, "gqc_lab.runs.output"])
    # Its imports must not come from the current folder, nor end with the batch's Ctrl-C.
    settings = {"PYTHONSAFEPATH": "1", **dict.fromkeys(_THREAD_COUNTS, str(threads))}
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    place = config.get("tempdir")
    config["tempdir"] = str(_sockets())  # its own would outlive a kill
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server.ensure_running()
    finally:
        config["tempdir"] = place
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return server


class ForkedKernel:
    """A kernel that the fork server forked; the part of Popen that a provisioner needs."""

    stdin = stdout = stderr = None

    def __init__(self, start: "_Start", threads: int, has_torch: bool) -> None:
        self.returncode: int | None = None
        self._reading = threading.Lock()
        with _lock:
            self._status, writer = _server(threads, has_torch).connect_to_new_process([])
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump({}, pipe)  # what multiprocessing would have the child inherit: nothing
            pickle.dump(start, pipe)
        self.pid = forkserver.read_signed(self._status)
        os.set_blocking(self._status, False)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the kernel lives."""
        with self._reading:
            if self.returncode is None:
                try:
                    self.returncode = forkserver.read_signed(self._status)
                except BlockingIOError:
                    return None
                except EOFError:  # the fork server died, and its kernels with it
                    self.returncode = -signal.SIGKILL
                os.close(self._status)
            return self.returncode

    wait = poll  # the provisioner calls it after poll gave a code

    def send_signal(self, number: int) -> None:
        send_signal(self, number)


def send_signal(kernel: Any, number: int) -> None:
    """Signal the process group of a kernel, a :class:`ForkedKernel` or a Popen, if one lives."""
    if kernel is not None and kernel.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(kernel.pid, number)


@dataclass
class _Start:
    """What the forked child is to become.  multiprocessing calls :meth:`_bootstrap` in it."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    log: Path

    def _bootstrap(self, parent_sentinel: int) -> int:
        try:
            _leave_the_family()
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
                os.dup2(source, target)
            os.environ.clear()
            os.environ.update(self.env)
            os.chdir(self.cwd)
            _be_kernel(self.argv)
        finally:
            atexit._run_exitfuncs()
        return 0


def _leave_the_family() -> None:
    """Die with the fork server, which dies with the batch, and keep nothing of theirs."""
    os.setpgid(0, 0)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
    # The fork server ends when nobody holds this pipe any more.
    family: Any = forkserver._forkserver
    os.close(family._forkserver_alive_fd)
    family._forkserver_alive_fd = None
    tracker: Any = resource_tracker._resource_tracker
    os.close(tracker._fd)
    tracker._fd = None


def _be_kernel(argv: list[str]) -> None:
    import faulthandler

    import ipykernel_launcher  # type: ignore[import-untyped]
    import numpy as np
    import pandas as pd
    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable()
    # A fork would share its parent's streams with its siblings; a new process has its own.
    np.random.seed()  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    # The default in a kernel; pandas was imported outside one, where it takes a terminal's.
    pd.set_option("display.max_columns", 20)
    options = argv[argv.index("-f") :]
    sys.argv = [ipykernel_launcher.__file__, *options]
    if not os.environ.get("PYTHONSAFEPATH"):  # IPython does so only where the fork server did
        names = [os.path.basename(each) for each in sys.path]
        sys.path.insert(names.index("site-packages") if "site-packages" in names else 0, "")
    IPKernelApp.launch_instance(argv=[*options, f"--IPKernelApp.parent_handle={os.getppid()}"])


def find_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        try:
            visible = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return []
    return visible.replace(",", " ").split()


class _Provisioner(LocalProvisioner):
    """Has the kernel forked if ``fork`` is given, and tells who started it."""

    fork: Callable[[_Start], ForkedKernel] | None
    output: Path
    on_start: Callable[[Any], None]

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        if self.fork is None:
            await super().launch_kernel(cmd, **kwargs)
        else:
            if not sys.flags.safe_path:  # another thread may be starting a server with it
                kwargs["env"].pop("PYTHONSAFEPATH", None)
            start = _Start(cmd, kwargs["env"], str(kwargs.get("cwd") or Path.cwd()), self.output)
            forked: Any = self.fork(start)
            self.process, self.pid, self.pgid = forked, forked.pid, forked.pid
        self.on_start(self.process)
        return self.connection_info


class _QuickChannel(AsyncZMQSocketChannel):
    """Waits a tenth as long for what may never come; a client asks for it before the first cell."""

    async def get_msg(self, timeout: float | None = None) -> Any:  # type: ignore[override]
        return await super().get_msg(timeout and timeout / 10)


class _QuickClient(AsyncKernelClient):
    iopub_channel_class: Any = _QuickChannel

    def _context_default(self) -> Any:
        context = super()._context_default()
        context.reconnect_ivl = 5  # ms until it looks again for the sockets of a starting kernel
        return context


def manager_class(
    folder: Path,
    sockets: Path,
    threads: int,
    *,
    is_forked: bool,
    on_start: Callable[[Any], None],
    gpus: list[str] | None = None,
    has_torch: bool = True,
) -> type[AsyncKernelManager]:
    """Return the kernel manager for nbclient that starts a run's kernel.

    Args:
        folder: the run's, where ``runs.save`` leaves its numbers.
        sockets: a short folder of its own for the connection file; its unix sockets cannot
            clash with another run's, as port numbers could.
        threads: BLAS and OpenMP threads of the kernel.
        on_start: called with the kernel's process, a :class:`ForkedKernel` or a Popen.
        gpus: the CUDA devices that the run may see; None: those that this process sees.
        has_torch: whether the process that the kernel is forked from has imported torch.
    """
    env = {
        "GQC_RUN_DIR": str(folder).replace("$", "$$"),  # jupyter_client fills templates in
        **dict.fromkeys(_THREAD_COUNTS, str(threads)),
    }
    if gpus is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)

    class Manager(AsyncKernelManager):
        client_factory: Any = _QuickClient

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.connection_file = str(sockets / "k.json")
            if CAN_FORK:
                self.transport = "ipc"
            provisioner = _Provisioner(kernel_id="run", kernel_spec=self.kernel_spec, parent=self)
            fork = partial(ForkedKernel, threads=threads, has_torch=has_torch)
            provisioner.fork = fork if is_forked and CAN_FORK else None
            provisioner.output = folder / "kernel.log"
            provisioner.on_start = on_start
            self.provisioner = provisioner

        async def _async_interrupt_kernel(self) -> None:
            """Send none: a kernel that gets one just as it is told to end may not hear that."""

        async def _async_wait(self, pollinterval: float = 0.1) -> None:
            await super()._async_wait(pollinterval / 10)

        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", _STREAM]
            return KernelSpec(argv=argv, env=env, display_name="Python 3", language="python")

    return Manager
