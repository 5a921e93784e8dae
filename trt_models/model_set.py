"""The models of one recipe, by role."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from danqing.engine.core.errors import DanqingError
from danqing.kernels.text.lexicon import Patterns
from danqing.trt_models.card import CARDS, Card, ImageInput, load_card
from danqing.trt_models.package_files import package_file
from danqing.trt_models.run.classifier import Lexicon, TextClassifier, TextNetwork, read_terms
from danqing.trt_models.run.tokenizer import AnyTokenizer, open_tokenizer
from danqing.trt_models.store import files_beside, model_folder, model_hash, onnx_path

if TYPE_CHECKING:
    from danqing.engine.core.device import Device
    from danqing.trt_models.engines import Engine, UnreadableEngine
    from danqing.trt_models.run.session import Session


class ModelSet:
    """The models that a recipe names by role; each is opened on first use.

    Args:
        names: role → name or path of a card.
        engines: role → the engine to run, or None for the ONNX model. Other roles run the device's active engine.
        strict: raise an error if an active engine does not open, instead of running the previous one or the model.

    Attributes:
        running: role → SHA-256 of the ONNX or engine file that runs, for each open session.
        refused: role → why the active engine does not open, where the previous one or the model runs instead.
    """

    def __init__(
        self, names: Mapping[str, str], engines: Mapping[str, Engine | None] | None = None, strict: bool = False
    ) -> None:
        self.names = names
        self.engines = engines or {}
        self.strict = strict
        self.running: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._sessions: dict[str, Session] = {}
        self._active: dict[str, list[Engine | UnreadableEngine]] = {}
        self._tokenizers: dict[str, AnyTokenizer] = {}

    def card(self, role: str) -> Card:
        """Returns the role's card.

        Raises:
            DanqingError: the recipe names no model for the role, or the card cannot be read; names the role.
        """
        if role not in self.names:
            raise DanqingError(f"the recipe's criteria need a model for {role}: add models.{role} to it")
        try:
            return load_card(self.names[role])
        except DanqingError as problem:
            raise DanqingError(f"models.{role}: {problem}") from None

    def session(self, role: str, device: Device) -> Session:
        """Returns the role's session, which it opens on first use.

        Args:
            role: a key of `names`.
            device: the device to run on.

        Raises:
            DanqingError: no model for the role, or the model (with `strict`, its active engine) does not open.
        """
        from danqing.trt_models.engines import Engines, open_active, open_model

        if role not in self._sessions:
            card = self.card(role)
            if role in self.engines:
                opened = open_model(card, device, self.engines[role])
            else:
                self._active[role] = Engines(card).active(device.target)
                opened = open_active(card, device, self.strict)
            self._sessions[role], self.running[role] = opened.session, opened.sha256
            if opened.refused:
                self.refused[role] = opened.refused
        return self._sessions[role]

    def warm_up(self) -> None:
        """Runs every open CPU session once, so that its memory is allocated before memory use is measured."""
        from danqing.trt_models.run.session import OnnxSession

        for session in self._sessions.values():
            if isinstance(session, OnnxSession):
                session.warm_up()

    def outdated(self, device: Device) -> list[str]:
        """Returns the roles whose active engine has changed since their sessions were opened."""
        from danqing.trt_models.engines import Engines

        return [role for role, seen in self._active.items() if Engines(self.card(role)).active(device.target) != seen]

    def reopen(self, device: Device) -> None:
        """Closes the outdated sessions; `session` opens them again."""
        for role in self.outdated(device):
            del self._sessions[role], self.running[role], self._active[role]
            self.refused.pop(role, None)

    def image_input(self, role: str) -> ImageInput:
        """Returns the preprocessing of the role's image model.

        Raises:
            DanqingError: the card has none.
        """
        card = self.card(role)
        if card.image_input is None:
            raise DanqingError(f"model {card.name}: its card has no image_input")
        return card.image_input

    def tokenizer(self, role: str) -> AnyTokenizer:
        """Returns the tokenizer of the role's text model, which it opens on first use.

        Raises:
            DanqingError: the card has none, or its file is missing.
        """
        card = self.card(role)
        token_input = card.token_input
        if token_input is None:
            raise DanqingError(f"model {card.name}: its card has no token_input")
        if role not in self._tokenizers:
            if card.export and token_input.package is None:
                onnx_path(card)  # checks the hash of the vocabulary, too
            self._tokenizers[role] = open_tokenizer(
                token_input, package_file(token_input.package, token_input.file, model_folder(card))
            )
        return self._tokenizers[role]

    def text_classifier(self, role: str, device: Device) -> TextClassifier:
        """Returns the role's text classifier: a word list or a network, as the card says.

        Raises:
            DanqingError: the card's task is not `text_classifier`, or the model does not open.
        """
        card = self.card(role)
        if card.task != "text_classifier":
            raise DanqingError(f"models.{role}: {card.name} is a model for {card.task}, not a text_classifier")
        if not card.lexicon:
            return TextNetwork(self.session(role, device), self.tokenizer(role), device)
        return Lexicon(self.terms(role), Patterns(**card.patterns), device)

    def terms(self, role: str) -> dict[str, float]:
        """Returns the terms of a word-list classifier: term → weight."""
        card = self.card(role)
        return read_terms(
            (entry, package_file(entry.package, entry.file, card.folder or Path(str(CARDS)))) for entry in card.lexicon
        )

    def hashes(self) -> dict[str, dict[str, str]]:
        """Returns what the scores depend on: role → `name` and `card` (hash) of the card, `onnx` (SHA-256) of a
        network, and `files` (SHA-256, as JSON) of a user's vocabulary and word lists."""
        out = {}
        for role in self.names:
            card = self.card(role)
            out[role] = {"name": card.name, "card": card.hash}
            if not card.lexicon:
                out[role]["onnx"] = model_hash(card)
            if files := files_beside(card):
                out[role]["files"] = json.dumps(files)
        return out
