"""Read, check, download and convert files of weights."""
