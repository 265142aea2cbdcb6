"""`qafila bench`: how fast a model is on this machine."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from qafila.cli import options as opt


def command(
    model: opt.Model = "default",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is read.")] = 512,
    generate: Annotated[int, typer.Option(min=2, help="Tokens that each stream generates.")] = 128,
    streams: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 1,
    depth: Annotated[int, typer.Option(min=0, help="Tokens of context before the prompt, not measured.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Measurements, of which the median counts.")] = 3,
    threads: opt.Threads = None,
    kv_type: opt.KvType = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a model: tokens a second of prompts and of answers, time to the first token, memory."""
    from qafila.chat.placement import make_runner
    from qafila.engine.bench import Workload, measure
    from qafila.engine.engine import Engine
    from qafila.weights.adapter_model import open_for_engine
    from qafila.weights.hub import resolve

    work = Workload(prompt, generate, streams, depth, repeat)
    path = resolve(model)
    started = time.perf_counter()
    checkpoint, adapter = open_for_engine(path, merge_adapter=device is not None)
    work.check_context(checkpoint.config.context_length)
    runner = make_runner(
        checkpoint, device=device, dtype=dtype, threads=threads, context=work.kv_tokens, kv_type=kv_type
    )
    with Engine(runner) as engine:
        loaded = time.perf_counter() - started
        if adapter is not None:
            engine.add_adapter("own", adapter)
        progress = _show_progress if sys.stderr.isatty() else None
        measured = measure(engine, work, progress, adapter=None if adapter is None else "own")
    report: dict[str, Any] = {
        "model": model,
        "path": str(path),
        "prefill_tokens_per_second": round(measured.prefill_tokens_per_second, 2),
        "decode_tokens_per_second": round(measured.decode_tokens_per_second, 2),
        "load_seconds": round(loaded, 4),
        "first_token_seconds": round(measured.first_token_seconds, 5),
        "peak_memory_bytes": _peak_memory(),
        "prompt": prompt,
        "generate": generate,
        "streams": streams,
        "depth": depth,
        "repeat": repeat,
        "threads": getattr(runner, "threads", None),
        "isa": getattr(runner, "isa", None),
        "device": device or "native",
        "kv_type": getattr(runner, "kv_type", None),
        "weights_bytes": checkpoint.weights_bytes,
        "prefill_tokens_per_second_all": [round(value, 2) for value in measured.prefill_all],
        "decode_tokens_per_second_all": [round(value, 2) for value in measured.decode_all],
    }
    print(json.dumps(report, ensure_ascii=False) if as_json else _table(report))


def _show_progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\r\x1b[K"
    print(f"measuring {done}/{total} ...", end=end, file=sys.stderr, flush=True)


def _table(report: dict[str, Any]) -> str:
    """The figures for a person."""
    where = report["isa"] or report["device"]
    threads = f", {report['threads']} threads" if report["threads"] else ""
    depth = f" after {report['depth']:,}" if report["depth"] else ""
    streams = f", {report['streams']} streams together" if report["streams"] > 1 else ""
    rows = [
        (f"prefill {report['prompt']:,}{depth}", f"{report['prefill_tokens_per_second']:,.1f} tokens/s"),
        (f"decode {report['generate']:,}{depth}{streams}", f"{report['decode_tokens_per_second']:,.1f} tokens/s"),
        ("first token", f"{report['first_token_seconds']:.3f} s"),
        ("load", f"{report['load_seconds']:.3f} s"),
        ("peak memory", f"{report['peak_memory_bytes'] / 1e6:,.0f} MB"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{report['model']}: {report['weights_bytes'] / 1e6:,.1f} MB of weights, {where}{threads}"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {value:>18}" for name, value in rows)])


def _peak_memory() -> int:
    """Most bytes this process ever had resident."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
