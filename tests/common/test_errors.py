"""What a user can act on says where and why."""

import sys
import warnings

import torch

from norton.calibration import Calibration, fit_to_outputs
from norton.common.errors import NortonWarning, first_line, warn


def test_a_warning_points_to_the_line_that_called_the_package():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, bias=False))
    images = torch.randn(1, 3, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = sys._getframe().f_lineno + 1
        fit_to_outputs(net, net, {"0": lambda target, metric: net[0]}, images, Calibration(memory=1))
        warn("from here")
    assert {warning.filename for warning in caught} == {__file__}
    assert {warning.category for warning in caught} == {NortonWarning}
    assert [warning.lineno for warning in caught] == [line] * (len(caught) - 1) + [line + 1]
    assert len(caught) > 1


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n  what went wrong \nand more")) == "what went wrong"
    assert first_line(ValueError()) == "ValueError"
    assert first_line("x" * 200) == "x" * 160
    scripted = "The following operation failed in the TorchScript interpreter.\nTraceback\nRuntimeError: "
    assert first_line(scripted + "RuntimeError: sizes do not match\nat 1") == "sizes do not match"
    assert first_line(scripted) == "The following operation failed in the TorchScript interpreter."
