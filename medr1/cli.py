"""The command line: composes the config, turns every foreseeable mistake into one clear message, then hands over.

Nothing heavy is imported before the config is known to be good, so that a mistake answers in a second or two.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from medr1 import multirun
from medr1.config import SCHEMAS, EvaluateConfig, TrainConfig, key_paths, register
from medr1.config_checks import check
from medr1.errors import USER_ERROR, ConfigError, Medr1Error
from medr1.run_directory import RunDirectory

CONF = Path(__file__).resolve().parent.parent / "conf"
HELP = {
    "train": """Train a vision-language model on medical multiple-choice questions, evaluate it, log to MLflow.

  python train.py modality=mri reasoning=think_after    GRPO on the embedded world: minutes on a CPU
  python train.py algorithm=sft                         the supervised baseline
  python train.py data=omnimedvqa data.root=DIR model=qwen2_vl_2b
                                                        real images, a real model
  python train.py resume=RUN_DIR                        continue a run that was stopped
  python train.py debug=quick                           the whole way in seconds
""",
    "evaluate": """Evaluate a run, a checkpoint or a plain base model on the test records of all modalities.

  python evaluate.py run=RUN_DIR                        the numbers of a finished run, again
  python evaluate.py reasoning=no_think                 the model as it is: the zero-shot row
  python evaluate.py model=hf model.path=DIR data=omnimedvqa data.root=DIR data.split=test_only
""",
}


def entry_point(command: str) -> None:
    """Runs ``train`` or ``evaluate`` and leaves with its exit status."""
    register()
    # Hydra would print its own shortened traceback; with this it raises, and the messages below are ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _interrupt)
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(command))
        return
    job: Callable[[DictConfig], None] = {"train": _train, "evaluate": _evaluate}[command]
    try:
        hydra.main(version_base=None, config_path=str(CONF), config_name=command)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        _leave(explain(error, TrainConfig if command == "train" else EvaluateConfig))
    except OSError as error:
        if "medr1.pipeline" in sys.modules:
            raise  # from the job; before it only Hydra touches the disk, to make the run directory
        _leave(f"{error.filename} cannot be made ({error.strerror}); choose another output_dir")
    except KeyboardInterrupt:
        sys.exit(130)


def _train(cfg: DictConfig) -> None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        multirun.run_job(cfg)
        return
    with _one_message():
        overrides = list(HydraConfig.get().overrides.task)
        others = [o for o in overrides if not o.startswith("resume=")]
        if cfg.resume is None:
            check(cfg)
        elif others:
            raise ConfigError(f"resume= continues a run with its own stored config; leave out {', '.join(others)}")
        else:
            RunDirectory(run_directory()).stored_config(TrainConfig)
        from medr1 import pipeline

        pipeline.train(cfg, run_directory(), overrides)


def _evaluate(cfg: DictConfig) -> None:
    with _one_message():
        if cfg.run is None:
            check(cfg)
        from medr1 import pipeline

        pipeline.evaluate(cfg, run_directory(), list(HydraConfig.get().overrides.task))


@contextmanager
def _one_message() -> Iterator[None]:
    """Inside a job: leaves at once with the message alone, where Hydra would print the overrides and a traceback."""
    try:
        yield
    except Medr1Error as error:
        _leave(str(error))


def help_text(command: str) -> str:
    """What can be chosen, on one screen, read from conf/ itself."""
    groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
    if command == "evaluate":
        groups = [g for g in groups if g not in ("algorithm", "debug", "experiment", "reward", "trainer")]
    names = {group: sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in groups}
    choices = "\n".join(f"  {group + '=':15}{' | '.join(names[group])}" for group in groups)
    return (
        HELP[command]
        + f"""
Choose (group=name):
{choices}

Set any value by its path: data.image_size=112 seed=1. All of them: python {command}.py --cfg job
Several values of one setting with -m make several runs: -m modality=ct,mri seed=0,1,2"""
    )


def run_directory() -> Path:
    """The directory of this job, of a single run or of one job of a multirun."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        return (Path(settings.sweep.dir) / settings.sweep.subdir).absolute()
    return Path(settings.run.dir).absolute()


def explain(error: Exception, schema: type) -> str:
    """One message for a mistake in the config: what is wrong, and the nearest valid name."""
    message = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause).strip() not in message:
        message = f"{message}\n{str(cause).strip()}"
    if isinstance(error, MissingConfigException) and error.options:
        wrong = (error.missing_cfg_file or "").rsplit("/", 1)[-1]
        return f"{message.splitlines()[0]}\n{_nearest(wrong, [o for o in error.options if 'schema' not in o])}"
    if found := re.search(r"Could not override '([^'@]+)'", message):
        valid = dict.fromkeys(key_paths(schema))
        if found[1] in valid:
            return f"{found[1]} is a setting of {' and '.join(_owners(found[1]))}, which is not chosen here"
        if schema is TrainConfig:
            valid |= {"debug": None, "experiment": None}
        return f"There is no setting {found[1]!r}. {_nearest(found[1], valid, shown=3) or '--cfg job shows all.'}"
    if found := re.search(r"Invalid value '([^']*)', expected one of \[([^\]]*)\]", message):
        return f"{message.splitlines()[0]}\n{found[0]}. {_nearest(found[1], found[2].split(', '))}"
    return message


def _owners(key: str) -> Iterator[str]:
    """The choices (group=name) that have a setting."""
    for (group, name), schema in SCHEMAS.items():
        if group and key in key_paths(schema, f"{group}."):
            yield f"{group}={name.removesuffix('_schema')}"


def _nearest(wrong: str, valid: Iterable[str], shown: int | None = None) -> str:
    valid = list(valid)
    near = difflib.get_close_matches(wrong, valid, n=3, cutoff=0.4)
    guess = f"Did you mean {' or '.join(repr(n) for n in near[:shown])}?" if near else ""
    rest = "" if shown else f" Valid: {', '.join(sorted(valid))}."
    return f"{guess}{rest}".strip()


def _leave(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite kill ends like Ctrl-C, so that the run is closed as KILLED."""
    raise KeyboardInterrupt
