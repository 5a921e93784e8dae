"""NumPy as a mock of CuPy: operations that mix device and host arrays raise an error, except for indices.

On a machine without a GPU, this shows that code for GPUs copies between host and device only by explicit calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

ACCEPT_HOST_ARRAYS = {"array", "asarray", "ascontiguousarray"}
"""Functions that also take host arrays, and copy them to the device."""


class OnDevice(np.ndarray):
    """A mock of `cupy.ndarray`: an array in host memory that stands for one in a GPU's."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.__array_interface__

    def get(self) -> np.ndarray:
        return self.view(np.ndarray)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **named: Any) -> Any:
        refuse_host_arrays((*inputs, *(out or ())), ufunc.__name__)
        given = tuple(map(plain, inputs))
        if out is not None:
            named["out"] = tuple(map(plain, out))
        done = getattr(ufunc, method)(*given, **named)
        return out[0] if out is not None and out[0] is not None else on_device(done)

    def __array_function__(self, function: Any, kinds: Any, given: Any, named: Any) -> Any:
        refuse_host_arrays(given, function.__name__)
        return on_device(function(*map(plain, given), **{key: plain(value) for key, value in named.items()}))

    def __setitem__(self, place: Any, value: Any) -> None:
        refuse_host_arrays([value], "an assignment")
        super().__setitem__(plain(place), plain(value))


class MockLibrary:
    """A module of NumPy whose functions return arrays `OnDevice`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, type) or not callable(found):
            return MockLibrary(found) if type(found) is type(np) else found

        def call(*given: Any, **named: Any) -> Any:
            if name not in ACCEPT_HOST_ARRAYS:
                refuse_host_arrays([*given, *named.values()], name)
            done = on_device(found(*map(plain, given), **{key: plain(value) for key, value in named.items()}))
            return named.get("out", done)

        return call


def refuse_host_arrays(given: Iterable[Any], name: str) -> None:
    """Raises TypeError if a value, or an element of a list or tuple, is a host array with at least one axis."""
    for value in given:
        if isinstance(value, list | tuple):
            refuse_host_arrays(value, name)
        elif isinstance(value, np.ndarray) and value.ndim and not isinstance(value, OnDevice):
            raise TypeError(f"{name}: a host array where a device array is needed")


def plain(value: Any) -> Any:
    """Converts arrays `OnDevice`, also in lists and tuples, to NumPy arrays of the same memory."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.view(np.ndarray) if isinstance(value, OnDevice) else value


def on_device(value: Any) -> Any:
    """Converts NumPy arrays with at least one axis, also in tuples, to arrays `OnDevice` of the same memory."""
    if isinstance(value, tuple):
        made = map(on_device, value)
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value.view(OnDevice) if isinstance(value, np.ndarray) and value.ndim else value
