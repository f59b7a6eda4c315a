"""What each operation of a forward pass does with channels: a table from operation to rule, one file per family.

A rule is a function (tracer, node) → where the channels are in what the node gives, None where it has none that can be
followed.  It reads from the tracer where they were, and says to its wiring what is tied or read; what it cannot follow
it hands to `tracer.unknown`, which keeps those channels.  `@rule("names of functions and methods", layers=[types])`
registers it, and a file in this folder is found by itself.  `counts` is about numbers, such as `x.shape[1]`.

Imports `norton.graph.channels` and what lies below it; `norton.graph.tracing` uses the table.
"""

from norton.common.registry import import_submodules
from norton.graph.rules.counts import counted_channels
from norton.graph.rules.declared import check_declared, declare
from norton.graph.rules.table import FUNCTION_RULES, RULES, Rule, rule, rule_of_node

import_submodules(__name__)

__all__ = [
    "FUNCTION_RULES",
    "RULES",
    "Rule",
    "check_declared",
    "counted_channels",
    "declare",
    "rule",
    "rule_of_node",
]
