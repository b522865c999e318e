"""``medr1-train``, which is also ``python -m medr1.cli.train`` and, in a checkout, ``python train.py``."""

from medr1.cli.main import entry_point


def main() -> None:
    """Trains a vision-language model on medical questions, evaluates it and logs to MLflow."""
    entry_point("train")


if __name__ == "__main__":
    main()
