"""Whether the fault tests run in their long form."""

import os

LONG = os.environ.get("FAULTS") == "long"
