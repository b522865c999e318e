"""The config groups ``modality`` and ``question_type`` have every value as an option, with or without a file.

The values are those of the data, which are not known when a command is read. A value without a file in conf/ gets the
config that its file would have; the chosen data source then says whether it is one of its values.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from medr1.config.settings import ModalityConfig, QuestionTypeConfig

_SCHEMAS = {"modality": ModalityConfig, "question_type": QuestionTypeConfig}


class AxisValues(ConfigSource):
    """The options that no other source of configs has."""

    @staticmethod
    def scheme() -> str:
        return "axis-values"

    def load_config(self, config_path: str) -> ConfigResult:
        group, value = _split(config_path)
        config = OmegaConf.structured(_SCHEMAS[group](name=value))
        return ConfigResult(self.provider, self.full_path(), config, {"package": group})

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        group, value = _split(config_path)
        registered = f"{value}.yaml" in ConfigStore.instance().list(group) if group in _SCHEMAS else True
        return bool(value) and not registered

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class AxisValuesSearchPath(SearchPathPlugin):
    """Asks ``AxisValues`` after the files of conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("medr1-axis-values", f"{AxisValues.scheme()}://")


def _split(config_path: str) -> tuple[str, str]:
    """Group and value; a value may have slashes."""
    group, _, value = config_path.partition("/")
    return group, value


def register() -> None:
    """Makes every value an option of both groups."""
    for plugin in (AxisValues, AxisValuesSearchPath):
        Plugins.instance().register(plugin)
