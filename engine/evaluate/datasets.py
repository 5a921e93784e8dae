"""Labelled data sets: pictures, and what is right for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Task = Literal["zeroshot_classification", "zeroshot_retrieval"]
CLASSIFICATION: Task = "zeroshot_classification"
RETRIEVAL: Task = "zeroshot_retrieval"
HAN = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Example:
    """A picture and what is right for it.

    Attributes:
        id: of the picture, unique in the data set.
        picture: encoded bytes.
        where: file, and row in it, for messages.
        labels: the right classes.
        captions: texts of which the picture is a right one.
    """

    id: str
    picture: bytes
    where: str
    labels: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A text that is kept apart from its pictures.

    Attributes:
        text: the text.
        pictures: ids of the right pictures.
        where: file and line, for messages.
    """

    text: str
    pictures: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Dataset:
    """A labelled data set. Its pictures are read when `examples` is iterated over.

    Attributes:
        name: the folder's.
        task: what is measured.
        examples: reads the pictures, in an order of which every beginning is a fair sample of the classes.
        classes: names of the classes; empty for retrieval.
        several_labels: whether a picture can have several right classes.
        templates: the data set's own, with `{c}`; empty for the engine's.
        texts: texts kept apart from the pictures; others come with the examples.
    """

    name: str
    task: Task
    examples: Callable[[], Iterator[Example]]
    classes: tuple[str, ...] = ()
    several_labels: bool = False
    templates: tuple[str, ...] = ()
    texts: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Suite:
    """Data sets.

    Attributes:
        name: the folder's, or of a built-in suite.
        datasets: at least one.
        skipped: folders beside them that are of no known layout.
    """

    name: str
    datasets: tuple[Dataset, ...]
    skipped: tuple[str, ...] = ()
