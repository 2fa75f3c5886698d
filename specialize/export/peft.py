"""LoRA to and from the folders of PEFT (https://github.com/huggingface/peft), on the same Hugging Face weights.

`adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.from_pretrained(model, folder)` loads them. The
path `(x A) B · alpha / rank` is the same in both; PEFT keeps both matrices transposed.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from specialize.base import Base, Whisper
from specialize.base.architecture import Architecture
from specialize.base.checkpoint import Rename
from specialize.base.folder import new_folder
from specialize.base.huggingface import tensor_names
from specialize.errors import BaseModelError, ExportError, StoreError
from specialize.export.safetensors import header, read_file, read_header
from specialize.submodel import LoRA, StoredSubmodel, Submodel, sites
from specialize.submodel.checkpoint import check_base
from specialize.submodel.kinds import kind_name
from specialize.submodel.tensors import write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_STEM = "base_model.model."
"""What PEFT puts before the name of a module."""
_ELSEWHERE = (
    (r"encoder/subsampling/layers_\d+", "a convolution behind which padding is blanked only while nothing wraps it"),
    (r"ctc_head", "a convolution that turns its axes, which the path of PEFT does not"),
    (r"decoder/lstm_\d+/.*", "a part of an LSTM of PyTorch, which PEFT does not wrap"),
)
"""Dense modules of a Conformer that are something else in transformers, beside which PEFT puts no equal path."""
_POINTWISE = re.compile(r"encoder/layers_\d+/conv/pointwise_conv\d")
"""Dense modules of a Conformer that are convolutions of one tap in transformers."""
_IGNORED = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("peft_type", "r", "lora_alpha", "lora_dropout", "init_lora_weights", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    *("eva_config", "loftq_config", "corda_config", "lora_ga_config"),
}
"""Options that leave the path as it is: they say where it goes, which the tensors say too, or how it began."""
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the weights of the base alone."""


def write_peft(stored: StoredSubmodel, base: Base, folder: Path | str, *, name: str | None = None) -> None:
    """Writes a LoRA Submodel as a folder of PEFT, whole or not at all.

    Args:
        stored: a Submodel of the kind LoRA.
        base: what it belongs to.
        folder: to make.
        name: what PEFT is to call the model that it belongs to: a name on the hub, or a folder. It is not checked.

    Raises:
        ExportError: it is of another kind, or at modules that PEFT cannot adapt, or transformers has no such model.
        FingerprintMismatch: it belongs to another base.
        StoreError: something is there already.
        OSError: the file system refused.
    """
    folder, spec = Path(folder), stored.spec
    check_base(f"Submodel of '{stored.speaker}'", stored.base, base.fingerprint)
    if not isinstance(spec, LoRA):
        raise ExportError(
            f"The Submodel of '{stored.speaker}' is of the kind {kind_name(spec)}; folders of PEFT are for LoRA only. "
            "Export it as safetensors or as a program, or train with --submodel.kind lora."
        )
    if folder.exists():
        raise StoreError(f"'{folder}' is there already. Choose another path, or remove it first.")
    names = _names(base.architecture)
    for path in stored.submodel:
        if what := _elsewhere(base.architecture, path):
            raise ExportError(
                f"The Submodel is at '{path}', which in transformers is {what}. Export it merged, or as a program, or "
                "train with a --submodel.where without it."
            )
    modules = {path: _module(names, path) for path in stored.submodel}
    tensors = {}
    for path, weights in stored.submodel.items():
        for part in ("a", "b"):
            matrix = np.ascontiguousarray(np.asarray(weights[part], np.float32).T)
            tensors[f"{_STEM}{modules[path]}.lora_{part.upper()}.weight"] = matrix[..., None] if _taps(path) else matrix
    alpha = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": name,
        "revision": None,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(modules.values()),
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    with new_folder(folder) as beside:
        (beside / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        metadata = {"format": "pt"} | header(stored, tensors)
        write_tensors(tensors, beside / WEIGHTS, metadata, f"Submodel of '{stored.speaker}'")


def read_peft(folder: Path | str, base: Base, *, speaker: str | None = None) -> StoredSubmodel:
    """Reads a folder of PEFT as a LoRA Submodel; what `write_peft` wrote comes back the same to the last bit.

    Args:
        folder: that PEFT or `write_peft` wrote.
        base: imported from the weights that the adapter was trained on; a folder of `write_peft` says so itself.
        speaker: whose Submodel it is to be; None takes what `write_peft` has said.

    Raises:
        StoreError: files are missing or damaged, or nothing says whose it is.
        ExportError: it is no plain LoRA, or is at modules that the base does not have.
        FingerprintMismatch: it says itself that it belongs to another base.
    """
    folder = Path(folder)
    config = _read_config(folder)
    rank, alpha = config["r"], float(config["lora_alpha"])
    if not (folder / WEIGHTS).is_file() and any(folder.glob("adapter_model.*")):
        raise StoreError(
            f"'{folder}' has no {WEIGHTS}. Load it with PEFT and save it with `save_pretrained`, which writes one."
        )
    tensors, metadata = read_file(folder / WEIGHTS, "LoRA")
    told = read_header(folder / WEIGHTS, metadata, tensors)
    if told is not None:
        check_base(f"Submodel in '{folder}'", told["base"], base.fingerprint)
    submodel = _submodel(folder, tensors, base, rank)
    if told is not None and isinstance(told["spec"], LoRA):
        spec = dataclasses.replace(told["spec"], rank=rank, alpha=alpha)
        return StoredSubmodel(submodel, spec, speaker or told["speaker"], told["base"], told["training"])
    if not speaker:
        raise StoreError(f"'{folder}' does not say whose Submodel it is. Say so with --speaker.")
    return StoredSubmodel(submodel, LoRA(tuple(submodel), rank, alpha), speaker, base.fingerprint)


def _module(names: Rename, path: str) -> str:
    """The module of transformers that a dense module of the base is."""
    return names((*path.split("/"), "kernel"))[0].removesuffix(".weight")


def _elsewhere(architecture: Architecture, path: str) -> str | None:
    """What a dense module of the base is in transformers, where PEFT puts no equal path beside it."""
    if isinstance(architecture, Whisper):
        return None
    return next((what for pattern, what in _ELSEWHERE if re.fullmatch(pattern, path)), None)


def _names(architecture: Architecture) -> Rename:
    """How transformers calls parameters. Raises ExportError where it has no such model."""
    try:
        return tensor_names(architecture)
    except BaseModelError as error:
        raise ExportError(f"PEFT adapts models of transformers, and this base is none: {error}") from error


def _taps(path: str) -> bool:
    """Whether the matrices of PEFT have an axis for the one tap of a convolution."""
    return _POINTWISE.fullmatch(path) is not None


def _read_config(folder: Path) -> dict[str, Any]:
    """The adapter's options, of which `r` is an int and `lora_alpha` a number.

    Raises:
        StoreError: there are none, or they are damaged.
        ExportError: they are of another method, or change the path of LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise StoreError(f"'{folder}' is not a folder of PEFT: it has no {CONFIG}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise StoreError(f"'{path}' is damaged: {error}.") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise StoreError(f"'{path}' holds no options of PEFT.")
    if config["peft_type"] != "LORA":
        raise ExportError(f"'{folder}' is of peft_type {config['peft_type']!r}; only LORA can become a Submodel.")
    changing = {name: value for name, value in config.items() if name not in _IGNORED and value not in ("none", None)}
    if changed := [f"{name}={value!r}" for name, value in changing.items() if value]:
        raise ExportError(
            f"'{folder}' has {', '.join(changed)}, which a Submodel of the kind lora does not have. Train the adapter "
            "without, or merge it into its model with PEFT and import that as a base."
        )
    if (beginning := config.get("init_lora_weights")) not in _BEGINNINGS:
        raise ExportError(
            f"'{folder}' has init_lora_weights={beginning!r}, which changes the weights of the base as well. Save it "
            "with PEFT's `path_initial_model_for_weight_conversion`, which makes a plain LoRA of it."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise StoreError(f"'{path}' is damaged: r={rank!r}, lora_alpha={alpha!r}.")
    return config


def _submodel(folder: Path, tensors: dict[str, np.ndarray], base: Base, rank: int) -> Submodel:
    """The Submodel that the tensors of PEFT are, in the order of the base's modules."""
    names = _names(base.architecture)
    fitting = {path: site for path, site in sites(base.architecture, base.params).items() if not LoRA().misfit(site)}
    left, submodel = dict(tensors), {}
    for path, site in fitting.items():
        module = _module(names, path)
        # An adapter of the model without its head has one component less.
        stems = [_STEM + name for name in (module, module.removeprefix("model."))]
        stem = next((stem for stem in stems if f"{stem}.lora_A.weight" in left), None)
        if stem is None:
            continue
        if what := _elsewhere(base.architecture, path):
            raise ExportError(f"'{folder}' adapts '{module}', {what}. Train the adapter without that module.")
        width_in, width_out = site.own["kernel"]
        weights = {}
        for part, expected in (("a", (rank, width_in)), ("b", (width_out, rank))):
            name = f"{stem}.lora_{part.upper()}.weight"
            tensor = left.pop(name, None)
            shape = expected + (1,) * _taps(path)
            if tensor is None or tensor.shape != shape:
                found = "is missing" if tensor is None else f"has shape {tensor.shape}"
                raise ExportError(
                    f"'{name}' of '{folder}' {found}; with r={rank}, this base needs {shape}. One rank for all modules "
                    "is all that a Submodel has."
                )
            weights[part] = np.ascontiguousarray(tensor.reshape(expected).T.astype(np.float32))
        submodel[path] = weights
    if left:
        shown = ", ".join(sorted(left)[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise ExportError(
            f"'{folder}' has tensors that are of no module of this base, or that no Submodel of the kind lora has: "
            f"{shown}. Give the base that was imported from the weights that the adapter was trained on."
        )
    if not submodel:
        raise ExportError(f"'{folder}' has no tensors of LoRA.")
    return submodel
