"""Evaluates a finished run, a checkpoint or a plain base model. ``python evaluate.py --help``."""

from medr1.cli.main import entry_point

if __name__ == "__main__":
    entry_point("evaluate")
