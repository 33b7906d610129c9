"""`python -m sum STAGE [NAME] [key=value ...]`; `python -m sum --help` lists the stages."""

from __future__ import annotations

import sys

from sum.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
