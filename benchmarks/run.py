"""make bench: what an edit costs on this machine, written as a table.

    python -m benchmarks.run            the demo edit as it is
    python -m benchmarks.run --quick    few steps, to see that it works; figures mean nothing

Three questions: seconds per phase and peak memory of the demo edit (embedded model, cold LoRA),
each run in a fresh process; what Lightning's Trainer adds to the same dragging as a plain loop
(tests/plain_loop.py), both run in turn in one process, compared pair by pair; and what scoring an
edit against DragWorld's truth costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUICK = ["adapt.steps=2", "method.B=1", "method.K=2", "method.steps=8"]
PACKAGES = ("torch", "lightning", "diffusers", "peft")


def main() -> None:
    args = parse()
    overrides = [*(QUICK if args.quick else []), *args.overrides]
    edits = [one_edit(overrides) for _ in range(args.repeats)]
    loops = compare_loops(overrides, args.loops)
    text = report(args, overrides, edits, loops, scorings(9 if args.quick else 45))
    path = args.output or ROOT / "benchmarks" / f"RESULTS_{args.machine}.md"
    path.write_text(text)
    print(text)
    print(f"written: {path}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works")
    parser.add_argument("--repeats", type=int, help="runs of each kind, default 5 (quick: 2)")
    parser.add_argument("--loops", type=int, help="pairs of draggings, default 9 (quick: 2)")
    parser.add_argument("--machine", default=machine_name(), help="its name in the file's name")
    parser.add_argument("--output", type=Path, help="file to write")
    parser.add_argument("overrides", nargs="*", help="as for gooddrag edit")
    args = parser.parse_intermixed_args()
    args.repeats = args.repeats or (2 if args.quick else 5)
    args.loops = args.loops or (2 if args.quick else 9)
    if args.quick and not args.output:
        args.output = Path(tempfile.gettempdir()) / "gooddrag_bench_quick.md"
    return args


# -- the demo edit --------------------------------------------------------------------------------


def one_edit(overrides: Sequence[str]) -> dict[str, Any]:
    """`gooddrag edit` in a process of its own, with an empty LoRA cache; its record.json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from gooddrag.cli import main; main()", "edit"]
        start = time.perf_counter()
        subprocess.run(
            [*command, f"output={folder}/edit", f"cache={folder}/cache", *overrides],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - start
        record = json.loads((Path(folder) / "edit" / "record.json").read_text())
    return {"wall": wall, "seconds": record["seconds"], "peak_memory": record["peak_memory"]}


# -- the Trainer against a plain loop -------------------------------------------------------------


def compare_loops(overrides: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of the dragging alone, Trainer and plain loop in turn, from the same inputs."""
    import torch

    sys.path.insert(0, str(ROOT))
    trainer, plain = drags([*overrides, "adapt=none"])
    runs: dict[str, list[float]] = {"trainer": [], "plain": []}
    results = [trainer(), plain()]  # warm up, and see that they are the same computation
    if not torch.equal(*results):
        raise SystemExit("the Trainer and the plain loop gave different latents")
    for i in range(repeats):
        pair = (("trainer", trainer), ("plain", plain))
        for name, run in pair if i % 2 == 0 else pair[::-1]:
            start = time.perf_counter()
            run()
            runs[name].append(time.perf_counter() - start)
    return runs


def drags(overrides: Sequence[str]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same dragging twice: through `DragOptimization`, and through tests/plain_loop.py."""
    from gooddrag import ddim, load_method
    from gooddrag.data.world import world_sample
    from gooddrag.denoising import PairedDenoising
    from gooddrag.events import Phases
    from gooddrag.reference import Pairs, reference_pass
    from tests.plain_loop import plain_drag

    editor = load_method("gooddrag", [o for o in overrides if not o.startswith("adapt.")])
    sample = world_sample("test", 0, 1)
    backbone, times = editor.backbone, editor.times
    canvas = editor._canvas([sample])
    z_0 = editor._encode([sample], canvas)
    mask = editor._mask([sample], canvas, z_0)
    text = backbone.embed([sample.prompt])
    pairs = Pairs.of([sample], canvas, editor.grid_rounding, backbone.device)
    denoising = PairedDenoising(backbone, text, times, editor.attention)
    z_T = ddim.invert(z_0, lambda z, t: backbone.noise(z, t, text), times)
    references = reference_pass(
        backbone, z_T, text, times, editor.dragged_steps, pairs, canvas, editor.supervision.r1
    )

    def trainer() -> Any:
        drag = editor._drag(z_T, mask, pairs, references, denoising, canvas, Phases([]))
        return drag.z.detach()

    def plain() -> Any:
        return plain_drag(editor, canvas, z_T, mask, pairs, references, denoising)[0]

    return trainer, plain


# -- scoring --------------------------------------------------------------------------------------


def scorings(count: int) -> list[float]:
    """Seconds of processor time for each of the first validation edits, by `metrics=truth`."""
    import torch

    from gooddrag import load_metrics
    from gooddrag.data.world import to_sample
    from gooddrag.metrics import score
    from gooddrag.world import render_edit

    threads, metrics, seconds = torch.get_num_threads(), load_metrics("truth"), []
    torch.set_num_threads(1)
    for index in range(count):
        world = render_edit("validation", 0, index)
        start = time.process_time()
        score(metrics, to_sample(world), world.truth, world)
        seconds.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return seconds


# -- the table ------------------------------------------------------------------------------------


def report(
    args: argparse.Namespace,
    overrides: Sequence[str],
    edits: Sequence[dict[str, Any]],
    loops: dict[str, list[float]],
    scored: Sequence[float],
) -> str:
    phases = list(edits[0]["seconds"])
    rows = [(phase, [edit["seconds"][phase] for edit in edits]) for phase in phases]
    rows.append(("all phases", [sum(edit["seconds"].values()) for edit in edits]))
    rows.append(("the whole process", [edit["wall"] for edit in edits]))
    trainer, plain = (statistics.median(loops[name]) for name in ("trainer", "plain"))
    ratios = sorted(t / p for t, p in zip(loops["trainer"], loops["plain"], strict=True))
    memory = max(edit["peak_memory"] for edit in edits) / 1e9
    lines = [
        f"# Benchmark on {args.machine}",
        "",
        f"{conditions(commit())}; load average {load()} at the end.",
        f"`python -m benchmarks.run {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        *(["", "QUICK: few steps, the figures mean nothing."] if args.quick else []),
        "",
        f"## The demo edit: embedded model, cold LoRA cache, {len(edits)} runs",
        "",
        "| | median | fastest | slowest |",
        "|---|---|---|---|",
        *(
            f"| {name}, s | {statistics.median(v):.2f} | {min(v):.2f} | {max(v):.2f} |"
            for name, v in rows
        ),
        f"| peak memory, GB | {memory:.2f} | | |",
        "",
        f"## The Trainer's cost over a plain loop: the same dragging, {len(ratios)} pairs in turn",
        "",
        "| | median, s | fastest, s |",
        "|---|---|---|",
        f"| Trainer | {trainer:.3f} | {min(loops['trainer']):.3f} |",
        f"| plain loop | {plain:.3f} | {min(loops['plain']):.3f} |",
        "",
        "Trainer / plain loop, pair by pair: "
        f"median {100 * (statistics.median(ratios) - 1):+.1f} %, "
        f"from {100 * (ratios[0] - 1):+.1f} % to {100 * (ratios[-1] - 1):+.1f} %.",
        "",
        f"## Scoring against DragWorld's truth: `metrics=truth`, {len(scored)} edits, one thread",
        "",
        f"Mean {statistics.mean(scored):.2f} s of processor time, median "
        f"{statistics.median(scored):.2f}, slowest {max(scored):.2f}.",
        "",
    ]
    return "\n".join(lines)


def machine_name() -> str:
    """What to call this kind of machine: system, architecture, cores, GPU."""
    parts = [platform.system().lower(), platform.machine(), f"{cores()}cores"]
    import torch

    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0).lower().replace(" ", "-"))
    return "_".join(parts)


def hardware() -> str:
    """The processor's name, its usable cores, and the GPU."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{cpu}, {cores()} cores{gpu}"


def conditions(of_commit: str) -> str:
    """Machine, versions, commit and day, for the head of a table."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{hardware()}, Python {platform.python_version()}, {versions}; "
        f"commit {of_commit}, {date.today()}"
    )


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit() -> str:
    """The commit, with a mark if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def load() -> str:
    """The machine's load: more than its cores means that other work was measured too."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
