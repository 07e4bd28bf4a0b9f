"""python -m clean_lm: the clean-lm command."""

import sys

from clean_lm.cli import main

if __name__ == "__main__":
    sys.exit(main())
