"""`python -m maw`, and `torchrun -m maw` or `accelerate launch -m maw` with several processes."""

import sys

from maw.cli import main

sys.exit(main())
