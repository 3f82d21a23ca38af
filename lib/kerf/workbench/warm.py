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
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

IMPORTS = ("sentence_transformers", "pandas", "matplotlib.figure", "scipy.stats", "pyarrow.parquet",
           "ipykernel.kernelapp", "kerf.pipeline", "kerf.plots", "kerf.evaluate")  # fmt: skip


class Nursery:
    """The process that kernels are forked from; ends with the process that made it."""

    def __init__(self) -> None:
        from kerf.scratch import scratch

        self.open = ExitStack()
        self.address = str(self.open.enter_context(scratch()) / "nursery")
        command = [sys.executable, "-m", "kerf.workbench.warm", "serve", self.address]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.process.stdout.readline() != b"ready\n":
            raise RuntimeError("the process that kernels start from did not start")

    def kernel_command(self) -> list[str]:
        """What Jupyter runs instead of ipykernel_launcher; {connection_file} is its to fill in."""
        return [sys.executable, "-S", __file__, "join", self.address, "{connection_file}"]

    def close(self) -> None:
        """End the nursery."""
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.open.close()


def serve(address: str) -> None:
    """Import, say so, and fork a kernel for every process that joins, until standard input ends."""
    for name in IMPORTS:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels: `join` sees them end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    os.write(1, b"ready\n")
    while True:
        connection, _ = listener.accept()
        message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if os.fork() == 0:
            listener.close()
            _become_kernel(json.loads(message), streams, connection)
        for stream in streams:
            os.close(stream)
        connection.close()


def _become_kernel(request: dict, streams: list[int], connection: socket.socket) -> None:
    status = 1
    try:
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
        kernelapp.launch_new_instance(["-f", request["connection_file"], "--IPKernelApp.parent_handle=1"])
        status = 0
    finally:
        os._exit(status)


def join(address: str, connection_file: str) -> None:
    """Ask the nursery for a kernel on this process's standard output and error; live as long as it, and its caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = os.getppid()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"connection_file": connection_file, "environment": dict(os.environ), "cwd": os.getcwd()}
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        # Nothing is ever sent: it can be read when the kernel has ended. A caller that was killed says nothing.
        while os.getppid() == caller and not select.select([connection], [], [], 1)[0]:
            pass


if __name__ == "__main__":
    {"serve": serve, "join": join}[sys.argv[1]](*sys.argv[2:])
