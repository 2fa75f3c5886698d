"""What makes a synthetic person hard to recognise: a distortion of their own, the same in all they say.

It follows the signs by which dysarthric speech is described: imprecise consonants, slow rate, monopitch, breathiness
and hypernasality (Darley, Aronson & Brown 1969); fricatives and affricates made imprecisely, places of articulation
missed and the extremes of the vowel space not reached (Platt, Andrews & Howie 1980); lost contrasts of voicing, manner
and final consonants (Kent, Weismer, Kent & Rosenbek 1989); and a smaller, centralised vowel space (Turner, Tjaden &
Weismer 1995; Sapir, Ramig, Spielman & Fox 2010). It is a caricature for trying software with, not a model of anybody's
speech.

Articulation is changed in the phonemes, before they are spoken; voice is changed in the samples.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import soxr
from scipy import signal

from experiments.synthetic.voices import SOURCE_RATE, Voice, Word

Severity = Literal["mild", "moderate", "severe"]
SEVERITIES: tuple[Severity, ...] = ("mild", "moderate", "severe")

CONSONANTS: dict[str, dict[str, str]] = {
    "stops become fricatives": {"p": "f", "b": "v", "t": "s", "d": "z", "k": "x", "g": "Q"},
    "voiceless stops become glottal": {"p": "?", "t": "?", "k": "?"},
    "voiced consonants become voiceless": {"b": "p", "d": "t", "g": "k", "v": "f", "z": "s", "D": "T", "dZ": "tS"},
    "fricatives become stops": {"f": "p", "v": "b", "s": "t", "z": "d", "T": "t", "D": "d", "S": "t"},
    "affricates become fricatives": {"tS": "S", "dZ": "Z"},
    "back consonants move to the front": {"k": "t", "g": "d", "N": "n", "S": "s", "tS": "s"},
    "liquids become glides": {"r": "w", "l": "w"},
    "voiced stops become nasal": {"b": "m", "d": "n", "g": "N"},
    "sibilants become dental": {"s": "T", "z": "D", "S": "T"},
    "h is lost": {"h": ""},
}
"""Imprecise consonants, as espeak-ng's phonemes; an empty one is left out."""

_SLIGHT = (
    "affricates become fricatives",
    "h is lost",
    "liquids become glides",
    "sibilants become dental",
    "voiced consonants become voiceless",
)
"""Those after which most words are still like themselves."""

VOWELS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "high front": ({"i:": "I", "i": "I", "I": "E"}, {"i:": "@", "i": "@", "I": "@", "I2": "@", "I#": "@"}),
    "mid front": ({"eI": "E", "E": "3"}, {"eI": "3:", "E": "@", "e@": "3:"}),
    "low": ({"a": "V", "aa": "V", "A:": "V", "A@": "V"}, {"a": "@", "aa": "@", "A:": "3:", "A@": "3:", "V": "@"}),
    "back": ({"u:": "U", "O:": "0", "oU": "V", "O2": "V", "0": "V"}, {"u:": "@", "O:": "3:", "oU": "3:", "0": "@"}),
    "diphthongs": ({"aI": "V", "aU": "a", "OI": "O:"}, {"aI": "@", "aU": "@", "OI": "@"}),
}
"""Centralised vowels: for each class a step towards the middle, and the whole way."""

_STOPS, _FRICATIVES = frozenset("pbtdkg"), frozenset(("f", "v", "s", "z", "T", "D", "S", "Z"))
_NASALS_AND_LIQUIDS = frozenset("mnNlrwj")
_STRESS = "',%="
_PAUSE: Word = ("_",)
_PITCHES = (0, 25, 50, 75, 99), (0.80, 0.865, 1.0, 1.26, 1.63)
"""Settings of espeak-ng, and the measured pitch that they give, times that of the variant."""


@dataclass(frozen=True)
class Distortion:
    """What one person does to all utterances."""

    severity: Severity
    processes: tuple[str, ...]
    """Names in `CONSONANTS`; where two change the same phoneme, the first does."""
    centralised: tuple[tuple[str, int], ...]
    """Names in `VOWELS`, each with 0 for a step or 1 for the whole way."""
    lost_at_end: Literal["none", "stops", "stops and fricatives"]
    """Consonants left out at the end of words of more than two phonemes."""
    clusters: bool
    """Whether of two consonants that begin a word, a liquid or glide, or an `s`, is left out."""
    pauses: bool
    """Whether every second word is followed by a pause."""
    rate: float
    """Times as fast as the voice is."""
    range: float
    """Times the intonation of the voice."""
    formants: float
    """Times the frequency of all formants; the pitch stays."""
    tremor_hz: float
    tremor: float
    """Depth of the tremor: the loudness varies by this share, the pitch by a tenth of it."""
    breath_db: float
    """Loudness of the breath against the voice."""
    cutoff_hz: float
    """Above it the voice is weak."""

    def consonants(self) -> dict[str, str]:
        """What each changed consonant becomes."""
        changed: dict[str, str] = {}
        for name in self.processes:
            changed = CONSONANTS[name] | changed
        return changed

    def vowels(self) -> dict[str, str]:
        """What each changed vowel becomes."""
        changed: dict[str, str] = {}
        for name, way in self.centralised:
            changed |= VOWELS[name][0] | (VOWELS[name][1] if way else {})
        return changed

    def voice(self, voice: Voice) -> Voice:
        """How espeak-ng must speak so that `sound` ends with this person's rate and the voice's own pitch."""
        # Played back `formants` times as fast, all is shifted; here pitch and rate go the other way.
        factor = np.interp(voice.pitch, *_PITCHES) / self.formants
        pitch = float(np.interp(factor, _PITCHES[1], _PITCHES[0]))
        return replace(
            voice, rate=voice.rate * self.rate / self.formants, pitch=pitch, range=min(voice.range * self.range, 99)
        )

    def articulate(self, words: list[Word]) -> list[Word]:
        """The phonemes that this person says for those that are meant."""
        said: list[Word] = []
        for number, word in enumerate(words):
            changed = self._word(word)
            if changed:
                said.append(changed)
            if self.pauses and number % 2 and number + 1 < len(words):
                said.append(_PAUSE)
        return said

    def _word(self, word: Word) -> Word:
        phonemes = [(p[: len(p) - len(p.lstrip(_STRESS))], p.lstrip(_STRESS)) for p in word]
        plain = [_plain(p) for _, p in phonemes]
        if self.clusters and len(plain) > 2:
            if plain[0] in _STOPS | _FRICATIVES and plain[1] in _NASALS_AND_LIQUIDS:
                del phonemes[1], plain[1]
            elif plain[0] == "s" and plain[1] in _STOPS:
                del phonemes[0], plain[0]
        lost = {"none": frozenset(), "stops": _STOPS, "stops and fricatives": _STOPS | _FRICATIVES}[self.lost_at_end]
        if len(plain) > 2 and plain[-1] in lost:
            del phonemes[-1], plain[-1]
        consonants, vowels = self.consonants(), self.vowels()
        said = []
        for (stress, original), consonant in zip(phonemes, plain, strict=True):
            # A phoneme that is not changed keeps its variant, such as the tap `t#`.
            phoneme = consonants.get(consonant, vowels.get(original, original))
            if phoneme:
                said.append(stress + phoneme)
        return tuple(said)

    def sound(self, samples: np.ndarray, rng: np.random.Generator, rate: int) -> np.ndarray:
        """The person's voice.

        Args:
            samples: float32 [N] at `SOURCE_RATE`, spoken with the settings of `voice`.
            rng: for the breath, which is different each time as breath is.
            rate: wanted, in Hz.

        Returns:
            float32 [N'] at `rate`.
        """
        made = soxr.resample(samples.astype(np.float64), SOURCE_RATE * self.formants, rate, "VHQ")
        time = np.arange(made.size) / rate
        swing = 2 * np.pi * self.tremor_hz
        # The pitch varies by the derivative of this shift: a tenth of the depth.
        shift = 0.1 * self.tremor / swing * np.sin(swing * time)
        made = np.interp(time + shift, time, made) * (1 - self.tremor * (0.5 + 0.5 * np.sin(swing * time)))
        made = 0.9 * _filtered(made, rate, 2, self.cutoff_hz) + 0.1 * made
        air = _filtered(rng.standard_normal(made.size), rate, 2, (800, 5000))
        air *= np.maximum(_filtered(np.abs(made), rate, 1, 20), 0)
        loudness = np.sqrt(np.mean(made**2) / max(float(np.mean(air**2)), 1e-12))
        return (made + 10 ** (self.breath_db / 20) * loudness * air).astype(np.float32)

    def describe(self) -> str:
        """One line for a reader."""
        vowels = [f"{name} ({('a step', 'all the way')[way]})" for name, way in self.centralised]
        parts = [*self.processes, "vowels centralised: " + (", ".join(vowels) or "none")]
        if self.lost_at_end != "none":
            parts.append(f"{self.lost_at_end} lost at the end of words")
        if self.clusters:
            parts.append("clusters reduced")
        if self.pauses:
            parts.append("pauses between words")
        parts.append(f"rate x {self.rate}, formants x {self.formants}, intonation x {self.range}")
        parts.append(f"tremor {self.tremor} at {self.tremor_hz} Hz, breath {self.breath_db} dB")
        return "; ".join([*parts, f"weak above {self.cutoff_hz:.0f} Hz"])


def draw(seed: str, severity: Severity) -> Distortion:
    """A person's distortion, the same for the same seed; the grades of severity do not overlap in number of changes."""
    rng = random.Random(f"{seed}/{severity}")
    grade = SEVERITIES.index(severity)
    processes = rng.sample(_SLIGHT if severity == "mild" else sorted(CONSONANTS), (1, 3, 6)[grade])
    vowels = rng.sample(sorted(VOWELS), (1, 2, 5)[grade])
    whole = (0, 0, 2)[grade]
    shift = (0.02, 0.06, 0.09)[grade]
    return Distortion(
        severity,
        tuple(processes),
        tuple((name, int(n < whole)) for n, name in enumerate(vowels)),
        lost_at_end=("none", rng.choice(("none", "stops")), rng.choice(("stops", "stops and fricatives")))[grade],
        clusters=(False, rng.random() < 0.5, True)[grade],
        pauses=(False, False, rng.random() < 0.5)[grade],
        rate=round((0.95, 0.85, 0.75)[grade] + rng.uniform(-0.04, 0.04), 2),
        range=round((0.9, 0.6, 0.3)[grade] + rng.uniform(-0.1, 0.1), 2),
        formants=round(1 + rng.choice((-1, 1)) * shift * rng.uniform(0.8, 1.2), 3),
        tremor_hz=round(rng.uniform(4, 8), 1),
        tremor=round((0.08, 0.22, 0.36)[grade] + rng.uniform(-0.05, 0.05), 2),
        breath_db=round((-30, -21, -16)[grade] + rng.uniform(-2, 2), 1),
        cutoff_hz=round((6500, 4800, 3800)[grade] + rng.uniform(-400, 400)),
    )


def confusions(distortion: Distortion, lexicon: Mapping[str, list[Word]]) -> list[tuple[str, ...]]:
    """Words that this person says alike, and that no listener can tell apart: what personalisation cannot mend.

    Args:
        lexicon: the words that may stand in one place of a sentence, with their phonemes.
    """
    said = {word: tuple(distortion.articulate(phonemes)) for word, phonemes in lexicon.items()}
    alike = Counter(said.values())
    return [tuple(w for w, s in said.items() if s == sound) for sound, count in alike.items() if count > 1]


def _plain(phoneme: str) -> str:
    """A consonant without the marks of its variants, and a vowel as it is."""
    bare = phoneme.rstrip("#[2-^;")
    return bare if bare and bare[0] in "pbtdkgfvTDsSzZmnNlrwjh" else phoneme


def _filtered(samples: np.ndarray, rate: int, order: int, hz: float | tuple[float, float]) -> np.ndarray:
    """Below a frequency, or between two."""
    kind = "bandpass" if isinstance(hz, tuple) else "lowpass"
    return np.asarray(signal.sosfilt(signal.butter(order, hz, kind, fs=rate, output="sos"), samples))
