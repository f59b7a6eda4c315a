"""Networks in use: the fastest exact form on this machine, ONNX and INT8.

Imports `common`, `graph`, `measure` and `decomposition`.
"""
