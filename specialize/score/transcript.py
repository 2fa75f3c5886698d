"""One utterance after recognition: what was said, what the base heard, and what the Submodel heard."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Transcript:
    """Reference and hypotheses of one utterance, not normalised."""

    utterance: str
    speaker: str
    reference: str
    base: str
    """Text of the base."""
    submodel: str
    """Text of the base with the speaker's Submodel."""
    seconds: float = 0.0
    """Length of the audio."""
    split: str = "test"
    role: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Whatever the manifest says of the utterance or its speaker: age, gender, severity, …"""
    used: Literal["submodel", "base"] = "submodel"
    """Which of the two serves this speaker: the base, where the Submodel did not beat it on the dev utterances."""

    @property
    def personalised(self) -> str:
        """The text that the speaker would get: of the Submodel, or of the base where that serves."""
        return self.submodel if self.used == "submodel" else self.base
