"""Mamba-2: a selective state space model whose state decays at one rate a head, computed by matrix products.

Source: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", arXiv 2405.21060, sections 5 and 6 (state space duality, the chunked algorithm, listing 1) and 7.1 with
figure 6 (the block: all projections in parallel, one convolution over x, B and C, a gated norm before the last one).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        h is a matrix (P, N) a head, A a number a head
    y_t = h_t C_t + D x_t

Axes: B batch, L tokens, H heads, P channels of a head, N state (B and C are shared by all heads: one group), D = H P
inner channels; a sequence is cut into K chunks of Q tokens (i, j: tokens in a chunk; k: chunks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable

from umamba_cli.pipeline.networks.scan import causal_convolution
from umamba_cli.pipeline.networks.token_block import (
    KERNEL_SIZE,
    TokenBlock,
    at_least_float32,
    before_softplus,
    initial_steps,
)

STATE = 64
CHUNK = 64  # tokens; the state's size, at which intra-chunk products and states cost the same (section 6.1)
LARGEST_HEAD = 64
_FEWEST_HEADS = 4
_PIECE_ELEMENTS = 1 << 21  # of decay matrices that are made at once, 8 MiB; ten times as much is alive in between
_ACCELERATOR_PIECE_ELEMENTS = 1 << 23


class Mamba2Block(TokenBlock):
    """Tokens in, tokens out: z, x, B, C, dt = W_in tokens; W_out(norm(SSD(silu(conv(x, B, C)), dt) * silu(z)))."""

    def __init__(self, channels: int, *, projections: bool = True, expand: int = 2, state: int = STATE) -> None:
        super().__init__()
        inner = expand * channels
        self.head = head_channels(inner)
        heads = inner // self.head
        self.parts = [inner, inner + 2 * state, heads]  # z; x, B and C; dt
        self.in_x = [inner, state, state]
        if projections:
            self.in_proj = nn.Linear(channels, sum(self.parts), bias=False)
        self.conv1d = nn.Conv1d(self.parts[1], self.parts[1], KERNEL_SIZE, groups=self.parts[1])
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(before_softplus(initial_steps(heads)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        if projections:
            self.out_proj = nn.Linear(inner, channels, bias=False)

    def mix(self, projected_BLE: Tensor) -> Tensor:
        """z, x, B, C and dt side by side (B, L, 2D + 2N + H) to the normed output (B, L, D)."""
        z_BLD, convolved_BLE, dt_BLH = torch.split(projected_BLE, self.parts, dim=-1)
        convolved_BLE = causal_convolution(convolved_BLE, self.conv1d.weight[:, 0], self.conv1d.bias)
        x_BLD, B_BLN, C_BLN = torch.split(convolved_BLE, self.in_x, dim=-1)
        x_BLHP = torch.unflatten(x_BLD, -1, (-1, self.head))
        dt_BLH = F.softplus(at_least_float32(dt_BLH) + self.dt_bias)
        y_BLHP = chunked(x_BLHP, dt_BLH, -at_least_float32(self.A_log).exp(), B_BLN, C_BLN, self.D)
        y_BLD: Tensor = self.norm(y_BLHP.flatten(-2) * F.silu(z_BLD))
        return y_BLD


def head_channels(inner: int) -> int:
    """P: 64 as in the paper, or, where that would leave fewer than four heads, what divides the channels into four.

    Where neither divides them, the next smaller divisor. So 64 inner channels are 4 heads of 16, 640 are 10 of 64.
    """
    most = max(1, min(LARGEST_HEAD, inner // _FEWEST_HEADS))
    return next(size for size in range(most, 0, -1) if inner % size == 0)


def recurrence(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLN: Tensor, C_BLN: Tensor, D_H: Tensor) -> Tensor:
    """The model token after token, as the equations above; (B, L, H, P).

    It is the reference: slow, and it keeps all states for the gradients. Arguments as in `chunked`.
    """
    batch, _, heads, channels = x_BLHP.shape
    h_BHPN = x_BLHP.new_zeros(batch, heads, channels, B_BLN.shape[-1])
    y_LBHP = []
    for x_BHP, dt_BH, B_BN, C_BN in zip(*(t.unbind(1) for t in (x_BLHP, dt_BLH, B_BLN, C_BLN)), strict=True):
        decay_BH11 = (dt_BH * A_H).exp()[..., None, None]
        h_BHPN = decay_BH11 * h_BHPN + (dt_BH.unsqueeze(-1) * x_BHP).unsqueeze(-1) * B_BN[:, None, None]
        y_LBHP.append((h_BHPN * C_BN[:, None, None]).sum(-1) + D_H.unsqueeze(-1) * x_BHP)
    return torch.stack(y_LBHP, dim=1)


def chunked(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_H: Tensor,
    *,
    chunk: int = CHUNK,
    piece: int | None = None,
) -> Tensor:
    """The model by matrix products within chunks and a recurrence over them (section 6, listing 1).

    Args:
        x_BLHP: the input, in float32 or float64 as all others.
        dt_BLH: positive, the step sizes.
        A_H: negative, the decay rates.
        B_BLN: how the input enters the state.
        C_BLN: how the state is read.
        D_H: the skip.
        chunk: tokens in a chunk; the result does not depend on it.
        piece: tokens that are computed at once, a whole number of chunks; None for as many as keep memory small. Only
            the state before each piece is kept for the gradients, and a piece is computed anew for its own.

    Returns:
        (B, L, H, P).
    """
    chunk = max(1, min(chunk, x_BLHP.shape[1]))
    tokens = piece or chunk * _chunks_at_once(x_BLHP, chunk)
    sequences = _Sequences(x_BLHP, dt_BLH, dt_BLH * A_H, B_BLN, C_BLN)
    y_BLHP: Tensor = _InPieces.apply(chunk, tokens, *sequences)  # type: ignore[no-untyped-call]
    return torch.addcmul(y_BLHP, x_BLHP, D_H.unsqueeze(-1))


class _Sequences(NamedTuple):
    """What has a value for each token."""

    x_BLHP: Tensor
    dt_BLH: Tensor

    a_BLH: Tensor
    """dt A, the logarithm of the decay."""

    B_BLN: Tensor
    C_BLN: Tensor

    def part(self, first: int, tokens: int) -> _Sequences:
        """The tokens from `first` on. A token of zeros leaves the state as it is: so the last part is filled up."""
        parts = (sequence[:, first : first + tokens] for sequence in self)
        missing = first + tokens - self.x_BLHP.shape[1]
        if missing <= 0:
            return _Sequences(*parts)
        return _Sequences(*(F.pad(part, (0, 0) * (part.dim() - 2) + (0, missing)) for part in parts))


def _chunks_at_once(x_BLHP: Tensor, chunk: int) -> int:
    batch, _, heads, channels = x_BLHP.shape
    elements = _PIECE_ELEMENTS if x_BLHP.device.type == "cpu" else _ACCELERATOR_PIECE_ELEMENTS
    return max(1, elements // (batch * heads * chunk * max(chunk, channels)))


class _InPieces(torch.autograd.Function):
    """The pieces of a sequence one after the other, each handing its state on; backwards each is computed once more.

    Autograd alone would keep the decay matrices of all chunks: Q numbers for each token and head, many times over.
    """

    @staticmethod
    def forward(ctx: Any, chunk: int, piece: int, *tensors: Tensor) -> Tensor:
        sequences = _Sequences(*tensors)
        batch, length, heads, channels = sequences.x_BLHP.shape
        h_BHPN = sequences.x_BLHP.new_zeros(batch, heads, channels, sequences.B_BLN.shape[-1])
        y_BLHP = sequences.x_BLHP.new_empty(sequences.x_BLHP.shape)
        firsts = range(0, length, piece)
        computed = _computed_pieces(sequences.x_BLHP, len(firsts))
        if len(computed) < len(firsts) and not any(ctx.needs_input_grad):
            _count_operations(h_BHPN, sequences, chunk, piece, left_out=len(firsts) - len(computed))
        states = []
        for index, first in enumerate(firsts):
            states.append(h_BHPN)
            tokens = _whole_chunks(min(piece, length - first), chunk)
            if index in computed:
                y_part, h_BHPN = _piece(h_BHPN, sequences.part(first, tokens), chunk)
                y_BLHP[:, first : first + piece] = y_part[:, : length - first]
            h_BHPN = h_BHPN.clone()  # a view would keep the states of all the piece's chunks
        ctx.chunk, ctx.piece = chunk, piece
        ctx.save_for_backward(*tensors, *states)
        return y_BLHP

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = len(_Sequences._fields), ctx.saved_tensors
        sequences, states = _Sequences(*saved[:count]), saved[count:]
        length, piece = sequences.x_BLHP.shape[1], ctx.piece
        found = [sequence.new_empty(sequence.shape) for sequence in sequences]
        dh_BHPN = torch.zeros_like(states[0]) if states else None
        for index in reversed(_computed_pieces(sequences.x_BLHP, len(states))):
            first = index * piece
            tokens = _whole_chunks(min(piece, length - first), ctx.chunk)
            dy_part = F.pad(gradients[0][:, first : first + piece], (0, 0, 0, 0, 0, max(0, first + tokens - length)))
            inputs = [t.detach().requires_grad_() for t in (states[index], *sequences.part(first, tokens))]
            with torch.enable_grad():
                outputs = _piece(inputs[0], _Sequences(*inputs[1:]), ctx.chunk)
            dh_BHPN, *of_part = torch.autograd.grad(outputs, inputs, (dy_part, dh_BHPN))
            for whole, part in zip(found, of_part, strict=True):
                whole[:, first : first + piece] = part[:, : length - first]
        return (None, None, *found)


def _computed_pieces(x_BLHP: Tensor, pieces: int) -> Sequence[int]:
    """The numbers of the pieces to compute: all, but of fake tensors, which are there to count memory, first and last.

    What is alive at one time is the same in each, and to count thousands of them would take minutes.
    """
    return range(0, pieces, max(1, pieces - 1)) if isinstance(x_BLHP, FakeTensor) else range(pieces)


def _count_operations(h_BHPN: Tensor, sequences: _Sequences, chunk: int, piece: int, *, left_out: int) -> None:
    """Let a counter of operations see the pieces that are left out, as many items of a batch."""
    middle = _Sequences(*(torch.unflatten(t[:, : left_out * piece], 1, (-1, piece)).flatten(0, 1) for t in sequences))
    _piece(h_BHPN.repeat(left_out, 1, 1, 1), middle, chunk)


def _whole_chunks(tokens: int, chunk: int) -> int:
    return -(-tokens // chunk) * chunk


def _piece(h_BHPN: Tensor, piece: _Sequences, chunk: int) -> tuple[Tensor, Tensor]:
    """The state before some chunks and their tokens to their outputs, the skip apart, and the state after them."""
    x_BKQHP, dt_BKQH, a_BKQH, B_BKQN, C_BKQN = (torch.unflatten(t, 1, (-1, chunk)) for t in piece)
    x_BKHQP = (x_BKQHP * dt_BKQH.unsqueeze(-1)).transpose(2, 3)
    a_BKHQ = a_BKQH.transpose(2, 3)
    # 1. What the tokens of a chunk give to one another: the diagonal blocks, (L o C B^T) x.
    decay_BKHQQ = _segment_sums(a_BKHQ).exp()
    within_BKQQ = C_BKQN @ B_BKQN.mT
    y_BKHQP = (within_BKQQ.unsqueeze(2) * decay_BKHQQ) @ x_BKHQP
    # 2. The state that each chunk would end in if it began with none.
    to_end_BKHQ = decay_BKHQQ[..., -1, :]
    ends_BKHPN = (x_BKHQP * to_end_BKHQ.unsqueeze(-1)).mT @ B_BKQN.unsqueeze(2)
    # 3. The state that each chunk begins in: the recurrence over the chunks.
    of_chunk_BHK = a_BKHQ.sum(-1).transpose(1, 2)
    decay_BHKK = _segment_sums(F.pad(of_chunk_BHK, (1, 0))).exp()
    states_BHKX = torch.cat((h_BHPN.unsqueeze(1), ends_BKHPN), dim=1).transpose(1, 2).flatten(-2)
    starts_BHKPN = torch.unflatten(decay_BHKK @ states_BHKX, -1, h_BHPN.shape[-2:])
    # 4. What that state gives to the tokens of the chunk.
    read_BKHQP = C_BKQN.unsqueeze(2) @ starts_BHKPN[:, :, :-1].transpose(1, 2).mT
    y_BKHQP = y_BKHQP + read_BKHQP * a_BKHQ.cumsum(-1).exp().unsqueeze(-1)
    return y_BKHQP.transpose(2, 3).flatten(1, 2), starts_BHKPN[:, :, -1]


def _segment_sums(a_XQ: Tensor) -> Tensor:
    """(.., Q) to (.., Q, Q): the sum over j < k <= i at (i, j), and minus infinity above the diagonal (listing 1).

    Each is summed for itself. The difference of two running sums would be quicker, but where one step decays by e^1000
    nothing would be left of the small sums after it.
    """
    size = a_XQ.shape[-1]
    below_QQ = torch.ones(size, size, dtype=torch.bool, device=a_XQ.device).tril(-1)
    terms_XQQ = torch.where(below_QQ, a_XQ.unsqueeze(-1), 0)
    above_QQ = torch.ones(size, size, dtype=torch.bool, device=a_XQ.device).triu(1)
    return terms_XQQ.cumsum(-2).masked_fill(above_QQ, -torch.inf)
