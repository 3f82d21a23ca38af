"""Warm kernels: each is forked from one server process that has imported the libraries and nothing else.

Importing torch takes longer than most stages do. Jupyter starts `join`, which requests a kernel from the server and lives
exactly as long as it; `join` has to start fast, so only the standard library is imported at the top.
"""

import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

IMPORTS = ["sentence_transformers", "pandas", "matplotlib.figure", "scipy.stats", "pyarrow.parquet"]
IMPORTS += ["ipykernel.kernelapp", "kerf.pipeline", "kerf.charts.plots", "kerf.evaluate"]
READY_SECONDS = 180.0  # for the imports, on a busy machine
ANSWER_SECONDS = 20.0  # for a fork


class KernelForkserver:
    """The process that kernels are forked from; restarted when it has died, and ended with the process that made it."""

    def __init__(self) -> None:
        from kerf.core.scratch import scratch  # `join` does without it

        resources = ExitStack()
        self.folder = resources.enter_context(scratch())  # sockets and temporary files
        resources.callback(self.end)
        self.close = resources.close  # ends the process and removes the folder
        self.process: Popen | None = None
        self.address = ""

    def kernel_command(self) -> list[str]:
        """Command of a kernel; Jupyter fills in {connection_file}. Raises RuntimeError if the server does not start."""
        if self.process is None or self.process.poll() is not None:
            self.address = str(self.folder / f"server-{time.monotonic_ns()}")
            command = [sys.executable, "-m", __name__, "serve", self.address]
            environment = {**os.environ, "TMPDIR": str(self.folder)}
            self.process = Popen(command, env=environment, stdin=PIPE, stdout=PIPE)
            assert self.process.stdout
            poll = select.poll()  # select() is limited to file descriptors below 1024
            poll.register(self.process.stdout, select.POLLIN)
            answered = poll.poll(1000 * READY_SECONDS)
            if not answered or self.process.stdout.readline() != b"ready\n":
                self.end()
                raise RuntimeError("the process that kernels start from did not start")
        arguments = [self.address, "{connection_file}", str(ANSWER_SECONDS)]
        return [sys.executable, "-S", __file__, "join", *arguments]

    def end(self) -> None:
        """Kill the process; the next kernel starts another one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def serve(address: str) -> None:
    """Import the libraries, report ready, and fork a kernel for every process that joins, until standard input ends."""
    threading.Thread(target=_end_with_owner, args=(Path(address).parent,), daemon=True).start()
    for name in IMPORTS:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # `join` notices the end of a kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    while True:
        connection, _ = listener.accept()
        with connection:
            request, streams = _receive(connection)
            if request and os.fork() == 0:
                listener.close()
                _become_kernel(request, streams, connection)
            for stream in streams:
                os.close(stream)


def _end_with_owner(folder: Path) -> None:
    os.read(0, 1)  # returns when the owner has ended or was killed, since nothing is ever sent
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """A request, one line of JSON, and the file descriptors with it; an empty request if the sender ends or falls silent."""
    streams: list[int] = []
    try:
        connection.settimeout(ANSWER_SECONDS)
        message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not message.endswith(b"\n"):
            message += connection.makefile("rb").readline()
        connection.settimeout(None)
        return json.loads(message), streams
    except (OSError, ValueError):
        return {}, streams


def _become_kernel(request: dict, streams: list[int], connection: socket.socket) -> None:
    status = 1
    try:
        connection.send(b"k")  # the kernel exists
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate([os.open(os.devnull, os.O_RDONLY), *streams]):
            os.dup2(stream, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        # The socket ends with the process that joined, and then the kernel is of no use.
        threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
        from ipykernel import kernelapp

        # Parent 1 means that ipykernel watches no parent: the thread above does.
        options = ["-f", request["connection_file"], "--IPKernelApp.parent_handle=1"]
        kernelapp.launch_new_instance(options)
        status = 0
    finally:
        os._exit(status)


def join(address: str, connection_file: str, seconds: str) -> None:
    """Request a kernel on this process's output, within `seconds`; live as long as the kernel and the caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = os.getppid()
    environment = {**os.environ, "TMPDIR": str(Path(address).parent)}
    content = {"connection_file": connection_file, "environment": environment, "cwd": os.getcwd()}
    request = json.dumps(content).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(float(seconds))
        connection.connect(address)
        sent = socket.send_fds(connection, [request], [1, 2])
        connection.sendall(request[sent:])
        if not connection.recv(1):
            sys.exit("the process that kernels start from ended")
        # The socket becomes readable when the kernel has ended. A killed caller shows as a new parent only.
        while os.getppid() == caller and not select.select([connection], [], [], 1)[0]:
            pass


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1] == "serve" else join(*sys.argv[2:])
