"""Trains a vision-language model on medical questions, evaluates it and logs it. ``python train.py --help``."""

from medr1.cli.main import entry_point

if __name__ == "__main__":
    entry_point("train")
