"""make bench-gpu: what an edit of SD 1.5's size costs on one GPU, written as a table.

    python -m benchmarks.gpu             all but the last two, a few minutes
    python -m benchmarks.gpu edits       some parts: ceilings, edits, memory, batches, compile,
                                         sizes, kernels (where a step's time goes), devices
                                         (several GPUs)

Random weights of fixed seed, DragWorld pictures at 512 x 512, and a fixed amount of work: 70 LoRA
steps of batch 4, 38 steps of inversion, 7 x 10 x 3 gradient steps with tracking, 38 denoising
steps, decoding; nothing may stop the dragging early. The model is resident, all else is counted.
Each part runs in a process of its own and prints a line of JSON; what fails is named in the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.run import commit, conditions, machine_name
from benchmarks.sd15 import random_sd15
from gooddrag.types import DragSample

ROOT = Path(__file__).parents[1]
FIXED_WORK = ["method.patience=null", "method.on_arrival=never"]
GRADIENT_STEPS = 7 * 10 * 3
DRAWN = 9  # pictures, one of each family
TURN = 4  # edits that a process does one after another, to tell its rate


# -- the parts: each prints what it measured as one line ------------------------------------------


def ceilings() -> dict[str, float]:
    """The chip's own limits, and what one gradient step needs of them."""
    from torch.utils.flop_counter import FlopCounterMode

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: a @ b, 10)
    x = torch.empty(2 * 10**9, dtype=torch.uint8, device="cuda")
    copy = seconds(lambda: x.clone(), 10)
    backbone = editor("engine=plain").backbone
    z = torch.randn(1, 4, 64, 64, device="cuda", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        eps, features = backbone.noise_and_features(z, 501, backbone.embed([""]))
        (eps.sum() + features.sum()).backward()
    weights = sum(w.numel() * w.element_size() for w in backbone.unet.parameters())
    return {
        "matrix_tflops": 2 * 8192**3 / product / 1e12,
        "copy_tb_per_s": 2 * len(x) / copy / 1e12,
        "step_tflop": counter.get_total_flops() / 1e12,
        # every weight is read in the forward and once more in the backward
        "step_weight_gb": 2 * weights / 1e9,
    }


def edits() -> dict[str, Any]:
    """Cold, warm, and once more on the same picture; and one gradient step through the UNet."""
    checkpoint()
    start = time.perf_counter()
    method = editor()
    torch.cuda.synchronize()
    loading = time.perf_counter() - start
    cold, warm = timed(method, [0]), [timed(method, [i]) for i in (1, 2, 3)]
    again = [timed(method, [3]) for _ in range(3)]
    found = {"cold": cold, "warm": median(warm), "again": median(again), "step": step(method)}
    return {"loading": loading, **found}


def memory() -> dict[str, Any]:
    """Peak memory with the low-memory setting."""
    return {"low": timed(editor("backbone.low_memory=true"), [0])}


def batches() -> dict[str, Any]:
    """Many pictures at once, each with its own LoRA, points and mask."""
    method = editor()
    timed(method, range(8))
    eight = timed(method, range(10, 18))
    del method
    release()
    small = editor("backbone=mini", fixed=[])
    timed(small, range(64), size=256)
    return {"eight": eight, "mini_64": timed(small, range(100, 164), size=256)}


def compiled() -> dict[str, Any]:
    """With torch.compile."""
    method = editor("engine.compile=true")
    start = time.perf_counter()
    first = timed(method, [0])
    return {
        "first_s": time.perf_counter() - start,
        "cold": first,
        "warm": timed(method, [1]),
        "again": timed(method, [1]),
        "step": step(method),
    }


def sizes() -> dict[str, Any]:
    """Larger pictures, and more pairs of points, without a LoRA: its crops stay 512 x 512."""
    found: dict[str, Any] = {}
    for side in (512, 768, 1024):
        method = editor("adapt=none")
        timed(method, [0], size=side)  # records the graphs of this size
        found[f"side_{side}"] = timed(method, [1], size=side)
        del method
        release()
    method = editor("adapt=none")
    for pairs in (1, 2, 4, 8):
        timed(method, [0], pairs=pairs)
        found[f"pairs_{pairs}"] = timed(method, [1], pairs=pairs)
    return found


def kernels() -> dict[str, Any]:
    """What the device does in a gradient step: of one picture, and of many small ones."""
    few = ["method.steps=4", "method.K=4", "method.B=2", "adapt.steps=1"]
    single = traced(editor(*few), [0], 512)
    release()
    return {"single": single, "mini_64": traced(editor("backbone=mini", *few), range(64), 256)}


def traced(method: Any, indices: Sequence[int], size: int) -> dict[str, Any]:
    """Kernels by the time that they take, in an edit that is little else than gradient steps."""
    from torch.profiler import ProfilerActivity, profile

    samples = pictures(tuple(indices), size)
    method(samples)  # records the graphs
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        edit = method(samples)[0]
        torch.cuda.synchronize()
    found = sorted(trace.key_averages(), key=lambda kind: -kind.self_device_time_total)
    return {
        "drag_ms_a_step": 1e3 * edit.seconds["drag"] / (4 * 3),
        "busy_ms": sum(kind.self_device_time_total for kind in found) / 1e3,
        "kernels": [
            [kind.key[:80], kind.count, round(kind.self_device_time_total / 1e3, 3)]
            for kind in found[:40]
        ],
    }


def release() -> None:
    """Let go of models before this one, which hold themselves in cycles."""
    gc.collect()
    torch.cuda.empty_cache()


def throughput() -> dict[str, Any]:
    """Warm single edits on this device, when a line says from which picture on: see `devices`."""
    method = editor()
    timed(method, [0])
    for index in range(1, 2 * TURN + 1):
        pictures((index,), 512)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(timed_many(method, range(int(line), int(line) + TURN))), flush=True)
    return {}


def devices() -> dict[str, Any]:
    """One process per GPU: the first alone, then all at once, on pictures that are new to it."""
    count = torch.cuda.device_count()
    if count < 2:
        raise SystemExit(f"this part needs at least 2 CUDA devices, found {count}")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", "--part", "throughput"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": seen[i] if seen != [""] else str(i)},
        )
        for i in range(count)
    ]
    for process in processes:
        heard(process)  # it has loaded the model
    alone = rate(processes[:1], first=1)
    together = rate(processes, first=1 + TURN)
    for process in processes:
        process.communicate()
    return {"count": count, "alone": alone, "together": together, "factor": together / alone}


def rate(processes: Sequence[subprocess.Popen[str]], first: int) -> float:
    """Edits a minute of processes that work at the same time, from that picture on."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{first}\n")
        process.stdin.flush()
    return sum(float(json.loads(heard(process))["per_minute"]) for process in processes)


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the process on one of the devices failed: run --part throughput")
    return line


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ceilings": ceilings,
    "edits": edits,
    "memory": memory,
    "batches": batches,
    "compile": compiled,
    "sizes": sizes,
    "kernels": kernels,
    "devices": devices,
    "throughput": throughput,
}
DEFAULT = [name for name in PARTS if name not in ("kernels", "devices", "throughput")]


def checkpoint() -> Path:
    """The random SD 1.5, written if it is not there."""
    return random_sd15(Path(tempfile.gettempdir()) / "gooddrag_random_sd15", torch.bfloat16)


def editor(*overrides: str, fixed: Sequence[str] = FIXED_WORK) -> Any:
    """GoodDrag on the random SD 1.5, with an empty LoRA cache."""
    from gooddrag import load_method

    where = ["backbone=folder", f"backbone.path={checkpoint()}"]
    where = [] if any(o.startswith("backbone=") for o in overrides) else where
    cache = tempfile.mkdtemp()
    return load_method("gooddrag", [*where, *fixed, f"cache={cache}", *overrides])


def timed_many(method: Any, indices: Sequence[int]) -> dict[str, Any]:
    """One call after another, on pictures that are there already."""
    start = time.perf_counter()
    for index in indices:
        timed(method, [index])
    passed = time.perf_counter() - start
    return {"seconds": passed, "per_minute": 60 * len(indices) / passed}


def timed(
    method: Any, indices: Sequence[int], *, size: int = 512, pairs: int | None = None
) -> dict[str, Any]:
    """One call on DragWorld's test pictures: seconds, phases, memory, edits a minute.

    Args:
        method: from `editor`.
        indices: of the pictures, edited in one batch.
        size: of the pictures, pixels a side.
        pairs: that many pairs of points in place of the sample's own.
    """
    samples = pictures(tuple(indices), size)
    if pairs:
        places = torch.linspace(0.3, 0.7, pairs)[:, None] * size * torch.ones(2)
        samples = [
            replace(s, handles=places.floor(), targets=(places + 40).floor()) for s in samples
        ]
    torch.cuda.synchronize()
    start = time.perf_counter()
    edit = method(samples)[0]
    torch.cuda.synchronize()
    passed = time.perf_counter() - start
    return {
        "seconds": passed,
        "phases": edit.seconds,
        "memory": edit.peak_memory / 1e9,
        "allocated": torch.cuda.max_memory_allocated() / 1e9,
        "per_minute": 60 * len(samples) / passed,
    }


@cache
def pictures(indices: tuple[int, ...], size: int) -> list[DragSample]:
    """DragWorld's test pictures; after the first few they come again, a shade darker each time.

    Drawing takes longer than some edits do, and to an edit these are others: it trains anew.
    """
    found = []
    for index in indices:
        turn, which = divmod(index, DRAWN)
        sample = drawn(which, size)
        found.append(replace(sample, image=sample.image * 0.99**turn))
    return found


@cache
def drawn(index: int, size: int) -> DragSample:
    """One of DragWorld's test pictures, drawn once."""
    from gooddrag.data.world import world_sample

    return world_sample("test", 0, index, size)


def step(method: Any) -> float:
    """Seconds of a forward and backward through the UNet at batch 1, median of 20."""
    backbone = method.backbone
    text = backbone.embed([""])
    z = torch.randn(1, 4, 64, 64, device=backbone.device, requires_grad=True)

    def once() -> None:
        eps, features = backbone.noise_and_features(z, 501, text)
        (z.grad,) = torch.autograd.grad(eps.sum() + features.sum(), z)

    return seconds(once, 20)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median over repeats, after three runs to warm up."""
    times = []
    for i in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of median duration."""
    return sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]


# -- the table ------------------------------------------------------------------------------------


def report(found: dict[str, dict[str, Any]], arguments: Sequence[str], commit: str) -> str:
    """All parts as Markdown; a part that failed is named with its last line."""
    edits, ceiling = found.get("edits", {}), found.get("ceilings", {})
    lines = [
        "# One edit of SD 1.5's size on one GPU",
        "",
        f"{conditions(commit)}.",
        f"`python -m benchmarks.gpu {' '.join(arguments)}`".replace(" `", "`"),
        "",
        (__doc__ or "").split("\n\n")[2].strip().replace("\n", " "),
        "The official code on the same kind of chip: 55 s without loading, 191 ms a gradient "
        "step, 10.4 GiB.",
        "",
    ]
    header = ["| what | measured | goal |", "|---|---|---|"]

    def row(what: str, goal: str, *path: str, unit: str = "s", factor: float = 1.0) -> None:
        if path[0] not in found:  # not asked for
            return
        value: Any = found
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        shown = "not measured" if value is None else f"{factor * value:.2f} {unit}"
        lines.extend(header)
        header.clear()
        lines.append(f"| {what} | {shown} | {goal} |")

    row("loading the model, its libraries and its plans", "", "edits", "loading")
    row("one edit, cold: first picture after loading", "6.5 s", "edits", "cold", "seconds")
    row("one edit, warm", "5.0 s", "edits", "warm", "seconds")
    row("one edit, warm, `engine.compile=true`", "4.0 s", "compile", "warm", "seconds")
    row("the same picture again", "2.5 s", "edits", "again", "seconds")
    row("gradient step, the UNet alone", "", "edits", "step", unit="ms", factor=1e3)
    row(
        "gradient step, all of the drag phase / 210",
        "15 ms",
        "edits",
        "warm",
        "phases",
        "drag",
        unit="ms",
        factor=1e3 / GRADIENT_STEPS,
    )
    row("LoRA, 70 steps of batch 4", "2.5 s", "edits", "warm", "phases", "adapt")
    row("8 edits at once", "15", "batches", "eight", "per_minute", unit="a minute")
    row(
        "64 edits at once, embedded model",
        "200",
        "batches",
        "mini_64",
        "per_minute",
        unit="a minute",
    )
    row("peak memory, reserved", "6 GB", "edits", "warm", "memory", unit="GB")
    row("peak memory, reserved, low-memory setting", "4 GB", "memory", "low", "memory", unit="GB")
    if "cold" in edits:
        lines += ["", "| phase | cold, s | warm, s | again, s |", "|---|---|---|---|"]
        kinds = [edits[kind]["phases"] for kind in ("cold", "warm", "again")]
        for phase in kinds[0]:
            lines.append(f"| {phase} | " + " | ".join(f"{k[phase]:.3f}" for k in kinds) + " |")
    if "side_512" in (sized := found.get("sizes", {})):
        lines += ["", "| without LoRA | seconds | drag, s | reserved, GB |", "|---|---|---|---|"]
        for name, run in sized.items():
            if isinstance(run, dict):
                what = name.replace("side_", "side ").replace("pairs_", "side 512, pairs: ")
                lines.append(
                    f"| {what} | {run['seconds']:.2f} | {run['phases']['drag']:.2f} | "
                    f"{run['memory']:.2f} |"
                )
    several = found.get("devices", {})
    if "factor" in several:
        lines += [
            "",
            f"{several['count']} GPUs, a process each: {several['together']:.1f} edits a minute, "
            f"one alone {several['alone']:.1f}: a factor of {several['factor']:.2f}.",
        ]
    if "step_tflop" in ceiling:
        work = 1e3 * ceiling["step_tflop"] / ceiling["matrix_tflops"]
        bytes_ = ceiling["step_weight_gb"] / ceiling["copy_tb_per_s"]
        lines += [
            "",
            f"Floor of a gradient step: {ceiling['step_tflop']:.2f} TFLOP at the measured "
            f"{ceiling['matrix_tflops']:.0f} TFLOP/s are {work:.1f} ms; its weights, "
            f"{ceiling['step_weight_gb']:.1f} GB at {ceiling['copy_tb_per_s']:.1f} TB/s, "
            f"{bytes_:.1f} ms.",
        ]
    failures = {name: part["failed"] for name, part in found.items() if "failed" in part}
    lines += [f"\nFAILED {name}: {line}" for name, line in failures.items()]
    lines += ["", "<details><summary>All figures</summary>", "", "```json"]
    lines += [json.dumps(found, indent=1), "```", "", "</details>", ""]
    return "\n".join(lines)


def run_part(name: str, limit: float) -> dict[str, Any]:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, cwd=ROOT, env=os.environ
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but the last")
    parser.add_argument("--part", choices=PARTS, help="run this one here, and print its figures")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each part")
    parser.add_argument("--commit", default=commit(), help="where git is not at hand")
    parser.add_argument("--output", type=Path, help="file to write")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device is here; for a CPU there is `make bench`\n")
    if args.part:
        print(json.dumps(PARTS[args.part]()))
        return
    chosen, found = args.parts or DEFAULT, {}
    output = args.output or ROOT / "benchmarks" / f"RESULTS_{machine_name()}.md"
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = run_part(name, args.limit)
        output.write_text(report(found, chosen, args.commit))  # kept part by part
    print(output.read_text())


if __name__ == "__main__":
    main()
