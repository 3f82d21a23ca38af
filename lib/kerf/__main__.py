"""`python -m kerf`: the same as `kerf`."""

import sys

from kerf.workbench.cli import main

sys.exit(main())
