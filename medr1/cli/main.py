"""The command line: composes the config, checks it, reports mistakes in one message each, and starts a workflow.

Nothing heavy is imported before the config has been checked, so that a mistake is reported within a second.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from medr1.config.paths import CONF
from medr1.config.schema import register_sweeps
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.errors import USER_ERROR, ConfigError, Medr1Error
from medr1.runs.run_directory import RunDirectory
from medr1.workflows import components, multirun
from medr1.workflows.model_kinds import MODEL_KINDS
from medr1.workflows.sweep_job import run_job

HELP = {
    "train": """Train a vision-language model on medical multiple-choice questions, evaluate it, log to MLflow.

  python train.py modality=mri reasoning=think_after    GRPO on the embedded world: minutes on a CPU
  python train.py algorithm=sft                         the supervised baseline
  python train.py data=omnimedvqa data.root=DIR model=qwen2_vl_2b
                                                        real images, a real model
  python train.py sweep=cross_modality budget=quick     a table of runs; the same again continues it
  python train.py resume=RUN_DIR                        continue a run that was stopped
  python train.py plan=true                             memory and time of a run, beforehand
  python train.py debug=quick                           the whole way in seconds
""",
    "evaluate": """Evaluate a run, a checkpoint or a plain base model on the test records of all modalities.

  python evaluate.py run=RUN_DIR                        the numbers of a finished run, again
  python evaluate.py run=RUN_DIR export=DIR             its model, for transformers alone
  python evaluate.py sweep=SWEEP_DIR                    the tables and the report of a sweep, again
  python evaluate.py audit=DIR                          leaks, blind scores, cues of question files
  python evaluate.py reasoning=no_think                 the model as it is: the zero-shot row
  python evaluate.py model=server model.url=http://127.0.0.1:8000/v1 model.path=NAME
                                                        a model behind a chat server
  python evaluate.py resume=RUN_DIR                     continue an evaluation that was stopped
  python evaluate.py model=hf model.path=DIR data=omnimedvqa data.root=DIR data.split=test_only
""",
}

# Groups of conf/ that evaluate.py does not have.
TRAINING_ONLY = ("algorithm", "budget", "debug", "experiment", "launcher", "reward", "trainer")

# Here, because the workers of parallel launchers compose configs too and import no more than this module.
components.import_plugins()


def entry_point(command: str) -> None:
    """Runs ``train`` or ``evaluate`` and exits with its status."""
    if command == "train":
        register_sweeps()
    # Hydra would print its own shortened traceback; with this it raises, and the messages below are printed.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _interrupt)
    if {"--shell-completion", "-sc"} & set(sys.argv[1:]):
        _check_shell_completion(command)
    with _one_message():
        components.use_plugins(sys.argv[1:])
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(command))
        return
    job: Callable[[DictConfig], None] = {"train": _train, "evaluate": _evaluate}[command]
    try:
        hydra.main(version_base=None, config_path=str(CONF), config_name=command)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        _exit(components.explain(error, TrainConfig if command == "train" else EvaluateConfig))
    except OSError as error:
        if "medr1.workflows.session" in sys.modules:
            raise  # from the job; before it only Hydra writes to disk, to create the run directory
        _exit(f"{error.filename} cannot be created ({error.strerror}); choose another output_dir")
    except KeyboardInterrupt:
        multirun.interrupted()
        sys.exit(130)


def _train(cfg: DictConfig) -> None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run_job(cfg)
        return
    with _one_message():
        overrides = list(HydraConfig.get().overrides.task)
        if launcher := HydraConfig.get().runtime.choices.get("launcher"):
            raise ConfigError(f"launcher={launcher} starts the runs of a sweep; add -m, or leave it out for one run")
        if cfg.resume is None:
            settings = components.checked(cfg, TrainConfig)
        elif others := [override for override in overrides if not override.startswith("resume=")]:
            raise ConfigError(f"resume= continues a run with its own stored config; leave out {', '.join(others)}")
        else:
            settings = RunDirectory(run_directory()).stored_config(TrainConfig)
            settings.resume = cfg.resume
            if _only_pending_calls():
                return
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read on import; DDP would advise against our settings
        from medr1.workflows.train import train

        train(settings, run_directory(), overrides)


def _evaluate(cfg: DictConfig) -> None:
    with _one_message():
        if len(given := [key for key in ("resume", "run", "sweep", "audit") if cfg[key] is not None]) > 1:
            raise ConfigError(f"{'=, '.join(given)}= are different commands; give one of them")
        if cfg.export is not None and cfg.run is None:
            raise ConfigError(f"export={cfg.export} needs run=RUN_DIR, the run whose model is exported")
        if cfg.export is None and not cfg.merge:
            raise ConfigError("merge=false is a setting of export=DIR, which is not given")
        if cfg.sweep is not None:
            from medr1.workflows.sweep_report import report_sweep

            report_sweep(Path(cfg.sweep))
        elif cfg.audit is not None:
            from medr1.workflows.audit import audit_files

            audit_files(components.checked(cfg, EvaluateConfig), run_directory())
        elif cfg.export is not None:
            from medr1.workflows.export import export_run

            export_run(RunDirectory(Path(cfg.run).absolute()), Path(cfg.export).absolute(), cfg.merge)
        else:
            overrides = list(HydraConfig.get().overrides.task)
            settings = components.checked(cfg, EvaluateConfig) if cfg.resume is None else _resumed(cfg, overrides)
            if cfg.resume is not None and _only_pending_calls():
                return
            from medr1.workflows.evaluate import evaluate

            evaluate(settings, run_directory(), overrides)


def _only_pending_calls() -> bool:
    """Whether the run had finished but for calls that its MLflow server has missed; they are sent now."""
    run = RunDirectory(run_directory())
    if not run.finished.is_file():
        return False
    from medr1.workflows.session import send_pending

    return send_pending(run)


def _resumed(cfg: DictConfig, overrides: list[str]) -> EvaluateConfig:
    """The stored config of an evaluation, with those settings of its model that may change."""
    stored = RunDirectory(run_directory()).stored_config(EvaluateConfig)
    stored.resume = cfg.resume
    may_change = [f"model.{key}" for key in MODEL_KINDS[stored.model.kind].may_change_on_resume]
    for override in overrides:
        key = override.partition("=")[0]
        if key == "resume" or (may_change and override == f"model={stored.model.name}"):
            continue
        if key not in may_change:
            allowed = f"; only {', '.join(f'{k}=' for k in may_change)} may change" if may_change else ""
            raise ConfigError(f"resume= continues with the stored config; leave out {override}{allowed}")
        setattr(stored.model, key.removeprefix("model."), cfg.model[key.removeprefix("model.")])
    components.check_components(stored)
    return stored


@contextmanager
def _one_message() -> Iterator[None]:
    """Exits with the message of an error alone, where Hydra would print the overrides and a traceback."""
    try:
        yield
    except Medr1Error as error:
        _exit(str(error))


def help_text(command: str) -> str:
    """The options of every group, those of the plugin folder too, on one screen."""
    groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
    if command == "evaluate":
        groups = [group for group in groups if group not in TRAINING_ONLY]
    names = {group: components.options(group) for group in [*groups, *(["sweep"] if command == "train" else [])]}
    rows = (f"  {group + '=':15}{'_| '.join(names[group])}" for group in names)  # keeps a bar at the end of its line
    choices = "\n".join(textwrap.fill(row, 99, subsequent_indent=17 * " ") for row in rows).replace("_|", " |")
    return (
        HELP[command]
        + f"""
Choose (group=name):
{choices}

Set any value by its path: data.image_size=112 seed=1. All of them: python {command}.py --cfg job
Several values of one setting with -m make several runs: -m modality=ct,mri seed=0,1,2"""
    )


def _check_shell_completion(command: str) -> None:
    """Refuses wrong arguments, for which Hydra would raise a ValueError or a KeyError."""
    given = [word for word in sys.argv[1:] if word.startswith(("install", "uninstall", "query"))]
    from_shell = "COMP_LINE" in os.environ  # "query" is what the installed completion itself calls
    allowed = ("install", "uninstall", "query") if from_shell else ("install", "uninstall")
    if len(given) != 1 or given[0] not in {f"{verb}={shell}" for verb in allowed for shell in ("bash", "zsh", "fish")}:
        _exit(
            "--shell-completion needs install=SHELL or uninstall=SHELL, where SHELL is bash, zsh or fish. In bash: "
            f'eval "$(python {command}.py --shell-completion install=bash)"'
        )


def run_directory() -> Path:
    """The directory of this run, single or one of a multirun."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        return (Path(settings.sweep.dir) / settings.sweep.subdir).absolute()
    return Path(settings.run.dir).absolute()


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does, so that MLflow shows it as KILLED."""
    raise KeyboardInterrupt
