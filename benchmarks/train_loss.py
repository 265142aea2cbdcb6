"""Time and memory of the loss: ``python benchmarks/train_loss.py [--json]``.

Ours in chunks beside torch's ``cross_entropy`` over all logits, forward and backward, on the same tensors; each runs in
a process of its own so that its peak of memory is its own (Linux). Times are the best of the repetitions; CPU seconds
are those of all threads together, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.train.loss import IGNORED, chunked_cross_entropy


def main() -> None:
    """Measure each case in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--targets", type=float, default=1.0, help="share of the positions that have a target")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--frozen-head", action="store_true", help="the head gets no gradient, as with an adapter")
    parser.add_argument("--one", choices=["torch", "chunked"], help="measure this one here")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return
    results = {}
    for name in ("torch", "chunked"):
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if arguments.json:
        print(json.dumps(results))
        return
    shape = f"T = {arguments.tokens}, V = {arguments.vocabulary}, D = {arguments.dim}, {arguments.dtype}"
    print(f"{shape}, targets {arguments.targets:.0%}, head {'frozen' if arguments.frozen_head else 'learns'}")
    for name, found in results.items():
        times = f"{found['seconds'] * 1e3:8.0f} ms ({found['cpu_seconds']:.2f} CPU s)"
        print(f"{name:8} {times}  {found['bytes'] / 1e6:6.0f} MB beside its inputs")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the best repetition, and bytes that the process grew by beyond its inputs."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    hidden = torch.randn(arguments.tokens, arguments.dim).to(dtype).requires_grad_()
    head = (torch.randn(arguments.vocabulary, arguments.dim) / 20).to(dtype).requires_grad_(not arguments.frozen_head)
    targets = torch.randint(arguments.vocabulary, (arguments.tokens,))
    targets[torch.rand(arguments.tokens) >= arguments.targets] = IGNORED
    before = peak(forget=True)
    seconds, worked, loss = [], [], 0.0
    for _ in range(arguments.repetitions):
        hidden.grad = head.grad = None
        started, used = time.perf_counter(), time.process_time()
        found = lose(arguments.one, hidden, head, targets)
        found.backward()
        seconds.append(time.perf_counter() - started)
        worked.append(time.process_time() - used)
        loss = float(found.detach())
    return {"seconds": min(seconds), "cpu_seconds": min(worked), "bytes": peak() - before, "loss": loss}


def peak(*, forget: bool = False) -> int:
    """The most bytes that were resident so far, or with ``forget`` those that are now, from where it counts again."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def lose(name: str, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The mean loss, one way or the other."""
    if name == "chunked":
        return chunked_cross_entropy(hidden_TD, head_VD, targets_T, 1 / int((targets_T != IGNORED).sum()))
    return F.cross_entropy((hidden_TD @ head_VD.t()).float(), targets_T, ignore_index=IGNORED)


if __name__ == "__main__":
    main()
