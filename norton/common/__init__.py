"""What every room uses: errors a user can act on, registries of named methods, files written whole or not at all.

Imports nothing of this project.
"""
