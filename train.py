"""Trains a vision-language model on medical questions: ``python train.py --help``."""

from medr1.cli.train import main

if __name__ == "__main__":
    main()
