"""The environment: what is installed, what runs on it, and how to fix what does not.

Run ``python -m ravlt.env``.
"""

from .problems import find_problems, find_warnings

__all__ = ["find_problems", "find_warnings"]
