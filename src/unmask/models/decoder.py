"""The one decoder: embedding, layers, final norm, and one of two heads. Families differ by `ModelSpec` only.

Single-device code. Attention backend and cache come in as arguments; parallelism, checkpointing of activations and
compilation are applied from outside.

Shape suffixes: B rows, L tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmask.attention import PAD_DOC, AttentionBackend, DenseAttention, TokenLayout
from unmask.errors import UnmaskError
from unmask.models.cache import Cache
from unmask.models.layers import Forward, Layer, RMSNorm
from unmask.models.rotary import rotary_table
from unmask.models.shift import shift_sources
from unmask.models.spec import ModelSpec

AttentionName = Literal["model", "bidirectional", "causal"]


class Backbone(nn.Module):
    """Token ids and a `TokenLayout` in, hidden states out. `Decoder` and `ValueModel` put a head on it."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, i) for i in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, spec.has_norm_bias)
        # What saving needs to know of the checkpoint a model came from: config.json, kept whole so that unknown keys are
        # preserved, and the folder whose tokenizer files come along.
        self.config: dict[str, Any] = {}
        self.source_folder: Path | None = None
        self.stores_tied_head = False  # some tools store a tied head beside the embedding
        # The adapters that were put in, and what they were put on: see models/lora.py. A tuple, since modules in attributes
        # would be part of this one.
        self.adapters: tuple[Any, ...] = ()

    def tie_weights(self) -> None:
        """Makes parameters share memory that have to (again, after `to_empty`)."""

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, init_std) for matrices, scaled down with depth on residual outputs; norms 1, biases 0, value head 0.

        Random numbers are drawn on the generator's device in float32, parameter by parameter: a seed means the same
        model on every device.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.startswith("value_head"):
                parameter.zero_()
            else:
                is_residual_output = "o_proj" in name or "down_proj" in name
                std = self.spec.init_std / (2 * self.spec.num_layers) ** (0.5 if is_residual_output else 0)
                values = torch.empty(parameter.shape, device=generator.device)
                parameter.copy_(values.normal_(0.0, std, generator=generator))

    def forward(
        self,
        input_ids_BL: Tensor,
        layout: TokenLayout,
        backend: AttentionBackend = DenseAttention,
        cache: Cache | None = None,
        *,
        read_N: Tensor | None = None,
    ) -> Tensor:
        """Final normed hidden states [B, L, D].

        With a cache, it says what the tokens see, and the backend is not used. read_N: columns, the same in every row, whose
        hidden states are wanted, without a cache: [B, N, D]; the last layer then computes keys and values of all tokens and
        nothing else of the others.
        """
        shared = Forward(
            rotary=rotary_table(layout.position_BL, self.spec.head_dim, self.spec.rotary),
            attend=backend(layout, layout) if cache is None else cache.attention(layout),
            cache=cache,
            is_real_BL=layout.doc_BL != PAD_DOC,
        )
        x_BLD = self.embed_tokens(input_ids_BL)
        for i, layer in enumerate(self.layers):
            if read_N is not None and i == len(self.layers) - 1:
                shared = shared._replace(attend=backend(layout.select(read_N), layout), read_N=read_N)
            x_BLD = layer(x_BLD, shared, i)
        return self.norm(x_BLD)

    def layout(
        self, input_ids_BL: Tensor, attention: AttentionName, block_size: int | None, lengths: Tensor | None
    ) -> TokenLayout:
        """Right-padded rows of one clean sequence each; arguments as in `Decoder.logits`. Raises `UnmaskError`."""
        if attention not in ("model", "bidirectional", "causal"):
            raise UnmaskError(f"attention {attention!r} is unknown; known: model, bidirectional, causal")
        if block_size is not None and block_size < 1:
            raise UnmaskError(f"block_size {block_size} is not a number of tokens; give at least 1")
        rows, length = input_ids_BL.shape
        if attention == "causal":
            block_size = 1
        elif attention == "bidirectional" or (block_size is None and self.spec.attention == "bidirectional"):
            block_size = max(1, length)
        if lengths is None:
            lengths = torch.full((rows,), length)
        return TokenLayout.sequences(length, block_size or self.spec.block_size, torch.as_tensor(lengths, device=self.device))

    def set_block_size(self, block_size: int) -> None:
        """What a block model sees and decodes together from now on; it is saved with the model."""
        self.spec = replace(self.spec, block_size=block_size)
        self.config["block_size"] = block_size

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype


class Decoder(Backbone):
    """The language model: `head` turns hidden states into logits.

    Hidden states and head are separate so that vocabulary-wide work is done only where it is needed. The hidden state of
    a token is the one its own prediction is read from, also for families with shifted logits.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=spec.has_head_bias)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes a tied head share the embedding (again, after `to_empty`)."""
        if self.spec.is_tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids_BL: Tensor,
        layout: TokenLayout,
        backend: AttentionBackend = DenseAttention,
        cache: Cache | None = None,
        *,
        read_N: Tensor | None = None,
        undoes_shift: bool = True,
    ) -> Tensor:
        """As `Backbone.forward`; with `spec.shift_logits`, each token has the hidden state of the token before it.

        undoes_shift: False leaves the hidden states where they were computed. Reading columns of shifted logits takes B = 1.
        """
        if not (self.spec.shift_logits and undoes_shift):
            return super().forward(input_ids_BL, layout, backend, cache, read_N=read_N)
        source_BL = shift_sources(layout)
        if read_N is not None:
            return super().forward(input_ids_BL, layout, backend, cache, read_N=source_BL[0, read_N])
        hidden_BLD = super().forward(input_ids_BL, layout, backend, cache)
        return hidden_BLD.gather(1, source_BL[:, :, None].expand_as(hidden_BLD))

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> float32 logits [..., V]."""
        return self.lm_head(hidden).float()

    def logits(
        self,
        input_ids_BL: Tensor,
        attention: AttentionName = "model",
        block_size: int | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Float32 logits [B, L, V]; row i holds the distribution of token i (of families with shifted logits, too).

        attention: "model" follows the spec (block-causal on absolute positions, or bidirectional), "bidirectional" is
            one block for the whole sequence, "causal" is block size 1.
        block_size: with "model", makes the attention block-causal with blocks of this size.
        lengths: int [B]; right padding beyond a row's length is invisible.
        """
        layout = self.layout(input_ids_BL, attention, block_size, lengths)
        return self.head(self(input_ids_BL, layout))


class ValueModel(Backbone):
    """The same decoder with a scalar head, zero at first (TraceRL paper, section 4: the value model).

    The value of a token is read at its own position in all families.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.value_head = nn.Linear(spec.hidden_size, 1, bias=False)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> float32 values [...]."""
        return self.value_head(hidden).float().squeeze(-1)

    def values(
        self,
        input_ids_BL: Tensor,
        attention: AttentionName = "model",
        block_size: int | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Float32 values [B, L], one for each token; arguments as in `Decoder.logits`."""
        layout = self.layout(input_ids_BL, attention, block_size, lengths)
        return self.head(self(input_ids_BL, layout))

    @classmethod
    def from_policy(cls, policy: Decoder) -> ValueModel:
        """A value model with a copy of the policy's backbone and a zero head."""
        with torch.device("meta"):
            model = cls(policy.spec)
        model = model.to(policy.dtype).to_empty(device=policy.device)
        state = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("lm_head.")}
        if any(".base_layer." in name for name in state):
            raise UnmaskError("the policy has adapters in it; take them out first (merge_adapter)")
        model.load_state_dict({**state, "value_head.weight": torch.zeros_like(model.value_head.weight)})
        model.config, model.source_folder = copy.deepcopy(policy.config), policy.source_folder
        return model.eval()
