"""What the overrides of a multirun ask for: its runs, composed and checked, and the ranges of a search."""

from __future__ import annotations

import copy
import itertools
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from medr1.config.naming import job_name
from medr1.config.search_space import Interval, Range, range_of, size
from medr1.config.settings import VALIDATION_METRICS, TrainConfig
from medr1.config.validate import check_range
from medr1.domain.records import AXES
from medr1.errors import USER_ERROR, ConfigError, Medr1Error
from medr1.runs.selection import chosen_axes
from medr1.runs.storage import storage_problem
from medr1.runs.sweep import Job
from medr1.workflows.components import check_environment, checked, explain
from medr1.workflows.sweep_job import run_environment

_EXAMPLE = "'algorithm.learning_rate=tag(log,interval(1e-5,1e-3))'"


@dataclass(frozen=True, slots=True)
class ComposedRun:
    """One run: its value of each key, its composed config, and that config as checked dataclasses.

    ``varied``: the keys that vary over the sweep.
    """

    chosen: Mapping[str, str]
    varied: Sequence[str]
    cfg: DictConfig
    settings: TrainConfig

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.chosen.items()]

    @property
    def name(self) -> str:
        """What distinguishes the run from others of the sweep, for messages."""
        return _distinction(self.chosen, self.varied)

    def job(self) -> Job:
        """The run with its values on the axes of the tables. Those of the data have no quotes, as a command may need.

        The seed is always an axis, so that a later command can add seeds to the same tables.
        """
        axes = {
            axis(key): str(self.cfg[axis(key)].name) if axis(key) in AXES else self.chosen[key] for key in self.varied
        }
        return Job(job_name(self.cfg), axes | {"seed": str(self.cfg.seed)}, self.overrides)


@dataclass(frozen=True, slots=True)
class Swept:
    """``values``: those of each override; of a search without the searched keys. ``space``: the ranges of these.

    ``varied``: the keys that vary, ``rows``: the axis that makes the rows of the tables.
    """

    values: Mapping[str, Sequence[str]]
    varied: Sequence[str]
    rows: str
    space: Mapping[str, Range] = field(default_factory=dict)

    def combinations(self) -> Iterator[dict[str, str]]:
        for combination in itertools.product(*self.values.values()):
            yield dict(zip(self.values, combination, strict=True))

    def probes(self) -> Iterator[dict[str, str]]:
        """What is composed and checked first: all runs, or of a search each end and each choice, one at a time."""
        first = {key: of.probes[0] for key, of in self.space.items()}
        others = [{**first, key: value} for key, of in self.space.items() for value in of.probes[1:]]
        for combination in self.combinations():
            yield from ({**combination, **settings} for settings in (first, *others))


def parse(config: DictConfig) -> Swept:
    """Reads the overrides of a multirun.

    As in Hydra's own sweeper, the values of the sweep's file come first and those of the command line replace them.

    Raises:
        ConfigError: a search without metric or ranges, or ranges without a search.
    """
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    texts = [f"{key!s}={value!s}" for key, value in params.items()] + list(config.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = {override.get_key_element(): override for override in parser.parse_overrides(texts)}
    swept = [key for key, override in overrides.items() if override.is_sweep_override() and key != "seed"]
    varied = list(dict.fromkeys([*map(str, params), *swept]))
    rows = axis(config.sweep.rows or rows_of(varied, is_selected=config.sweep.select is not None))
    if config.sweep.rows is None and rows not in map(axis, varied):  # nothing that varies makes rows
        varied = [*varied, rows]
    if rows not in ("seed", *map(axis, varied)):
        raise ConfigError(
            f"sweep.rows={rows}: the rows of the tables would be values of {rows}, and the command has one; give "
            f"several, or use one of {', '.join(dict.fromkeys(map(axis, varied)))}"
        )
    searched: list[str] = []
    if several := next((o.input_line for k, o in overrides.items() if k in swept and k.startswith("sweep.")), None):
        raise ConfigError(f"{several}: a sweep has one value of it")
    if config.sweep.trials is None:
        _check_no_search(config, overrides)
    else:
        searched = [key for key in swept if chosen_axes([axis(key)], rows)]
        _check_search(config)
    values = {key: _values(override) for key, override in overrides.items() if key not in searched}
    space = {key: of for key in searched if (of := range_of(overrides[key]))}
    if config.sweep.trials is not None:
        _check_space(config.sweep.trials, space)
    return Swept(values, varied, rows, space)


def _values(override: Override) -> list[str]:
    if override.is_interval_sweep():
        raise ConfigError(
            f"{override.input_line}: the rows of the tables, the algorithm and the seed are not searched; give values"
        )
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [str(override.get_value_element_as_str())]


def _check_no_search(config: DictConfig, overrides: Mapping[str, Override]) -> None:
    if interval := next((o.input_line for o in overrides.values() if o.is_interval_sweep()), None):
        metric = config.sweep.select or VALIDATION_METRICS[0]
        raise ConfigError(
            f"{interval}: an interval has infinitely many values; give some of them, or search it with sweep.trials=20 "
            f"sweep.select={metric}"
        )
    if "sweep.trials_at_once" in overrides:
        raise ConfigError("sweep.trials_at_once= has no effect without sweep.trials; leave it out")


def _check_search(config: DictConfig) -> None:
    trials = f"sweep.trials={config.sweep.trials}"
    for key in ("sweep.trials", "sweep.trials_at_once"):
        check_range(key, OmegaConf.select(config, key))
    if config.sweep.select is None:
        raise ConfigError(f"{trials} needs the metric to search by: sweep.select={VALIDATION_METRICS[0]}")
    if config.sweep.chain is not None:
        raise ConfigError(
            f"{trials} and sweep.chain={config.sweep.chain} exclude each other; search one stage, and continue its "
            "best run with model.path=RUN_DIR"
        )
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic" or config.hydra.sweeper.get("max_batch_size"):
        raise ConfigError(f"{trials}: hydra/sweeper has no effect; leave it out (max_batch_size: sweep.trials_at_once)")
    if find_spec("optuna") is None:
        raise ConfigError(f'{trials} needs Optuna: pip install "medr1[search]"')


def _check_space(trials: int, space: Mapping[str, Range]) -> None:
    if not space:
        raise ConfigError(f"sweep.trials={trials}: nothing is searched; give a setting a range, such as {_EXAMPLE}")
    if size(space) < trials:
        raise ConfigError(
            f"sweep.trials={trials}: there are {size(space)} different settings; leave out sweep.trials, and each of "
            "them is run"
        )


def rows_of(varied: Sequence[str], *, is_selected: bool) -> str:
    """The key that makes the rows of the tables: the first one that varies, except for the algorithm.

    The modality, if only the seed varies, so that the seeds are pooled. If the sweep selects among settings, the first
    one that is not among these, modality or question type.
    """
    own = [key for key in varied if key != "algorithm" and (not is_selected or axis(key) in AXES)]
    return next(iter(own), "algorithm" if "algorithm" in varied else "modality")


def axis(key: str) -> str:
    """The axis of the tables that a key varies: ``modality.name`` is that of ``modality``."""
    return next((name for name in AXES if key == f"{name}.name"), key)


def compose(config: DictConfig, chosen: Mapping[str, str], varied: Sequence[str]) -> ComposedRun:
    """Composes and checks the run with these values of the keys, of which those of ``varied`` vary over the sweep.

    Raises:
        ConfigError: the run is misconfigured; names its values of the varied keys.
    """
    name = _distinction(chosen, varied)
    try:
        overrides = [f"{key}={value}" for key, value in chosen.items()]
        cfg = without_hydra(GlobalHydra.instance().config_loader().load_sweep_config(config, overrides))
        settings = checked(cfg, TrainConfig)
        check_environment(settings, run_environment(config.hydra.launcher))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{name}: {explain(error, TrainConfig)}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return ComposedRun(chosen, varied, cfg, settings)


def _distinction(chosen: Mapping[str, str], varied: Sequence[str]) -> str:
    return " ".join(f"{key}={value}" for key, value in chosen.items() if key in varied) or "this run"


def compose_all(config: DictConfig, swept: Swept) -> list[ComposedRun]:
    """All runs of a sweep, or the probes of a search.

    Raises:
        ConfigError: a run is misconfigured; names its values of the varied keys.
    """
    runs = []
    for chosen in swept.probes():
        try:
            runs.append(compose(config, chosen, swept.varied))
        except ConfigError as error:
            hint = _hint(error, chosen, swept.space)
            raise ConfigError("\n".join([*str(error).splitlines()[: 4 if hint else None], *hint])) from error
    return runs


def _hint(error: ConfigError, chosen: Mapping[str, str], space: Mapping[str, Range]) -> list[str]:
    """How to give a range whose values cannot be composed."""
    intervals = {key: of for key, of in space.items() if isinstance(of, Interval)}
    for key, of in intervals.items():
        if f"override {key}=" in str(error) and "to Integer" in str(error):
            return [f"Whole numbers: {key}=int({of.text})"]
        if chosen[key] not in (of.probes[0], of.probes[1]):
            return [f"Not every number of {key}={of.text} is possible; use choice(A,B) or range(START,STOP,STEP)"]
    return []


def without_hydra(config: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(config)
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


@contextmanager
def errors_end_the_command() -> Iterator[None]:
    """Hydra turns an error in a callback into a warning and continues; here the command ends."""
    try:
        yield
    except (Medr1Error, HydraException, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, Medr1Error) else explain(error, TrainConfig)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception as error:
        if problem := storage_problem(error):
            print(f"error: {problem}; then repeat the command, which continues the sweep", file=sys.stderr)
            sys.exit(USER_ERROR)
        traceback.print_exc()
        sys.exit(1)
