"""Methods tried at non-linearities: data, terminal table and heat-map."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fxquant.pipeline.plan import Plan
from fxquant.pipeline.target import Target
from fxquant.report import Report, Row, Sensitivity
from fxquant.report.build import build_sensitivities
from fxquant.report.heatmap import colour, heatmap
from fxquant.report.terminal import show

EVIL = "<script>alert(1)</script>"
TRIED = (
    Sensitivity(layer="a.norm", method="i-bert", in_db=30.0, out_db=29.5, cost_us=7.0, chosen=True),
    Sensitivity(layer="a.norm", method="i-vit", in_db=30.0, out_db=21.0, cost_us=9.0),
    Sensitivity(layer=EVIL, method="i-bert", in_db=20.0, out_db=40.0),
)
REPORT = Report(
    model="m",
    recipe="r",
    backend="reference",
    machine="any",
    simulated=True,
    rows=(Row(layer="fc", role="fc1", macs=10, float_bytes=8, bytes=2),),
    sensitivities=TRIED,
)


def test_choices_of_the_plan_become_figures() -> None:
    plan = Plan({}, Target(backend="reference", machine="any"))
    figures = {
        "in_db": {"i-bert": 30.0, "float": 31.0},
        "out_db": {"i-bert": 29.5, "float": 31.0},
        "cost_us": {"i-bert": 7.0},
    }
    plan = plan.with_choice("nonlinear", "a.norm", {"method": "i-bert", "reason": "", **figures})
    plan = plan.with_choice("nonlinear", "(model)", {"reason": "", "sqnr_db": {}})
    plan = plan.with_choice("smooth", "a.norm", {"reason": ""})
    made = build_sensitivities(plan)
    assert made[0] == TRIED[0]
    assert (made[1].method, made[1].delta_db, made[1].cost_us) == ("float", 0.0, None)
    assert not made[1].chosen
    assert len(made) == 2


def test_they_survive_the_text_and_older_reports_have_none() -> None:
    data = json.loads(json.dumps(REPORT.to_json()))
    assert Report.from_json(data) == REPORT
    del data["sensitivities"]
    assert Report.from_json(data) == replace(REPORT, sensitivities=())


def test_the_page_has_a_heat_map_and_keeps_names_as_text(tmp_path: Path) -> None:
    REPORT.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>0.5</b>" in page
    assert ">9.0<" in page
    assert colour(9.0) in page
    assert EVIL not in page
    assert heatmap(()) == ""
    replace(REPORT, sensitivities=()).to_html(tmp_path / "none.html")
    assert "dB lost through" not in (tmp_path / "none.html").read_text(encoding="utf-8")


def test_colours_go_from_blue_to_red() -> None:
    reds = [int(colour(db)[4:].split(",")[0]) for db in (-5.0, 0.0, 5.0, 10.0)]
    blues = [int(colour(db)[4:-1].split(",")[2]) for db in (10.0, 15.0, 20.0, 99.0)]
    assert reds[0] == reds[1] < reds[2] < reds[3]
    assert blues[0] > blues[1] > blues[2] == blues[3]


def test_the_terminal_shows_them_with_all_layers_only() -> None:
    def text(*, all_layers: bool) -> str:
        out = io.StringIO()
        show(REPORT, Console(file=out, width=120), all_layers=all_layers)
        return out.getvalue()

    assert "0.50" in text(all_layers=True)
    assert "9.00" in text(all_layers=True)
    assert "by method" not in text(all_layers=False)
