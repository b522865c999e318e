"""The engine ``vllm_colocate``: vLLM as a child process on the device of the training."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from medr1.atomic_write import remove
from medr1.config.naming import is_other_process
from medr1.config.settings import NEUTRAL, ModelConfig, RolloutConfig, TrainerConfig
from medr1.errors import ConfigError, ServerError, ServerTimeout, ServerUnavailable
from medr1.generation.child_process import ChildProcess, free_port
from medr1.generation.engines import ENGINES
from medr1.generation.engines.vllm_server import ON_CPU, UPDATING, VLLMConfig, VLLMEngine

if TYPE_CHECKING:
    import torch

    from medr1.models.policy import Policy

log = logging.getLogger(__name__)

_INSTALL = 'make an environment of its own: python -m venv vllm && vllm/bin/pip install "vllm>=0.32"'
_OLDEST = (0, 32)
_ON_GPU = ("--enable-sleep-mode",)
_READ_VERSION = "import importlib.metadata; print(importlib.metadata.version('vllm'))"
# Those of this interpreter, those by which the processes of a training find each other, and those of torch's allocator,
# whose expandable segments vLLM's sleep mode refuses.
_NOT_FOR_VLLM = (
    *("PYTHONPATH", "PYTHONHOME", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
)


@dataclass
class VLLMColocateConfig(VLLMConfig):
    """Settings of ``rollout=vllm_colocate``."""

    kind: str = "vllm_colocate"
    python: str = field(default=MISSING, metadata=NEUTRAL)
    """The Python interpreter of the environment that vLLM is installed in: ``ENVIRONMENT/bin/python``.

    TRL: -. verl: -."""
    gpu_memory_utilization: float = field(default=0.3, metadata=NEUTRAL)
    """Share of the device's memory that vLLM takes for weights, activations and KV cache; on a CPU, of main memory.

    TRL: vllm_gpu_memory_utilization. verl: actor_rollout_ref.rollout.gpu_memory_utilization."""
    max_model_length: int | None = field(default=None, metadata=NEUTRAL)
    """Largest number of tokens of a prompt with its completion. null: as many as the model and the memory allow.

    TRL: vllm_max_model_length. verl: actor_rollout_ref.rollout.max_model_len."""
    weights_dir: str | None = field(default=None, metadata=NEUTRAL)
    """Directory through which vLLM gets new weights, such as ``/dev/shm``. null: the run directory.

    TRL: -. verl: -."""


@ENGINES.register
class VLLMColocateEngine(VLLMEngine):
    """Generates with a vLLM that this process starts when the first completions are needed.

    All engines of a run use the same child process. It sleeps while the policy trains: on a GPU it then holds neither
    weights nor a KV cache. Each process of a distributed training has a child of its own.
    """

    kind: ClassVar[str] = "vllm_colocate"
    settings: ClassVar[type[RolloutConfig]] = VLLMColocateConfig
    config: VLLMColocateConfig
    longer_context: ClassVar[str] = "give rollout.max_model_length, or more memory (rollout.gpu_memory_utilization),"
    _run: ClassVar[Path | None] = None
    _child: ClassVar[ChildProcess | None] = None

    @classmethod
    def check(cls, config: VLLMColocateConfig, trainer: TrainerConfig | None) -> None:
        if shutil.which(config.python) is None:
            raise ConfigError(f"rollout.python={config.python}: no such program; {_INSTALL}")
        super().check(config, trainer)

    @classmethod
    def check_available(cls, config: VLLMColocateConfig, model: ModelConfig) -> None:
        command = [config.python, "-I", "-c", _READ_VERSION]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerError(f"rollout.python={config.python} cannot be run ({error}); {_INSTALL}") from error
        if done.returncode:
            problem = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise ServerError(
                f"rollout.python={config.python}: there is no vLLM in its environment ({problem}); {_INSTALL}"
            )
        version = done.stdout.strip()
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
            raise ServerError(f"rollout.python={config.python}: vLLM {version} is too old; {_INSTALL}")

    @classmethod
    def memory_share(cls, config: VLLMColocateConfig) -> float:
        return config.gpu_memory_utilization

    @classmethod
    @contextmanager
    def opened(cls, config: VLLMColocateConfig, run: Path) -> Iterator[None]:
        cls._run = run.absolute()
        if not is_other_process():
            remove(cls._weights_of_run(config))  # those of a process that was killed
        try:
            yield
        finally:
            cls._end()
            cls._run = None

    @classmethod
    def _weights_of_run(cls, config: VLLMColocateConfig) -> Path:
        """A directory that a run finds again when it is resumed."""
        assert cls._run is not None
        if config.weights_dir is None:
            return cls._run / ".weights"
        return Path(config.weights_dir).absolute() / hashlib.sha256(str(cls._run).encode()).hexdigest()[:16]

    @classmethod
    def _end(cls) -> None:
        if cls._child is None:
            return
        cls._child.kill()
        cls._child = None
        own = cls._weights.parent
        remove(own)
        with suppress(OSError):  # other processes of the run have weights there
            own.parent.rmdir()

    def sleep(self) -> None:
        """Makes vLLM free its weights and its KV cache. On a CPU it keeps its memory, and only says so in its log."""
        if self._child is None:
            return
        try:
            self._client.post("/update_weight_version", {"new_version": UPDATING})  # they are lost
            self._client.post("/sleep?level=2", {})
        except ServerUnavailable as error:
            log.warning("vLLM does not sleep, and is started again for the next rollout (%s)", error)
            self._end()

    def _replies(self, policy: Policy, version: str, requests: list[dict[str, Any]]) -> list[Any]:
        if self._child is None or not self._child.is_running:
            self._start(policy)
        try:
            if self._client.get("/is_sleeping")["is_sleeping"]:
                _release_cached_memory(policy.device)
                self._client.post("/wake_up", {})
            return super()._replies(policy, version, requests)
        except ServerTimeout:
            self._end()  # one that hangs would never answer; the next attempt starts another
            raise

    def _start(self, policy: Policy) -> None:
        """Starts vLLM, and waits until it answers.

        Raises:
            ServerError: it does not start; has the last lines of its log.
        """
        from medr1.generation.vllm_client import VLLMClient

        cls, run = type(self), self._run
        if run is None:
            raise ValueError("rollout=vllm_colocate generates only within opened()")
        file = run / ("vllm.log" if (rank := _rank()) == 0 else f"vllm-{rank}.log")
        log.info("starting vLLM%s; its log is %s", "" if self._child is None else " again, because it has ended", file)
        cls._end()
        _release_cached_memory(policy.device)
        run.mkdir(parents=True, exist_ok=True)  # that of another process than the first may not exist
        port = free_port()
        cls._child = ChildProcess(_command(self.config, policy, port), file, _environment(policy.device))
        cls._client = VLLMClient(f"http://127.0.0.1:{port}", self.config.timeout)
        cls._weights = self._weights_of_run(self.config) / str(port) / "weights"
        self._wait_until_it_answers(file)
        served = str(self._client.get("/server_info?config_format=json")["vllm_config"]["device_config"])
        if (policy.device.type == "cpu") != ("cpu" in served):
            cls._end()
            raise ServerError(
                f"rollout.python={self.config.python}: this vLLM computes on {served}, and the training on "
                f"{policy.device}; use a vLLM for this device, or rollout=vllm_server"
            )

    def _wait_until_it_answers(self, file: Path) -> None:
        assert self._child is not None
        start = time.monotonic()
        while True:
            if not self._child.is_running:
                problem = "ended before it could answer"
            elif time.monotonic() - start > self.config.timeout:
                problem = f"does not answer within rollout.timeout={self.config.timeout:g} seconds"
            else:
                try:
                    self._client.get("/health")
                    return
                except ServerUnavailable:
                    time.sleep(0.2)
                    continue
            type(self)._end()
            last = "\n".join(file.read_text(errors="replace").splitlines()[-20:])
            raise ServerError(
                f"{last}\nvLLM {problem}; these are the last lines of its log, {file}. If it lacks memory, change "
                "rollout.gpu_memory_utilization or rollout.max_model_length"
            )


def _command(config: VLLMColocateConfig, policy: Policy, port: int) -> list[str]:
    path, dtype = policy.core.config.name_or_path, policy.core.get_input_embeddings().weight.dtype
    if not path:
        raise ServerError(
            "rollout=vllm_colocate starts vLLM from the checkpoint of model.path, and this policy was made without "
            "one; use rollout=local"
        )
    return [
        *(config.python, "-m", "vllm.entrypoints.cli.main", "serve", path, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", str(dtype).removeprefix("torch."), "--logprobs-mode", "processed_logprobs"),
        *("--gpu-memory-utilization", str(config.gpu_memory_utilization)),
        *("--max-model-len", "auto" if config.max_model_length is None else str(config.max_model_length)),
        *("--limit-mm-per-prompt", '{"video": 0}'),
        # vLLM 0.32 on a CPU: compiling takes longer than it saves, seeds fail with chunks, and it cannot sleep.
        *(("--enforce-eager", ON_CPU) if policy.device.type == "cpu" else _ON_GPU),
    ]


def _release_cached_memory(device: torch.device) -> None:
    """Leaves to vLLM what this process holds of the memory of a GPU without using it."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def _rank() -> int:
    import torch

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _environment(device: torch.device) -> dict[str, str]:
    """The environment variables of vLLM on ``device`` of this process."""
    import torch

    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_VLLM}
    environment["VLLM_SERVER_DEV_MODE"] = "1"
    # By default several of them would use the same core of a CPU, and leave another one idle.
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
    return environment
