"""A GPT's forward pass for the one position at the end of a text: what writing spends its time on.

`GPTModel.forward` serves any number of positions, every backend of attention, training and hooks, and for one position
that costs more than the arithmetic. `GPTStep` computes the same with as few calls of torch as it takes. (After each
matrix, which sweeps the processor's cache, even a view of a tensor costs microseconds.) Where a measurement finds it
faster, matrices are copied into the layout that oneDNN prefers for that many texts, and texts are rows; elsewhere they
are columns. Queries, keys and values come from one matrix, into memory whose parts were named once; keys and values
are written to room that was set aside; attention is two batched products, which for one query are faster than kernels
made for many; positions are looked up in tables; there is no mask where nothing is padded. Results differ from those
of `forward` by rounding alone.
"""

import math
import timeit
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ReLUSquaredActivation

from .gpt_layers import GPTDecoderLayer, GPTRMSNorm


SPARE = 256  # positions that are set aside at first; whenever they are used up, the room doubles
MOST_COPIED = 2**28  # bytes of matrices that are copied; in larger models, three products cost no more than one
LEAST_STEPS = 16  # for which packing the matrices pays off: it takes as long as ten steps
MOST_TIMED = 2**26  # bytes of matrices with which products are timed, more than most caches hold
_MEASURED: dict[tuple[Any, ...], bool] = {}  # what `_packing_is_faster` has found in this process

Function = Callable[[Tensor], Tensor]


class GPTStep:
    """Continues texts by one token at a time.

    It holds the weights as they are now: after they change, make a new one. The matrices of queries, keys and values
    are copied if they are small, which takes about as long as a step, and all of them if packed ones are faster and
    there are steps enough to make up for it; otherwise they are shared.

    Args:
        model: a GPTForCausalLM in evaluation mode.
        cache: what its forward pass over the prompt left, (batch, key/value heads, length, head_dim) in each layer.
        attention_mask: (batch, length), 0 for padding; None if there is none.
        positions: (batch,) or (1,), of the next tokens.
        steps: the most that will be taken.
    """

    @torch.inference_mode()
    def __init__(
        self, model: Any, cache: Any, attention_mask: Tensor | None, positions: Tensor, steps: float = math.inf
    ) -> None:
        config, self.body, self.output = model.config, model.model, model.lm_head.weight
        # (layers, heads of keys and then of values, batch, length, head_dim)
        memory = torch.stack([torch.cat((layer.keys, layer.values), dim=1).transpose(0, 1) for layer in cache.layers])
        _, _, batch, self.length, _ = memory.shape
        projections = [linear.weight for layer in self.body.layers for linear in _projections(layer.self_attn)]
        is_small = _may_be_copied(projections)
        matrices = [self.output, *(linear.weight for layer in self.body.layers for linear in _linears(layer))]
        is_packed = steps >= LEAST_STEPS and _packing_is_faster(batch, matrices)
        self.layout = _Layout(batch, is_packed, _may_be_copied(matrices))
        self.layers = [_Layer.of(layer, is_small, self.layout) for layer in self.body.layers]
        self.to_logits = self.layout.product(self.output, None)
        self.norm = _norm(self.body.norm, self.layout)
        self.is_rotary = config.position_embedding == "rotary"
        self.cos, self.sin = self.output.new_empty(2, 0, config.head_dim)

        self.positions = positions.repeat(batch // len(positions))
        self._name_heads(batch, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.gains: tuple[Tensor, Tensor] | None = None  # of the norms of heads, which are left to `_turn_heads`
        if config.qk_norm and config.norm_type == "rmsnorm":
            gains = torch.stack([_head_gains(layer.self_attn) for layer in self.body.layers])[:, :, None]
            self.gains = (gains, gains.roll(self.half_turn, dims=-1))

        self.scaling = config.head_dim**-0.5
        self.no_mask = memory.new_zeros(1, 1, 1)
        self.mask: Tensor | None = None  # (key/value heads * batch, 1, room), added to scores
        if attention_mask is not None and not attention_mask.all():
            hidden = torch.zeros_like(attention_mask, dtype=memory.dtype).masked_fill(attention_mask == 0, -math.inf)
            self.mask = hidden.repeat(config.num_key_value_heads, 1)[:, None]
        self.memory = memory
        self._make_room(SPARE)

    def _name_heads(self, batch: int, heads: int, key_value_heads: int, head_dim: int) -> None:
        """Sets memory aside for the heads of queries, keys and values, in this order, and names its parts."""
        count = heads + 2 * key_value_heads
        product = self.output.new_empty(self.layout.shape(count * head_dim))
        # Those of a single text lie in the product as they are needed; those of several are copied into that order.
        self.heads = self.product_of_heads = self.layout.by_text(product.unflatten(self.layout.dim, (count, head_dim)))
        if batch > 1:
            self.heads = self.output.new_empty(count, batch, head_dim)
        # A query head reads the keys and values of its group.
        self.queries = self.heads[:heads].view(key_value_heads, -1, batch, head_dim).transpose(1, 2)
        self.queries_and_keys = self.heads[: heads + key_value_heads]
        self.keys_and_values = self.heads[heads:]
        self.half_turn = head_dim // 2
        self.half_turned = self.output.new_empty(self.queries_and_keys.shape)
        self.halves = self.queries_and_keys.split((head_dim - self.half_turn, self.half_turn), dim=-1)[::-1]
        self.projected: tuple[Tensor, ...] = (product,)
        if len(self.layers[0].projections) > 1:
            sizes = [number * head_dim for number in (heads, key_value_heads, key_value_heads)]
            self.projected = tuple(product.split(sizes, dim=self.layout.dim))

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """(batch,), the tokens that were just written -> (batch, vocab_size), logits of those that follow."""
        if self.length == self.memory.shape[3]:
            self._make_room(self.length)
        slots = self.memory[:, :, :, self.length].unbind()
        self.length += 1
        keys, values = self._keys_and_values()
        mask = None if self.mask is None else self.mask[..., : self.length]

        x = F.embedding(tokens, self.body.embed_tokens.weight)
        if not self.is_rotary:
            x = x + self.body.learned_positions(self.positions[:, None])[:, 0]
        x = self.layout.of_rows(x)
        for layer, slot, key, value, turn in zip(self.layers, slots, keys, values, self._turns()):
            normal = layer.attention_norm(x)
            for projection, part in zip(layer.projections, self.projected):
                projection(normal, out=part)
            if self.heads is not self.product_of_heads:
                self.heads.copy_(self.product_of_heads)
            if layer.norm_heads is not None:
                layer.norm_heads(self.queries_and_keys)
            self._turn_heads(*turn)
            slot.copy_(self.keys_and_values)
            x = layer.attention_output.added_to(x, self._attend(key, value, mask))
            x = layer.down.added_to(x, layer.hidden(layer.mlp_norm(x)))
        self.positions.add_(1)
        return self.layout.as_rows(self.to_logits(self.norm(x)))

    def _keys_and_values(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys (key/value heads * batch, head_dim, length) and values (..., length, head_dim) of each layer."""
        layers, *_, room, head_dim = self.memory.shape
        halves = self.memory.view(layers, 2, -1, room, head_dim)[:, :, :, : self.length]
        return halves[:, 0].transpose(-1, -2).unbind(), halves[:, 1].unbind()

    def _attend(self, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What all queries read, in the layout of the step."""
        key_value_heads, batch, group, head_dim = self.queries.shape
        queries = self.queries.reshape(-1, group, head_dim)
        # With beta = 0, what is given to be added is ignored.
        added, beta = (self.no_mask, 0) if mask is None else (mask, 1)
        scores = torch.baddbmm(added, queries, key, beta=beta, alpha=self.scaling)
        read = torch.bmm(scores.softmax(dim=-1), value)
        return self.layout.of_heads(read.view(key_value_heads, batch, -1))

    def _turns(self) -> Iterable[tuple[Tensor | None, Tensor | None]]:
        """The arguments of `_turn_heads` in each layer."""
        if not self.is_rotary:
            return repeat((None, None)) if self.gains is None else zip(self.gains[0], repeat(None))
        cos, sin = (table.index_select(0, self.positions) for table in (self.cos, self.sin))
        if self.gains is None:
            return repeat((cos, sin))
        gains, turned_gains = self.gains
        return zip((gains * cos).unbind(), (turned_gains * sin).unbind())

    def _turn_heads(self, scale: Tensor | None, turn: Tensor | None) -> None:
        """Turns queries and keys to their position, as `rotate` does: heads * scale + half-turned heads * turn."""
        if turn is not None:
            torch.cat(self.halves, dim=-1, out=self.half_turned)
        if scale is not None:
            self.queries_and_keys.mul_(scale)
        if turn is not None:
            self.queries_and_keys.addcmul_(self.half_turned, turn)

    def _make_room(self, more: int) -> None:
        """For `more` positions, in the memory, the mask and the tables of rotary positions."""
        room = self.memory.shape[3] + more
        memory = self.memory.new_empty(*self.memory.shape[:3], room, self.memory.shape[4])
        memory[:, :, :, : self.length] = self.memory
        self.memory = memory
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, more))
        if self.is_rotary:
            last = int(self.positions.max()) + room - self.length
            cos, sin = self.body.rotary_emb(torch.arange(last + 1)[None], dtype=self.memory.dtype)
            self.cos, self.sin = cos[0, 0], sin[0, 0]


@dataclass
class _Layer:
    """The weights of a block.

    Attributes:
        attention_norm, mlp_norm: of the residual stream.
        projections: to queries, keys and values, one joined matrix or three. A joined one holds RMSNorm's gain, which
            attention_norm then leaves out.
        norm_heads: normalizes the heads of queries and keys in place; None if they are not normalized.
        hidden: from the normalized stream to the hidden layer of the feed-forward layer, after its activation.
    """

    attention_norm: Function
    projections: "list[Product]"
    norm_heads: Function | None
    attention_output: "Product"
    mlp_norm: Function
    hidden: Function
    down: "Product"

    @classmethod
    def of(cls, layer: GPTDecoderLayer, is_small: bool, layout: "_Layout") -> "_Layer":
        attention, attention_norm = layer.self_attn, _norm(layer.input_layernorm, layout)
        projections: list[tuple[Tensor, Tensor | None]]
        projections = [(linear.weight, linear.bias) for linear in _projections(attention)]
        if is_small:
            weights, biases = zip(*projections)
            matrix, bias = torch.cat(weights), None if biases[0] is None else torch.cat(biases)
            if isinstance(layer.input_layernorm, GPTRMSNorm):
                attention_norm = _divided_by(_length(layer.input_layernorm, layout.dim))
                matrix.mul_(_gain(layer.input_layernorm))
            projections = [(matrix, bias)]
        return cls(
            attention_norm,
            [layout.product(*projection) for projection in projections],
            _norm_of_heads(attention),
            layout.linear(attention.o_proj),
            _norm(layer.post_attention_layernorm, layout),
            _hidden(layer.mlp, layout),
            layout.linear(layer.mlp.down_proj),
        )


def _linears(layer: GPTDecoderLayer) -> list[nn.Linear]:
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def _projections(attention: Any) -> tuple[nn.Linear, ...]:
    return attention.q_proj, attention.k_proj, attention.v_proj


class _Product:
    """A linear layer for a vector or for the columns of a matrix.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,), or (outputs, 1) for columns.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        weight, bias = self.weight, self.bias
        if x.ndim == 1:  # products with a vector read the matrix faster than products of matrices do
            return torch.mv(weight, x, out=out) if bias is None else torch.addmv(bias, weight, x, out=out)
        return torch.mm(weight, x, out=out) if bias is None else torch.addmm(bias, weight, x, out=out)

    def relu(self, x: Tensor) -> Tensor:
        """The positive part of the layer's output."""
        return self(x).relu_()

    def added_to(self, total: Tensor, x: Tensor) -> Tensor:
        """The layer's output plus `total`, which may be overwritten."""
        total = total.addmv_(self.weight, x) if x.ndim == 1 else total.addmm_(self.weight, x)
        return total if self.bias is None else total.add_(self.bias)


class _PackedProduct:
    """The same for rows, by oneDNN, with a copy of the matrix in the layout that is fastest for that many rows.

    The operators are those that torch.compile makes linear layers of: they are no part of torch's public interface, so
    `_packing_is_faster` looks whether they are there.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,).
        texts: number of rows.
        copies: False to use the matrix as it is, without a packed copy, which is a third slower.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, texts: int, copies: bool) -> None:
        self.weight, self.bias = weight, bias
        if copies:  # with a hint of a single row, oneDNN keeps the plain layout, which is slower
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, max(texts, 2))

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product if out is None else out.copy_(product)

    def relu(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "relu", [], "")

    def added_to(self, total: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, total, self.weight, self.bias, "add")


Product: TypeAlias = _Product | _PackedProduct


class _Layout:
    """How the features of texts lie in a tensor: (features,) of a single one, (features, texts) of several, and
    (texts, features) for packed products.

    Args:
        texts: how many are written together.
        is_packed: whether products are a `_PackedProduct`.
        copies: whether these may copy their matrices.

    Attributes:
        dim: that of the features.
        has_columns: whether a text is a column.
    """

    def __init__(self, texts: int, is_packed: bool, copies: bool) -> None:
        self.texts, self.is_packed, self.copies, self.dim = texts, is_packed, copies, int(is_packed)
        self.has_columns = texts > 1 and not is_packed

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        if self.is_packed:
            return _PackedProduct(weight, bias, self.texts, self.copies)
        return _Product(weight, bias[:, None] if bias is not None and self.has_columns else bias)

    def linear(self, layer: nn.Linear) -> Product:
        return self.product(layer.weight, layer.bias)

    def shape(self, features: int) -> tuple[int, ...]:
        if self.is_packed:
            return (self.texts, features)
        return (features, self.texts) if self.has_columns else (features,)

    def of_rows(self, x: Tensor) -> Tensor:
        """(texts, features) -> this layout."""
        if self.is_packed:
            return x
        return x.t().contiguous() if self.has_columns else x.view(-1)

    def as_rows(self, x: Tensor) -> Tensor:
        """This layout -> (texts, features)."""
        return x if self.is_packed else x.view(-1, self.texts).t()

    def of_heads(self, x: Tensor) -> Tensor:
        """(heads, texts, features) -> this layout, heads after heads."""
        if self.texts == 1:
            return x.view(self.shape(x.numel()))
        if self.is_packed:
            return x.transpose(0, 1).reshape(self.texts, -1)
        return x.transpose(1, 2).reshape(-1, self.texts)

    def by_text(self, x: Tensor) -> Tensor:
        """This layout, with features as (heads, head_dim) -> (heads, texts, head_dim)."""
        return x.transpose(0, 1) if self.is_packed else x.view(*x.shape[:2], self.texts).transpose(1, 2)


def _may_be_copied(weights: Sequence[Tensor]) -> bool:
    return sum(weight.nbytes for weight in weights) <= MOST_COPIED


def _packing_is_faster(texts: int, weights: Sequence[Tensor]) -> bool:
    """Whether `_PackedProduct` takes at most 0.8 of the time of a `_Product`, measured with the matrices of the model.

    PyTorch's products are MKL's. On an AMD Zen 5, those with one vector use one thread and read matrices that are in
    no cache at a third of the memory's speed, and those with 2 to 32 columns take two to four times as long as packed
    ones.
    """
    sizes = list(accumulate(weight.nbytes for weight in weights))
    if weights[0].dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    key = (texts, torch.get_num_threads(), *sizes)
    if key not in _MEASURED:  # once in a process, so that what a seed writes repeats
        sample = [weight for weight, size in zip(weights, sizes) if size <= MOST_TIMED]
        columns, rows = (_Layout(texts, is_packed, _may_be_copied(weights)) for is_packed in (False, True))
        try:
            packed = _seconds(rows, sample or weights[:1])
        except (AttributeError, RuntimeError):  # a release of torch without these operators, or with others
            packed = math.inf
        _MEASURED[key] = packed <= 0.8 * _seconds(columns, sample or weights[:1])
    return _MEASURED[key]


def _seconds(layout: _Layout, weights: Sequence[Tensor]) -> float:
    """The time of a product with each of the matrices, the shortest of three."""
    turns = [(layout.product(w, None), w.new_ones(layout.shape(w.shape[1])), w.new_ones(layout.shape(w.shape[0])))
             for w in weights]  # fmt: skip
    return min(timeit.repeat(lambda: [product.added_to(y, x) for product, x, y in turns], number=1, repeat=3))


def _norm(norm: Any, layout: _Layout) -> Function:
    """The norm as a function of features in a layout."""
    if isinstance(norm, GPTRMSNorm):
        length, gain = _length(norm, layout.dim), _gain(norm)
        gain = gain[:, None] if layout.has_columns else gain
        return lambda x: (x / length(x)).mul_(gain)
    return lambda x: layout.of_rows(_layer_norm(norm, layout.as_rows(x)))


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _length(norm: GPTRMSNorm, dim: int) -> Function:
    """What RMSNorm divides by, times the square root of the size: sqrt(sum(x^2) + size * eps) in two operations."""
    epsilon = norm.weight.new_tensor(math.sqrt(norm.weight.numel() * norm.eps))
    return lambda x: torch.hypot(torch.linalg.vector_norm(x, dim=dim, keepdim=True), epsilon)


def _divided_by(length: Function) -> Function:
    return lambda x: x / length(x)


def _gain(norm: GPTRMSNorm) -> Tensor:
    """What RMSNorm multiplies by after the division by `_length`."""
    return norm.weight * math.sqrt(norm.weight.numel())


def _norm_of_heads(attention: Any) -> Function | None:
    """Normalizes (heads of queries and then of keys, batch, head_dim) in place; None if the model does not.

    RMSNorm's gains are left out: they are `_head_gains`.
    """
    if not attention.config.qk_norm:
        return None
    if isinstance(attention.q_norm, GPTRMSNorm):
        length = _length(attention.q_norm, dim=-1)
        return lambda x: x.div_(length(x))
    q_norm, k_norm, count = attention.q_norm, attention.k_norm, attention.config.num_attention_heads
    return lambda x: x.copy_(torch.cat((_layer_norm(q_norm, x[:count]), _layer_norm(k_norm, x[count:]))))


def _head_gains(attention: Any) -> Tensor:
    """(heads of queries and then of keys, head_dim), what RMSNorm multiplies them by after the division by a norm."""
    counts = (attention.config.num_attention_heads, attention.config.num_key_value_heads)
    norms = (attention.q_norm, attention.k_norm)
    return torch.cat([_gain(norm).expand(count, -1) for norm, count in zip(norms, counts)])


def _hidden(mlp: Any, layout: _Layout) -> Function:
    up, activation = layout.linear(mlp.up_proj), mlp.act_fn
    if mlp.gate_proj is not None:
        gate = layout.linear(mlp.gate_proj)
        return lambda x: activation(gate(x)).mul_(up(x))
    if isinstance(activation, ReLUSquaredActivation):
        return lambda x: _square_(up.relu(x))
    return lambda x: activation(up(x))


def _square_(x: Tensor) -> Tensor:
    return x.mul_(x)
