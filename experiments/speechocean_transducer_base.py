"""A Conformer RNN-T from scratch, on the 125 `base` speakers of speechocean762 and the synthetic corpus of the package.

Some hours of speech are far too little for a good recogniser: this one shows that the paper's kind of base can be made
and personalised here (`speechocean_transducer.py`), and its word error rates are those of a weak base.

    specialize pretrain experiments/speechocean_transducer_base.py
"""

from pathlib import Path

from specialize.base import ConformerConfig, TransducerConfig
from specialize.corpus import CorpusConfig
from specialize.embedded import MANIFEST
from specialize.train import Pretraining

experiment = Pretraining(
    name="speechocean_transducer_base",
    corpora=(
        CorpusConfig(manifest=Path("../shared/corpora/speechocean762/manifest.jsonl"), role="base"),
        CorpusConfig(manifest=MANIFEST),
    ),
    head="transducer",
    model=ConformerConfig(hidden_size=144, num_hidden_layers=4, intermediate_size=576, num_mel_bins=80),
    transducer=TransducerConfig(decoder_hidden_size=144, num_decoder_layers=1),
    steps=600,
    seconds=160.0,
    learning_rate=2e-3,
    warmup=80,
    average=0.99,
    every=100,
)
