"""The kinds of model: a checkpoint that is loaded here, or one behind a chat server that is only evaluated."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from medr1.config.registry import Registry
from medr1.config.settings import ModelConfig, ServerConfig
from medr1.config.validate import api_key, check_server
from medr1.errors import ServerError
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.predictions import Condition, Prediction

if TYPE_CHECKING:
    from medr1.workflows.session import Session


class ModelKind(Protocol):
    """A component of the config group ``model``."""

    kind: ClassVar[str]
    settings: ClassVar[type[ModelConfig]]
    is_trainable: ClassVar[bool]
    # Settings that a stopped evaluation may be continued with other values of.
    may_change_on_resume: ClassVar[tuple[str, ...]]

    def check(self, model: Any) -> None:
        """Checks the settings before anything is loaded.

        Raises:
            ConfigError: names the key, the value and the remedy.
        """

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
    may_change_on_resume: ClassVar[tuple[str, ...]] = ()

    def check(self, model: ModelConfig) -> None: ...

    def facts(self, session_config: Any) -> dict[str, Any]:
        from medr1.workflows.local_model import device_name, model_spec

        attention = model_spec(session_config).attn_implementation
        return {"attn_implementation": attention, "device": device_name(session_config)}

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
    may_change_on_resume: ClassVar[tuple[str, ...]] = (
        "url",
        "api_key_variable",
        "concurrency",
        "timeout",
        "max_retries",
    )

    def check(self, model: ServerConfig) -> None:
        check_server(model)

    def facts(self, session_config: Any) -> dict[str, Any]:
        return {"device": f"the server {session_config.model.url}"}

    def evaluate(
        self, session: Session, condition: Condition, weights: tuple[str, Path | None]
    ) -> dict[str, list[Prediction]]:
        from medr1.evaluation.chat_client import ChatClient
        from medr1.evaluation.server_predictions import ServerPredictionStore
        from medr1.workflows.session import prediction_settings, run_controls

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
        try:
            with closing(client):
                generate(condition, ImageAblation.NONE)
                run_controls(session, store, generate)
        except ServerError as error:
            command = session.resume_command
            raise ServerError(f"{error}\nthe predictions so far are on disk; continue with {command}") from error
        return store.conditions


MODEL_KINDS.register(LocalModel())
MODEL_KINDS.register(ServerModel())
