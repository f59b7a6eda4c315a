"""Compressed ResNet-50s as backbones of torchvision's detectors."""

from detection.checkpoints import load_detector, save_detector
from detection.counting import DetectorComplexity, detector_complexity
from detection.deployment import deploy_detector
from detection.models import DETECTORS, build_detector

__all__ = [
    "DETECTORS",
    "DetectorComplexity",
    "build_detector",
    "deploy_detector",
    "detector_complexity",
    "load_detector",
    "save_detector",
]
