"""Import of Whisper checkpoints."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specialize.base.checkpoint import fill, read_json, read_tensors
from specialize.base.folder import Base
from specialize.base.tokenizer import Tokenizer, read_definition
from specialize.base.whisper import Whisper
from specialize.base.whisper_model import WhisperConfig
from specialize.errors import BaseModelError


def import_whisper(folder: Path, config: dict[str, Any], language: str | None, task: str | None) -> Base:
    """The base in a checkpoint folder of model_type `whisper`; see `import_base`."""
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding", False):
        raise BaseModelError(
            f"'{folder}' uses activation_function={config.get('activation_function')!r}, scale_embedding="
            f"{config.get('scale_embedding')!r}; only gelu without scaling is implemented."
        )
    fields = WhisperConfig.__dataclass_fields__
    try:
        sizes = WhisperConfig(**{name: config[name] for name in fields if name in config})
    except TypeError as error:
        raise BaseModelError(f"'{folder}/config.json' lacks sizes of a Whisper: {error}.") from error
    given = read_json(folder, "generation_config.json", optional=True)
    generation = config | {name: value for name, value in given.items() if value is not None}
    end = _one_id(generation.get("eos_token_id", 50256))
    tokenizer = Tokenizer(read_definition(folder), end)
    architecture = Whisper(
        config=sizes,
        prompt=_prompt(generation, tokenizer, language, task),
        end=end,
        suppress=tuple(sorted(set(generation.get("suppress_tokens") or ()) - {-1})),
        begin_suppress=tuple(generation.get("begin_suppress_tokens") or ()),
        no_speech=tokenizer.no_speech,
    )
    shapes = jax.eval_shape(architecture.init, jax.random.key(0))
    params = fill(
        shapes,
        read_tensors(folder),
        whisper_tensor,
        folder,
        # The output embedding is the input's; some checkpoints store it twice.
        ignored=("proj_out.weight",),
    )
    return Base.make(architecture, params, tokenizer)


def _one_id(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _prompt(
    generation: dict[str, Any], tokenizer: Tokenizer, language: str | None, task: str | None
) -> tuple[int, ...]:
    """What every transcript begins with: as it is asked for, or else as the checkpoint's own settings force it."""
    start = generation.get("decoder_start_token_id", tokenizer.id_of("<|startoftranscript|>"))
    if start is None:
        raise BaseModelError(
            "The checkpoint does not say what a transcript begins with: generation_config.json has no "
            "decoder_start_token_id, and the tokenizer no <|startoftranscript|>."
        )
    prompt = [start]
    languages, tasks = generation.get("lang_to_id") or {}, generation.get("task_to_id") or {}
    # Checkpoints without the field are told apart as OpenAI's own code does, by the tokens for languages.
    multilingual = generation.get("is_multilingual", bool(languages) or generation["vocab_size"] >= 51_865)
    if multilingual and not languages:
        # Older checkpoints have no table, but their tokens are spelt like this in all of them.
        languages = {name: id_ for name, id_ in tokenizer.markup.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", name)}
    if multilingual and not tasks:
        found = {name: tokenizer.id_of(f"<|{name}|>") for name in ("transcribe", "translate")}
        tasks = {name: id_ for name, id_ in found.items() if id_ is not None}
    if multilingual:
        forced = {id_ for place, id_ in generation.get("forced_decoder_ids") or () if id_ is not None}
        spoken: str = language or generation.get("language") or _named(languages, forced) or "en"
        doing: str = task or generation.get("task") or _named(tasks, forced) or "transcribe"
        spoken = spoken.strip("<|>")
        if f"<|{spoken}|>" not in languages:
            known = ", ".join(sorted(name.strip("<|>") for name in languages)) or "none"
            raise BaseModelError(f"This checkpoint has no language '{spoken}'. It has: {known}.")
        if doing not in tasks:
            raise BaseModelError(
                f"This checkpoint has no task '{doing}'. It has: {', '.join(sorted(tasks)) or 'none'}."
            )
        prompt += [languages[f"<|{spoken}|>"], tasks[doing]]
    elif (language or "en") != "en" or (task or "transcribe") != "transcribe":
        raise BaseModelError(
            f"This checkpoint is English-only; it cannot {task or 'transcribe'} the language '{language or 'en'}'."
        )
    silent = generation.get("no_timestamps_token_id") or tokenizer.id_of("<|notimestamps|>")
    if silent is not None:
        prompt.append(silent)
    return tuple(int(token) for token in prompt)


def _named(table: dict[str, int], forced: set[int]) -> str | None:
    """The name, in a table of tokens, of the one that is forced."""
    return next((name.strip("<|>") for name, id_ in table.items() if id_ in forced), None)


def whisper_tensor(path: tuple[str, ...]) -> tuple[str, Any]:
    """The tensor of a parameter; see `Rename`."""
    *modules, name = path
    words = [re.sub(r"_(\d+)$", r".\1", m) if m.startswith("layers_") else m for m in modules]
    stem = ".".join(["model", *words])
    if name == "kernel":
        return f"{stem}.weight", np.transpose  # of convolutions too: (out, in, width) becomes (width, in, out)
    if name in ("scale", "embedding"):
        return f"{stem}.weight", None
    if name == "embed_positions":
        return f"{stem}.embed_positions.weight", None
    return f"{stem}.{name}", None
