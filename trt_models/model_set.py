"""The models of one recipe, by role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from danqing.engine.core.errors import DanqingError
from danqing.kernels.text.lexicon import Patterns
from danqing.trt_models.card import Card, ImageInput, load_card
from danqing.trt_models.package_files import package_file
from danqing.trt_models.run.classifier import Lexicon, TextClassifier, TextNetwork, read_terms
from danqing.trt_models.run.tokenizer import AnyTokenizer, open_tokenizer
from danqing.trt_models.store import model_folder, model_hash, onnx_path

if TYPE_CHECKING:
    from danqing.engine.core.device import Device
    from danqing.trt_models.engines import Engine, UnreadableEngine
    from danqing.trt_models.run.session import Session


class ModelSet:
    """The models a recipe names by role, opened when first asked for.

    Args:
        names: role → card.
        engines: role → the engine to run, None for the model itself. Other roles run the engine in use on the device.
        strict: raise an error if an engine in use does not open, instead of running an older one or the model.
    """

    def __init__(
        self, names: Mapping[str, str], engines: Mapping[str, Engine | None] | None = None, strict: bool = False
    ) -> None:
        self.names = names
        self.engines = engines or {}
        self.strict = strict
        self.running: dict[str, str] = {}
        """Role → SHA-256 of the ONNX or engine file that runs, of every open session."""
        self.refused: dict[str, str] = {}
        """Role → why its engine in use does not open, where an older one or the model itself runs in its place."""
        self._sessions: dict[str, Session] = {}
        self._in_use: dict[str, list[Engine | UnreadableEngine]] = {}
        self._tokenizers: dict[str, AnyTokenizer] = {}

    def card(self, role: str) -> Card:
        if role not in self.names:
            raise DanqingError(f"the recipe's criteria need a model for {role}: add models.{role} to it")
        return load_card(self.names[role])

    def session(self, role: str, device: Device) -> Session:
        from danqing.trt_models.engines import Engines, open_active, open_model

        if role not in self._sessions:
            card = self.card(role)
            if role in self.engines:
                opened = open_model(card, device, self.engines[role])
            else:
                self._in_use[role] = Engines(card).active(device.target)
                opened = open_active(card, device, self.strict)
            self._sessions[role], self.running[role] = opened.session, opened.sha256
            if opened.refused:
                self.refused[role] = opened.refused
        return self._sessions[role]

    def warm(self) -> None:
        """Lets what runs on this machine's cores take the memory it needs."""
        from danqing.trt_models.run.session import OnnxSession

        for session in self._sessions.values():
            if isinstance(session, OnnxSession):
                session.warm()

    def outdated(self, device: Device) -> list[str]:
        """The roles for which another engine was activated since their sessions were opened."""
        from danqing.trt_models.engines import Engines

        return [role for role, seen in self._in_use.items() if Engines(self.card(role)).active(device.target) != seen]

    def reopen(self, device: Device) -> None:
        """Lets go of the sessions that are outdated; they are opened anew when asked for."""
        for role in self.outdated(device):
            del self._sessions[role], self.running[role], self._in_use[role]
            self.refused.pop(role, None)

    def image_input(self, role: str) -> ImageInput:
        card = self.card(role)
        if card.image_input is None:
            raise DanqingError(f"model {card.name}: its card has no image_input")
        return card.image_input

    def tokenizer(self, role: str) -> AnyTokenizer:
        card = self.card(role)
        wanted = card.token_input
        if wanted is None:
            raise DanqingError(f"model {card.name}: its card has no token_input")
        if role not in self._tokenizers:
            if card.export and wanted.package is None:
                onnx_path(card)  # exported, and its vocabulary unchanged
            self._tokenizers[role] = open_tokenizer(
                wanted, package_file(wanted.package, wanted.file, model_folder(card))
            )
        return self._tokenizers[role]

    def text_classifier(self, role: str, device: Device) -> TextClassifier:
        """Word lists or a network, whichever the card describes."""
        card = self.card(role)
        if card.task != "text_classifier":
            raise DanqingError(f"models.{role}: {card.name} is a model for {card.task}, not a text_classifier")
        if not card.lexicon:
            return TextNetwork(self.session(role, device), self.tokenizer(role), device)
        return Lexicon(self.terms(role), Patterns(**card.patterns), device)

    def terms(self, role: str) -> dict[str, float]:
        """The terms of a word-list classifier, and what each weighs."""
        card = self.card(role)
        return read_terms((entry, package_file(entry.package, entry.file, card.folder)) for entry in card.lexicon)

    def hashes(self) -> dict[str, dict[str, str]]:
        """Role → card name, card hash and, for networks, the ONNX file's hash: what the scores depend on."""
        out = {}
        for role in self.names:
            card = self.card(role)
            out[role] = {"name": card.name, "card": card.hash}
            if not card.lexicon:
                out[role]["onnx"] = model_hash(card)
        return out
