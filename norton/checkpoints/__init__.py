"""Checkpoints: files that rebuild themselves, published names, what a file claims and whether it holds.

Imports all rooms from `common` to `models`.
"""
