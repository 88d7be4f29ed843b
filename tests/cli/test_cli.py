"""The commands as a user types them, on a model of their own file in the working folder."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import fxquant
from fxquant.artifact import read
from fxquant.cli.main import app
from fxquant.errors import FxquantError
from fxquant.report import Report
from fxquant.timing import FEWEST

MODULE = "fxquant_cli_tiny"
SPEC = f"{MODULE}:build"
CODE = """
import torch
from torch import nn


class Tiny(nn.Module):
    image_size = 32

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.norm = nn.LayerNorm(32)
        self.fc1 = nn.Linear(32, 64)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(64, 32)
        self.head = nn.Linear(32, 16)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return self.head(x.mean(1))


def build():
    torch.manual_seed(0)
    return Tiny()


def number():
    return 3
"""
CLASSES = (3, 5)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.stderr}{result.exception}"
    return result


def contents(folder: Path) -> dict[str, bytes]:
    files = (
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: a model, images by class, an artifact and its report."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / f"{MODULE}.py").write_text(CODE, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    for index in CLASSES:
        (folder / "images" / str(index)).mkdir(parents=True)
        for number in range(4):
            pixels = torch.randint(0, 256, (40, 36, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "images" / str(index) / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr("fxquant.timing.baseline_is_fair", lambda: True)
        compiled = ["compile", SPEC, "--calibration", "images"]
        succeed(*compiled, "--out", "x86.fxq", "--report", "x86.html")
        succeed(*compiled, "--backend", "reference", "--out", "ref.fxq")
        yield folder
    sys.modules.pop(MODULE, None)


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
    for part in ("Tiny", "fc1", "onednn int8", "runs on   x86", "pipeline  annotate", "format 1"):
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


COMPILE = ("compile", SPEC, "--calibration", "images", "--out", "new.fxq")
WRONG = {
    "no_model": (("compile", "timm", "--out", "new.fxq"), "not a model", "timm:NAME"),
    "no_module": (("compile", "nowhere:x", "--out", "new.fxq"), "cannot import", "nowhere"),
    "no_nn_module": (("compile", f"{MODULE}:number", "--out", "x.fxq"), "not a model", "int"),
    "no_weights": ((*COMPILE, "--weights", "no.safetensors"), "weights do not load", "no.safe"),
    "recipe": ((*COMPILE, "--recipe", "w8a"), "unknown recipe", "did you mean 'w8a8'"),
    "backend": ((*COMPILE, "--backend", "x87"), "unknown backend", "'x86'"),
    "override": ((*COMPILE, "--override", "head"), "not an override", "GLOB=SCHEME"),
    "scheme": ((*COMPILE, "--override", "head=s99"), "", "override"),
    "no_site": ((*COMPILE, "--override", "tail=float"), "matches no site", "tail"),
    "all_float": ((*COMPILE, "--override", "*=float"), "not one int8 kernel", "reference"),
    "plan": ((*COMPILE, "--plan", f"{MODULE}.py"), "cannot read the plan", MODULE),
    "plan_and_override": (
        (*COMPILE, "--plan", "p.json", "--override", "head=float"),
        "takes no overrides",
        "edit the plan",
    ),
    "example": ((*COMPILE, "--example", "3,x"), "positive numbers", "--example"),
    "images": (
        ("compile", SPEC, "--calibration", "nowhere", "--out", "new.fxq"),
        "folder does not exist",
        "nowhere",
    ),
    "folder": (("compile", SPEC, "--out", "nowhere/new.fxq"), "output folder", "nowhere"),
    "out_is_folder": (("compile", SPEC, "--out", "images"), "is a folder", "images"),
    "same_name": ((*COMPILE, "--report", "new.fxq"), "same name", "new.fxq"),
    "inspect_nothing": (("inspect", "no.fxq", "--html", "new.html"), "no such artifact", "no.fxq"),
    "inspect_other": (("inspect", f"{MODULE}.py", "--plan", "new.json"), "not an artifact", MODULE),
    "bench_batch": (("bench", "ref.fxq", "--batch", "0"), "positive numbers", "--batch"),
    "bench_against": (("bench", SPEC, "--against", SPEC), "--against", "leave it out"),
    "quickstart": (("quickstart", "--report", "nowhere/r.html"), "output folder", "nowhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_exits_with_2_and_writes_nothing(home: Path, name: str) -> None:
    arguments, what, hint = WRONG[name]
    before = contents(home)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert what in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(home) == before


def test_a_failure_while_writing_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(report: Report, path: Path) -> None:
        Path(path).write_text("half", encoding="utf-8")
        raise FxquantError("the disk is full", where=str(path))

    monkeypatch.setattr(Report, "to_html", refuse)
    old = tmp_path / "old.fxq"
    old.write_bytes(b"old")
    command = ["compile", SPEC, "--calibration", "images", "--backend", "reference", "--out", old]
    result = invoke(*command, "--report", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "the disk is full" in result.stderr
    assert contents(tmp_path) == {"old.fxq": b"old"}


def test_evaluate_by_class_folder(home: Path) -> None:
    text = succeed("evaluate", "x86.fxq", "--images", "images", "--executor", "eager").output
    assert "images" in text
    assert "int8 top-1" in text
    assert "float top-1" not in text
    assert "mean (0.485, 0.456, 0.406)" in text


def test_evaluate_against_float(home: Path, tmp_path: Path) -> None:
    """Labels made by the float model itself: its top-1 is 100 %."""
    from fxquant.models.example import Preprocessing
    from fxquant.models.images import load_image

    model = sys.modules[MODULE].build().eval()
    labels = tmp_path / "labels.csv"
    rows = ["file,label"]
    for index in CLASSES:
        path = home / "images" / str(index) / "0.png"
        x = load_image(path, Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3))
        rows.append(f"{index}/0.png,{int(model(x[None]).argmax())}")
    labels.write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = ["evaluate", "ref.fxq", "--images", "images", "--labels", labels, "--batch", "3"]
    text = succeed(*command, "--against", SPEC, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    rows = {line[:21].strip(): line[21:].strip() for line in text.output.splitlines()}
    assert rows["images"] == "2"
    assert rows["float top-1"] == "100.00 %"
    assert rows["same class as float"].endswith("%")
    assert rows["SQNR of the logits"].endswith("dB")


def test_evaluate_needs_something_to_compare_with(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((home / "images" / "3" / "0.png").read_bytes())
    result = invoke("evaluate", "ref.fxq", "--images", tmp_path)
    assert result.exit_code == 2
    assert "nothing to compare with" in result.stderr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name,class\na,1\n", "cannot be read"),
        ("file,label\n3/0.png,one\n", "cannot be read"),
        ("file,label\n", "name no image"),
        ("file,label\nno.png,1\n", "does not exist"),
        ("file,label\n3/0.png,99\n", "beyond the 16 classes"),
    ],
)
def test_evaluate_refuses_labels(home: Path, tmp_path: Path, text: str, what: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    result = invoke("evaluate", "ref.fxq", "--images", "images", "--labels", labels)
    assert result.exit_code == 2
    assert what in result.stderr


def test_bench_reports_ratio_and_distance(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference stands in for int8 and the eager model for the compiled one: no compiler."""
    monkeypatch.setattr("fxquant.timing.float_baseline", lambda model, x: model)
    command = ["bench", "ref.fxq", "--against", SPEC, "--batch", "1,2", "--seconds", "0.01"]
    result = succeed(*command)
    assert "float / int8" in result.output
    assert f"of {FEWEST}" in result.output
    assert "SQNR of the logits" in result.output
    assert "simulates int8" in result.stderr
    assert "MKL's fast path" in result.output


def test_bench_of_an_artifact_alone(home: Path) -> None:
    result = succeed("bench", "ref.fxq", "--batch", "1", "--seconds", "0.01")
    assert "no float model" in result.stderr
    assert "SQNR" not in result.output
