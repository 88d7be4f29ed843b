"""The report as data: one row per layer, totals, notes. Renderings live beside this file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fxquant.errors import FxquantError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer. Shapes and MACs are per image; bytes are of the weight.

    ``sqnr_db``: SQNR of the layer's output against the float model on calibration images, all
    quantizers active; None where it was not measured. ``kernel``: what really runs. ``reason``:
    why the layer is not int8, empty where it is. ``input_scheme`` and ``weight_scheme`` are
    scheme texts, empty for float. ``choices``: what passes chose at the layer, as ``pass: reason``;
    NoisyQuant's has the error before and after and the provable share.
    """

    layer: str
    role: str
    source: str = ""
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    macs: int = 0
    float_bytes: int = 0
    bytes: int = 0
    input_scheme: str = ""
    weight_scheme: str = ""
    sqnr_db: float | None = None
    kernel: str = ""
    int8: bool = False
    reason: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One method at one non-linearity. ``in_db``, ``out_db``: SQNR of its input and output against
    the float model, the mean of the images' ratios inside the logarithm; ``cost_us``: microseconds
    per image where it was measured; ``chosen``: whether the plan has it here."""

    layer: str
    method: str
    in_db: float
    out_db: float
    cost_us: float | None = None
    chosen: bool = False

    @property
    def delta_db(self) -> float:
        """dB lost through the layer."""
        return self.in_db - self.out_db


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over all rows; ``linear_*`` counts weighted layers only."""

    macs: int
    int8_macs: int
    linear_macs: int
    int8_linear_macs: int
    float_bytes: int
    bytes: int
    int8_bytes: int
    layers: int
    int8_layers: int

    @property
    def int8_linear_share(self) -> float:
        """Share of the weighted layers' MACs that run in int8, 0 to 1."""
        return self.int8_linear_macs / self.linear_macs if self.linear_macs else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rows with a header. ``simulated`` is true for the reference backend: same numbers, no speed;
    not where the graph itself computes in integers.

    ``timings``: (step, seconds). ``notes``: (layer or empty string, sentence). ``sensitivities``:
    methods tried at non-linearities, layer by layer.
    """

    model: str
    recipe: str
    backend: str
    machine: str
    simulated: bool
    rows: tuple[Row, ...]
    output_sqnr_db: float | None = None
    timings: tuple[tuple[str, float], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()

    @property
    def totals(self) -> Totals:
        """Sums over the rows."""
        weighted = [row for row in self.rows if row.float_bytes]
        return Totals(
            macs=sum(row.macs for row in self.rows),
            int8_macs=sum(row.macs for row in self.rows if row.int8),
            linear_macs=sum(row.macs for row in weighted),
            int8_linear_macs=sum(row.macs for row in weighted if row.int8),
            float_bytes=sum(row.float_bytes for row in self.rows),
            bytes=sum(row.bytes for row in self.rows),
            int8_bytes=sum(row.bytes for row in self.rows if row.int8),
            layers=len(weighted),
            int8_layers=sum(row.int8 for row in weighted),
        )

    def __getitem__(self, layer: str) -> Row:
        for row in self.rows:
            if row.layer == layer:
                return row
        raise FxquantError(f"the report has no layer {layer!r}", fix="see [r.layer for r in rows]")

    def with_rows(self, rows: tuple[Row, ...], **changes: Any) -> Report:
        """A copy with other rows, and other header fields where given."""
        return replace(self, rows=rows, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain data, totals included."""
        totals = asdict(self.totals) | {"int8_linear_share": self.totals.int8_linear_share}
        return asdict(self) | {"totals": totals}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Report:
        """Read :meth:`to_json` back."""
        try:
            values = {f.name: data[f.name] for f in fields(Report) if f.name != "sensitivities"}
            tried = data.get("sensitivities", ())
            values["sensitivities"] = tuple(Sensitivity(**entry) for entry in tried)
            rows = []
            for entry in values["rows"]:
                shapes = {k: tuple(entry[k]) for k in ("input_shape", "output_shape")}
                chosen = {"choices": tuple(map(str, entry.get("choices", ())))}
                rows.append(Row(**{**entry, **shapes, **chosen}))
            values["rows"] = tuple(rows)
            values["timings"] = tuple((str(n), float(s)) for n, s in values["timings"])
            values["notes"] = tuple((str(a), str(b)) for a, b in values["notes"])
            return Report(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise FxquantError("this is not a fxquant report", why=str(error)) from error

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        from pathlib import Path

        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def show(self, *, all_layers: bool = False) -> None:
        """Print the table; ``all_layers`` also shows norms, activations and additions."""
        from fxquant.report.terminal import show

        show(self, all_layers=all_layers)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained HTML page."""
        from fxquant.report.html import write_html

        write_html(self, path)
