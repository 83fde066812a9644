"""How many floating-point operations a model's forward and backward are: the one place where they are counted.

What counts is what the model's mathematics asks for ("model FLOPs", Chowdhery et al. 2022, appendix B): a product and a sum are
two operations; attention counts the pairs that see each other, whatever a kernel computes in vain; what activation
checkpointing, or a head that keeps no logits, computes a second time is not counted, and neither is what is no matrix
product (embeddings, norms, softmax, rotations).

Symbols: D hidden_size, H heads and G key/value heads of size K, F intermediate size, E experts of which A are active, V outputs
of the head; L tokens, N of them read, M scored, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Work:
    """What a forward of the decoder computes, whatever the number of its rows.

    num_tokens: that go through the layers, noisy copies included. num_pairs: of a token and one that it sees (itself is one),
    over all tokens. num_read, num_read_pairs: the same of the tokens whose final hidden states are wanted; the last layer
    computes keys and values alone of all others (`read_N` of `Backbone.forward`). num_scored: tokens that meet the head.
    """

    num_tokens: int
    num_pairs: int
    num_read: int
    num_read_pairs: int
    num_scored: int


NO_WORK = Work(0, 0, 0, 0, 0)


def model_flops(
    spec: ModelSpec, work: Work, *, num_outputs: int | None = None, backward: Literal["none", "inputs", "all"] = "none"
) -> int:
    """Operations of one forward of this work, and of its backward.

    Of a token in a layer, with MLP = 3 D F (with experts: D E + A * 3 D F of the experts' own F):

        2 (D H K + 2 D G K + H K D + MLP)                     in the last layer without N: 2 (2 D G K) each of L - N tokens

    in every layer 4 H K for each pair (a score, and a share of a value), and 2 D V for each scored token. num_outputs: V, by
    default the vocabulary; 1 for a value head. The backward is twice the forward, since both factors of a product get a
    gradient: 6 operations for each parameter and token in all, as the rule of thumb has it. backward: "inputs" where the
    weights are frozen and get none (adapters, whose own operations are neglected: a hundredth), "none" without a gradient.
    """
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    keys_values = 2 * spec.hidden_size * kv_width
    matrices = attention = 0  # parameters times tokens; pairs
    for layer in range(spec.num_layers):
        is_last = layer == spec.num_layers - 1
        num_tokens = work.num_read if is_last else work.num_tokens
        rest = 2 * spec.hidden_size * width + _mlp_parameters(spec, layer)
        matrices += work.num_tokens * keys_values + num_tokens * rest
        attention += work.num_read_pairs if is_last else work.num_pairs
    matrices += work.num_scored * spec.hidden_size * (spec.vocab_size if num_outputs is None else num_outputs)
    forward = 2 * matrices, 4 * width * attention
    per_product = {"none": (1, 1), "inputs": (2, 3), "all": (3, 3)}[backward]
    return sum(passes * flops for passes, flops in zip(per_product, forward, strict=True))


def _mlp_parameters(spec: ModelSpec, layer: int) -> int:
    """That a token meets in the layer's MLP."""
    if spec.experts is None or layer not in spec.experts.layers:
        return 3 * spec.hidden_size * spec.intermediate_size
    experts = spec.experts
    return spec.hidden_size * (experts.num_experts + 3 * experts.num_active * experts.intermediate_size)
