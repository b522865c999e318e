"""Evaluates a finished run, a checkpoint or a plain base model: ``python evaluate.py --help``."""

from medr1.cli.evaluate import main

if __name__ == "__main__":
    main()
