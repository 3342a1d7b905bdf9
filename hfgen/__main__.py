"""`python -m hfgen`: the command `hfgen`."""

import sys

from .cli import main


sys.exit(main())
