"""``medr1-evaluate``, which is also ``python -m medr1.cli.evaluate`` and, in a checkout, ``python evaluate.py``."""

from medr1.cli.main import entry_point


def main() -> None:
    """Evaluates a finished run, a checkpoint or a plain base model."""
    entry_point("evaluate")


if __name__ == "__main__":
    main()
