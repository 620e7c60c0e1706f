"""Print the report of the environment."""

from .report import report

print(report())
