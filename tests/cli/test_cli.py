"""Help, compile and inspect, on a model in the working folder."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import fxquant
from fxquant.artifact import read
from fxquant.report import Report
from tests.cli.tiny import MODULE, SPEC, succeed


def test_help_names_every_command() -> None:
    text = succeed("--help").output
    for command in ("quickstart", "compile", "inspect", "evaluate", "bench", "recipes"):
        assert command in text
        assert "Usage" in succeed(command, "--help").output


def test_help_needs_no_extra_and_no_compiler() -> None:
    heavy = "{'timm', 'torchvision', 'sklearn', 'PIL', 'matplotlib', 'torch._inductor.compile_fx'}"
    code = f"import sys, fxquant.cli.main; print({heavy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_version() -> None:
    assert succeed("--version").output == f"fxquant {fxquant.__version__}\n"


def test_recipes_are_listed() -> None:
    text = succeed("recipes").output
    assert all(name in text for name in fxquant.recipe_names())
    assert "per output channel" in text


def test_compile_writes_an_artifact_that_runs(home: Path) -> None:
    made = fxquant.load(home / "x86.fxq", executor="eager")
    assert made.report.backend == "x86"
    assert made(torch.zeros(3, 3, 32, 32)).shape == (3, 16)
    assert "<html" in (home / "x86.html").read_text(encoding="utf-8")
    assert fxquant.load("ref.fxq").report.simulated


def test_compile_takes_overrides(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.fxq"
    command = ["compile", SPEC, "--calibration", "images", "--out", out]
    text = succeed(*command, "--override", "fc1=float", "--override", "head:*=float").output
    assert "override fc1" in text
    plan = read(out).plan
    quantized = {site.layer for site in plan if plan[site].scheme is not None}
    assert quantized == {"patch", "fc2"}


def test_compile_without_calibration_takes_ranges_per_token(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.fxq"
    succeed("compile", SPEC, "--example", "3,32,32", "--override", "head=float", "--out", out)
    assert read(out).plan["fc1:input"].scheme == fxquant.Scheme.parse("a8/token/dynamic")


def test_compile_loads_weights(home: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    state = sys.modules[MODULE].build().state_dict()
    save_file({name: 2 * value for name, value in state.items()}, weights)
    command = ["compile", SPEC, "--weights", weights, "--calibration", "images"]
    succeed(*command, "--backend", "reference", "--out", tmp_path / "x.fxq")
    x = torch.zeros(1, 3, 32, 32)
    assert not torch.equal(fxquant.load(tmp_path / "x.fxq")(x), fxquant.load("ref.fxq")(x))


def test_a_plan_goes_out_and_comes_back(home: Path, tmp_path: Path) -> None:
    plan, again = tmp_path / "plan.json", tmp_path / "x.fxq"
    succeed("inspect", "x86.fxq", "--plan", plan)
    succeed("compile", SPEC, "--calibration", "images", "--plan", plan, "--out", again)
    before, after = read("x86.fxq").graph_module, read(again).graph_module
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name


def test_inspect_shows_layers_and_origin(home: Path) -> None:
    text = succeed("inspect", "x86.fxq").output
    for part in ("Tiny", "fc1", "int8 linear", "runs on   x86", "pipeline  annotate", "format 1"):
        assert part in text
    all_layers = succeed("inspect", "x86.fxq", "--layers").output
    assert len(all_layers.splitlines()) > len(text.splitlines())


def test_inspect_prints_json(home: Path) -> None:
    data = json.loads(succeed("inspect", "ref.fxq", "--json").output)
    assert data["manifest"]["backend"] == "reference"
    assert Report.from_json({k: v for k, v in data["report"].items() if k != "totals"}).rows


def test_inspect_writes_html(home: Path, tmp_path: Path) -> None:
    succeed("inspect", "x86.fxq", "--html", tmp_path / "r.html", "--plan", tmp_path / "p.json")
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert fxquant.Plan.load(tmp_path / "p.json") == read("x86.fxq").plan
