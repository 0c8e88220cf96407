"""What the README and the pages under docs/ say is true: their commands run, their tables are the code's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import skimage
from PIL import Image

from gateway.doctor import causes
from gateway.http import responses
from gateway.models import spec
from tests.support.gateways import ROOT

README = (ROOT / "README.md").read_text()
PHOTOS = Path(skimage.__file__).parent / "data"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """The photos that the README's commands name."""
    Image.open(PHOTOS / "chelsea.png").convert("RGB").save(tmp_path / "cat.jpg", quality=92)
    Image.open(PHOTOS / "coffee.png").save(tmp_path / "dog.png")
    return tmp_path


def commands() -> list[str]:
    """The commands of "Ask it", one string each, continued lines joined."""
    block = next(block for block in blocks("sh") if "curl" in block)
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    return re.sub(r"\|\n\s+", "| ", "\n".join(lines)).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_commands_run(running, folder, command):
    address = running.url.removeprefix("http://")
    ours = f"{shlex.quote(sys.executable)} -m gateway"
    command = command.replace("localhost:8080", address).replace("curl ", "curl -sS --fail ")
    if command.startswith(".venv/bin/penstock"):
        command = f"{command.replace('.venv/bin/penstock', ours)} --url {running.url}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "curl" in command:
        answer = json.loads(done.stdout)
        first = answer.get("predictions", [answer])[0]
        assert "cat" in first["prediction"][0]["class"].lower()
    else:
        assert "cat" in done.stdout.lower() or "ready" in done.stdout


def test_there_are_commands_of_every_kind():
    found = commands()
    assert len(found) >= 5
    for word in ("--data-binary", "-F ", "application/json", "penstock predict", "penstock models"):
        assert any(word in command for command in found), word


def test_the_contract_of_the_readme_is_one():
    (text,) = blocks("toml")
    contract = spec.parse_contract(text)
    assert contract.output.task == "classification"
    assert contract.input.scale == pytest.approx(1 / 255)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) - {"python"} <= targets


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_error_table_is_the_code_s():
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", (ROOT / "docs" / "http.md").read_text(), re.MULTILINE)
    assert dict(rows) == {kind.code: str(status) for kind, status in responses.STATUS.items()}


@pytest.mark.parametrize("section", [spec.Input, spec.Output, spec.Batching, spec.Limits, spec.Fake])
def test_every_key_of_a_contract_is_documented(section):
    page = (ROOT / "docs" / "models.md").read_text()
    for field in msgspec.structs.fields(section):
        assert f"`{field.name}`" in page, field.name


def test_every_key_of_a_gpu_is_documented_with_its_default():
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| `([^`]+)` \|", page, re.MULTILINE))
    assert {name: json.loads(default) for name, default in rows.items()} == msgspec.to_builtins(spec.Gpu())


def test_the_page_about_gpus_says_what_the_doctor_says():
    page = (ROOT / "docs" / "gpu.md").read_text()
    for words in (causes.INSTALL, causes.LIBRARIES, causes.REINSTALL, f"**{causes.DRIVERS[13]} or newer**"):
        assert words in page, words
    for major in (12, 13):
        assert f"CUDA {major} " in page
        assert f"{causes.DRIVERS[major]} or newer" in page
    assert "compute capability {}.{}".format(*causes.CAPABILITIES[13]) in page


def test_no_page_has_a_gap():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        assert "@@" not in page.read_text(), page.name
