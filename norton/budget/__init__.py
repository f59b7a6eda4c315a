"""Ranks and rates from a budget: a share of MACs or parameters to keep.

Imports all rooms from `common` to `models`.
"""
