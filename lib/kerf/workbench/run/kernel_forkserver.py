"""Kernels that start warm: each is forked from one process that has imported the libraries and done nothing else.

Importing torch and sentence-transformers takes longer than most stages do. The nursery imports them once
and forks a kernel for each stage: a process of its own, with memory of its own. To Jupyter a kernel is
the process that it starts, so it starts `join` here: a small process that asks the nursery for a kernel
and lives exactly as long as it. What measures load time and memory does not use this: see
`kerf.evaluate.measure`.

Standard library only at the top: `join` has to start fast.
"""

import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

IMPORTS = (
    "sentence_transformers",
    "pandas",
    "matplotlib.figure",
    "scipy.stats",
    "pyarrow.parquet",
    "ipykernel.kernelapp",
    "kerf.pipeline",
    "kerf.charts.plots",
    "kerf.evaluate",
)
READY_SECONDS = 180.0  # for the imports, on a busy machine
ANSWER_SECONDS = 20.0  # for a fork


class KernelForkserver:
    """The process that kernels are forked from, started again when it has died; ends with the process that made it.

    folder: where its sockets lie, and all temporary files of its kernels; gone at the end.
    """

    def __init__(self) -> None:
        from kerf.core.scratch import scratch

        self._open = ExitStack()
        self.folder = self._open.enter_context(scratch())
        self.process, self.address, self.started = None, "", 0

    def kernel_command(self) -> list[str]:
        """What Jupyter runs instead of ipykernel_launcher; {connection_file} is its to fill in.

        Raises RuntimeError where the nursery does not start.
        """
        if self.process is None or self.process.poll() is not None:
            self._start()
        return [
            sys.executable,
            "-S",
            __file__,
            "join",
            self.address,
            "{connection_file}",
            str(ANSWER_SECONDS),
        ]

    def _start(self) -> None:
        self.started += 1
        self.address = str(self.folder / f"nursery-{self.started}")
        command = [
            sys.executable,
            "-m",
            "kerf.workbench.run.kernel_forkserver",
            "serve",
            self.address,
        ]
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with (
            selectors.DefaultSelector() as selector
        ):  # select() knows no file descriptor above 1023
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answered = selector.select(READY_SECONDS)
        if not answered or self.process.stdout.readline() != b"ready\n":
            self.end()
            raise RuntimeError("the process that kernels start from did not start")

    def end(self) -> None:
        """End the process, whatever it does; the next kernel starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End the nursery for good."""
        self.end()
        self._open.close()


def serve(address: str) -> None:
    """Import, say so, and fork a kernel for every process that joins, until standard input ends."""
    threading.Thread(target=_end_with_owner, args=(Path(address).parent,), daemon=True).start()
    for name in IMPORTS:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels: `join` sees them end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    while True:
        connection, _ = listener.accept()
        with connection:
            request, streams = _received(connection)
            if request and os.fork() == 0:
                listener.close()
                _become_kernel(request, streams, connection)
            for stream in streams:
                os.close(stream)


def _end_with_owner(folder: Path) -> None:
    os.read(0, 1)  # nothing is ever sent: it returns when the owner is gone, killed or not
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _received(connection: socket.socket) -> tuple[dict, list[int]]:
    """A line of JSON and the descriptors with it; no request from who ends, or falls silent, in the middle of it."""
    streams = []
    try:
        connection.settimeout(ANSWER_SECONDS)
        message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        while not message.endswith(b"\n"):
            more = connection.recv(1 << 20)
            if not more:
                return {}, streams
            message += more
        connection.settimeout(None)
        return json.loads(message), streams
    except OSError:
        return {}, streams


def _become_kernel(request: dict, streams: list[int], connection: socket.socket) -> None:
    status = 1
    try:
        connection.send(b"k")  # there is one
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        # Whoever joined is gone when this socket ends, and then nobody needs the kernel.
        threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
        from ipykernel import kernelapp

        # A parent of 1 means that nobody is watched: the thread above does that.
        kernelapp.launch_new_instance(
            ["-f", request["connection_file"], "--IPKernelApp.parent_handle=1"]
        )
        status = 0
    finally:
        os._exit(status)


def join(address: str, connection_file: str, seconds: str) -> None:
    """Ask the nursery for a kernel on this process's standard output and error; live as long as it, and its caller.

    Ends where no kernel comes within so many `seconds`: Jupyter then sees a kernel that died.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = os.getppid()
    environment = {**os.environ, "TMPDIR": str(Path(address).parent)}
    request = (
        json.dumps(
            {"connection_file": connection_file, "environment": environment, "cwd": os.getcwd()}
        ).encode()
        + b"\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(float(seconds))
        connection.connect(address)
        sent = socket.send_fds(connection, [request], [1, 2])
        connection.sendall(request[sent:])
        if not connection.recv(1):
            sys.exit("the process that kernels start from ended")
        # Nothing more is ever sent: it can be read when the kernel has ended. A caller that was killed says nothing.
        while os.getppid() == caller and not select.select([connection], [], [], 1)[0]:
            pass


if __name__ == "__main__":
    {"serve": serve, "join": join}[sys.argv[1]](*sys.argv[2:])
