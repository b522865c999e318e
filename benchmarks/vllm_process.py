"""A vLLM server for the benchmarks, from an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "MEDR1_VLLM_PYTHON"


@contextmanager
def vllm_server(checkpoint: Path, dtype: str, device: str, max_num_seqs: int, log: Path) -> Iterator[str]:
    """Serves a checkpoint under the name ``model`` with the python of $MEDR1_VLLM_PYTHON. Yields ``http://HOST:PORT``.

    On a CPU without torch.compile, which takes minutes there.

    Raises:
        SystemExit: the server ends before it answers, or does not answer in ten minutes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(Path(os.environ[VARIABLE]).with_name("vllm")), "serve", str(checkpoint), "--dtype", dtype]
    words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model", "--max-model-len", "2048"]
    words += ["--max-num-seqs", str(max_num_seqs), "--no-enable-chunked-prefill"]
    words += ["--enforce-eager"] if device == "cpu" else []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise it would leave the server
    with log.open("w") as output:
        server = subprocess.Popen(
            words,
            env={"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 600
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the vLLM server has not started:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.5)
