"""What a network costs and where it looks.

`counting` has MACs and parameters, as published and in two other conventions, and by layer, from what a network
executes (`executing`); `latency` times networks side by side and finds the memory that they take; `machine` says what a
time was measured on; `gradcam` shows where a network looks when it names a class.

Imports `common` and `graph`.  What a layer would cost at another rank is in `budget`; the search for the fastest form
is in `deployment`, and accuracies are measured in `training`; `detection` counts detectors.
"""
