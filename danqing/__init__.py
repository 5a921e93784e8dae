"""DanQing Engine: turns crawled Chinese image-text pairs into a training set.

The names of `__all__` are the public API; see `danqing.api`. They are loaded on first use, so that `import danqing`
takes milliseconds.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "DanqingError",
    "Evaluation",
    "Recipe",
    "Run",
    "ScoringOptions",
    "Selection",
    "__version__",
    "curate",
    "decide",
    "evaluate",
    "judge_frame",
    "load_recipe",
    "measure_captions",
    "merge",
    "open_run",
    "score",
    "select",
    "train",
    "write",
]

if TYPE_CHECKING:
    from danqing.api import (
        DanqingError,
        Evaluation,
        Recipe,
        Run,
        ScoringOptions,
        Selection,
        curate,
        decide,
        evaluate,
        judge_frame,
        load_recipe,
        measure_captions,
        merge,
        open_run,
        score,
        select,
        train,
        write,
    )
else:  # hidden from type checkers: with a module's __getattr__, they would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'danqing' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("danqing.api"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
