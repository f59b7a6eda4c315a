"""Norton: compress convolutional networks by hybrid tensor decomposition and structured pruning.

What is public stands in `__init__.pyi`, and is imported where it is first used: importing torch takes seconds.
"""

import lazy_loader

from norton.common.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
