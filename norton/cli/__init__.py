"""The commands: everything that knows Hydra.  The top room of the library; no other room imports it."""
