"""Helpers that several test files share.

A helper of a single test file stays beside that file.
"""
