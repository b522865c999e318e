"""The engine ``vllm_server``: generates on a vLLM server, which gets the weights of each step through a directory."""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from omegaconf import MISSING

from medr1.atomic_write import remove
from medr1.config.enums import WeightTransfer
from medr1.config.naming import safe_name
from medr1.config.settings import LOOPBACK, NEUTRAL, ExternalRolloutConfig, ModelConfig, RolloutConfig, TrainerConfig
from medr1.config.validate import check_address
from medr1.errors import ConfigError, ServerError, ServerTimeout, ServerUnavailable
from medr1.generation.chat_messages import chat_content
from medr1.generation.engines import ENGINES, Engine

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from medr1.generation.sampling import Sampling
    from medr1.generation.vllm_client import VLLMClient
    from medr1.models.policy import Policy
    from medr1.models.tensors import Completions, Prefix, PromptBatch

log = logging.getLogger(__name__)

T = TypeVar("T")

# The least that the API takes. Up to ``max_temperature`` it leaves suppressed tokens no probability.
_SUPPRESSED = -100.0
_PART = 2**22  # weights that are summed at a time
ON_CPU = "--no-enable-chunked-prefill"  # see _check_settings
_MAX_PAUSE = 15.0  # seconds between two attempts to reach a server that is away
UPDATING = "medr1-updating"  # the version of weights of which only a part may have arrived


@dataclass
class VLLMConfig(ExternalRolloutConfig):
    """Settings of all engines that use vLLM."""

    timeout: float = field(default=600.0, metadata=NEUTRAL)
    """Seconds without an answer after which a request has failed, and seconds that a run waits for a server that has
    gone away.

    TRL: vllm_server_timeout. verl: -."""
    concurrency: int = field(default=64, metadata=NEUTRAL)
    """Number of requests at a time. A request has all completions of a prompt.

    TRL: -. verl: -."""


@dataclass
class VLLMServerConfig(VLLMConfig):
    """Settings of ``rollout=vllm_server``."""

    kind: str = "vllm_server"
    url: str = field(default=MISSING, metadata=NEUTRAL)
    """Address of the vLLM server: ``http://HOST:PORT``.

    TRL: vllm_server_base_url. verl: -."""
    weight_transfer: WeightTransfer = field(default=WeightTransfer.files, metadata=NEUTRAL)
    """How the server gets the weights of each step: through ``files`` in ``rollout.weights_dir``, or over the network,
    from memory to memory (``gloo``) or from GPU to GPU (``nccl``).

    TRL: -. verl: actor_rollout_ref.rollout.checkpoint_engine.backend."""
    weights_dir: str = field(default=MISSING, metadata=NEUTRAL)
    """Directory through which the server gets new weights. The server must see it under the same path, unless
    ``rollout.weight_transfer`` is ``gloo`` or ``nccl``: then only the processes of the training do, for a lock.

    TRL: -. verl: -."""


class VLLMEngine(Engine):
    """Sends prompts and images to ``/v1/chat/completions``. All completions are of the policy's current weights; where
    adapters are merged, these are rounded to the data type of the model.

    vLLM keeps a version of its weights, here a fingerprint of the policy. If it is another than the policy's, the
    weights are written to a directory and loaded by vLLM. It is read again after the completions have arrived, so that
    weights of another run, or the first ones of a server that was restarted, are never used.
    """

    min_temperature: ClassVar[float] = 0.01  # vLLM replaces smaller ones by it
    max_temperature: ClassVar[float] = 4.0
    longer_context: ClassVar[str] = "start the server with a --max-model-len"  # a remedy
    config: VLLMConfig
    _client: VLLMClient
    _sent = ""  # the version of the weights that this engine has sent last
    _weights: Path  # the directory through which vLLM gets weights; it exists only for as long as that takes

    @classmethod
    def check(cls, config: Any, trainer: TrainerConfig | None) -> None:
        low, high = config.importance_sampling_clip_min, config.importance_sampling_clip_max
        if low is not None and high is not None and low > high:
            raise ConfigError(
                f"rollout.importance_sampling_clip_min={low:g} is more than "
                f"rollout.importance_sampling_clip_max={high:g}"
            )
        if trainer is not None and trainer.is_sharded:
            raise ConfigError(
                f"rollout={config.kind} with trainer.strategy=fsdp: the weights of a policy in shards cannot be "
                "sent to vLLM; use trainer=ddp, trainer=single or rollout=local"
            )

    @classmethod
    def without_effect(cls, config: Any) -> Iterator[tuple[str, Sequence[str]]]:
        if not config.importance_sampling_correction:
            names = ("mode", "clip_max", "clip_min")
            choice = "rollout.importance_sampling_correction=false"
            yield choice, [f"rollout.importance_sampling_{name}" for name in names]

    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        num_generations: int = 1,
        uniforms: Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> Completions:
        if sampling.temperature > self.max_temperature:
            raise ValueError(f"temperature is {sampling.temperature:g}, at most {self.max_temperature:g}")
        if sampling.temperature > 0 and uniforms is None:
            raise ValueError("sampling needs uniforms; greedy decoding is temperature=0")
        turns = ([part if isinstance(part, str) else _png(part) for part in parts] for parts in prompts.parts)
        requests = [
            {
                **_sampling_parameters(sampling),
                "messages": [{"role": "user", "content": chat_content(turn)}],
                "n": num_generations,
                # The samples of a prompt have the seeds s, s + 1, ...
                "seed": None if uniforms is None else int(float(uniforms[i * num_generations, 0]) * 2**53),
            }
            for i, turn in enumerate(turns)
        ]
        version = fingerprint(policy)
        replies = self._patiently(partial(self._replies, policy, version, requests))
        rows: list[list[tuple[int, float]]] = []
        for ids, mask, reply in zip(prompts.ids, prompts.mask, replies, strict=True):
            self._check_prompt(ids[mask].tolist(), reply)
            rows += _completions(reply, num_generations, sampling, self._client.url, self.longer_context)
        return _batch(rows, sampling, prompts.ids.device)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """The result of ``attempt``, which is repeated while the server is away, for at most ``timeout`` seconds.

        Raises:
            ServerError: the server did not come back.
        """
        since, pause, away = 0.0, 1.0, False
        while True:
            try:
                result = attempt()
            except ServerUnavailable as error:
                now = time.monotonic()
                if not away:
                    since, away = now, True
                    log.warning("%s; waiting up to %g seconds for the vLLM server", error, self.config.timeout)
                if now - since + pause > self.config.timeout:
                    limit = f"rollout.timeout={self.config.timeout:g} seconds"
                    remedy = f"The vLLM server did not come back within {limit}; start it again"
                    if isinstance(error, ServerTimeout):
                        remedy = (
                            f"The vLLM server has not answered within {limit} twice; if its requests take longer, "
                            "raise rollout.timeout, else start it again"
                        )
                    raise ServerError(f"{error}. {remedy}") from error
                time.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE)
            else:
                if away:
                    log.info("the vLLM server at %s is back", self._client.url)
                return result

    def _replies(self, policy: Policy, version: str, requests: list[dict[str, Any]]) -> list[Any]:
        """The replies to all requests, from the weights of ``version``.

        Raises:
            ServerUnavailable: the server is away, or got other weights in the meantime.
        """
        model = self._client.get("/v1/models")["data"][0]["id"]
        self._send_weights(policy, version)
        pool = ThreadPoolExecutor(self.config.concurrency)
        try:
            complete = partial(self._client.post, "/v1/chat/completions")
            replies = list(pool.map(complete, [{**request, "model": model} for request in requests]))
        finally:
            pool.shutdown(cancel_futures=True)
        if self._version() != version:
            raise ServerUnavailable(
                f"{self._client.url}: the server was restarted, or another run has changed its weights"
            )
        return replies

    def _version(self) -> str:
        return str(self._client.get("/weight_info")["weight_version"])

    def _send_weights(self, policy: Policy, version: str) -> None:
        """Makes the server load the weights of ``policy`` if its own have another version."""
        from filelock import FileLock

        self._weights.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._weights}.lock"):  # one process of a training sends, the others find the version there
            found = self._version()
            if found == version:
                return
            if found != self._sent:  # it is new, or was started again
                self._check_server(policy)
            self._check_model(policy)
            self._client.post("/update_weight_version", {"new_version": UPDATING})
            self._load(policy)
            if not self._client.post("/reset_prefix_cache", {})["success"]:  # held by requests of a run that was killed
                raise ServerUnavailable(f"{self._client.url}: the server is busy with requests of another run")
            self._client.post("/reset_mm_cache", {})
            self._client.post("/reset_encoder_cache", {})
            self._client.post("/update_weight_version", {"new_version": version})
            self._sent = version

    def _load(self, policy: Policy) -> None:
        """Makes vLLM load the weights of ``policy``, through the directory.

        Raises:
            ServerUnavailable: the server has gone. ServerError: it cannot load them.
        """
        from medr1.models.export import save_merged_weights

        directory = self._weights
        remove(directory)  # of a process that was killed
        try:
            directory.mkdir()
            save_merged_weights(policy, directory / "model.safetensors")
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
            self._client.post("/collective_rpc", reload)
        except ServerUnavailable:
            raise
        except ServerError as error:
            raise ServerError(
                f"vLLM cannot load weights from {directory}; rollout.weights_dir must be a directory that it sees. "
                f"A server must be started again, because it has lost its weights. {error}"
            ) from error
        finally:
            remove(directory)

    def _check_server(self, policy: Policy) -> None:
        """Checks the settings of a server that this engine has not started.

        Raises:
            ServerError: names the setting and the command with which the server is started.
        """

    def _check_model(self, policy: Policy) -> None:
        """Refuses a server of another model. vLLM is not usable any more after it has failed to load weights."""
        inspection = self._client.post("/collective_rpc", {"method": "get_model_inspection"})["results"][0]
        embedding = re.search(r"embedding_dim=(\d+), org_vocab_size=(\d+)", inspection)
        served = (inspection.partition("(")[0], *(map(int, embedding.groups()) if embedding else (0, 0)))
        text = policy.core.config.get_text_config()
        trained = (type(policy.core).__name__, text.hidden_size, text.vocab_size)
        if served != trained:
            raise ServerError(
                f"{self._client.url}: the server has another model than model.path: (class, hidden size, vocabulary) "
                f"is {served}, and of the policy {trained}"
            )

    def _check_prompt(self, ids: list[int], reply: Any) -> None:
        found = reply["prompt_token_ids"]
        if found != ids:
            place = next(
                (i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), min(len(ids), len(found))
            )
            raise ServerError(
                f"{self._client.url}: the server makes {len(found)} tokens of a prompt, and the policy {len(ids)}; "
                f"they differ from token {place} on. Serve the checkpoint of model.path, with images of at least its "
                "min_pixels and at most its max_pixels (data.image_size)"
            )


@ENGINES.register
class VLLMServerEngine(VLLMEngine):
    """Generates on a vLLM server, which the user has started."""

    kind: ClassVar[str] = "vllm_server"
    settings: ClassVar[type[RolloutConfig]] = VLLMServerConfig
    config: VLLMServerConfig

    def __init__(self, config: Any = None) -> None:
        from medr1.generation.vllm_client import VLLMClient  # its imports are not for every command

        super().__init__(config)
        self._client = VLLMClient(self.config.url, self.config.timeout)
        self._weights = Path(self.config.weights_dir).absolute() / safe_name(urlsplit(self.config.url).netloc)

    @classmethod
    def check(cls, config: VLLMServerConfig, trainer: TrainerConfig | None) -> None:
        form = "use http://HOST:PORT"
        parts = check_address("rollout.url", config.url, form)
        if parts.path.strip("/"):
            raise ConfigError(f"rollout.url={config.url}: leave out {parts.path}; {form}")
        super().check(config, trainer)

    @classmethod
    def check_available(cls, config: VLLMServerConfig, model: ModelConfig) -> None:
        from medr1.generation.vllm_client import VLLMClient

        # The first question for the versions of its environment takes a server several seconds.
        client = VLLMClient(config.url, timeout=60)
        try:
            client.get("/health")
            _check_settings(client, config, model.path, str(model.dtype))
        except ServerUnavailable as error:
            command = start_command(config.url, model.path, str(model.dtype), config.weight_transfer)
            raise ServerError(
                f"rollout.url={config.url}: no vLLM server answers ({error})\n{command}\nOn a CPU it needs {ON_CPU} "
                "as well"
            ) from error

    def _check_server(self, policy: Policy) -> None:
        dtype = str(policy.core.get_input_embeddings().weight.dtype).removeprefix("torch.")
        _check_settings(self._client, self.config, policy.core.config.name_or_path, dtype)

    def _load(self, policy: Policy) -> None:
        if self.config.weight_transfer == WeightTransfer.files:
            super()._load(policy)
            return
        from medr1.generation.weight_transfer import send_weights

        try:
            send_weights(policy, self._client, str(self.config.weight_transfer))
        except ServerUnavailable:
            raise
        except ServerError as error:
            raise ServerError(f"rollout.weight_transfer={self.config.weight_transfer}: {error}") from error


def _check_settings(client: VLLMClient, config: VLLMServerConfig, path: str, dtype: str) -> None:
    """Checks the settings of a server that is to generate with the checkpoint ``path`` in ``dtype``.

    Raises:
        ServerError: names the setting and the command with which the server is started. ServerUnavailable.
    """
    url, transfer = config.url, config.weight_transfer
    command = start_command(url, path, dtype, transfer)
    try:
        client.get("/weight_info")
        served = client.get("/server_info?config_format=json")["vllm_config"]
        mode, found = (str(served["model_config"][key]) for key in ("logprobs_mode", "dtype"))
        found = found.removeprefix("torch.")
        is_on_cpu = "cpu" in str(served["device_config"])
        # vLLM 0.32 ends with "CPU Generator does not use offset" when it splits a prompt with a seed.
        ends = is_on_cpu and served["scheduler_config"]["enable_chunked_prefill"]
    except ServerUnavailable:
        raise
    except (ServerError, LookupError, TypeError) as error:
        raise ServerError(
            f"rollout.url={url}: the weights of this server cannot be updated, because it is not in dev mode, or is "
            f"older than vLLM 0.32 ({error})\n{command}"
        ) from error
    if is_on_cpu:
        command += f" {ON_CPU}"
    if mode != "processed_logprobs":
        raise ServerError(
            f"rollout.url={url}: the server gives {mode} in place of the log-probabilities of the distribution that "
            f"it samples from\n{command}"
        )
    if ends:
        raise ServerError(f"rollout.url={url}: on a CPU vLLM fails at seeded samples with chunked prefill\n{command}")
    if found != dtype:
        raise ServerError(
            f"rollout.url={url}: the server computes in {found}, and the policy has model.dtype={dtype}\n{command}"
        )
    if transfer != WeightTransfer.files:
        from medr1.generation.weight_transfer import check_workers

        try:
            check_workers(client, str(transfer), served["parallel_config"])
        except ServerUnavailable:
            raise
        except ServerError as error:
            raise ServerError(
                f"rollout.weight_transfer={transfer}: the server at {url} cannot take weights so: {error}\n{command}"
            ) from error


def start_command(url: str, path: str, dtype: str, transfer: WeightTransfer = WeightTransfer.files) -> str:
    """How to start a server that the engine can use, on the host of ``url`` alone, because its weights can be set."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in LOOPBACK else parts.hostname
    before = after = ""
    if transfer != WeightTransfer.files:
        from medr1.generation.weight_transfer import start_words

        before, after = start_words()
    return (
        f"start it with: {before}VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(path)} --host {host} "
        f"--port {parts.port or 80} --logprobs-mode processed_logprobs{after} --dtype {dtype}"
    )


def fingerprint(policy: Policy) -> str:
    """A hash of the sum and the sum of squares of each weight, which an optimizer step changes."""
    import torch

    def sums(weight: Tensor) -> Tensor:
        # In parts, because the embedding of a model of 7 B would take four gigabytes in float64.
        parts = (part.double() for part in torch.split(weight.flatten(), _PART))
        return torch.stack([torch.stack([part.sum(), part.square().sum()]) for part in parts]).sum(0)

    with torch.no_grad():
        values = [sums(weight) for weight in policy.parameters()]
        return hashlib.sha256(torch.stack(values).cpu().numpy().tobytes()).hexdigest()[:16]


def _sampling_parameters(sampling: Sampling) -> dict[str, Any]:
    """All of them are given, because the checkpoint's generation config would set what is missing."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_completion_tokens": sampling.max_completion_length,
        "stop_token_ids": [sampling.eos_token_id],
        "logit_bias": {str(token): _SUPPRESSED for token in sampling.suppress_tokens},
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _completions(
    reply: Any, num_generations: int, sampling: Sampling, url: str, longer_context: str
) -> Iterator[list[tuple[int, float]]]:
    """Token ids and log-probabilities of each completion of a prompt. ``longer_context``: how to get one.

    Raises:
        ServerError: a completion that the sampling settings exclude.
    """
    choices = sorted(reply["choices"], key=lambda choice: choice["index"])
    if len(choices) != num_generations:
        raise ServerError(f"{url}: {len(choices)} completions in place of {num_generations}")
    for choice in choices:
        ids, logprobs = choice["token_ids"], [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        ended = ids[-1:] == [sampling.eos_token_id]
        if len(ids) != len(logprobs) or not (ended or len(ids) == sampling.max_completion_length):
            raise ServerError(
                f"{url}: a completion of {len(ids)} tokens with {len(logprobs)} log-probabilities, finish_reason "
                f"{choice['finish_reason']}; {longer_context} for prompt and {sampling.max_completion_length} tokens"
            )
        if not set(ids).isdisjoint(sampling.suppress_tokens):
            raise ServerError(f"{url}: the server has sampled a token that is suppressed, in {ids}")
        yield list(zip(ids, logprobs, strict=True))


def _batch(rows: list[list[tuple[int, float]]], sampling: Sampling, device: Any) -> Completions:
    import torch

    from medr1.models.tensors import Completions

    width = max(2, *map(len, rows))  # as in ``rollout``
    ids = torch.full((len(rows), width), sampling.eos_token_id, dtype=torch.long)
    mask, logprobs = torch.zeros(len(rows), width, dtype=torch.bool), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([token for token, _ in row])
        logprobs[i, : len(row)] = torch.tensor([logprob for _, logprob in row])
        mask[i, : len(row)] = True
    truncated = torch.tensor([row[-1][0] != sampling.eos_token_id for row in rows])
    return Completions(*(value.to(device) for value in (ids, mask, logprobs, truncated)))
