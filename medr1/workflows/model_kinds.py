"""The kinds of model: a checkpoint that is loaded here, or one behind a chat server that is only evaluated."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from medr1.config.registry import Registry
from medr1.config.settings import ModelConfig, ServerConfig
from medr1.config.validate import api_key, check_server
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.predictions import Condition, Prediction
from medr1.runs.run_directory import starting_weights

if TYPE_CHECKING:
    from medr1.workflows.session import Session


# Settings of a model that only a training reads.
TRAINED_MODEL = ("model.gradient_checkpointing", "model.freeze_vision_tower", "model.tuning", "model.lora")


class ModelKind(Protocol):
    """A component of the config group ``model``."""

    kind: ClassVar[str]
    settings: ClassVar[type[ModelConfig]]
    is_trainable: ClassVar[bool]
    gives_option_probabilities: ClassVar[bool]
    # Dotted keys, of any group, that have no effect with this kind of model.
    ignores: ClassVar[tuple[str, ...]]

    def check(self, model: Any) -> None:
        """Checks the settings before anything is loaded.

        Raises:
            ConfigError: names the key, the value and the remedy.
        """

    def check_available(self, model: Any) -> None:
        """Checks that there is such a model, before a run is created for it. Loads no weights.

        Raises:
            CheckpointError: names the place and the remedy.
        """

    def control_tokens(self, model: Any) -> frozenset[str]:
        """The control tokens of the model's tokenizer, as far as they are known before it is loaded."""

    def facts(self, session_config: Any) -> dict[str, Any]:
        """What environment.json says of the model on this machine, with ``device``: where it runs."""

    def evaluate(
        self, session: Session, condition: Condition, weights: tuple[str, Path | None]
    ) -> dict[str, list[Prediction]]:
        """Predictions of the model and of its controls. ``weights``: checkpoint, and an adapter on it or None."""


MODEL_KINDS: Registry[ModelKind] = Registry("model")


class LocalModel:
    """A checkpoint in the format of Hugging Face, loaded into this process."""

    kind: ClassVar[str] = "hf"
    settings: ClassVar[type[ModelConfig]] = ModelConfig
    is_trainable: ClassVar[bool] = True
    gives_option_probabilities: ClassVar[bool] = True
    ignores: ClassVar[tuple[str, ...]] = ()

    def check(self, model: ModelConfig) -> None: ...

    def check_available(self, model: ModelConfig) -> None:
        from medr1.config.checkpoints import check_checkpoint

        check_checkpoint(starting_weights(model.path)[0])

    def control_tokens(self, model: ModelConfig) -> frozenset[str]:
        from medr1.models.loading import control_tokens

        return control_tokens(starting_weights(model.path)[0])

    def facts(self, session_config: Any) -> dict[str, Any]:
        from medr1.config.checkpoints import fingerprint
        from medr1.workflows.local_model import device_name, model_spec

        return {
            "attn_implementation": model_spec(session_config).attn_implementation,
            "device": device_name(session_config),
            "model_fingerprint": fingerprint(*starting_weights(session_config.model.path)),
        }

    def evaluate(
        self, session: Session, condition: Condition, weights: tuple[str, Path | None]
    ) -> dict[str, list[Prediction]]:
        from medr1.workflows.local_model import evaluate

        return evaluate(session, condition, weights)


class ServerModel:
    """A model behind an OpenAI-compatible chat server. Nothing of it is loaded here; torch is not imported."""

    kind: ClassVar[str] = "server"
    settings: ClassVar[type[ModelConfig]] = ServerConfig
    is_trainable: ClassVar[bool] = False
    gives_option_probabilities: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = (  # what only a model that is loaded here has
        *("model.dtype", "model.attn_implementation", "model.quantization", *TRAINED_MODEL),
        *("model.recipe", "evaluation.batch_size", "data.dataloader_num_workers", "rollout"),
        *("trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.gather_for_generation"),
    )

    def check(self, model: ServerConfig) -> None:
        check_server(model)

    def check_available(self, model: ServerConfig) -> None: ...

    def control_tokens(self, model: ServerConfig) -> frozenset[str]:
        return frozenset()

    def facts(self, session_config: Any) -> dict[str, Any]:
        return {"device": f"the server {session_config.model.url}"}

    def evaluate(
        self, session: Session, condition: Condition, weights: tuple[str, Path | None]
    ) -> dict[str, list[Prediction]]:
        from medr1.evaluation.chat_client import ChatClient
        from medr1.evaluation.server_predictions import ServerPredictionStore
        from medr1.workflows.session import prediction_settings, run_controls, run_measures

        model = session.cfg.model
        assert isinstance(model, ServerConfig)
        client = ChatClient(
            model.url,
            model.path,
            api_key=api_key(model),
            timeout=model.timeout,
            max_retries=model.max_retries,
            repetition_penalty=model.repetition_penalty,
        )
        store = ServerPredictionStore(**prediction_settings(session), concurrency=model.concurrency)
        generate = partial(store.generate, client)
        with closing(client):
            generate(condition, ImageAblation.NONE)
            run_measures(session, store, condition, partial(store.answer, client))
            run_controls(session, store, generate)
        return store.conditions


MODEL_KINDS.register(LocalModel())
MODEL_KINDS.register(ServerModel())
