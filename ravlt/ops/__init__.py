"""Operators with more than one implementation.

The plain form of an operator is its definition. One rule beside the operator selects a
faster form; :func:`plain_forms` turns these rules off.
"""

from .dispatch import plain_forms

__all__ = ["plain_forms"]
