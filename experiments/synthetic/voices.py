"""Synthetic voices: espeak-ng through ctypes, as the `espeakng-loader` wheel brings it. Needed to build only."""

import ctypes
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

INSTALL = "pip install espeakng-loader==0.2.4"
"""What the corpus was made with; another espeak-ng sounds a little different."""
SOURCE_RATE = 22_050
"""Hz, of espeak-ng."""

DIALECTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
"""English voices of espeak-ng; all have the phonemes that `distortion.py` writes."""
BASE_VARIANTS = (
    "Alex", "Andrea", "Andy", "Annie", "Diogo", "Gene2", "Henrique", "Jacky", "Mario", "Michael", "Nguyen", "Reed",
    "RicishayMax", "adam", "anika", "antonio", "aunty", "benjamin", "boris", "david", "ed", "edward", "f1", "f2",
    "f4", "f5", "grandma", "grandpa", "gustave", "ian", "iven", "iven3", "klatt3", "klatt4", "linda", "m1", "m3",
    "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel", "miguel", "pablo", "paul", "pedro", "robert", "shelby",
    "steph", "travis", "victor",
)  # fmt: skip
"""Variants (vocal tracts) for the base; whispers, robots and pitches above 300 Hz are not among them."""
PERSONAL_VARIANTS = (
    "Alicia", "Denis", "Gene", "Hugo", "Lee", "belinda", "f3", "john", "m2", "norbert", "rob", "sandro",
)  # fmt: skip
"""Variants for the people to personalise; the base hears none of them."""

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS, _NO_EXIT, _UTF8, _PHONEMES, _CHARACTERS = 2, 0x8000, 1, 0x100, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

Word = tuple[str, ...]
"""Phonemes of a word in espeak-ng's notation, stress marks in front of those that bear them."""


@dataclass(frozen=True)
class Voice:
    """Settings of espeak-ng that make one speaker."""

    dialect: str
    variant: str
    rate: float
    """Words a minute; espeak-ng's own is 175."""
    pitch: float
    """0 to 100; 50 is the variant's own."""
    range: float
    """0 is a monotone, 50 the variant's own intonation."""

    @property
    def name(self) -> str:
        """As espeak-ng takes it."""
        return f"{self.dialect}+{self.variant}"


def base_voice(seed: int, number: int) -> Voice:
    """The voice of base speaker `number`, from 0. The first ones have a variant each."""
    rng = random.Random(f"{seed}/voice/base/{number}")
    order = random.Random(f"{seed}/voices/base/{number // len(BASE_VARIANTS)}")
    variants = order.sample(BASE_VARIANTS, len(BASE_VARIANTS))
    return _voice(rng, variants[number % len(variants)])


def personal_voice(seed: int, number: int) -> Voice:
    """The voice of personal speaker `number`, from 0, before any distortion."""
    rng = random.Random(f"{seed}/voice/personal/{number}")
    return _voice(rng, PERSONAL_VARIANTS[number % len(PERSONAL_VARIANTS)])


def _voice(rng: random.Random, variant: str) -> Voice:
    return Voice(
        rng.choice(DIALECTS), variant, rng.randint(145, 190), rng.randint(35, 65), range=rng.choice((35, 45, 55, 65))
    )


class Synthesiser:
    """espeak-ng in this process. What it says is reproducible for the same calls in the same order.

    It keeps the state of its oscillators and of C's random numbers between calls, and has no way to reset them: for
    speech that does not depend on what was said before, use a fresh process for each speaker.
    """

    def __init__(self):
        """Loads the library.

        Raises:
            ModuleNotFoundError: there is no espeak-ng; it says how to install it.
        """
        try:
            import espeakng_loader  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"The synthetic corpus is spoken by espeak-ng, which is not installed. Run: {INSTALL}"
            ) from error
        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _NO_EXIT)
        if rate != SOURCE_RATE:
            raise RuntimeError(f"espeak-ng started with {rate} Hz instead of {SOURCE_RATE}. Reinstall it: {INSTALL}")
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._said = 0
        self._pieces: list[np.ndarray] = []
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    def use(self, voice: Voice) -> None:
        """Chooses the voice of the calls that follow."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice '{voice.name}'. Reinstall it: {INSTALL}")
        # Half as loud as usual: at full volume some variants are clipped.
        for parameter, value in ((_RATE, voice.rate), (_VOLUME, 50), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, round(value), 0)

    def phonemes(self, text: str) -> list[Word]:
        """How the chosen voice pronounces a text without punctuation. Short words may be joined to their neighbours."""
        pointer = ctypes.c_char_p(text.encode())
        found: bytes = self._library.espeak_TextToPhonemes(ctypes.byref(pointer), _CHARACTERS, ord(".") << 8)
        return [tuple(p for p in word.split(".") if p) for word in found.decode().split()]

    def say(self, words: list[Word]) -> np.ndarray:
        """Speaks phonemes.

        Returns:
            float32 [N] at `SOURCE_RATE`, in [-1, 1], with the silence that espeak-ng adds.
        """
        # It is seeded by the clock when it starts.
        self._library.espeak_ng_SetRandSeed(self._said)
        self._said += 1
        self._pieces.clear()
        text = ("[[" + "||".join("|".join(word) for word in words) + "]]").encode()
        status = self._library.espeak_Synth(text, len(text) + 1, 0, _CHARACTERS, 0, _UTF8 | _PHONEMES, None, None)
        if status != 0 or not self._pieces:
            raise RuntimeError(f"espeak-ng did not speak {text!r} (status {status}).")
        return np.concatenate(self._pieces)
