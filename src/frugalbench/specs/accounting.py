"""FLOPs, bytes and parameters by formula from the shape.

What is counted: matrix products only, a multiply-add as 2 FLOP. Elementwise work (activations, norms, softmax,
residual sums, sorting tokens by expert) is left out: per value it grows with one dimension where a product grows
with two, so at the shapes measured here it stays near a percent, and no two runtimes fuse it alike. Attention counts
the pairs of query and key that its mask allows: all of them in an encoder, the lower triangle under a causal mask. A
kernel that also computes masked pairs executes more; the surplus is no work.

Sizes are counts (tokens, dimensions, experts); every function is pure and exact, and ``int`` unless it is an
expectation. ``ValueError`` is raised for a size that cannot be.
"""

BACKWARD_FACTOR = 2
"""A product y = x W costs one product forward; backward is one for dL/dW and one for dL/dx, each of the same size."""


def linear_flop(m: int, n: int, k: int) -> int:
    """FLOP of an (m x k) by (k x n) product: m·n dot products of k multiply-adds."""
    return 2 * m * n * k


def training_flop(forward_flop: int) -> int:
    """FLOP of forward plus backward of matrix products, gradients of weights **and** of inputs: 3 x forward.

    Holds for a block inside a network. The first layer of a network, whose input needs no gradient, does less.
    Recomputation (activation checkpointing, fused attention's backward) comes on top and is not counted.
    """
    return forward_flop * (1 + BACKWARD_FACTOR)


def swiglu_ffn_flop(tokens: int, d_model: int, d_ff: int) -> int:
    """Forward FLOP of down(silu(gate(x)) · up(x)): three products of tokens x d_model x d_ff."""
    return 3 * linear_flop(tokens, d_ff, d_model)


def mlp_flop(tokens: int, d_model: int, d_ff: int) -> int:
    """Forward FLOP of down(act(up(x))): two products."""
    return 2 * linear_flop(tokens, d_ff, d_model)


def router_flop(tokens: int, d_model: int, experts: int) -> int:
    """Forward FLOP of the router's logits; top-k and softmax are elementwise work and left out."""
    return linear_flop(tokens, experts, d_model)


def moe_ffn_flop(tokens: int, d_model: int, d_ff: int, experts: int, top_k: int) -> int:
    """Forward FLOP of router plus ``top_k`` SwiGLU experts of width ``d_ff`` per token, without padding.

    A way of computing it that pads or runs every expert executes more; the surplus is its inefficiency, not work.
    """
    _check_top_k(experts, top_k)
    return router_flop(tokens, d_model, experts) + swiglu_ffn_flop(tokens * top_k, d_model, d_ff)


def attention_flop(
    batch: int,
    seq: int,
    d_model: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    cached: int = 0,
    causal: bool = False,
) -> int:
    """Forward FLOP of self-attention: q, k, v and output projections, scores, weighted values.

    ``kv_heads`` defaults to ``heads`` (MHA), ``head_dim`` to ``d_model / heads``. ``cached`` older tokens of each
    sequence are attended to, and their keys and values not computed again. Query heads that share a key head multiply
    it each: grouping saves projections and bytes, not scores.
    """
    head_dim = _head_dim(d_model, heads, head_dim)
    weights = attention_parameters(d_model, heads, kv_heads or heads, head_dim)
    pairs = batch * attended_pairs(seq, cached, causal)
    return 2 * batch * seq * weights + 2 * linear_flop(pairs, heads, head_dim)


def attended_pairs(seq: int, cached: int, causal: bool) -> int:
    """Pairs of query and key in one sequence of ``seq`` new tokens behind ``cached`` older ones."""
    return seq * cached + (seq * (seq + 1) // 2 if causal else seq * seq)


def attention_parameters(d_model: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Weights of the q, k, v and output projections; no biases."""
    return 2 * d_model * head_dim * (heads + kv_heads)


def kv_bytes(tokens: int, kv_heads: int, head_dim: int, value_bytes: int = 4) -> int:
    """Bytes of the keys and values of ``tokens`` tokens in one layer."""
    return 2 * tokens * kv_heads * head_dim * value_bytes


def transformer_block_flop(
    batch: int,
    seq: int,
    d_model: int,
    heads: int,
    d_ff: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    gated: bool = True,
) -> int:
    """Forward FLOP of attention plus feed-forward (SwiGLU when ``gated``, else two products)."""
    ffn = swiglu_ffn_flop if gated else mlp_flop
    return attention_flop(batch, seq, d_model, heads, kv_heads, head_dim) + ffn(batch * seq, d_model, d_ff)


def encoder_flop(
    layers: int, hidden: int, heads: int, intermediate: int, seq: int, batch: int, pooler: bool = False
) -> int:
    """Forward FLOP of a BERT-like encoder. Embedding look-ups multiply nothing; ``pooler`` adds one product
    on the first position of each sequence."""
    blocks = layers * transformer_block_flop(batch, seq, hidden, heads, intermediate, gated=False)
    return blocks + (linear_flop(batch, hidden, hidden) if pooler else 0)


def swiglu_ffn_parameters(d_model: int, d_ff: int) -> int:
    """Weights of gate, up and down; no biases."""
    return 3 * d_model * d_ff


def moe_ffn_parameters(d_model: int, d_ff: int, experts: int) -> int:
    """Weights held: all experts and the router."""
    return experts * swiglu_ffn_parameters(d_model, d_ff) + d_model * experts


def moe_ffn_active_parameters(d_model: int, d_ff: int, experts: int, top_k: int) -> int:
    """Weights multiplied per token: ``top_k`` experts and the whole router."""
    _check_top_k(experts, top_k)
    return top_k * swiglu_ffn_parameters(d_model, d_ff) + d_model * experts


def expected_distinct_experts(tokens: int, experts: int, top_k: int) -> float:
    """How many experts T tokens hit on average when each token takes ``top_k`` different ones uniformly.

    A token misses a given expert with probability 1 − k/E; T independent tokens all miss it with (1 − k/E)^T;
    expectations add up over the E experts: E · (1 − (1 − k/E)^T). Skewed routing hits fewer.
    """
    _check_top_k(experts, top_k)
    return experts * (1 - (1 - top_k / experts) ** tokens)


def expected_kept_choices(tokens: int, experts: int, top_k: int, capacity: int) -> float:
    """How many of the T·k choices are computed on average when an expert takes at most ``capacity`` of them and each
    token chooses uniformly.

    An expert is chosen by X ~ Bin(T, p = k/E) tokens and computes min(X, C); with x·P(X = x) = T·p·P(Bin(T−1, p) = x−1)
    the mean is T·p·P(Bin(T−1, p) < C) + C·P(X > C). Skewed routing keeps fewer.
    """
    _check_top_k(experts, top_k)
    share = top_k / experts
    most = tokens * share * _binomial_at_most(capacity - 1, tokens - 1, share)
    return experts * (most + capacity * (1 - _binomial_at_most(capacity, tokens, share)))


def moe_ffn_traffic_bytes(
    tokens: int, d_model: int, d_ff: int, experts: int, top_k: int, weight_bytes: int = 4, activation_bytes: int = 4
) -> float:
    """Least bytes moved by one forward call: each expert hit is read once (expected count under uniform routing),
    the router read, input read and output written once. Bytes per value are given for weights and activations."""
    expert_bytes = swiglu_ffn_parameters(d_model, d_ff) * weight_bytes
    hit = expected_distinct_experts(tokens, experts, top_k)
    return hit * expert_bytes + d_model * experts * weight_bytes + 2 * tokens * d_model * activation_bytes


def linear_traffic_bytes(m: int, n: int, k: int, weight_bytes: int, activation_bytes: int = 4) -> int:
    """Least bytes moved by y = x W: the stored weights once (``weight_bytes`` for all of them), x in and y out."""
    return weight_bytes + (m * k + m * n) * activation_bytes


def _binomial_at_most(count: int, trials: int, share: float) -> float:
    """P(Bin(trials, share) ≤ count), by the regularised incomplete beta function."""
    if count >= trials or share == 0:
        return 1.0
    from scipy.special import betainc

    return float(betainc(trials - count, count + 1, 1 - share)) if count >= 0 and share < 1 else 0.0


def _check_top_k(experts: int, top_k: int) -> None:
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k must lie between 1 and the {experts} experts, not {top_k}")


def _head_dim(d_model: int, heads: int, head_dim: int | None) -> int:
    if head_dim is not None:
        return head_dim
    if d_model % heads:
        raise ValueError(f"d_model {d_model} does not divide into {heads} heads; give head_dim")
    return d_model // heads
