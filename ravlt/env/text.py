"""Versions and errors in short, by the standard library alone."""

import re


def release(version: str) -> tuple[int, int]:
    """Return major and minor number of a version such as ``2.10.0+cu128``."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def reason(error: Exception) -> str:
    """Return the last line of an error before the frames that PyTorch appends."""
    text = re.split(r"\nException raised from|\nframe #", str(error))[0].strip()
    return (text or type(error).__name__).splitlines()[-1]
