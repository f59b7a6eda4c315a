"""Training with Lightning, and measuring accuracy: how a network learns again what compression took.

`recipe.py` holds the recipe (`Recipe`), `task.py` what the modules that train by it share, `classifier.py` and
`segmenter.py` one for each task of the data, `distillation.py` what a teacher adds to the loss, `layout.py` how images
lie in memory, `history.py` the scores of each epoch, `fit.py` the two verbs: `fit` trains a copy of a network and keeps
its best epoch, `evaluate` measures one.  `refining.py` has the verb that needs no labels, `refine`; `descent.py` is
how, `mixing.py` on which images, `answers.py` how far a network is from the dense one.  `loaders.py` takes a user's own
loaders in the place of data; `remembering.py` has what a network remembers of data, and whether its test images are new
to it.  Data come as a `ClassificationData` of `norton.data`; which settings they were made of is not known here.

May import all rooms below, `norton.data` and `norton.graph` above all; `norton.cli` fills recipes from configs, and
`detection` trains its own module by `best_weights`.  Importing this room imports Lightning, which takes seconds: the
rooms below do without, and `norton.cli` imports it where it trains.
"""

from norton.training.classifier import Classifier
from norton.training.distillation import Distillation
from norton.training.fit import evaluate, fit, leave_devices
from norton.training.history import HISTORY, epochs
from norton.training.recipe import Recipe
from norton.training.remembering import other_test, remember_data_, remember_if_new_
from norton.training.segmenter import Segmenter

__all__ = [
    "HISTORY",
    "Classifier",
    "Distillation",
    "Recipe",
    "Segmenter",
    "epochs",
    "evaluate",
    "fit",
    "leave_devices",
    "other_test",
    "remember_data_",
    "remember_if_new_",
]
