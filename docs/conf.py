"""The site: `make docs` builds it into docs/_build/html."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "Norton"
author = "The Norton authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "mathml",
    "api_pages",
    "settings_pages",
]
exclude_patterns = ["_build", "_ext", "_static"]
nitpicky = True
# Type variables have no page; other projects' names cannot be looked up without a network.
nitpick_ignore_regex = [
    ("py:.*", r"(?!norton|experiments|detection).*"),
    ("py:.*", r"norton\..*\.(Method|Function|_\w+)"),
]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Docstrings write names in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False

html_theme = "furo"
html_title = "Norton"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["norton.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
