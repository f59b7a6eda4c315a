"""What a network costs and where it looks: MACs and parameters, time and memory, Grad-CAM.

Imports `common` and `graph`.
"""
