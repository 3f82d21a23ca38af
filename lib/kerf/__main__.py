"""`python -m kerf` is `kerf`."""

import sys

from kerf.workbench.cli import main

sys.exit(main())
