"""Targets of the GPU benchmark, compared with its results."""

from collections.abc import Iterator, Mapping, Sequence

from ravlt.analysis.speed.report import growth

from .models import AUTOCAST, CONVNEXT, LINEAR, SWIN
from .ops import FLASH

_MIN_COPY_SHARE = 0.7
_MIN_ELEMENTS = 16_000_000  # of q, for the share of copy bandwidth
_MIN_TOKENS = 2048  # for the comparison with flash attention
_MIN_INFERENCE_SPEEDUPS = {SWIN: 1.3, CONVNEXT: 1.0}
_MIN_TRAINING_SPEEDUP = 1.0
_MAX_SLOPE = 1.05
_MODEL_FORMS = ("eager", "graph", "compiled")
Rows = Sequence[Mapping]


def targets(parts: Mapping[str, Rows]) -> list[dict]:
    """Compare results with the targets.

    Args:
        parts: Rows of ``ops``, ``backbones`` and ``training``.

    Returns:
        Dictionaries with ``target``, ``reached`` and ``met``.
    """
    ops, backbones, training = (
        [row for row in parts.get(name, ()) if "seconds" in row]
        for name in ("ops", "backbones", "training")
    )
    rows = [*_bandwidth(ops), *_flash(ops), *_inference(backbones)]
    return [*rows, *_training(training), *_slopes(backbones)]


def copy_bandwidth(ops: Rows) -> float | None:
    """Return the bandwidth of the measured copy in bytes/s, None if it is missing."""
    for row in ops:
        if row["operator"] == "copy" and "seconds" in row:
            return row["bytes"] / row["seconds"]
    return None


def _bandwidth(ops: Rows) -> Iterator[dict]:
    rate = copy_bandwidth(ops)
    for part in ("forward", "forward + backward"):
        shares = [
            (row["bytes"] / row["seconds"] / rate, _describe(row))
            for row in _kernels(ops, "graph")
            if row["pass"] == part and rate and _elements(row) >= _MIN_ELEMENTS
        ]
        target = (
            f"RALA, {part}: at least {_MIN_COPY_SHARE:.0%} of copy bandwidth from "
            f"{_MIN_ELEMENTS / 1e6:.0f} M elements on"
        )
        yield _compare(
            target, shares, lambda share: share >= _MIN_COPY_SHARE, "{:.0%}".format
        )


def _flash(ops: Rows) -> Iterator[dict]:
    for form in ("eager", "graph"):
        flash = {
            _shape(row): row["seconds"]
            for row in ops
            if row.get("implementation") == FLASH and row["form"] == form
        }
        ratios = [
            (flash[_shape(row)] / row["seconds"], _describe(row))
            for row in _kernels(ops, form)
            if row["pass"] == "forward"
            and row["tokens"] >= _MIN_TOKENS
            and _shape(row) in flash
        ]
        target = (
            f"RALA, forward, {form}: faster than {FLASH} from {_MIN_TOKENS} tokens on"
        )
        yield _compare(target, ratios, lambda ratio: ratio > 1, "{:.2f} x".format)


def _inference(rows: Rows) -> Iterator[dict]:
    for peer, least in _MIN_INFERENCE_SPEEDUPS.items():
        for form in _MODEL_FORMS:
            ratios = _speed_ratios([r for r in rows if r["form"] == form], peer)
            target = f"{LINEAR}, inference, {form}: at least {least:.1f} x {peer}"
            yield _compare(
                target,
                ratios,
                lambda ratio, least=least: ratio >= least,
                "{:.2f} x".format,
            )


def _training(rows: Rows) -> Iterator[dict]:
    target = f"{LINEAR}, training step: at least {_MIN_TRAINING_SPEEDUP:.1f} x {SWIN}"
    ratios = _speed_ratios(rows, SWIN)
    yield _compare(
        target, ratios, lambda ratio: ratio >= _MIN_TRAINING_SPEEDUP, "{:.2f} x".format
    )
    memory = [
        (ours / theirs, where) for ours, theirs, where in _pairs(rows, SWIN, "peak_mb")
    ]
    target = f"{LINEAR}, training step: no more memory than {SWIN}"
    yield _compare(
        target, memory, lambda ratio: ratio <= 1, "{:.2f} x".format, highest=True
    )


def _slopes(rows: Rows) -> Iterator[dict]:
    for form in ("eager", "graph"):
        chosen = [
            row
            for row in rows
            if (row["model"], row["form"], row["precision"], row["batch"])
            == (LINEAR, form, AUTOCAST, 1)
        ]
        sizes = sorted((row["size"] for row in chosen), key=_pixels)
        where = f"{sizes[0]} to {sizes[-1]}" if sizes else ""
        slopes = [(slope, where) for slope in growth(chosen, "seconds").values()]
        target = (
            f"{LINEAR}, batch 1, {form}: time grows with pixels^{_MAX_SLOPE} at most"
        )
        yield _compare(
            target,
            slopes,
            lambda slope: slope <= _MAX_SLOPE,
            "^{:.3f}".format,
            highest=True,
        )


def _compare(target, values, is_met, write, highest: bool = False) -> dict:
    """Report the worst and the best value and where they were measured.

    Args:
        target: Text of the target.
        values: Pairs of a value and a description of where it was measured.
        is_met: Function that returns True for a value that meets the target.
        write: Function that formats a value.
        highest: Whether the highest value is the worst.
    """
    if not values:
        return {"target": target, "reached": "not measured", "met": ""}
    ordered = sorted(values, reverse=highest)
    worst, where = ordered[0]
    reached = f"{write(worst)} ({where})"
    if len(ordered) > 1:
        reached += f" to {write(ordered[-1][0])} ({ordered[-1][1]})"
    met = sum(is_met(value) for value, _ in values)
    return {"target": target, "reached": reached, "met": f"{met} of {len(values)}"}


def _speed_ratios(rows: Rows, peer: str) -> list[tuple[float, str]]:
    return [
        (theirs / ours, where) for ours, theirs, where in _pairs(rows, peer, "seconds")
    ]


def _pairs(rows: Rows, peer: str, key: str) -> Iterator[tuple[float, float, str]]:
    """Pair the values of the all-linear network with a peer's in the same setting."""
    peers = {
        (row["form"], row["precision"], row["batch"], row["size"]): row[key]
        for row in rows
        if row["model"] == peer and row.get(key)
    }
    for row in rows:
        setting = (row["form"], row["precision"], row["batch"], row["size"])
        if row["model"] == LINEAR and row.get(key) and setting in peers:
            where = f"{row['precision']}, batch {row['batch']}, {row['size']}"
            yield row[key], peers[setting], where


def _kernels(ops: Rows, form: str) -> list[Mapping]:
    return [
        row
        for row in ops
        if (row["operator"], row.get("implementation")) == ("rala", "kernels")
        and row["form"] == form
    ]


def _shape(row: Mapping) -> tuple:
    return tuple(row[key] for key in ("pass", "batch", "heads", "size", "dim"))


def _elements(row: Mapping) -> int:
    return row["batch"] * row["heads"] * row["tokens"] * row["dim"]


def _describe(row: Mapping) -> str:
    return "{batch} x {heads} heads, {tokens} tokens, d {dim}".format(**row)


def _pixels(size: str) -> int:
    height, width = map(int, size.split("x"))
    return height * width
