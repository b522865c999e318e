"""A vLLM server for the benchmarks, from an environment of its own."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medr1.generation.child_process import ChildProcess, free_port

VARIABLE = "MEDR1_VLLM_PYTHON"


@contextmanager
def vllm_server(checkpoint: Path, dtype: str, device: str, max_num_seqs: int, log: Path) -> Iterator[str]:
    """Serves a checkpoint under the name ``model`` with the python of $MEDR1_VLLM_PYTHON. Yields ``http://HOST:PORT``.

    On a CPU without torch.compile, which takes minutes there.

    Raises:
        SystemExit: the server ends before it answers, or does not answer in ten minutes.
    """
    port = free_port()
    words = [str(Path(os.environ[VARIABLE]).with_name("vllm")), "serve", str(checkpoint), "--dtype", dtype]
    words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model", "--max-model-len", "2048"]
    words += ["--max-num-seqs", str(max_num_seqs), "--no-enable-chunked-prefill"]
    words += ["--enforce-eager"] if device == "cpu" else []
    server = ChildProcess(words, log, {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ})
    try:
        _wait(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()


def _wait(server: ChildProcess, url: str, log: Path) -> None:
    end = time.monotonic() + 600
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if not server.is_running or time.monotonic() > end:
                raise SystemExit(f"the vLLM server has not started:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.5)
