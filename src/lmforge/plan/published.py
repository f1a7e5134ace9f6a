"""Published training runs: shape, hardware, layout and the measured seconds of a step. The planner's exam.

`python -m bench.quality.planner` predicts them all and writes the errors; the constants of `step_time` were fitted on
the runs that `fitted` names (every second one, in this order) and on no other.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from lmforge.plan.accelerators import ACCELERATORS, Accelerator
from lmforge.plan.step_time import ClusterLayout, DecoderShape


class PublishedRun(NamedTuple):
    """One published run."""

    name: str
    source: str
    shape: DecoderShape
    accelerator: Accelerator
    layout: ClusterLayout
    seconds: float  # of a step, measured


NARAYANAN = (
    "Narayanan et al. 2021 (arXiv 2104.04473), table 1; micro-batches: Megatron-LM, examples/sc21/run_table_1.sh"
)
KORTHIKANTI = "Korthikanti et al. 2022 (arXiv 2205.05198), table 5"
SMITH = "Smith et al. 2022 (arXiv 2201.11990), section 5.1"
FOUNDRY = "mosaicml/llm-foundry, scripts/train/benchmarking/README.md"
TITAN = "pytorch/torchtitan, benchmarks/"
MEGATRON = "NVIDIA/Megatron-LM, examples/llama/README.md"
LLAMA3 = "Dubey et al. 2024 (arXiv 2407.21783), table 4"
BLOOM = "Le Scao et al. 2022 (arXiv 2211.05100), section 3.5"
OPT = "Zhang et al. 2022 (arXiv 2205.01068), section 2.4"
LLAMA2 = "Touvron et al. 2023 (arXiv 2307.09288), table 2: A100 hours for 2 T tokens"
DEEPSEEK = "DeepSeek-AI 2024 (arXiv 2412.19437), section 1: 180 K H800 hours a trillion tokens"
PALM = "Chowdhery et al. 2022 (arXiv 2204.02311), section 4: utilisation 46.2% of 6,144 TPU v4"

A100, A100_40, H100 = ACCELERATORS["a100"], ACCELERATORS["a100-40gb"], ACCELERATORS["h100"]


def _of_flops(shape: DecoderShape, layout: ClusterLayout, flops: float) -> float:
    """Seconds of a step at so many operations a second and device, recomputation counted (Narayanan et al. 2021,
    eq. 3)."""
    s, h, layers, v = layout.sequence, shape.width, shape.layers, shape.vocabulary
    whole = 96 * layout.batch * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))
    return whole / flops / layout.devices


def _of_rate(layout: ClusterLayout, tokens_per_second: float) -> float:
    """Seconds of a step at so many tokens a second and device."""
    return layout.batch * layout.sequence / tokens_per_second / layout.devices


def _narayanan() -> list[PublishedRun]:
    rows = (  # layers, width, heads, tensor, pipeline, interleave, data, micro, batch, TFLOP/s
        (24, 2304, 24, 1, 1, 1, 32, 16, 512, 137),
        (30, 3072, 32, 2, 1, 1, 32, 16, 512, 138),
        (36, 4096, 32, 4, 1, 1, 32, 16, 512, 142),
        (40, 6144, 48, 8, 1, 1, 32, 8, 1024, 135),
        (48, 8192, 64, 8, 2, 1, 32, 4, 1536, 138),
        (60, 10240, 80, 8, 4, 3, 32, 2, 1792, 140),
        (80, 12288, 96, 8, 8, 2, 24, 2, 2304, 148),
        (96, 16384, 128, 8, 16, 2, 15, 1, 2160, 155),
        (105, 20480, 128, 8, 35, 3, 9, 1, 2520, 163),
        (128, 25600, 160, 8, 64, 1, 6, 1, 3072, 163),
    )
    runs = []
    for layers, width, heads, tensor, pipeline, interleave, data, micro, batch, flops in rows:
        shape = DecoderShape(layers, width, heads, 4 * width, 51_200)
        layout = ClusterLayout(
            2048, batch, micro, tensor, pipeline, interleave, data=data, recompute="full", flash=False, overlap=False
        )
        name = f"Megatron {shape.parameters() / 1e9:.1f}B, {layout.devices} A100"
        runs.append(PublishedRun(name, NARAYANAN, shape, A100, layout, _of_flops(shape, layout, flops * 1e12)))
    return runs


def _korthikanti() -> list[PublishedRun]:
    rows = (  # layers, width, heads, pipeline, interleave, micro, batch, seconds: full, selective recomputation
        (48, 6144, 64, 1, 1, 4, 4, 1.42, 1.10),
        (96, 12288, 96, 8, 3, 1, 64, 18.13, 13.75),
        (105, 20480, 128, 35, 3, 1, 280, 49.05, 37.83),
        (128, 25600, 160, 64, 1, 1, 512, 94.42, 71.49),
    )
    runs = []
    for layers, width, heads, pipeline, interleave, micro, batch, full, selective in rows:
        shape = DecoderShape(layers, width, heads, 4 * width, 51_200)
        for seconds, recompute in ((full, "full"), (selective, "core")):
            layout = ClusterLayout(
                2048, batch, micro, 8, pipeline, interleave, recompute=recompute,  # type: ignore[arg-type]
                sequence_parallel=recompute == "core", flash=False,
            )  # fmt: skip
            name = f"Megatron {shape.parameters() / 1e9:.0f}B, {layout.devices} A100, recompute {recompute}"
            runs.append(PublishedRun(name, KORTHIKANTI, shape, A100, layout, seconds))
    return runs


def _mt_nlg() -> list[PublishedRun]:
    shape = DecoderShape(105, 20480, 128, 4 * 20480, 51_200)
    return [
        PublishedRun(
            f"MT-NLG 530B, {280 * data} A100", SMITH, shape, A100,
            ClusterLayout(2048, 1920, 1, 8, 35, data=data, recompute="full", flash=False, overlap=False), seconds,
        )
        for data, seconds in ((8, 60.1), (10, 50.2), (12, 44.4))
    ]  # fmt: skip


MPT = {"1b": (24, 2048, 16), "3b": (32, 2560, 20), "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 64),
       "70b": (80, 8192, 64)}  # fmt: skip


def _foundry() -> list[PublishedRun]:
    rows = (  # model, accelerator, devices, sequence, micro, batch, recomputed, tokens/s/device
        ("70b", H100, 64, 2048, 8, 2048, True, 1039),
        ("70b", A100, 64, 2048, 8, 2048, True, 410),
        ("70b", H100, 32, 2048, 2, 1024, True, 882),
        ("30b", H100, 8, 2048, 3, 504, True, 2002),
        ("30b", A100, 8, 2048, 3, 504, True, 916),
        ("30b", A100, 8, 8192, 1, 168, True, 574),
        ("13b", H100, 8, 2048, 2, 16, False, 4792),
        ("13b", A100, 8, 2048, 2, 48, False, 2262),
        ("13b", H100, 64, 2048, 2, 128, False, 4800),
        ("13b", A100, 8, 16_384, 3, 72, True, 1431),
        ("13b", A100_40, 64, 2048, 16, 1024, True, 1976),
        ("7b", H100, 8, 2048, 6, 48, False, 10643),
        ("7b", A100, 8, 2048, 6, 96, False, 4641),
        ("7b", H100, 8, 8192, 8, 128, True, 6935),
        ("7b", A100, 8, 8192, 8, 128, True, 3206),
        ("7b", A100_40, 128, 2048, 18, 2304, True, 3623),
        ("3b", H100, 64, 2048, 6, 1152, False, 22525),
        ("3b", A100, 8, 2048, 10, 160, False, 10811),
        ("1b", H100, 8, 2048, 14, 112, False, 45455),
        ("1b", A100, 8, 2048, 14, 448, False, 20513),
    )
    runs = []
    for model, accelerator, devices, sequence, micro, batch, recomputed, rate in rows:
        layers, width, heads = MPT[model]
        shape = DecoderShape(layers, width, heads, 4 * width, 50_368)
        layout = ClusterLayout(
            sequence, batch, micro, data=devices, shard=devices, recompute="full" if recomputed else "none"
        )
        name = f"MPT {model} at {sequence}, {devices} {accelerator.name}"
        runs.append(PublishedRun(name, FOUNDRY, shape, accelerator, layout, _of_rate(layout, rate)))
    return runs


LLAMA_8B = DecoderShape(32, 4096, 32, 14_336, 128_256, 8, gated=True, tied=False)
LLAMA_70B = DecoderShape(80, 8192, 64, 28_672, 128_256, 8, gated=True, tied=False)
LLAMA_405B = DecoderShape(126, 16_384, 128, 53_248, 128_256, 8, gated=True, tied=False)
LLAMA2_70B = DecoderShape(80, 8192, 64, 28_672, 32_000, 8, gated=True, tied=False)


def _llama() -> list[PublishedRun]:
    rows: list[tuple[str, str, DecoderShape, ClusterLayout, float]] = []
    for devices, rates in ((8, (5762, 6667, 8532)), (128, (5605, 6514, 8380))):
        for what, rate in zip(("eager", "compiled", "float8"), rates, strict=True):
            layout = ClusterLayout(
                8192, 2 * devices, 2, data=devices, shard=devices, recompute="half", fused=what != "eager",
                fp8="dynamic" if what == "float8" else "",
            )  # fmt: skip
            rows.append((f"torchtitan 8B {what}, {devices} H100", TITAN, LLAMA_8B, layout, _of_rate(layout, rate)))
    titan = ClusterLayout(8192, 512, 16, 8, data=32, shard=32, fp8="dynamic", recompute="full", sequence_parallel=True)
    for what, rate in (("", 829), (", async TP", 876)):
        layout = dataclasses.replace(titan, async_tensor=bool(what))
        rows.append((f"torchtitan 70B, 256 H100{what}", TITAN, LLAMA_70B, layout, _of_rate(layout, rate)))
    # as many micro-batches as stages, torchtitan's default then: the two rates differ as such bubbles do
    deep = dataclasses.replace(titan, batch=32 * 8, micro=4, pipeline=8, data=8, shard=8, async_tensor=True)
    for interleave, rate in ((1, 100), (2, 128)):
        layout = dataclasses.replace(deep, interleave=interleave)
        name = f"torchtitan 405B, 512 H100, {interleave} a stage"
        rows.append((name, TITAN, LLAMA_405B, layout, _of_rate(layout, rate)))
    plain = ClusterLayout(8192, 128, 1, context=2, data=4, fp8="delayed", sequence_parallel=True, hopper=True)
    wide = dataclasses.replace(plain, tensor=4, pipeline=8, interleave=5, context=1, data=2)
    widest = dataclasses.replace(plain, batch=512, tensor=8, pipeline=8, interleave=8, data=8)
    for shape, name, layout, rate in (
        (LLAMA_8B, "8B", plain, 13_812),
        (LLAMA_70B, "70B", wide, 1_621),
        (LLAMA_405B, "405B", widest, 315),
    ):
        title = f"Megatron Llama 3 {name}, {layout.devices} H100 fp8"
        rows.append((title, MEGATRON, shape, layout, _of_rate(layout, rate)))
    for data, context, sequence, batch, utilisation in (
        (64, 1, 8192, 2048, 0.43), (128, 1, 8192, 2048, 0.41), (8, 16, 131_072, 128, 0.38),
    ):  # fmt: skip
        layout = ClusterLayout(sequence, batch, 1, 8, 16, 8, context, data=data, shard=data, sequence_parallel=True)
        flops = LLAMA_405B.model_flops(batch * sequence, sequence)
        seconds = flops / (utilisation * H100.flops * layout.devices)
        rows.append((f"Llama 3 405B at {sequence}, {layout.devices} H100", LLAMA3, LLAMA_405B, layout, seconds))
    return [PublishedRun(name, source, shape, H100, layout, seconds) for name, source, shape, layout, seconds in rows]


def _papers() -> list[PublishedRun]:
    bloom = DecoderShape(70, 14_336, 112, 4 * 14_336, 250_880)
    opt = DecoderShape(96, 12_288, 96, 4 * 12_288, 50_272)
    palm = DecoderShape(118, 18_432, 48, 4 * 18_432, 256_000, 1, 256, gated=True)
    deepseek = DecoderShape(61, 7168, 128, 2048, 129_280, 24, 160, True, 256, 8, 1, 3, 18_432, tied=False)
    at_bloom = ClusterLayout(2048, 2048, 2, 4, 12, data=8, recompute="full", flash=False)
    at_opt = ClusterLayout(2048, 992, 8, 8, data=124, shard=124, recompute="full", flash=False)
    # how the network lay over devices was not published: tensor parallel in a node, copies beyond
    at_llama = ClusterLayout(4096, 1024, 1, 8, data=256, sequence_parallel=True)
    at_palm = ClusterLayout(
        2048, 2048, 4, 12, data=512, shard=256, recompute="half", flash=False, sequence_parallel=True
    )
    at_deepseek = ClusterLayout(
        4096, 15_360, 1, 1, 16, 1, expert=64, data=128, fp8="dynamic", schedule="zero-bubble", recompute="none"
    )
    palm_flops = palm.model_flops(2048 * 2048, 2048)
    tpu = ACCELERATORS["tpu-v4"]
    return [
        PublishedRun("BLOOM 176B, 384 A100", BLOOM, bloom, A100, at_bloom, _of_flops(bloom, at_bloom, 150e12)),
        PublishedRun("OPT 175B, 992 A100", OPT, opt, A100, at_opt, _of_flops(opt, at_opt, 147e12) * 3 / 4 * 4 / 3),
        PublishedRun("Llama 2 70B, 2048 A100", LLAMA2, LLAMA2_70B, A100, at_llama,
            _of_rate(at_llama, 2e12 / (1_720_320 * 3600))),
        PublishedRun("PaLM 540B, 6144 TPU v4", PALM, palm, tpu, at_palm,
            palm_flops / (0.462 * tpu.flops * at_palm.devices)),
        PublishedRun("DeepSeek-V3, 2048 H800", DEEPSEEK, deepseek, ACCELERATORS["h800"], at_deepseek,
            _of_rate(at_deepseek, 1e12 / (180e3 * 3600))),
    ]  # fmt: skip


RUNS: tuple[PublishedRun, ...] = (*_narayanan(), *_korthikanti(), *_mt_nlg(), *_foundry(), *_llama(), *_papers())


def fitted(number: int) -> bool:
    """Whether the constants were fitted on this run: every second one."""
    return number % 2 == 0
