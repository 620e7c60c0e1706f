"""Print the report of the environment; exit with status 1 if it has problems."""

import sys

from .problems import find_problems
from .report import report

print(report())
sys.exit(bool(find_problems()))
