"""``python -m medr1.ask`` and ``from medr1.ask import ask, load``; see ``medr1.cli.ask``."""

import sys

from medr1.cli.ask import Answer, Model, ask, load, main

__all__ = ["Answer", "Model", "ask", "load", "main"]

if __name__ == "__main__":
    sys.exit(main())
