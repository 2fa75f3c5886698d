"""Submodels for other programs: safetensors, folders of PEFT, merged Hugging Face folders, and programs of JAX."""

from specialize.export.merged import Checkpoint, Merged, merged_parameters, open_checkpoint, write_merged
from specialize.export.peft import read_peft, write_peft
from specialize.export.program import ProgramConfig, export_decode, write_program
from specialize.export.safetensors import read_safetensors, write_safetensors

__all__ = [
    "Checkpoint",
    "Merged",
    "ProgramConfig",
    "export_decode",
    "merged_parameters",
    "open_checkpoint",
    "read_peft",
    "read_safetensors",
    "write_merged",
    "write_peft",
    "write_program",
    "write_safetensors",
]
