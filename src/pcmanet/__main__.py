"""Run the `pcmanet` command as `python -m pcmanet`, which `torchrun` and `accelerate launch` accept too."""

import sys

from pcmanet.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
