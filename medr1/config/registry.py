"""Registries: the components that a config group chooses among, such as algorithms or data sources.

A component is one Python file that registers itself and one YAML file in the group's folder. The YAML file names the
component's schema in its defaults list, ``defaults: [<kind>_schema]``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from hydra.core.config_store import ConfigStore

from medr1.errors import ConfigError


def source_file(component: Any) -> str:
    """The file that defines a class, a function or the class of an object. It may be imported under several names."""
    module = getattr(component, "__module__", None) or type(component).__module__
    return str(getattr(sys.modules.get(module), "__file__", None) or module)


class Component(Protocol):
    """``kind`` names the component, ``settings`` is the dataclass of its settings, with the field ``kind``."""

    @property
    def kind(self) -> str: ...

    @property
    def settings(self) -> type: ...


T = TypeVar("T", bound=Component)


class Registry(Generic[T]):
    """The components of one config group, by kind. A stored config finds its component by ``<group>.kind``."""

    by_group: ClassVar[dict[str, Registry[Component]]] = {}

    def __init__(self, group: str) -> None:
        self.group = group
        self._components: dict[str, T] = {}
        Registry.by_group[group] = self  # type: ignore[assignment]

    def register(self, component: T) -> T:
        """Adds a component and registers its settings with Hydra as ``<kind>_schema`` of the group.

        Raises:
            ConfigError: another file has registered a component of this kind.
        """
        files = [source_file(known) for known in (self._components.get(component.kind), component) if known is not None]
        if len(set(files)) == 2:
            raise ConfigError(
                f"{self.group}.kind={component.kind} is defined twice, in {files[0]} and in {files[1]}; rename "
                "one of them"
            )
        self._components[component.kind] = component
        ConfigStore.instance().store(group=self.group, name=f"{component.kind}_schema", node=component.settings)
        return component

    def __getitem__(self, kind: str) -> T:
        """The component of a kind.

        Raises:
            ConfigError: no component of this kind is registered.
        """
        if kind not in self._components:
            near = difflib.get_close_matches(kind, self._components, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{self.group}.kind={kind}: use one of {', '.join(self._components)}{guess}")
        return self._components[kind]

    def __iter__(self) -> Iterator[T]:
        return iter(self._components.values())
