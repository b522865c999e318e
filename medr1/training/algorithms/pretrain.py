"""``algorithm=pretrain``: makes the tiny base model. Use it with ``experiment=tiny_base``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from medr1.config.settings import AlgorithmConfig, TrainConfig
from medr1.domain.records import LETTERS
from medr1.errors import ConfigError
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm, Training

if TYPE_CHECKING:
    from medr1.data.dataset import Dataset
    from medr1.models.policy import Policy
    from medr1.models.processor import Processor
    from medr1.tracking.tracker import AnyTracker
    from medr1.training.batches import SupervisedBatch


@dataclass
class PretrainConfig(AlgorithmConfig):
    """Settings of ``algorithm=pretrain``. The stages are those of ``medr1.training.base_mixture``."""

    kind: str = "pretrain"
    images_per_modality: int = MISSING
    """Number of phantoms of each modality from which examples are drawn."""
    binding_steps: int = MISSING
    """Steps of the first stage: word-matching examples that teach which option has which letter, without images."""
    text_steps: int = MISSING
    """Steps of the second stage: questions with the rationale of a phantom in place of its image."""
    ramp: int = MISSING
    """Steps of the transition from the second to the last stage."""
    image_steps: int = MISSING
    """Steps of the last stage: questions on images."""
    text_batch: int = MISSING
    """Examples without images in a step of the first two stages."""
    described: int = MISSING
    """Images to describe in a step of the first two stages."""
    images: int = MISSING
    """Questions on images in a step of the last stage."""
    words: int = MISSING
    """Questions with the rationale in place of the image in a step of the last stage."""
    careless: float = MISSING
    """Share of the targets that do not follow the format."""
    careless_wordings: float = MISSING
    """The same share in No-Think and Think-After for two wordings of questions, so that the base model does not follow
    the format in greedy decoding either. 0: as ``careless``."""
    letter_weight: float = MISSING
    """Weight of the answer's letter in the loss, relative to the other tokens of a target."""
    vocab_size: int = MISSING
    """Number of tokens in the vocabulary."""


class Pretrain(Algorithm[PretrainConfig]):
    """Supervised training of a new model from random weights on phantoms and on texts about phantoms."""

    kind: ClassVar[str] = "pretrain"
    settings = PretrainConfig
    needs_base: ClassVar[bool] = False

    def check(self, cfg: TrainConfig) -> None:
        if cfg.plan:
            raise ConfigError("plan=true is not implemented for algorithm=pretrain; leave it out")
        if cfg.trainer.processes > 1:  # every process would make the same batch
            raise ConfigError("algorithm=pretrain runs in one process; use trainer.devices=1")

    def without_effect(self, cfg: TrainConfig) -> Iterator[tuple[str, Sequence[str]]]:
        recipe = [f"model.recipe.{name}" for name in ("train_batch_size", "num_generations", "rl_learning_rate")]
        yield f"algorithm={cfg.algorithm.name}", ("model.path", "trainer.train_batch_size", *recipe)

    def initial_policy(self, cfg: TrainConfig) -> tuple[Policy, Processor]:
        from medr1.models.tiny import build_tiny_policy
        from medr1.training.base_mixture import corpus

        return build_tiny_policy(corpus(cfg.seed), self.settings_of(cfg).vocab_size, cfg.seed)

    def build(
        self, cfg: TrainConfig, data: Dataset, policy: Policy, processor: Processor, tracker: AnyTracker
    ) -> Training:
        import torch

        from medr1.data.image_loader import cached_image_loader
        from medr1.data.image_size import ImageSize
        from medr1.models.processor import IMAGE_TOKEN, Prompt
        from medr1.models.tensors import Targets
        from medr1.training.base_mixture import BaseMixture
        from medr1.training.batches import SupervisedBatch
        from medr1.training.sft import SFTModule

        settings, load = self.settings_of(cfg), cached_image_loader(ImageSize.from_config(cfg.data, cfg.model))
        mixture = BaseMixture(settings=settings, seed=cfg.seed)

        def make_batch(step: int, rank: int, world_size: int) -> SupervisedBatch:
            examples, prompts = mixture.batch(step), []
            for example in examples:
                text = processor.chat(example.content)
                if example.words is None:
                    prompts.append(Prompt(text, load(example.record)))
                else:
                    prompts.append(Prompt(text.replace(IMAGE_TOKEN, example.words)))
            ids, mask = processor.completion_ids([example.target for example in examples])
            letters = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(LETTERS)))
            weights = 1 + (settings.letter_weight - 1) * torch.isin(ids, letters)
            return SupervisedBatch(step, processor.encode(prompts), Targets(ids, mask, weights.float()))

        max_tokens = cfg.trainer.max_tokens_per_device
        module = SFTModule(policy, settings, total_steps=self.total_steps(cfg), max_tokens_per_device=max_tokens)
        return Training(module, make_batch)


ALGORITHMS.register(Pretrain())
