"""Sweeps: a grid of settings, every point of it measured once, whatever happens."""
