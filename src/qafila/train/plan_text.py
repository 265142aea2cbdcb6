"""A plan as people read it: aligned lines of what and how much."""

from __future__ import annotations

from qafila.memory import gigabytes
from qafila.train.estimate import Plan


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """Labels and values in the order in which they are worth reading; memory parts are indented by two spaces."""
    rows = [
        ("run", f"{plan.name} ({plan.objective})"),
        ("model", _model(plan)),
        ("on", _processes(plan)),
        ("step", _step(plan)),
        ("amount", _amount(plan)),
        ("memory", f"{gigabytes(plan.memory.total)} a process"),
    ]
    rows += [(f"  {part}", gigabytes(size)) for part, size in plan.memory.parts.items() if size]
    rows.append(("fits", f"{'yes' if plan.fits else 'no'}: {plan.verdict}"))
    rows.append(
        ("work", f"{si(plan.flops_per_token)}FLOP a token" + (f", {plan.flops:.2e} in all" if plan.flops else ""))
    )
    share = f", {100 * plan.mfu:.0f}% MFU" if plan.mfu is not None else ""
    rows.append(("speed", f"{plan.tokens_per_second:,.0f} tokens/s{share} ({plan.basis})"))
    if plan.seconds is None or plan.processor_hours is None:
        rows.append(("time", "known once the data is packed"))
        return rows
    hours = "" if plan.processor == "CPU" else f", {plan.processor_hours:,.0f} {plan.processor}-hours"
    rows.append(("time", duration(plan.seconds) + hours))
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.2f}"))
    if plan.kilowatt_hours is not None and plan.tonnes_co2 is not None:
        rows.append(("energy", f"{plan.kilowatt_hours:,.1f} kWh, {plan.tonnes_co2:,.3g} t CO2"))
    return rows


def plan_lines(plan: Plan) -> list[str]:
    """The plan's rows as text, values aligned."""
    rows = plan_rows(plan)
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def si(value: float) -> str:
    """A number with the prefix of its thousands: ``57.9 G``."""
    for prefix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


def duration(seconds: float) -> str:
    """A length of time in the two units that matter: ``3 min 20 s``."""
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part) * part, size)
            return f"{whole:,} {unit} {rest // part} {below}"
    return f"{seconds:.1f} s"


def _model(plan: Plan) -> str:
    text = f"{plan.parameters:,} parameters"
    if plan.active != plan.parameters:
        text += f", {plan.active:,} used by a token"
    if plan.trained == plan.parameters:
        return text + ", all trained"
    return text + f", {plan.trained:,} trained ({100 * plan.trained / plan.parameters:.2g}%)"


def _processes(plan: Plan) -> str:
    layout = ", ".join(f"{name} {size}" for name, size in plan.layout.items())
    return f"{plan.processes:,} x {plan.processor}" + (f" ({layout})" if layout else "")


def _step(plan: Plan) -> str:
    portions = f" in {plan.micro_batches} micro-batches a process" if plan.micro_batches > 1 else ""
    return f"{plan.batch:,} rows of {plan.sequence:,} tokens = {plan.tokens_per_step:,} tokens{portions}"


def _amount(plan: Plan) -> str:
    if plan.steps is None or plan.tokens is None:
        return "known once the data is packed"
    text = f"{plan.steps:,} steps, {plan.tokens:,} tokens"
    if plan.epochs is not None:
        text += f", {plan.epochs:.3g} epochs"
    if plan.targets is not None:
        text += f", about {plan.targets:,} of them learned"
    return text
