"""The command line: composes the config, checks it, reports mistakes in one message each, and starts a workflow.

Nothing heavy is imported before the config has been checked, so that a mistake is reported within a second.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medr1.cli.overrides import expand_sets, read_overrides, refuse_numbers, refuse_others
from medr1.cli.process import leave_group, prepare_process
from medr1.config.naming import is_below
from medr1.config.paths import CONF
from medr1.config.processes import check_processes
from medr1.config.schema import groups, key_types, marked_keys, register_sweeps
from medr1.config.settings import CommonConfig, EvaluateConfig, TrainConfig
from medr1.config.validate import check_range
from medr1.errors import USER_ERROR, ConfigError, Medr1Error
from medr1.runs.run_directory import RunDirectory
from medr1.runs.storage import storage_problem
from medr1.runs.sweep import SweepDirectory, sweep_of
from medr1.tracking.address import stored_run
from medr1.workflows import components, multirun, reward_sources
from medr1.workflows.new_directory import discard_unstarted
from medr1.workflows.stored_options import stored_options
from medr1.workflows.sweep_job import run_job

HELP = {
    "train": """Train a vision-language model on medical multiple-choice questions, evaluate it, log to MLflow.

  python train.py modality=mri reasoning=think_after    GRPO on synthetic images: minutes on a CPU
  python train.py algorithm=sft                         the supervised baseline
  python train.py data=omnimedvqa data.root=DIR model=qwen2_vl_2b
                                                        real images and a real model
  python train.py sweep=cross_modality budget=quick     8 x 8 accuracies; repeat to continue
  python train.py resume=RUN_DIR                        continue an interrupted run
  python train.py plan=true                             memory and time that a run needs
  python train.py debug=quick                           a few steps, to test the set-up
""",
    "evaluate": """Evaluate a run, a checkpoint or a plain base model on the test records of all modalities.

  python evaluate.py run=RUN_DIR                        evaluate the model of a finished run
  python evaluate.py run=RUN_DIR data=omnimedvqa data.root=DIR
                                                        the same model on other data
  python evaluate.py run=RUN_DIR export=DIR             export its model for transformers
  python evaluate.py sweep=SWEEP_DIR                    write the report of a sweep again
  python evaluate.py compare=[RUN_A,RUN_B]              a paired test of two runs
  python evaluate.py audit=data data=omnimedvqa data.root=DIR
                                                        leaks, shortcuts and shared images of data
  python evaluate.py audit=DIR                          the same for question files of OmniMedVQA
  python evaluate.py reasoning=no_think                 the base model, without training (zero-shot)
  python evaluate.py model=server model.url=http://127.0.0.1:8000/v1 model.path=NAME
                                                        a model behind a chat server
  python evaluate.py resume=RUN_DIR                     continue an interrupted evaluation
  python evaluate.py model=hf model.path=DIR data=omnimedvqa data.root=DIR data.split=test_only
""",
}

_SCHEMAS: dict[str, type[CommonConfig]] = {"train": TrainConfig, "evaluate": EvaluateConfig}
_OTHER_GROUPS = ("budget", "debug", "experiment", "launcher")  # presets, which have no schema

T = TypeVar("T", TrainConfig, EvaluateConfig)

# Groups of conf/ that evaluate.py does not have.
TRAINING_ONLY = ("algorithm", "budget", "debug", "experiment", "launcher", "reward", "trainer")

# Here, because the workers of parallel launchers compose configs too and import no more than this module.
components.import_plugins()


def entry_point(command: str) -> None:
    """Runs ``train`` or ``evaluate`` and exits with its status."""
    prepare_process()
    threshold = gc.get_threshold()
    gc.set_threshold(50_000)  # while configs are composed, which frees little: a tenth of the time to a message
    if command == "train":
        register_sweeps()
    # Hydra would print its own shortened traceback; with this it raises, and the messages below are printed.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _interrupt)
    if {"--shell-completion", "-sc"} & set(sys.argv[1:]):
        _check_shell_completion(command)
        typed: list[Override] = []
    else:
        with _one_message():
            components.use_plugins(sys.argv[1:])
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(help_text(command))
                return
            # argparse takes the words on one side of a flag only, so that -m among overrides would refuse some of them.
            flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
            if flags and (others := {"--cfg", "-c", "--info", "-i", "--run", "-r"} & set(sys.argv[1:])):
                raise ConfigError(
                    f"{others.pop()} is for one run: leave out {flags[0]}, and give one value of each setting"
                )
            sys.argv[1:] = [*flags[:1], *expand_sets([word for word in sys.argv[1:] if word not in flags])]
            further = (*_OTHER_GROUPS, "sweep") if command == "train" else _OTHER_GROUPS
            typed = read_overrides(sys.argv[1:], (*groups(_SCHEMAS[command]), *further))
            refuse_numbers(typed, lambda key: _is_text(_SCHEMAS[command], key))
            # Not before a flag: argparse takes the words on one side of it only.
            first = next((i for i, word in enumerate(sys.argv) if i and "=" in word and word[0] != "-"), 1)
            sys.argv[first:first] = _of_stored_run(command, typed)

    def job(cfg: DictConfig) -> None:
        gc.set_threshold(*threshold)
        {"train": _train, "evaluate": _evaluate}[command](cfg, typed)

    try:
        _run(job, command)
    except BaseException as error:
        discard_unstarted()
        leave_group(error)
        raise


def _run(job: Callable[[DictConfig], None], command: str) -> None:
    try:
        hydra.main(version_base=None, config_path=str(CONF), config_name=command)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        _exit(components.explain(error, _SCHEMAS[command]))
    except OSError as error:
        if (problem := storage_problem(error)) is None:
            raise
        _exit(f"{problem}, or choose another output_dir; then repeat the command")
    except KeyboardInterrupt:
        multirun.interrupted()
        sys.exit(130)


def _is_text(schema: type[CommonConfig], key: str) -> bool:
    directories = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
    texts = (str, str | None, list[str], list[str] | None)
    return key in directories or any(path == key and of in texts for path, of in key_types(schema))


def _of_stored_run(command: str, typed: Sequence[Override]) -> list[str]:
    """The overrides that give a command the settings of the stored run of ``resume=`` or ``run=``; else none."""
    given = {override.get_key_element(): override.value() for override in typed}
    commands = ("resume", "run", "sweep", "audit", "compare") if command == "evaluate" else ("resume",)
    if len(chosen := [key for key in commands if given.get(key) is not None]) > 1:
        raise ConfigError(f"{'=, '.join(chosen)}= are different commands; give one of them")
    for key in chosen:
        texts = [str(override.input_line) for override in typed if override.get_key_element() == key]
        if len(texts) > 1 or (key != "compare" and not isinstance(given[key], str | int | float)):
            raise ConfigError(f"{' '.join(texts)}: give one {key}= in a command")
    if command == "evaluate" and given.get("sweep") is not None:
        SweepDirectory(Path(str(given["sweep"])).absolute()).read()  # before Hydra makes a directory of this name
    for key, schema in (("resume", _SCHEMAS[command]), ("run", TrainConfig)):
        if key in commands and given.get(key) is not None:
            run = RunDirectory(Path(str(given[key])).absolute())
            return stored_options(run.stored_config(schema), _SCHEMAS[command], given)
    return []


def _train(cfg: DictConfig, typed: Sequence[Override]) -> None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run_job(cfg)
        return
    with _one_message():
        if launcher := HydraConfig.get().runtime.choices.get("launcher"):
            raise ConfigError(f"launcher={launcher} starts the runs of a sweep; add -m, or leave it out for one run")
        settings = _settings(cfg, TrainConfig, typed)
        if cfg.resume is not None and _only_pending_calls(settings):
            return
        components.check_environment(settings, os.environ)
        components.check_available(settings)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read on import; DDP warns of find_unused_parameters
        from medr1.workflows.train import train

        train(settings, run_directory(), [str(o.input_line) for o in typed])


def _evaluate(cfg: DictConfig, typed: Sequence[Override]) -> None:
    with _one_message():
        check_processes(1, 1, os.environ, trains=False)
        if cfg.export is not None and cfg.run is None:
            raise ConfigError(f"export={cfg.export} needs run=RUN_DIR, the run whose model is exported")
        if cfg.export is None and not cfg.merge:
            raise ConfigError("merge=false is a setting of export=DIR, which is not given")
        if cfg.sweep is not None:
            others = [override for override in typed if override.get_key_element() != "tracking"]
            where = ("sweep", "tracking.uri", "tracking.enabled")
            refuse_others(others, where, "sweep= makes the report from the finished runs as they are")
            from medr1.workflows.sweep_report import report_sweep

            has_moved = any(override.get_key_element() == "tracking.uri" for override in typed)
            uri = str(cfg.tracking.uri) if has_moved else None
            report_sweep(Path(cfg.sweep), uri, tracks=bool(cfg.tracking.enabled))
        elif cfg.audit is not None:
            from medr1.workflows.audit import DATA, audit_files, audit_records

            is_data = cfg.audit == DATA
            refuse_others(
                typed,
                ("audit", "output_dir", "tracking", *(("data", "data@data") if is_data else ())),
                "audit=data audits data= as it is" if is_data else "audit=DIR reads question files as they are",
            )
            settings = components.checked(cfg, EvaluateConfig)
            names = (override.get_key_element() for override in typed)
            components.check_typed([settings], [name for name in names if is_below(name, components.DIFFICULTY)])
            (audit_records if is_data else audit_files)(settings, run_directory())
        elif cfg.compare is not None:
            refuse_others(typed, ("compare", "output_dir", "tracking"), "compare= reads finished runs as they are")
            from medr1.workflows.compare_runs import compare_runs

            compare_runs(components.checked(cfg, EvaluateConfig), run_directory())
        elif cfg.export is not None:
            allowed = ("run", "export", "merge", "checkpoint", "model.path")
            refuse_others(typed, allowed, "export= writes the model of a run as it is")
            from medr1.workflows.export import export_run

            base = cfg.model.path if any(o.get_key_element() == "model.path" for o in typed) else None
            run, target = RunDirectory(Path(cfg.run).absolute()), Path(cfg.export).absolute()
            export_run(run, target, cfg.merge, base, cfg.checkpoint)
        else:
            settings = _settings(cfg, EvaluateConfig, typed)
            if cfg.resume is not None and _only_pending_calls(settings):
                return
            components.check_available(settings)
            from medr1.workflows.evaluate import evaluate

            evaluate(settings, run_directory(), [str(o.input_line) for o in typed])


def _settings(cfg: DictConfig, schema: type[T], typed: Sequence[Override]) -> T:
    """The checked settings of a run that is new or resumed.

    Raises:
        ConfigError: a setting that cannot work, or an override that would have no effect.
    """
    if cfg.resume is not None:
        return _resumed(cfg, schema, typed)
    settings = components.checked(cfg, schema)
    _check_typed(settings, typed)
    return settings


def _check_typed(settings: CommonConfig, typed: Sequence[Override]) -> None:
    if sweep_of(RunDirectory(run_directory())) is None:  # what one run of a sweep does not read, another may need
        components.check_typed([settings], [o.get_key_element() for o in typed])


def _only_pending_calls(settings: CommonConfig) -> bool:
    """If the run is finished, sends its queued MLflow calls. Returns whether there were any."""
    run = RunDirectory(run_directory())
    if not run.finished.is_file() or not settings.tracking.enabled:
        return False
    from medr1.workflows.session import send_pending

    return send_pending(run, settings.tracking.uri)


def _resumed(cfg: DictConfig, schema: type[T], typed: Sequence[Override]) -> T:
    """The stored config of a run, with the overrides of this command.

    Raises:
        ConfigError: an override of a setting that may not change; names those that may.
    """
    settings: T = RunDirectory(run_directory()).stored_config(schema)
    own: list[str] = reward_sources.function_keys(settings)
    allowed: list[str] = [*marked_keys(settings, "may_change"), *own]
    same = [(group, getattr(getattr(settings, group), "name", None)) for group in groups(schema)]
    changes = [o for o in typed if (o.get_key_element(), o.value()) not in same]
    refuse_others(
        changes,
        ("resume", *allowed),
        f"resume= continues a run with its stored config, in which only {', '.join(allowed)} may change",
    )
    for override in changes:
        holder, _, name = override.get_key_element().rpartition(".")
        if override.get_key_element() in own:
            reward_sources.give_again(settings, override.get_key_element(), override.value())
        elif name != "resume":
            value = OmegaConf.select(cfg, override.get_key_element())
            check_range(override.get_key_element(), value)
            setattr(attrgetter(holder)(settings) if holder else settings, name, value)
    settings.resume = cfg.resume
    named = [override.get_key_element() for override in typed]
    experiment = settings.tracking.experiment
    stored = stored_run(run_directory()) if "tracking.experiment" in named else None
    if stored and stored.experiment != experiment:
        raise ConfigError(
            f"tracking.experiment={experiment}: this run is in the experiment {stored.experiment}, "
            "in which a resumed run stays; leave it out"
        )
    reward_sources.check_before_resume(settings, RunDirectory(run_directory()), named)
    components.check_components(settings)
    if isinstance(settings, TrainConfig) and "trainer.save_model_steps" in named:
        components.check_steps_ahead(settings, RunDirectory(run_directory()))
    _check_typed(settings, changes)
    return settings


@contextmanager
def _one_message() -> Iterator[None]:
    """Prints only the message of an error and exits; Hydra would add the overrides and a traceback."""
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
    search = "Search for the best values with Optuna: -m sweep.trials=20 sweep.select=METRIC 'KEY=interval(0,1)'\n"
    search = search if command == "train" else ""
    return (
        HELP[command]
        + f"""
Choose (group=name):
{choices}

Set any value by its path: data.image_size=112 seed=1. All of them: python {command}.py --cfg job
Several values of one setting with -m make several runs: -m modality=ct,mri seed=0,1,2
{search}Your own components (CONTRIBUTING.md): plugins=DIR. Together with --help it lists their options too"""
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
