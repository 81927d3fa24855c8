"""Every Triton kernel, compiled ahead of time for every generation of NVIDIA GPUs: no GPU is needed. None may spill."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from umamba_cli.pipeline.networks.scan import (  # noqa: E402
    triton_backend,
    triton_convolution_kernels,
    triton_kernels,
)

CAPABILITIES = (75, 80, 90, 100, 120)

STATE = {"STATES": 16, "N": 16, "CHANNELS": triton_backend.CHANNELS}
ALIGNED, LOOSE = {**STATE, "VECTOR": 4}, {**STATE, "VECTOR": 1}
FORWARD = {"ROWS": triton_backend.ROWS}
SEGMENT = {"SEGMENT": triton_backend.SEGMENT}
BACKWARD = {"GROUP": triton_backend.GROUP, **SEGMENT}
BARE = {"z": None, "D": None, "delta_bias": None}
ONE_CHUNK = {"starts": None}
CONVOLUTION = {"CHANNELS": triton_backend.CONVOLUTION_CHANNELS}


@dataclass(frozen=True)
class Variant:
    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int = 1


def _variants() -> list[Variant]:
    kernels, convolution = triton_kernels, triton_convolution_kernels
    tokens = triton_backend.CONVOLUTION_TOKENS
    carry = {"CHUNKS": triton_backend.CARRY_CHUNKS, "ELEMENTS": triton_backend.CARRY_ELEMENTS, "STATES": 16}
    pass_1 = {"REVERSE": 0, "z": None, **FORWARD}
    return [
        Variant("chunk_states", kernels.chunk_states, {**ALIGNED, **pass_1}),
        Variant("chunk_states, loose rows", kernels.chunk_states, {**LOOSE, **pass_1}),
        Variant("chunk_states back", kernels.chunk_states, {**ALIGNED, "REVERSE": 1, **FORWARD}),
        Variant("carry_states", kernels.carry_states, {**carry, "REVERSE": 0, "CHANNELS": 32}, warps=4),
        Variant("carry_states back", kernels.carry_states, {**carry, "REVERSE": 1, "CHANNELS": 32}, warps=4),
        Variant("scan_forward", kernels.scan_forward, {**ALIGNED, **FORWARD, **SEGMENT}),
        Variant("scan_forward, loose rows", kernels.scan_forward, {**LOOSE, **FORWARD, **SEGMENT}),
        Variant(
            "scan_forward, bare",
            kernels.scan_forward,
            {**ALIGNED, **FORWARD, **SEGMENT, **BARE, **ONE_CHUNK, "saved": None},
        ),
        Variant("scan_backward", kernels.scan_backward, {**ALIGNED, **BACKWARD}),
        Variant("scan_backward, loose rows", kernels.scan_backward, {**LOOSE, **BACKWARD}),
        Variant("scan_backward, one chunk", kernels.scan_backward, {**ALIGNED, **BACKWARD, "ends": None}),
        Variant(
            "scan_backward, bare", kernels.scan_backward, {**ALIGNED, **BACKWARD, **BARE, "ends": None, "dz": None}
        ),
        Variant("convolution", convolution.convolution_forward, {**CONVOLUTION, "TAPS": 4, "TOKENS": tokens}, warps=4),
        Variant(
            "convolution back",
            convolution.convolution_backward,
            {**CONVOLUTION, "TAPS": 4, "TOKENS": tokens // 2},
            warps=4,
        ),
        Variant(
            "convolution back, 8 taps",
            convolution.convolution_backward,
            {**CONVOLUTION, "TAPS": 8, "TOKENS": tokens // 4},
            warps=4,
        ),
    ]


INTEGERS = {"length", "channels", "batches", "chunks", "chunk_steps", "channel_blocks", "token_blocks", "steps"}


def _compiled(variant: Variant, capability: int) -> Any:
    """Pointers aligned as torch's are; from one image to the next it may be more than 2^31 numbers."""
    names = variant.kernel.arg_names
    types = {
        name: "constexpr"
        if name in variant.constants
        else "i64"
        if name.endswith("_batch")
        else "i32"
        if name in INTEGERS or name.endswith("_row")
        else "*fp32"
        for name in names
    }
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in types.items() if kind == "*fp32"}
    source = ASTSource(variant.kernel, signature=types, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.warps, **triton_backend.OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _usage(kernel: Any, folder: Path) -> dict[str, int]:
    """What the machine code needs: REG registers, SHARED bytes, STACK and LOCAL bytes, which hold what was spilled."""
    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    shown = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", shown)}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("variant", _variants(), ids=lambda variant: variant.name)
def test_kernels_compile_and_do_not_spill(
    variant: Variant,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = _compiled(variant, capability)
    usage = _usage(kernel, tmp_path)
    with capsys.disabled():
        figures = f"{usage['REG']:4} registers {kernel.metadata.shared:6} B shared {usage['STACK']:4} B spilled"
        print(f"\nsm_{capability:<4} {variant.name:26} {figures}", end="")  # noqa: T201
    assert usage["STACK"] == 0
    assert usage["LOCAL"] == 0


def test_every_kernel_is_compiled_above() -> None:
    written = {
        value.fn.__name__
        for module in (triton_kernels, triton_convolution_kernels)
        for value in vars(module).values()
        if isinstance(value, triton.JITFunction) and value.fn.__module__ == module.__name__
    }
    compiled = {variant.kernel.fn.__name__ for variant in _variants()}
    launched = set(re.findall(r"_kernels\.(\w+)\[", Path(triton_backend.__file__).read_text("utf-8")))
    assert launched == compiled
    assert compiled <= written
