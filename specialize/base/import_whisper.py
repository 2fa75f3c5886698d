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


def import_whisper(folder: Path, config: dict[str, Any], language: str, task: str) -> Base:
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
    generation = config | read_json(folder, "generation_config.json", optional=True)
    end = _one_id(generation.get("eos_token_id", 50256))
    tokenizer = Tokenizer(read_definition(folder), end)
    architecture = Whisper(
        config=sizes,
        prompt=_prompt(generation, tokenizer, language, task),
        end=end,
        suppress=tuple(sorted(set(generation.get("suppress_tokens") or ()) - {-1})),
        begin_suppress=tuple(generation.get("begin_suppress_tokens") or ()),
    )
    shapes = jax.eval_shape(architecture.init, jax.random.key(0))
    params = fill(
        shapes,
        read_tensors(folder),
        _tensor,
        folder,
        # The output embedding is the input's; some checkpoints store it twice.
        ignored=("proj_out.weight",),
    )
    return Base.make(architecture, params, tokenizer)


def _one_id(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _prompt(generation: dict[str, Any], tokenizer: Tokenizer, language: str, task: str) -> tuple[int, ...]:
    prompt = [generation["decoder_start_token_id"]]
    languages, tasks = generation.get("lang_to_id") or {}, generation.get("task_to_id") or {}
    # Checkpoints without the field are told apart as OpenAI's own code does, by the tokens for languages.
    multilingual = generation.get("is_multilingual", bool(languages) or generation["vocab_size"] >= 51_865)
    if multilingual and not languages:
        # Older checkpoints have no table, but the tokens have these spellings in all of them.
        found = tokenizer.id_of(f"<|{language}|>")
        languages = {} if found is None else {f"<|{language}|>": found}
        tasks = {
            name: id_ for name in ("transcribe", "translate") if (id_ := tokenizer.id_of(f"<|{name}|>")) is not None
        }
    if multilingual:
        if f"<|{language}|>" not in languages:
            known = ", ".join(sorted(name.strip("<|>") for name in languages)) or "none"
            raise BaseModelError(f"This checkpoint has no language '{language}'. It has: {known}.")
        if task not in tasks:
            raise BaseModelError(f"This checkpoint has no task '{task}'. It has: {', '.join(sorted(tasks)) or 'none'}.")
        prompt += [languages[f"<|{language}|>"], tasks[task]]
    elif language != "en" or task != "transcribe":
        raise BaseModelError(f"This checkpoint is English-only; it cannot {task} the language '{language}'.")
    silent = generation.get("no_timestamps_token_id") or tokenizer.id_of("<|notimestamps|>")
    if silent is not None:
        prompt.append(silent)
    return tuple(int(token) for token in prompt)


def _tensor(path: tuple[str, ...]) -> tuple[str, Any]:
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
