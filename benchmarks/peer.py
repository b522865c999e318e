"""TRL's GRPOTrainer on the same workload. Needs the extra ``[bench]``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from benchmarks.workload import Workload

IMAGE = "<|image_pad|>"


class Processor(ProcessorMixin):  # type: ignore[misc]
    """Qwen2-VL's processor as far as TRL uses it, without videos, which need torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.chat_template = tokenizer.chat_template

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        flat = [image for each in images or [] for image in (each if isinstance(each, list) else [each])]
        features = self.image_processor(images=flat, return_tensors="pt")
        counts = iter((features["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist())
        rows = [row.replace(IMAGE, IMAGE * next(counts)) for row in text]
        tokens = self.tokenizer(rows, padding=True, return_tensors="pt", add_special_tokens=False)
        types = (tokens["input_ids"] == self.tokenizer.convert_tokens_to_ids(IMAGE)).int()
        return BatchFeature({**tokens, **features, "mm_token_type_ids": types})

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, **options: Any) -> Any:
        options.pop("return_dict", None)
        template = {k: v for k, v in options.items() if k == "add_generation_prompt"}
        if not tokenize:
            return self.tokenizer.apply_chat_template(conversation, tokenize=False, **template)
        texts = [self.tokenizer.apply_chat_template(one, tokenize=False, **template) for one in conversation]
        images = [
            part["image"] for one in conversation for turn in one for part in turn["content"] if part["type"] == "image"
        ]
        out = self(images=images, text=texts)
        real = out.pop("attention_mask").bool()
        for name in ("input_ids", "mm_token_type_ids"):
            out[name] = [row[mask].tolist() for row, mask in zip(out[name], real, strict=True)]
        return out

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        return list(self.tokenizer.batch_decode(*args, **options))

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Does nothing: the benchmark saves no checkpoints."""


def _reward(completions: list[Any], **columns: Any) -> list[float]:
    """Any cheap rule with different values within a group."""
    return [float(sum(map(ord, str(c))) % 7) for c in completions]


class Peer:
    """One GRPO step at a time, with the seconds of its phases."""

    def __init__(self, checkpoint: Path, work: Workload, scratch: Path) -> None:
        model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=work.dtype)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        processor = Processor(Qwen2VLImageProcessorPil.from_pretrained(checkpoint), tokenizer)
        rows = [
            {"prompt": [{"role": "user", "content": content}], "image": image}
            for content, image in zip(work.contents(), work.images(), strict=True)
        ]
        turn = List({"role": Value("string"), "content": Value("string")})
        self.device = work.device
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=_reward,
            args=GRPOConfig(
                output_dir=str(scratch),
                per_device_train_batch_size=work.prompts * work.num_generations,
                num_generations=work.num_generations,
                max_completion_length=work.max_completion_length,
                generation_kwargs={"min_new_tokens": work.max_completion_length},  # all completions equally long
                beta=work.beta,
                loss_type="grpo",
                temperature=1.0,
                bf16=work.dtype is torch.bfloat16,
                gradient_checkpointing=False,
                use_cpu=work.device.type == "cpu",
                shuffle_dataset=False,
                report_to=[],
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows, features=Features({"prompt": turn, "image": ImageFeature()})),
            processing_class=processor,
        )
        self.trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        self.model, self.optimizer = self.trainer.accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.trainer.model_wrapped = self.model
        self.model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        self.seconds: dict[str, float] = {}
        self.arguments: dict[str, tuple[Any, Any]] = {}  # of the last call of each phase
        self._time("_generate_single_turn", "rollout")
        self._time("_generate_and_score_completions", "rollout and reference")

    def _time(self, method: str, name: str) -> None:
        inner = getattr(self.trainer, method)

        def timed(*args: Any, **options: Any) -> Any:
            start = self._now()
            result = inner(*args, **options)
            self.seconds[name] = self._now() - start
            self.arguments[name] = (args, options)
            return result

        setattr(self.trainer, method, timed)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def inputs(self) -> list[dict[str, Any]]:
        """The examples of one step, each G times."""
        return list(next(iter(self.trainer.get_train_dataloader())))

    def step(self) -> dict[str, float]:
        inputs, start = self.inputs(), self._now()
        self.trainer.training_step(self.model, inputs, None)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        step, both = self._now() - start, self.seconds["rollout and reference"]
        rollout = self.seconds["rollout"]
        return {"step": step, "rollout": rollout, "reference": both - rollout, "update": step - both}

    def generate(self) -> Any:
        """The completions of one step without vLLM, by the method of the trainer that ``step`` calls."""
        if "rollout" not in self.arguments:
            self.trainer._generate_and_score_completions(self.inputs())
        args, options = self.arguments["rollout"]
        return self.trainer._generate_single_turn(*args, **options)[0]

    def loss(self) -> tuple[dict[str, Any], float, float]:
        """One batch with its completions and advantages, and TRL's own loss and gradient norm on it."""
        batch = self.trainer._generate_and_score_completions(self.inputs())
        self.model.zero_grad()
        loss: Tensor = self.trainer.compute_loss(self.model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.model.zero_grad()
        return batch, loss.item(), norm.item()
