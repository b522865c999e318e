"""Records a second in greedy evaluation: ``python -m benchmarks.evaluation``.

One checkpoint with random weights, the same prompts and images, at most as many new tokens, three ways:

    local         medr1's own engine in batches, as evaluate.py runs it
    server        the chat API of a vLLM server on this machine, as evaluate.py model=server runs it; only where
                  MEDR1_VLLM_PYTHON names the python of an environment with vLLM
    transformers  generate() in batches of the same size, with processor and model on the same device

They take turns, each turn with other records, and each figure is the median with its quartiles. Reading the images is
part of all of them; loading the model, starting the server and one batch for warm-up are not. The last column is the
share of texts that equal those of the local engine, in float32 nearly all. On a CPU, vLLM takes heads of 32, 64, 80 and
more dimensions; those of --shape tiny and reference are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig

from benchmarks.quartiles import spread
from benchmarks.vllm_process import VARIABLE, vllm_server
from benchmarks.workload import SHAPES, generate_by_transformers, save_checkpoint
from medr1.config.enums import Resize
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.chat_client import ChatClient
from medr1.evaluation.local_predictions import predict
from medr1.evaluation.prediction_store import Request
from medr1.evaluation.server_predictions import ServerPredictionStore
from medr1.generation.engines.local import LocalEngine
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.workflows.library_logs import silence_library_logs

MODE = ReasoningMode.THINK_BEFORE
Texts = Callable[[list[Record]], list[str]]


def image_size(given: argparse.Namespace) -> ImageSize:
    return ImageSize(Resize.square, given.image_size, 0, 0, 28)


def local(given: argparse.Namespace, policy: Policy, processor: Processor, records: list[Record]) -> list[str]:
    predictions = predict(
        policy,
        processor,
        records,
        MODE,
        "base",
        load=cached_image_loader(image_size(given)),
        batch_size=given.batch_size,
        max_completion_length=given.max_completion_length,
        engine=LocalEngine(),
        num_workers=1,
    )
    return [line.text for line in predictions]


def transformers(given: argparse.Namespace, policy: Policy, processor: Processor, records: list[Record]) -> list[str]:
    """Left-padded batches, as a script with ``model.generate`` has them."""
    load, texts = cached_image_loader(image_size(given)), list[str]()
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=given.max_completion_length,
        eos_token_id=processor.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=processor.suppressed_token_ids(),
    )
    for start in range(0, len(records), given.batch_size):
        batch = records[start : start + given.batch_size]
        # Copies, because generate() takes the images of each prompt, also those that prompts share.
        images = [[image.copy() for image in load(record)] for record in batch]
        made = [processor.prompt(record, MODE, of_record) for record, of_record in zip(batch, images, strict=True)]
        prompts = processor.encode(made).to(policy.device)
        completions = generate_by_transformers(policy, prompts, config)
        ended = (completions == processor.eos_token_id).int().cumsum(1) > 0
        texts += processor.decode(completions, ~ended)
    return texts


def server(given: argparse.Namespace, client: ChatClient, records: list[Record]) -> list[str]:
    store = ServerPredictionStore(
        records=records,
        mode=MODE,
        load=cached_image_loader(image_size(given)),
        file=Path,
        max_completion_length=given.max_completion_length,
        concurrency=given.batch_size,
    )
    found = {line.record: line.text for line in store.answer(client, [Request(record, "base") for record in records])}
    return [found[record.id] for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16, help="records at a time; of a server, requests at a time")
    parser.add_argument("--max-completion-length", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=392, help="side in pixels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    silence_library_logs()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoint = Path(folder) / "model"
        save_checkpoint(given.shape, checkpoint, getattr(torch, given.dtype))
        policy, processor = load_policy(ModelSpec(str(checkpoint), given.dtype))
        policy.to(given.device)
        sides: dict[str, Texts] = {
            "local": partial(local, given, policy, processor),
            "transformers": partial(transformers, given, policy, processor),
        }
        if os.environ.get(VARIABLE):
            log = Path(folder) / "vllm.log"
            url = stack.enter_context(vllm_server(checkpoint, given.dtype, given.device, given.batch_size, log))
            client = stack.enter_context(closing(ChatClient(f"{url}/v1", "model", timeout=600.0, max_retries=0)))
            sides["server"] = partial(server, given, client)
        else:
            print(f"server: not measured, because {VARIABLE} is not set")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        texts: dict[str, list[str]] = {}
        for turn in range(given.turns + 1):
            # Others in each turn: a server remembers prompts and images.
            records = make_records(World.TEST, turn, -(-given.records // 40))[: given.records]
            for name, answer in sides.items():
                start = time.perf_counter()
                texts[name] = answer(records if turn else records[: given.batch_size])
                seconds[name].append(time.perf_counter() - start)
        print(
            f"{given.shape}, {given.records} records, images of {given.image_size} pixels, batches of "
            f"{given.batch_size}, {given.max_completion_length} new tokens, {given.dtype}, {given.device}"
        )
        print(f"{'':>14} {'records a second':>26}   texts equal to local")
        for name in sides:
            rates = [given.records / s for s in seconds[name][1:]]
            same = sum(a == b for a, b in zip(texts[name], texts["local"], strict=True))
            print(f"{name:>14} {spread(rates, '.3f'):>26}   {same / given.records:.0%}")


if __name__ == "__main__":
    main()
