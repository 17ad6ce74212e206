"""What came after progressive distillation, one file for each method.

Each is a :class:`pdlib.distillation.Method` with an :class:`pdlib.objectives.Objective` that makes the three choices
anew: which pairs of times, what stands for the target, how it is weighed.
"""
