"""The criteria that say which filters go, a file each; `kinds` says what each kind looks at."""

from norton.common.registry import import_submodules

import_submodules(__name__)
