"""Imports all components before a config is composed, so that their settings are known, and checks the chosen ones."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TypeVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from medr1 import rewards
from medr1.config import axis_values, messages
from medr1.config.enums import Distribution, Quantization, Resize, Tuning
from medr1.config.naming import is_below
from medr1.config.override_text import shell_word
from medr1.config.paths import CONF, SWEEPS
from medr1.config.processes import check_processes
from medr1.config.registry import Registry
from medr1.config.schema import register
from medr1.config.settings import (
    ALL,
    CommonConfig,
    EvaluateConfig,
    ExternalRolloutConfig,
    LoraConfig,
    RecipeConfig,
    TrainConfig,
)
from medr1.config.validate import typed
from medr1.data.sources import SOURCES
from medr1.domain.records import AXES
from medr1.errors import ConfigError, Medr1Error
from medr1.generation.engines import ENGINES
from medr1.runs.run_directory import RunDirectory, run_at, starting_weights
from medr1.tracking.address import absolute_uri, is_server, without_password
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows import plugin_sources
from medr1.workflows.model_kinds import MODEL_KINDS, TRAINED_MODEL
from medr1.workflows.plugin_sources import PLUGINS_VARIABLE

T = TypeVar("T", bound=CommonConfig)

register()
axis_values.register()


class PluginSearchPath(SearchPathPlugin):
    """Makes the YAML files of the plugin folder options of their groups."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if folder := os.environ.get(PLUGINS_VARIABLE):
            search_path.append("medr1-plugins", f"file://{folder}")


Plugins.instance().register(PluginSearchPath)


def use_plugins(words: Sequence[str]) -> None:
    """Imports the plugins of ``plugins=``, or else those of the run that ``resume=`` or ``run=`` names.

    A run directory may come from someone else, so a folder that only it names must lie outside of the directory that
    the run lies in.

    Raises:
        ConfigError: there is no such folder, it may have come with the run, or one of its files cannot be imported.
    """
    typed = (word.partition("=") for word in words if "=" in word)
    given = {key: value.strip("'\"") for key, _, value in typed}
    folder = given.get("plugins")
    for key in ("resume", "run"):
        if folder is None and key in given:
            run = Path(given[key])
            folder = _plugins_of_run(run)
            if folder is not None and Path(folder).resolve().is_relative_to(run.resolve().parent):
                raise ConfigError(
                    f"{key}={run}: the plugins of this run, {folder}, lie beside it and may have come with it. They "
                    f"are executed only if you name them: add {shell_word('plugins', folder)}"
                )
            if key == "resume" and folder is not None and Path(folder).is_dir():
                _check_unchanged(RunDirectory(run), Path(folder))
    if folder not in (None, "null"):
        os.environ[PLUGINS_VARIABLE] = str(Path(str(folder)).absolute())
    import_plugins()


def _check_unchanged(run: RunDirectory, folder: Path) -> None:
    if names := plugin_sources.changed(run, folder):
        raise ConfigError(
            f"resume={run.path}: plugins have changed since this run began: {', '.join(names)} in {folder}. It goes on "
            f"with them as they are now only if you name them: add {shell_word('plugins', folder)}"
        )


class _FromSource(SourceFileLoader):
    """Compiles the source at each import.

    Python takes cached bytecode where the time (whole seconds) and the size of a source agree. A file edited within a
    second would be stored with a run in one version and executed in another.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def import_plugins() -> None:
    """Imports each Python file of the plugin folder, if there is one.

    Raises:
        ConfigError: there is no such folder, one of its files cannot be imported, or medr1 has a component of the name.
    """
    folder = os.environ.get(PLUGINS_VARIABLE)
    if not folder:
        return
    if not Path(folder).is_dir():
        raise ConfigError(f"plugins={folder}: no such folder")
    for own, shipped in ((file, _shipped(file)) for file in sorted(Path(folder).glob("*/*.yaml"))):
        if shipped.is_file():  # Hydra would read this one
            raise ConfigError(f"plugins={folder}: {own} has the name of {shipped}; rename or remove one of them")
    for file in sorted(Path(folder).glob("*.py")):
        name = f"medr1_plugins.{file.stem}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Medr1Error as error:
            del sys.modules[name]
            raise ConfigError(f"plugins={folder}: {file.name}: {error}") from error
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(f"plugins={folder}: {file.name} cannot be imported: {error!r}") from error


def options(group: str) -> list[str]:
    """The names of the options of a config group, from medr1 and from the plugin folder, sorted."""
    folder = os.environ.get(PLUGINS_VARIABLE)
    folders = [SWEEPS if group == "sweep" else CONF / group, *([Path(folder) / group] if folder else [])]
    return sorted(file.stem for place in folders for file in place.glob("*.yaml"))


def explain(error: Exception, schema: type) -> str:
    """The message for an error of Hydra or OmegaConf.

    Keys below ``reward.functions`` are explained by ``rewards``, because the schema does not contain their settings.
    """
    key = messages.refused_key(error)
    if schema is TrainConfig and key is not None and key.startswith("reward.functions."):
        return rewards.explain_key(key)
    return messages.explain(error, schema)


def _shipped(file: Path) -> Path:
    """Where medr1 has a YAML file of this group and name, if it has one."""
    return (SWEEPS if file.parent.name == "sweep" else CONF / file.parent.name) / file.name


def _plugins_of_run(run: Path) -> str | None:
    try:
        folder = OmegaConf.select(OmegaConf.load(run / "config.yaml"), "plugins")
    except (OSError, YAMLError):
        return None  # reported where the run's config is read
    return None if folder is None else str(folder)


def checked(cfg: DictConfig, schema: type[T]) -> T:
    """The config of a command as typed settings, checked by the rules of the schema and of each chosen component.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    settings = typed(cfg, schema)
    check_components(settings)
    return settings


def check_environment(cfg: TrainConfig, environment: Mapping[str, str]) -> None:
    """Checks that the environment variables of launchers fit the processes of a training.

    Raises:
        ConfigError: names the variable, its value and the remedy.
    """
    evaluates_together = cfg.trainer.is_sharded and MODEL_KINDS[cfg.model.kind].is_trainable
    trains = ALGORITHMS[cfg.algorithm.kind].trains or evaluates_together
    check_processes(cfg.trainer.devices, cfg.trainer.num_nodes, environment, trains=trains)


def check_available(cfg: CommonConfig) -> None:
    """Checks that there are the model and the rollout engine of a run, before it is created or goes on.

    Raises:
        CheckpointError, ConfigError, ServerError: names the place and the remedy.
    """
    kind = MODEL_KINDS[cfg.model.kind]
    if not isinstance(cfg, EvaluateConfig) or cfg.run is None:  # else the weights are those of the run
        kind.check_available(cfg.model)
    if kind.is_trainable:
        of_run = cfg.run if isinstance(cfg, EvaluateConfig) else None
        path = cfg.model.path if of_run else starting_weights(cfg.model.path)[0]  # an engine knows no run
        ENGINES[cfg.rollout.kind].check_available(cfg.rollout, replace(cfg.model, path=path))


def check_components(cfg: CommonConfig) -> None:
    """Checks the settings of the chosen components, each by its own rules, before anything is loaded.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    for group, registry in Registry.by_group.items():
        settings = getattr(cfg, group, None)
        if settings is not None and not isinstance(settings, registry[settings.kind].settings):
            raise ConfigError(f"{group}.kind={settings.kind} cannot be set; it follows from the choice {group}=NAME")
    MODEL_KINDS[cfg.model.kind].check(cfg.model)
    if cfg.evaluation.option_probabilities and not MODEL_KINDS[cfg.model.kind].gives_option_probabilities:
        raise ConfigError(
            f"evaluation.option_probabilities=true needs a model that is loaded here; model={cfg.model.name} answers "
            "with text only"
        )
    _check_continued(cfg)
    _check_quantization(cfg)
    if isinstance(cfg, TrainConfig) and cfg.trainer.optimizer_offload and cfg.trainer.strategy != Distribution.auto:
        raise ConfigError(
            f"trainer.optimizer_offload=true with trainer.strategy={cfg.trainer.strategy}: it is for one device; with "
            "several, trainer=fsdp divides the state among them"
        )
    _check_axes(cfg)
    _check_temperatures(cfg)
    _check_tracking(cfg)
    SOURCES[cfg.data.kind].check(cfg.data)
    ENGINES[cfg.rollout.kind].check(cfg.rollout, cfg.trainer if isinstance(cfg, TrainConfig) else None)
    if isinstance(cfg, TrainConfig) and not MODEL_KINDS[cfg.model.kind].is_trainable:
        if cfg.plan:
            raise ConfigError(f"model={cfg.model.name} loads no model here, so there is nothing to plan")
        if ALGORITHMS[cfg.algorithm.kind].trains:
            raise ConfigError(
                f"model={cfg.model.name} can only be evaluated, not trained by algorithm={cfg.algorithm.name}; use "
                "algorithm=zero_shot, or evaluate.py"
            )
    if isinstance(cfg, TrainConfig):
        SOURCES[cfg.data.kind].check_training(cfg.data)
        _check_strategy(cfg)
        _check_validation(cfg)
        _check_intermediate_models(cfg)
        rewards.check(cfg.reward)
        ALGORITHMS[cfg.algorithm.kind].check(cfg)


def _check_continued(cfg: CommonConfig) -> None:
    """Checks that a run whose training is continued (``model.path=RUN``) has this kind of model and of adapter."""
    if not MODEL_KINDS[cfg.model.kind].is_trainable or (run := run_at(cfg.model.path)) is None:
        return
    before = run.stored_config(TrainConfig).model
    if cfg.model.name != before.name:
        raise ConfigError(
            f"model.path={cfg.model.path} is a run of model={before.name}, not of model={cfg.model.name}; add "
            f"model={before.name}"
        )
    if before.tuning == Tuning.lora and cfg.model.quantization != before.quantization:
        raise ConfigError(
            f"model.quantization={cfg.model.quantization}: the adapter of model.path={cfg.model.path} was trained on "
            f"weights of model.quantization={before.quantization}; use that, or model.path=DIR of the exported run"
        )
    if not isinstance(cfg, TrainConfig) or {cfg.model.tuning, before.tuning} != {Tuning.lora}:
        return
    for item in fields(LoraConfig):
        own, its = getattr(cfg.model.lora, item.name), getattr(before.lora, item.name)
        if own != its:
            raise ConfigError(
                f"model.lora.{item.name}={own}: the adapter of model.path={cfg.model.path}, which goes on training, "
                f"has {its}; use model.lora.{item.name}={its}, or model.path=DIR of the exported run for a new adapter"
            )


def _check_quantization(cfg: CommonConfig) -> None:
    """Checks that quantized weights are not trained, sharded or sent elsewhere, and that bitsandbytes is there."""
    given = f"model.quantization={cfg.model.quantization}"
    if cfg.model.quantization == Quantization.none or not MODEL_KINDS[cfg.model.kind].is_trainable:
        return
    if isinstance(cfg.rollout, ExternalRolloutConfig):
        raise ConfigError(
            f"{given} with rollout={cfg.rollout.name}: quantized weights are not sent to another engine; use "
            "rollout=local"
        )
    trains = isinstance(cfg, TrainConfig) and ALGORITHMS[cfg.algorithm.kind].trains
    if trains and cfg.model.tuning != Tuning.lora:
        raise ConfigError(f"{given}: quantized weights cannot be trained, adapters on them can; add model.tuning=lora")
    if isinstance(cfg, TrainConfig) and trains and cfg.trainer.is_sharded:
        raise ConfigError(
            f"{given} with trainer.strategy=fsdp: quantized weights are not sharded; use trainer=ddp or trainer=single"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f'{given} needs bitsandbytes: pip install "medr1[quantization]"')


def _check_tracking(cfg: CommonConfig) -> None:
    """Checks what can be checked of MLflow's address before a run begins."""
    if not cfg.tracking.enabled:
        return
    uri = str(cfg.tracking.uri)
    if (shown := without_password(uri)) != uri:
        remedy = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            if is_server(uri)
            else "set PGPASSWORD or write it to ~/.pgpass (PostgreSQL), or use an option file (MySQL)"
        )
        raise ConfigError(
            f"tracking.uri={shown}: leave out the password, which would be stored with the config; {remedy}"
        )
    _, database = absolute_uri(uri)
    if database is not None and database.is_dir():
        raise ConfigError(f"tracking.uri={cfg.tracking.uri}: {database} is a directory; name a file in it")
    if not cfg.tracking.experiment.strip():
        raise ConfigError("tracking.experiment= is empty; give the experiment a name")


def _check_temperatures(cfg: CommonConfig) -> None:
    """Checks that the rollout engine can sample with each temperature of the run."""
    used: dict[str, float | None] = {}
    if isinstance(cfg, TrainConfig):
        if sampled := ALGORITHMS[cfg.algorithm.kind].sampling(cfg.algorithm):
            used["algorithm.sampling.temperature"] = sampled.temperature
        if cfg.data.needs_pass_rates:
            used["data.filter.temperature"] = cfg.data.filter.temperature
    if cfg.evaluation.num_generations is not None:
        used["evaluation.temperature"] = cfg.evaluation.temperature
    engine = ENGINES[cfg.rollout.kind]
    for key, value in used.items():
        if value is not None and value > engine.max_temperature:
            raise ConfigError(
                f"{key}={value:g}: rollout={cfg.rollout.kind} can only suppress tokens up to a temperature of "
                f"{engine.max_temperature:g}; use a lower one, or rollout=local"
            )
        if value is not None and value < engine.min_temperature:
            raise ConfigError(
                f"{key}={value:g}: rollout={cfg.rollout.kind} samples at a temperature of at least "
                f"{engine.min_temperature:g}; use a higher one, or rollout=local"
            )


def _check_strategy(cfg: TrainConfig) -> None:
    """Checks that the strategy of a training fits its processes. Lightning would take a DDP of its own."""
    processes = cfg.trainer.processes
    if ALGORITHMS[cfg.algorithm.kind].trains and processes > 1 and cfg.trainer.strategy is Distribution.auto:
        raise ConfigError(
            f"trainer={cfg.trainer.name} is one process, not {processes} (trainer.devices x trainer.num_nodes); add "
            "trainer=ddp, or trainer=fsdp for a model that is larger than a device"
        )


def _check_validation(cfg: TrainConfig) -> None:
    """Checks that a training that is evaluated has validation records, as far as its settings tell."""
    trains, source = ALGORITHMS[cfg.algorithm.kind].trains, SOURCES[cfg.data.kind]
    if trains and cfg.trainer.eval_steps and not source.has_validation(cfg.data):
        part = ", or data.validation_part=NAME" if hasattr(cfg.data, "validation_part") else ""
        raise ConfigError(
            f"trainer.eval_steps={cfg.trainer.eval_steps} needs validation records: data.validation_fraction=0.1{part}"
        )


def _check_intermediate_models(cfg: TrainConfig) -> None:
    steps, last = cfg.trainer.save_model_steps, cfg.trainer.max_steps
    if not steps or not ALGORITHMS[cfg.algorithm.kind].trains:
        return
    given = f"trainer.save_model_steps=[{','.join(map(str, steps))}]"
    if min(steps) < 1 or (last is not None and max(steps) > last):
        raise ConfigError(f"{given}: use steps from 1 to trainer.max_steps={last}")
    if cfg.model.tuning == Tuning.lora:
        raise ConfigError(f"{given} with model.tuning=lora: an adapter is no model of its own; use model.tuning=full")
    if cfg.trainer.is_sharded:
        raise ConfigError(f"{given} with trainer.strategy=fsdp: no process has the whole model; use trainer=ddp")


def steps_done(cfg: TrainConfig, run: RunDirectory) -> int:
    """The step at which a resumed run goes on: the steps before its latest checkpoint, 0 without one."""
    return run.optimizer_steps() // ALGORITHMS[cfg.algorithm.kind].num_iterations(cfg.algorithm)


def check_steps_ahead(cfg: TrainConfig, run: RunDirectory) -> None:
    """Refuses ``trainer.save_model_steps`` that the run has passed without storing the model.

    Raises:
        ConfigError: names the steps, and the same setting without them.
    """
    done = steps_done(cfg, run)
    steps = cfg.trainer.save_model_steps
    passed = [step for step in steps if step <= done and not run.intermediate_model(step).is_dir()]
    if passed:
        rest = ",".join(str(step) for step in steps if step not in passed)
        raise ConfigError(
            f"trainer.save_model_steps=[{','.join(map(str, steps))}]: the run goes on after step {done}, and the model "
            f"after step {', '.join(map(str, passed))} was not stored; use trainer.save_model_steps=[{rest}]"
        )


def _check_axes(cfg: CommonConfig) -> None:
    """Checks the selection of training records where the source knows all its values before it is loaded."""
    if isinstance(cfg, EvaluateConfig) and cfg.run is not None:
        return  # the selection is that of the run, which other data need not have
    source = SOURCES[cfg.data.kind]
    for axis, known in zip(AXES, (source.modalities, source.question_types), strict=True):
        value = getattr(cfg, axis).name
        if known is not None and value not in (*known, ALL):
            valid = messages.nearest(value, [*known, ALL])
            raise ConfigError(f"{axis}={value}: data={cfg.data.name} has no such value\n{valid}")


def check_typed(runs: Sequence[CommonConfig], typed: Iterable[str]) -> None:
    """Refuses overrides of settings that none of the runs of a command would read.

    Raises:
        ConfigError: names the setting, and the choice because of which the first run does not read it.
    """
    unread = [dict(_ignored(cfg, typed)) for cfg in runs]
    for key in typed:
        if all(key in found for found in unread):
            raise ConfigError(f"{key}= has no effect with {unread[0][key]}; leave it out")


def _ignored(cfg: CommonConfig, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The overridden keys that a run would not read, each with the choice that is the reason."""
    choices = list(_without_effect(cfg))
    for key in typed:
        choice = next((c for c, places in choices if is_below(key, places) or f"{key}=" in places), None)
        if choice is not None:
            yield key, choice


_TRAINED_RECIPE = tuple(
    f"model.recipe.{item.name}" for item in fields(RecipeConfig) if item.name != "max_completion_length"
)
# The settings of rollout engines that only an algorithm with rewards reads.
_CORRECTION = tuple(f"rollout.{f.name}" for f in fields(ExternalRolloutConfig) if f.name not in ("name", "kind"))
_COMPLETIONS_TABLE = ("tracking.log_completions_steps", "tracking.num_completions")
_OF_TRAINING = (*_COMPLETIONS_TABLE, "tracking.registered_model_name", "trainer.save_model_steps")
DIFFICULTY = ("data.filter", "data.curriculum")  # what chooses and orders the records of a training
_VALIDATION_RECORDS = ("validation_fraction", "validation_part", "files.validation")
_BEST_MODEL = (
    *("trainer.greater_is_better", "trainer.load_best_model_at_end"),
    *("trainer.early_stopping_patience", "trainer.early_stopping_threshold"),
)


def _validation_keys(cfg: CommonConfig, names: Sequence[str] = _VALIDATION_RECORDS) -> list[str]:
    """The keys of the data that choose validation records, those of several data sets too."""
    places = ["data", *(f"data.sets.{name}" for name in getattr(cfg.data, "sets", ()))]
    return [f"{place}.{name}" for place in places for name in names]


def _without_effect(cfg: CommonConfig) -> Iterator[tuple[str, Container[str]]]:
    """Pairs of a choice and the keys without effect, including keys below them; ``KEY=``: only KEY itself."""
    yield f"model={cfg.model.name}", MODEL_KINDS[cfg.model.kind].ignores
    yield from SOURCES[cfg.data.kind].without_effect(cfg.data)
    if not cfg.data.needs_pass_rates:
        sampled = [f"data.filter.{item.name}" for item in fields(cfg.data.filter) if item.name != "pass_rate"]
        yield "data.filter.pass_rate=null and data.curriculum=none", sampled
    yield from ENGINES[cfg.rollout.kind].without_effect(cfg.rollout)
    if cfg.data.resize == Resize.native:
        yield "data.resize=native", ("data.image_size", "model.image_size")
    else:
        yield "data.resize=square", ("data.min_pixels", "data.max_pixels")
    if cfg.evaluation.num_generations is None:
        yield "evaluation.num_generations=null", ("evaluation.temperature", "evaluation.k")
    if not cfg.tracking.enabled:
        unread = (f"tracking.{item.name}" for item in fields(cfg.tracking) if item.name not in ("name", "enabled"))
        yield "tracking.enabled=false", tuple(unread)
    if isinstance(cfg, TrainConfig):
        algorithm, chosen = ALGORITHMS[cfg.algorithm.kind], f"algorithm={cfg.algorithm.name}"
        if not algorithm.trains:
            yield chosen, (*TRAINED_MODEL, *_TRAINED_RECIPE, *_OF_TRAINING)
        if not algorithm.needs_base:
            yield f"{chosen}, which trains a new model", ("model.quantization",)
        if not algorithm.trains_base:
            yield f"{chosen}, which does not train the model in model.path", DIFFICULTY
        if not algorithm.uses_rewards:
            yield chosen, ("reward", *_COMPLETIONS_TABLE, *_CORRECTION)
        yield from algorithm.without_effect(cfg)
        unused = _VALIDATION_RECORDS if SOURCES[cfg.data.kind].adds_validation else _VALIDATION_RECORDS[1:]
        if not algorithm.trains:
            yield chosen, (*_validation_keys(cfg), "evaluation.validation_limit")
        elif not cfg.trainer.eval_steps:
            yield "trainer.eval_steps=0", (*_validation_keys(cfg, unused), "evaluation.validation_limit")
        if not cfg.trainer.is_sharded:
            yield f"trainer.strategy={cfg.trainer.strategy}", ("trainer.gather_for_generation",)
        if cfg.trainer.metric_for_best_model is None:
            yield "trainer.metric_for_best_model=null", _BEST_MODEL
        elif not cfg.trainer.early_stopping_patience:
            yield "trainer.early_stopping_patience=0", ("trainer.early_stopping_threshold",)
        if cfg.model.tuning == Tuning.full:
            yield "model.tuning=full", ("model.lora",)
        if cfg.trainer.max_steps is not None:
            steps = f"trainer.max_steps={cfg.trainer.max_steps} (it is used if trainer.max_steps=null)"
            yield steps, ("trainer.num_train_epochs",)
        yield "a single run, which is no sweep", ("sweep",)
        return
    assert isinstance(cfg, EvaluateConfig)
    validation = (*_validation_keys(cfg), "evaluation.validation_limit")
    of_training = (*TRAINED_MODEL, *_TRAINED_RECIPE, *_OF_TRAINING, *_CORRECTION, *DIFFICULTY, *validation)
    yield "evaluate.py, which trains nothing", of_training
    if cfg.evaluation.num_generations is None:
        yield "evaluate.py, which samples nothing without evaluation.num_generations", ("seed",)
    if cfg.run is None:
        yield "a model that is no run (run=RUN_DIR)", ("checkpoint",)
    if cfg.run is not None:
        of_the_run = [
            f"model.{i.name}" for i in fields(cfg.model) if i.name not in ("path", "dtype", "attn_implementation")
        ]
        yield (
            f"run={cfg.run}, whose model and training records are those of the run",
            (
                *("model=", "modality", "question_type"),
                *of_the_run,
            ),
        )
