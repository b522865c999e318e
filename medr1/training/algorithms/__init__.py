"""Registry of algorithms: the config group ``algorithm``. An algorithm is one file in this package and one YAML file.

The files are imported before the config is checked, so they must not import torch at module level.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from medr1.config.registry import Registry
from medr1.training.algorithms.algorithm import Algorithm

ALGORITHMS: Registry[Algorithm[Any]] = Registry("algorithm")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
