"""Compile every kernel for the architectures on the command line (80, 90, ...), without a GPU; print their names."""

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vidsieve.ops.attention import kernels as attention
from vidsieve.ops.compaction import kernels as compaction
from vidsieve.ops.greedy import long_segments, short_segments
from vidsieve.ops.k_center import kernels as k_center
from vidsieve.ops.measurement import gram
from vidsieve.ops.measurement import kernels as measurement
from vidsieve.ops.merge import kernels as merge
from vidsieve.ops.partition import kernels as partition
from vidsieve.ops.run_length import kernels as run_length
from vidsieve.ops.vision import kernels as vision

TYPES = {
    "x_ptr": "*bf16", "split_ptr": "*bf16",
    "offsets_ptr": "*i64", "budget_ptr": "*i64", "early_ptr": "*i64", "segment_ptr": "*i64", "rows_ptr": "*i64",
    "kept_ptr": "*i64", "source_ptr": "*i64", "frame_ptr": "*i64", "order_ptr": "*i32",
    "candidate_ptr": "*i32", "step_ptr": "*i32", "count_ptr": "*i32", "barrier_ptr": "*i32", "nonfinite_ptr": "*i32",
    "counts_ptr": "*i32",
    "at_ptr": "*i64", "before_ptr": "*i64", "link_ptr": "*i64", "index_ptr": "*i64",
    "slot_ptr": "*i32", "stays_ptr": "*i1", "valid_ptr": "*i1",
    "query_ptr": "*bf16", "key_ptr": "*bf16", "columns_ptr": "*i64", "seen_ptr": "*i1",
    "scaling": "fp32", "softcap": "fp32", "trade": "fp32", "epsilon": "fp32", "threshold": "fp32",
}  # fmt: skip
FEATURES: dict[str, Any] = {"D": 3584, "PRECISION": "ieee"}
LONG: dict[str, Any] = FEATURES | {
    "EXACT": "tf32x3", "SHARED": True, "RULE": 0, "HEAD": False,
    "BLOCK_S": 64, "BLOCK_N": 128, "BLOCK_D": 128, "BLOCK_K": 32,
}  # fmt: skip


OWN: dict[Any, dict[str, str]] = {  # where a name has another type than elsewhere
    partition._apportion_kernel: {"out_ptr": "*i64", "part": "fp32", "rest_of_part": "fp32"},
    partition._scene_cuts_kernel: {"out_ptr": "*i64"},
    compaction._compact_rows_kernel: {"slot_ptr": "*i64", "left_ptr": "*i64", "valid_ptr": "*i64"},
    measurement._transience_kernel: {"floor": "fp32"},
    measurement._contrast_kernel: {"floor": "fp32", "knee": "fp32"},
    merge._begin_kernel: {"row_ptr": "*i64", "count_ptr": "*i64"},
    merge._follow_runs_kernel: {"row_ptr": "*i64"},
    merge._mean_kernel: {"weight_ptr": "*i64", "out_ptr": "*bf16"},
    vision._rotate_kernel: {"qkv_ptr": "*bf16"},
    vision._gate_kernel: {"first_bias_ptr": "*bf16", "second_bias_ptr": "*bf16", "out_ptr": "*bf16"},
}


def compile_kernel(kernel: Any, architecture: int, warps: int = 4, **constants: Any) -> None:
    known = TYPES | OWN.get(kernel, {})
    types = {
        name: "constexpr" if name in constants else known.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, types, constants)
    triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    print(kernel.__name__, architecture)


def compile_kernels(sm: int) -> None:
    compile_kernel(measurement._unit_kernel, sm, D=3584, BLOCK_D=4096, warps=8)
    compile_kernel(measurement._measure_kernel, sm, D=3584, PERSISTENCE=True, COSINE=True, BLOCK_N=1, BLOCK_D=512)
    compile_kernel(partition._apportion_kernel, sm, WEIGHED=True, BLOCK=64, STEP=16, warps=1)
    compile_kernel(partition._novelty_kernel, sm, WHOLE=False, BLOCK=512)
    for even in (True, False):
        compile_kernel(partition._scene_cuts_kernel, sm, EVEN=even, BLOCK=128, TOKENS=64)
    compile_kernel(measurement._min_max_kernel, sm, BLOCK=16384, warps=32)
    compile_kernel(compaction._compact_kernel, sm, BLOCK=4096, warps=8)
    compile_kernel(gram._gram_kernel, sm, **FEATURES, ALIGNED=True, BLOCK=128, BLOCK_S=64, BLOCK_D=64)
    compile_kernel(
        gram._segment_gram_kernel,
        sm,
        **FEATURES,
        COSINE=True,
        SHARE=1792,
        TWICE=True,
        BLOCK=128,
        BLOCK_D=64,
        warps=8,
    )
    compile_kernel(measurement._direction_kernel, sm, D=3584, SPLIT=True, BLOCK_D=128)
    compile_kernel(measurement._from_products_kernel, sm, D=3584, PARTS=2, COSINE=True, BLOCK=256, BLOCK_D=4)
    compile_kernel(merge._nearest_kept_kernel, sm, **FEATURES, BLOCK_N=64, BLOCK_K=64, BLOCK_D=32)
    for head in (False, True):
        compile_kernel(short_segments._greedy_kernel, sm, RULE=0, HEAD=head, PARTS=2, ROWS=32, BLOCK_N=256, BLOCK_K=16)
        held: dict[str, Any] = LONG | {"HEAD": head, "HELD": True}
        compile_kernel(long_segments._long_segments_kernel, sm, **held, CANDIDATES=32, BLOCK_ALL=2048)
    compile_kernel(short_segments._nearest_other_kernel, sm, PARTS=2, BLOCK_N=256)
    compile_kernel(
        long_segments._long_segments_kernel, sm, **LONG, HELD=False, CANDIDATES=32, BLOCK_ALL=16384, warps=16
    )
    compile_kernel(short_segments._greedy_kernel, sm, RULE=3, HEAD=False, PARTS=2, ROWS=16, BLOCK_N=256, BLOCK_K=16)
    compile_kernel(
        long_segments._long_segments_kernel,
        sm,
        **LONG | {"RULE": 3},
        HELD=False,
        CANDIDATES=32,
        BLOCK_ALL=16384,
        warps=16,
    )
    compile_kernel(compaction._compact_rows_kernel, sm, PADDED=True, BLOCK=4096, warps=8)
    compile_kernel(measurement._transience_kernel, sm, BLOCK=1024)
    compile_kernel(measurement._contrast_kernel, sm, BLOCK=256)
    compile_kernel(merge._temporal_kernel, sm, WHOLE=False, D=3584, BLOCK_S=64, BLOCK_T=64, BLOCK_D=1024)
    heads: dict[str, Any] = {"WIDTH": 128, "PADDED": True, "SOFTCAP": True, "PRECISION": "ieee"}
    tiles: dict[str, Any] = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 128}
    compile_kernel(attention._softmax_kernel, sm, **heads, **tiles, SPLIT=256)
    compile_kernel(attention._level_kernel, sm, SPLITS=32, BLOCK=64)
    compile_kernel(attention._received_kernel, sm, **heads, **tiles)
    compile_kernel(merge._begin_kernel, sm, BLOCK=4096, warps=8)
    compile_kernel(merge._follow_runs_kernel, sm, BLOCK=128)
    compile_kernel(merge._mean_kernel, sm, D=3584, WEIGHTED=True, BLOCK_D=1024)
    compile_kernel(run_length._differences_kernel, sm, C=4704, BLOCK_T=8, BLOCK_C=128)
    compile_kernel(run_length._count_kernel, sm, DONE=2, BLOCK=256, warps=8)
    compile_kernel(run_length._scores_kernel, sm, DONE=3, SECTIONS=256, BLOCK=32, warps=1)
    for half in (True, False):
        tile: dict[str, Any] = {"BLOCK": 128 if half else 64, "PRECISION": "tf32" if half else "tf32x3", "HALF": half}
        compile_kernel(k_center._distances_kernel, sm, C=4704, LENGTH=2048, BLOCK_C=64, warps=8 if half else 4, **tile)
    compile_kernel(k_center._traverse_kernel, sm, SHARE=2, LENGTH=2048, warps=8)
    compile_kernel(k_center._nearest_kernel, sm, LENGTH=2048, BLOCK=64)
    compile_kernel(vision._rotate_kernel, sm, HEADS=16, WIDTH=80, BLOCK_H=16, BLOCK_D=64)
    compile_kernel(vision._gate_kernel, sm, BIASED=True, WIDTH=3420, COLUMNS=3456, BLOCK=1024)


if __name__ == "__main__":
    for architecture in sys.argv[1:]:
        compile_kernels(int(architecture))
