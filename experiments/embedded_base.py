"""The base in the package: a small Conformer with CTC over letters, from synthetic speech alone.

    pip install espeakng-loader==0.2.4
    python experiments/synthetic/make_corpus.py corpora/synthetic_base --part base
    XLA_FLAGS=--xla_force_host_platform_device_count=2 specialize pretrain experiments/embedded_base.py
    rm -r specialize/embedded/base && cp -r runs/embedded_base/base specialize/embedded/

The flag makes two devices of two processor cores, which uses both; with another number of devices the bits differ.
"""

from pathlib import Path

from specialize.base import ConformerConfig
from specialize.corpus import CorpusConfig
from specialize.train import Pretraining

experiment = Pretraining(
    name="embedded_base",
    corpora=(CorpusConfig(manifest=Path("corpora/synthetic_base/manifest.jsonl")),),
    model=ConformerConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        conv_kernel_size=9,
        num_mel_bins=64,
        subsampling_factor=4,
        subsampling_conv_channels=32,
    ),
    steps=600,
    seconds=160.0,
    learning_rate=2e-3,
    warmup=100,
    average=0.99,
    every=100,
)
