"""Import of Hugging Face checkpoint folders."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from specialize.base.folder import Base, save_base
from specialize.base.tokenizer import Tokenizer, read_definition
from specialize.base.whisper import Whisper
from specialize.base.whisper_model import WhisperConfig
from specialize.errors import BaseModelError


def import_base(source: str | Path, out: Path | str, *, language: str = "en", task: str = "transcribe") -> Base:
    """Makes a base folder from a Hugging Face checkpoint.

    Args:
        source: checkpoint folder, or a name on the Hugging Face hub, which is downloaded.
        out: folder to make.
        language: what a multilingual checkpoint is prompted for; ignored by English-only ones if it is `en`.
        task: `transcribe` or `translate`, likewise.

    Raises:
        BaseModelError: files or tensors are missing, too many, or misshapen; the model is of an unknown type; the
            language or the task is unknown to it; or `out` is there already.
    """
    if Path(out).exists():
        raise BaseModelError(f"'{out}' is there already. Choose another folder, or remove it first.")
    folder = _folder(source)
    config = _json(folder, "config.json")
    kind = config.get("model_type")
    if kind != "whisper":
        raise BaseModelError(f"'{folder}' is of model_type '{kind}'. This version imports 'whisper'.")
    base = _whisper(folder, config, language, task)
    save_base(base, Path(out))
    return base


def _folder(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise BaseModelError(f"There is no folder '{source}', and it is not a name on the hub (organisation/model).")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "merges.txt"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # network, name and authorisation errors have no common type
        raise BaseModelError(f"There is no folder '{source}', and the hub did not give it: {error}") from error


def _json(folder: Path, name: str, optional: bool = False) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if optional:
            return {}
        raise BaseModelError(f"'{folder}' has no {name}; it is not a Hugging Face checkpoint folder.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BaseModelError(f"'{path}' is not valid JSON: {error}") from error


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of single or sharded safetensors, as float32."""
    index = _json(folder, "model.safetensors.index.json", optional=True)
    names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    tensors = {}
    for name in names:
        if not (folder / name).is_file():
            hint = " Save it as safetensors first." if (folder / "pytorch_model.bin").is_file() else ""
            raise BaseModelError(f"'{folder}' has no {name}.{hint}")
        try:
            # JAX's reader knows bfloat16, which numpy's does not.
            with safe_open(folder / name, framework="flax") as file:
                for key in file.keys():  # noqa: SIM118  (not a dict)
                    tensors[key] = np.asarray(file.get_tensor(key)).astype(np.float32)
        except SafetensorError as error:
            raise BaseModelError(f"'{folder / name}' cannot be read: {error}") from error
    return tensors


def _whisper(folder: Path, config: dict[str, Any], language: str, task: str) -> Base:
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
    generation = config | _json(folder, "generation_config.json", optional=True)
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
    params = _fill(shapes, _tensors(folder), folder)
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


def _fill(shapes: Any, tensors: dict[str, np.ndarray], folder: Path) -> Any:
    """A parameter tree of `shapes` out of tensors by Hugging Face's names; all must be used, and all must fit."""
    used, problems = set(), []

    def leaf(path: tuple[str, ...], shape: Any) -> np.ndarray:
        name, transposed = _tensor_name(path)
        tensor = tensors.get(name, tensors.get(name.removeprefix("model.")))
        if tensor is None:
            problems.append(f"{name} is missing")
            return np.zeros(shape.shape, np.float32)
        used.update((name, name.removeprefix("model.")))
        tensor = tensor.transpose(transposed) if transposed else tensor
        if tensor.shape != shape.shape:
            problems.append(f"{name} has shape {tensor.shape}, expected {shape.shape}")
        return np.ascontiguousarray(tensor)

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {name: walk(child, (*path, name)) for name, child in node.items()}
        return leaf(path, node)

    params = walk(shapes, ())
    # The output embedding is the input's; some checkpoints store it twice.
    problems += [f"{name} is not known" for name in sorted(set(tensors) - used - {"proj_out.weight"})]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise BaseModelError(f"The tensors of '{folder}' do not fit its config.json: {shown}.")
    return params


def _tensor_name(path: tuple[str, ...]) -> tuple[str, tuple[int, ...] | None]:
    """Hugging Face's name of a parameter, and the axes that turn its tensor into ours."""
    *modules, name = path
    words = [re.sub(r"_(\d+)$", r".\1", m) if m.startswith("layers_") else m for m in modules]
    stem = ".".join(["model", *words])
    if name == "kernel":
        return f"{stem}.weight", (2, 1, 0) if modules[-1].startswith("conv") else (1, 0)
    if name in ("scale", "embedding"):
        return f"{stem}.weight", None
    if name == "embed_positions":
        return f"{stem}.embed_positions.weight", None
    return f"{stem}.{name}", None
