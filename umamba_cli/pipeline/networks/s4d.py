"""S4D: a linear state space model that treats all tokens alike, computed as one long convolution.

Sources: Gu, Goel and Re, "Efficiently Modeling Long Sequences with Structured State Spaces" (S4), arXiv 2111.00396,
sections 2.3 and 2.4 (recurrence and convolution are the same map); Gu, Gupta, Goel and Re, "On the Parameterization and
Initialization of Diagonal State Space Models" (S4D), arXiv 2206.11893, sections 3 (the Vandermonde kernel; only half of
the conjugate pairs are kept; A's real part is -exp) and 4 (S4D-Lin). It stands in Mamba's block, arXiv 2312.00752,
figure 3, in the place of the selective state space model, so that the model is all that differs.

    x'(t) = A x(t) + B u(t)                      A diagonal, B all ones
    y(t)  = 2 Re(C x(t)) + D u(t)

discretised with zero-order hold to Abar = exp(step A), Bbar = (exp(step A) - 1) / A.

Axes: B batch, L tokens, D channels, N pairs of conjugate states (the state is 2N), F frequencies; L is cut into Q
pieces of T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable

from umamba_cli.pipeline.networks.scan import causal_convolution
from umamba_cli.pipeline.networks.token_block import KERNEL_SIZE, TokenBlock, at_least_float32, initial_steps

STATE = 64  # real numbers: 32 conjugate pairs (S4D, section 5)
_PIECE_ELEMENTS = 1 << 21  # of padded series that are transformed at once, 8 MiB; ten times as much is alive in between


class S4DBlock(TokenBlock):
    """Tokens in, tokens out: x -> W_out(S4D(silu(conv(W_x x))) * silu(W_z x))."""

    def __init__(self, channels: int, *, projections: bool = True, expand: int = 2, state: int = STATE) -> None:
        super().__init__()
        inner, pairs = expand * channels, state // 2
        if projections:
            self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, KERNEL_SIZE, groups=inner)
        self.log_step = nn.Parameter(initial_steps(inner).log())
        self.A_log = nn.Parameter(torch.full((inner, pairs), 0.5).log())
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs, dtype=torch.float32).repeat(inner, 1))
        self.C = nn.Parameter(math.sqrt(0.5) * torch.randn(inner, pairs, 2))  # real and imaginary part, variance 1
        self.D = nn.Parameter(torch.ones(inner))
        if projections:
            self.out_proj = nn.Linear(inner, channels, bias=False)

    def mix(self, projected_BLE: Tensor) -> Tensor:
        """Input and gate (B, L, 2D) to the gated output (B, L, D)."""
        u_BLD, z_BLD = projected_BLE.chunk(2, dim=-1)
        u_BLD = causal_convolution(u_BLD, self.conv1d.weight[:, 0], self.conv1d.bias)
        A_DN = torch.complex(-at_least_float32(self.A_log).exp(), at_least_float32(self.A_imag))
        C_DN = torch.view_as_complex(at_least_float32(self.C))
        y_BLD = convolution(u_BLD, at_least_float32(self.log_step).exp(), A_DN, C_DN, self.D)
        return y_BLD * F.silu(z_BLD)


def convolution(u_BLD: Tensor, step_D: Tensor, A_DN: Tensor, C_DN: Tensor, D_D: Tensor) -> Tensor:
    """The model as a convolution: y = K * u + D u, K_l = 2 Re(sum_n C_n Abar_n^l Bbar_n) (S4D, section 3.2).

    Args:
        u_BLD: the input, in float32 or float64.
        step_D: the step sizes.
        A_DN: complex, the real part negative.
        C_DN: complex.
        D_D: the skip.

    Returns:
        (B, L, D) in the input's type. Beside it one more of its size and some 100 MiB are taken.
    """
    exponents_DN, weights_DN = _discretise(step_D, A_DN, C_DN)
    y_BLD: Tensor = _KernelConvolution.apply(u_BLD, exponents_DN, weights_DN)  # type: ignore[no-untyped-call]
    return torch.addcmul(y_BLD, u_BLD, D_D)


def recurrence(u_BLD: Tensor, step_D: Tensor, A_DN: Tensor, C_DN: Tensor, D_D: Tensor) -> Tensor:
    """The same, token after token: x_t = Abar x_{t-1} + Bbar u_t, y_t = 2 Re(C x_t) + D u_t (S4, section 2.3).

    It is the reference: slow, and it keeps all states for the gradients. Arguments as in `convolution`.
    """
    exponents_DN, weights_DN = _discretise(step_D, A_DN, C_DN)
    decay_DN = exponents_DN.exp()
    x_BDN = torch.zeros_like(weights_DN).expand(len(u_BLD), -1, -1)
    y_LBD = []
    for u_BD in u_BLD.unbind(1):
        x_BDN = decay_DN * x_BDN + u_BD.unsqueeze(-1)  # Bbar stands with C: the states differ by a factor alone
        y_LBD.append(2 * (weights_DN * x_BDN).sum(-1).real + D_D * u_BD)
    return torch.stack(y_LBD, dim=1)


def _discretise(step_D: Tensor, A_DN: Tensor, C_DN: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold: step A, of which Abar is the exponential, and C Bbar (S4D, section 2)."""
    exponents_DN = step_D.unsqueeze(-1) * A_DN
    return exponents_DN, C_DN * _exp_minus_one(exponents_DN) / A_DN


def _exp_minus_one(z: Tensor) -> Tensor:
    """exp(z) - 1, also where z is small: exp(x) cos(y) - 1 = expm1(x) cos(y) - 2 sin(y / 2)^2."""
    x, y = z.real, z.imag
    return torch.complex(torch.expm1(x) * y.cos() - 2 * (0.5 * y).sin().square(), x.exp() * y.sin())


class _KernelConvolution(torch.autograd.Function):
    """y = K * u with K_l = 2 Re(sum_n weights_n exp(l exponents_n)), a few series at a time, forward and backward.

    Autograd alone would keep the spectra of all series, four times what the input takes.
    """

    @staticmethod
    def forward(ctx: Any, u_BLD: Tensor, exponents_DN: Tensor, weights_DN: Tensor) -> Tensor:
        ctx.save_for_backward(u_BLD, exponents_DN, weights_DN)
        length = u_BLD.shape[1]
        y_BLD = torch.empty_like(u_BLD, memory_format=torch.contiguous_format)
        for channels, items in _pieces(u_BLD, weights_DN, memory_matters=any(ctx.needs_input_grad)):
            K_DF = _spectrum(_kernel(exponents_DN[channels], weights_DN[channels], length))
            for some in items:
                y_BDL = _series(K_DF * _spectrum(u_BLD[some, :, channels].mT), length)
                y_BLD[some, :, channels] = y_BDL.mT
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dy_BLD = gradients[0]
        u_BLD, exponents_DN, weights_DN = ctx.saved_tensors
        length = u_BLD.shape[1]
        du_BLD = torch.empty_like(u_BLD, memory_format=torch.contiguous_format)
        dexponents_DN, dweights_DN = torch.empty_like(exponents_DN), torch.empty_like(weights_DN)
        for channels, items in _pieces(u_BLD, weights_DN):
            K_DF = _spectrum(_kernel(exponents_DN[channels], weights_DN[channels], length))
            dK_DF = torch.zeros_like(K_DF)
            for some in items:  # what is a convolution forward is a correlation backward
                dy_BDF = _spectrum(dy_BLD[some, :, channels].mT)
                du_BLD[some, :, channels] = _series(dy_BDF * K_DF.conj(), length).mT
                dK_DF += (dy_BDF * _spectrum(u_BLD[some, :, channels].mT).conj()).sum(0)
            dexponents_DN[channels], dweights_DN[channels] = _kernel_gradients(
                _series(dK_DF, length), exponents_DN[channels], weights_DN[channels]
            )
        return du_BLD, dexponents_DN, dweights_DN


def _pieces(u_BLD: Tensor, weights_DN: Tensor, *, memory_matters: bool = True) -> Iterator[tuple[slice, list[slice]]]:
    """Channels, and for each some of them the items of the batch, that are transformed at once.

    Of fake tensors, which are there to count, the first piece stands for all: what is alive at one time is the same in
    each, and to count hundreds would take a minute. Where operations are counted and not memory, all is one piece.
    """
    batch, length, channels = u_BLD.shape
    if isinstance(u_BLD, FakeTensor) and not memory_matters:
        yield slice(channels), [slice(batch)]
        return
    most = max(1, _PIECE_ELEMENTS // padded_length(length))
    items_at_once = max(1, min(batch, most))
    root = math.isqrt(length) + 1
    in_kernel = 12 * weights_DN.shape[1] * root  # what `_kernel_gradients` makes of a channel
    channels_at_once = max(1, min(most // items_at_once, 4 * _PIECE_ELEMENTS // in_kernel))
    items = [slice(i, i + items_at_once) for i in range(0, batch, items_at_once)]
    firsts = range(0, channels, channels_at_once)
    for first in firsts[:1] if isinstance(u_BLD, FakeTensor) else firsts:
        yield slice(first, first + channels_at_once), items


def padded_length(length: int) -> int:
    """2L or a little more, so that the end of the convolution does not run into its beginning.

    It is a length that is quickly transformed: a power of two times 1, 3, 5, 9 or 15.
    """
    return min(odd << (-(-2 * length // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15))


def _spectrum(series_XL: Tensor) -> Tensor:
    """The Fourier transform of each series, continued with zeros."""
    spectrum: Tensor = torch.fft.rfft(series_XL, n=padded_length(series_XL.shape[-1]))
    return spectrum


def _series(spectrum_XF: Tensor, length: int) -> Tensor:
    """The beginning of what has this spectrum."""
    series: Tensor = torch.fft.irfft(spectrum_XF, n=padded_length(length))[..., :length]
    return series


def _kernel(exponents_DN: Tensor, weights_DN: Tensor, length: int) -> Tensor:
    """K_l = 2 Re(sum_n weights_n V_nl), (D, L), with Vandermonde's V_nl = exp(l exponents_n) (S4D, section 3.2).

    With l = q T + t the matrix is a product, exp(q T exponents) exp(t exponents): 2 sqrt(L) N exponentials will do in
    place of L N, and the sum over n is a product of two small matrices for each channel.
    """
    heads_DQN, tails_DTN = _powers(exponents_DN, length)
    heads_DQN = 2 * weights_DN.unsqueeze(1) * heads_DQN
    real = torch.cat((heads_DQN.real, -heads_DQN.imag), dim=-1)
    K_DQT = real @ torch.cat((tails_DTN.real, tails_DTN.imag), dim=-1).mT
    return K_DQT.flatten(1)[:, :length]


def _kernel_gradients(dK_DL: Tensor, exponents_DN: Tensor, weights_DN: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of K those of exponents and weights, conj(2 weights_n S1_n) and conj(2 S0_n).

    S0_n = sum_l dK_l V_nl and S1_n = sum_l l dK_l V_nl, again by l = q T + t.
    """
    heads_DQN, tails_DTN = _powers(exponents_DN, dK_DL.shape[1])
    pieces, tokens = heads_DQN.shape[1], tails_DTN.shape[1]
    dK_DQT = F.pad(dK_DL, (0, pieces * tokens - dK_DL.shape[1])).view(-1, pieces, tokens)
    t_T1 = torch.arange(tokens, device=dK_DL.device, dtype=dK_DL.dtype).unsqueeze(-1)
    parts = (tails_DTN.real, tails_DTN.imag, t_T1 * tails_DTN.real, t_T1 * tails_DTN.imag)
    real, imag, real_t, imag_t = (dK_DQT @ torch.cat(parts, dim=-1)).chunk(4, dim=-1)
    sums_DQN, sums_t_DQN = torch.complex(real, imag), torch.complex(real_t, imag_t)
    q_Q1 = tokens * torch.arange(pieces, device=dK_DL.device, dtype=dK_DL.dtype).unsqueeze(-1)
    S0_DN = (heads_DQN * sums_DQN).sum(1)
    S1_DN = (heads_DQN * (q_Q1 * sums_DQN + sums_t_DQN)).sum(1)
    return (2 * weights_DN * S1_DN).conj(), (2 * S0_DN).conj()


def _powers(exponents_DN: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """exp(q T exponents) and exp(t exponents), (D, Q, N) and (D, T, N), with Q T >= L and both about its root."""
    tokens = math.isqrt(max(length - 1, 0)) + 1
    pieces = -(-length // tokens)
    t_T1 = torch.arange(tokens, device=exponents_DN.device, dtype=exponents_DN.real.dtype).unsqueeze(-1)
    return _exp(tokens * t_T1[:pieces], exponents_DN), _exp(t_T1, exponents_DN)


def _exp(t_T1: Tensor, exponents_DN: Tensor) -> Tensor:
    """exp(t exponents), (D, T, N), by real functions: PyTorch's complex one takes three times as long on a CPU."""
    size_DTN = (t_T1 * exponents_DN.real.unsqueeze(1)).exp()
    angle_DTN = t_T1 * exponents_DN.imag.unsqueeze(1)
    return torch.complex(size_DTN * angle_DTN.cos(), size_DTN * angle_DTN.sin())
