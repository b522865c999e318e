"""The folders of the shipped settings: beside the package in a checkout, inside it in an installation."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# The root of the repository. None where medr1 is installed from a wheel.
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = (CHECKOUT or PACKAGE) / "conf"
SWEEPS = (CHECKOUT or PACKAGE) / "sweeps"
