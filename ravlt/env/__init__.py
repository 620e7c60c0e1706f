"""The environment: what is installed, what runs on it, and how to fix what does not.

Run ``python -m ravlt.env``.
"""
