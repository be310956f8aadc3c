"""A text encoder for tests: BERT with random weights and a few words, in the layout of sentence-transformers."""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ("red", "green", "blue", "shoe", "lamp", "phone", "left", "right", "one", "two", "three")
WIDTH = 16


def text_encoder(place: Path) -> Path:
    """Made anew at `place`; always the same one."""
    place.mkdir(parents=True)
    (place / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)))
    BertTokenizerFast(vocab=str(place / "vocab.txt"), model_max_length=12).save_pretrained(place)
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(place)
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return place
