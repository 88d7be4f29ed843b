"""The report: data and both renderings."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fxquant.errors import FxquantError
from fxquant.report import Report, Row
from fxquant.report.terminal import SIMULATED, amount, decibels, show

INT8 = Row(
    layer="blocks.0.mlp.fc1",
    role="fc1",
    input_shape=(197, 192),
    output_shape=(197, 768),
    macs=29_048_832,
    float_bytes=589_824,
    bytes=147_456,
    input_scheme="a8/tensor/percentile@99.99",
    weight_scheme="s8/channel/minmax",
    sqnr_db=31.25,
    kernel="int8_linear",
    int8=True,
)
FLOAT = Row(
    layer="patch_embed.proj",
    role="patch_embed",
    macs=28_901_376,
    float_bytes=589_824,
    bytes=589_824,
    kernel="float32",
    reason="no int8 kernel for this role",
)
PRODUCT = Row(
    layer="blocks.0.attn.qk", role="attention_qk", macs=7_000_000, kernel="sdpa", reason="no gain"
)
NORM = Row(layer="blocks.0.norm1", role="layer_norm", input_shape=(197, 192), sqnr_db=150.0)
EVIL = "<script>alert('x')</script>[bold]\x1b[31m&"


def make(*rows: Row, simulated: bool = False, sqnr: float | None = 18.42) -> Report:
    return Report(
        model="vit_tiny",
        recipe="w8a8",
        backend="reference" if simulated else "x86",
        machine="a CPU with VNNI",
        simulated=simulated,
        rows=rows or (FLOAT, NORM, INT8, PRODUCT),
        output_sqnr_db=sqnr,
        timings=(("calibrate", 12.345), ("plan", 0.01)),
        notes=(("", "Few images."), ("blocks.0.mlp.fc1", "One outlier channel.")),
    )


def text_of(report: Report, *, width: int = 100) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=width))
    return out.getvalue()


def page_of(report: Report, folder: Path) -> str:
    report.to_html(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_json_round_trip(tmp_path: Path) -> None:
    report = make(simulated=True)
    report.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert Report.from_json(data) == report
    assert data["totals"]["layers"] == 2


def test_totals() -> None:
    totals = make().totals
    assert (totals.layers, totals.int8_layers) == (2, 1)
    assert totals.macs == INT8.macs + FLOAT.macs + PRODUCT.macs
    assert (totals.linear_macs, totals.int8_linear_macs) == (INT8.macs + FLOAT.macs, INT8.macs)
    assert (totals.float_bytes, totals.bytes, totals.int8_bytes) == (1_179_648, 737_280, 147_456)
    assert totals.int8_linear_share == INT8.macs / (INT8.macs + FLOAT.macs)
    assert make(NORM).totals.int8_linear_share == 0.0


def test_what_is_not_there_is_an_error() -> None:
    assert make()["blocks.0.norm1"] is NORM
    with pytest.raises(FxquantError, match="no layer 'head'"):
        make()["head"]
    with pytest.raises(FxquantError, match="not a fxquant report"):
        Report.from_json({"model": "vit_tiny"})


def test_numbers_have_three_digits_and_decibels_one_decimal() -> None:
    amounts = [amount(value) for value in (0, 197, 999.4, 999.6, 999_999, 21_783_552)]
    assert amounts == ["0", "197", "999", "1k", "1M", "21.8M"]
    texts = [decibels(value) for value in (None, 18.42, -3.0, 150.0, math.nan)]
    assert texts == ["-", "18.4", "-3.0", "exact", "nan"]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_terminal_shows_every_weighted_layer(width: int) -> None:
    text = text_of(make(), width=width)
    for row in (FLOAT, INT8, PRODUCT):
        assert re.search(rf"^{re.escape(row.layer)} +{row.role} ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= width


def test_terminal_rows_and_totals() -> None:
    text = text_of(make())
    row = next(line for line in text.splitlines() if line.startswith(INT8.layer))
    assert row.split()[1:] == ["fc1", "197x(192->768)", "29M", "a8", "s8", "31.2", "int8_linear"]
    assert "input bits/tensor/percentile@99.99, weight bits/channel/minmax" in text
    unusual = replace(INT8, weight_scheme="s4/group64/mse")
    assert re.search(r"s4/group64/ .*\n +mse", text_of(make(INT8, INT8, unusual)))
    assert re.search(r"int8 layers +1 of 2", text)
    assert re.search(r"int8 linear MACs +50.1% of 58M", text)
    assert re.search(r"weight bytes +1.18 MB -> 737 kB \(1.60x smaller\)", text)
    assert re.search(r"output SQNR +18.4 dB", text)
    assert "calibrate 12.35 s, plan 0.01 s" in text
    assert "blocks.0.mlp.fc1: One outlier channel." in text


def test_terminal_gives_each_reason_once_and_counts_rows_without_macs() -> None:
    text = text_of(make(FLOAT, INT8, PRODUCT, NORM, PRODUCT))
    assert "[1] no int8 kernel for this role (1 row)" in text
    assert "[2] no gain (2 rows)" in text
    assert text.count("sdpa [2]") == 2
    assert NORM.layer not in text
    assert "not shown, as they have no MACs: 1 layer_norm" in text


def test_plain_text_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    make().show()
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) == 120
    make().show(all_layers=True)
    assert NORM.layer in capsys.readouterr().out


def test_simulated_is_loud_in_both_renderings(tmp_path: Path) -> None:
    rows = (FLOAT, replace(INT8, int8=False, kernel="float32, int8 simulated"))
    report = make(*rows, simulated=True)
    text, page = text_of(report), page_of(report, tmp_path)
    assert all(SIMULATED in rendering for rendering in (text, page))
    assert re.search(r"quantized layers +1 of 2", text)
    assert "int8 layers" not in text
    assert "quantized weighted layers" in page
    assert SIMULATED not in text_of(make()) + page_of(make(), tmp_path)


@pytest.mark.parametrize("rows", [(), (FLOAT, replace(INT8, sqnr_db=None))])
def test_renderings_without_measurements(rows: tuple[Row, ...], tmp_path: Path) -> None:
    report = make(sqnr=None).with_rows(rows, timings=(), notes=())
    assert re.search(r"output SQNR +not measured", text_of(report))
    page = page_of(report, tmp_path)
    assert "Not measured." in page
    assert 'role="img"' not in page


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    outside = r"https?://|@import|url\(|\b(src|href|srcset|action)\s*=|<(link|img|iframe|object)\b"
    assert re.search(outside, page_of(make(), tmp_path)) is None


def test_no_text_is_read_as_markup(tmp_path: Path) -> None:
    evil = replace(INT8, layer=EVIL, role=EVIL, kernel=EVIL, reason=EVIL)
    evil = replace(evil, input_scheme=EVIL, weight_scheme=EVIL)
    report = replace(make(evil), notes=((EVIL, EVIL),), timings=((EVIL, 1.0),))
    report = replace(report, model=EVIL, recipe=EVIL, backend=EVIL, machine=EVIL)
    page, text = page_of(report, tmp_path), text_of(report, width=200)
    assert "\x1b" not in page + text
    assert "<script>alert('x')</script>[bold]" in text
    assert page.count("<script>") == 1
    # Model twice, four header facts, two bars, two in the chart, two in the note, six in the row.
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") == 18


def test_page_shows_every_row_and_reason(tmp_path: Path) -> None:
    page = page_of(make(), tmp_path)
    for row in (FLOAT, NORM, INT8, PRODUCT):
        assert f"<code>{row.layer}</code>" in page
        assert row.reason in page
    assert re.findall(r'<tr class="(.*?)"', page) == ["float", "float minor", "int8", "float"]


def test_page_charts_follow_the_data(tmp_path: Path) -> None:
    rows = [replace(INT8, sqnr_db=v, macs=100) for v in (40.0, 20.0, -10.0, 150.0, None, math.nan)]
    page = page_of(make(*rows, replace(FLOAT, macs=200)), tmp_path)
    bars = [float(h) for h in re.findall(r'<rect [^>]* x="[^>]* height="([\d.]+)%"', page)]
    assert bars == pytest.approx([51.43, 25.71, 12.86, 77.14], abs=0.02)
    assert "Not measured: 3. Bars end at 60 dB." in page
    shares = re.findall(r'<rect class="(int8|float)" width="([\d.]+)%" height="8"', page)
    assert shares == [("int8", "75.00"), ("float", "25.00"), ("float", "25.00")]
