"""Read, check, download and convert weights."""
