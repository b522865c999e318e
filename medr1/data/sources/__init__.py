"""Registry of data sources. Every module and package in this folder is imported and registers its source.

To add a source, put a file here that registers a ``Source`` and its settings, and a YAML into conf/data.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from medr1.config.registry import Registry
from medr1.data.sources.source import Source

SOURCES: Registry[Source[Any]] = Registry("data")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
