"""Which form of the suite is run."""

import os

LONG = os.environ.get("FAULTS") == "long"
