"""Training with Lightning: a module for classification, and the one function that fits a network to data."""

from norton.training.classifier import Classifier, Recipe
from norton.training.distillation import Distillation
from norton.training.fit import evaluate, fit, leave_devices

__all__ = ["Classifier", "Distillation", "Recipe", "evaluate", "fit", "leave_devices"]
