"""``python -m corrmask_fast``: the command line, for ``torchrun -m`` and for installs without scripts."""

import sys

from corrmask_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
