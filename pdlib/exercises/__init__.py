"""The notebooks' exercises, one file for each notebook, and the check that says at once whether an answer is right.

A new notebook's exercises are one more file here, or are put in from outside by :func:`exercise`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "common": ["Exercise", "exercise"],
        "check": ["EXERCISES", "Verdict", "check"],
        "quiz": ["questions", "self_test"],
    },
)
