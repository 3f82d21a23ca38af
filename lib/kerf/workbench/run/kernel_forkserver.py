"""Warm kernels: each is forked from one server process that has imported the libraries and nothing else.

Importing torch and sentence-transformers takes longer than most stages do. Jupyter starts `join`, which requests a kernel
from the server and lives exactly as long as it; `join` has to start fast, so only the standard library is imported at the
top. Measurements of load time and memory use fresh processes instead (`kerf.evaluate.measure`).
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

IMPORTS = ["sentence_transformers", "pandas", "matplotlib.figure", "scipy.stats", "pyarrow.parquet"]
IMPORTS += ["ipykernel.kernelapp", "kerf.pipeline", "kerf.charts.plots", "kerf.evaluate"]
READY_SECONDS = 180.0  # for the imports, on a busy machine
ANSWER_SECONDS = 20.0  # for a fork


class KernelForkserver:
    """The process that kernels are forked from; restarted when it has died, and ended with the process that made it.

    folder: its sockets, and all temporary files of its kernels; removed at the end.
    """

    def __init__(self) -> None:
        from kerf.core.scratch import scratch  # `join` does without it

        self._resources = ExitStack()
        self.folder = self._resources.enter_context(scratch())
        self.process: subprocess.Popen | None = None
        self.address, self.started = "", 0

    def kernel_command(self) -> list[str]:
        """Command that Jupyter runs instead of ipykernel_launcher, with {connection_file} for Jupyter to fill in.

        Raises RuntimeError if the server does not start.
        """
        if self.process is None or self.process.poll() is not None:
            self._start()
        arguments = [self.address, "{connection_file}", str(ANSWER_SECONDS)]
        return [sys.executable, "-S", __file__, "join", *arguments]

    def _start(self) -> None:
        self.started += 1
        self.address = str(self.folder / f"server-{self.started}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kerf.workbench.run.kernel_forkserver", "serve", self.address],
            env={**os.environ, "TMPDIR": str(self.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        # Not select(), which is limited to file descriptors below 1024.
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answered = selector.select(READY_SECONDS)
        if not answered or self.process.stdout.readline() != b"ready\n":
            self.end()
            raise RuntimeError("the process that kernels start from did not start")

    def end(self) -> None:
        """Kill the process; the next kernel starts another one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """Kill the process and remove its folder."""
        self.end()
        self._resources.close()


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
        while not message.endswith(b"\n"):
            if not (more := connection.recv(1 << 20)):
                return {}, streams
            message += more
        connection.settimeout(None)
        return json.loads(message), streams
    except OSError:
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
    """Request a kernel on this process's standard output and error; live as long as the kernel and the caller.

    Exits if no kernel comes within `seconds`: to Jupyter the kernel has then died.
    """
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
