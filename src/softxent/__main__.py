"""`python -m softxent`: the command line."""

import sys

from softxent.cli import main

sys.exit(main())
