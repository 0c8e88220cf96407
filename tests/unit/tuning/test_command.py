"""What `penstock tune` says before it measures anything, and how it finds its model."""

from __future__ import annotations

import math
import os

import pytest
from typer.testing import CliRunner

from gateway import config
from gateway.cli import app
from gateway.errors import InvalidModel, InvalidSettings
from gateway.tuning import command, plot
from tests.support.gateways import write_model


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "models"
    write_model(root, "flowers", 2)
    write_model(root, "flowers", 10)
    write_model(root, "birds", limits={"deadline_ms": 20, "deadline_ms_max": 40})
    return root


@pytest.fixture
def settings(repository):
    return config.load(None, {}, {"models": str(repository)})


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Call `penstock tune`; it is to end with one line and status 2."""
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> str:
        found = CliRunner().invoke(app, ["tune", *map(str, arguments)], env={"COLUMNS": "300"})
        assert (found.exit_code, found.stdout) == (2, ""), found.output
        assert found.stderr.startswith("penstock: ")
        assert found.stderr.count("\n") == 1
        return found.stderr

    return call


@pytest.mark.parametrize(
    ("name", "in_repository", "version"),
    [
        ("flowers", True, 10),
        ("flowers/2", True, 2),
        ("flowers", False, 10),
        ("models/flowers", False, 10),
        ("models/flowers/2", False, 2),
    ],
)
def test_a_model_is_found_by_folder_or_by_name(settings, tmp_path, monkeypatch, name, in_repository, version):
    monkeypatch.chdir(tmp_path)
    found = command.find(name, settings, in_repository=in_repository)
    assert (found.name, found.version) == ("flowers", version)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("trees", "holds no model trees; it has birds, flowers"),
        ("flowers/3", "no such folder"),
        ("flowers/x", "no NAME or NAME/VERSION"),
        ("../models", "no NAME or NAME/VERSION"),
    ],
)
def test_a_model_that_is_not_there_is_told(refused, repository, name, says):
    assert says in refused(name, "--models", repository, "--deadline-ms", 50)


def test_without_a_repository_a_name_is_none(refused):
    assert "no such folder, and no NAME" in refused("flowers", "--deadline-ms", 50)
    assert "--models nowhere: no such folder" in refused("flowers", "--models", "nowhere", "--deadline-ms", 50)


def test_a_folder_without_versions_is_told(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no version" in refused(tmp_path / "empty", "--deadline-ms", 50)


@pytest.mark.parametrize("deadline_ms", ["0", "-5", "nan", "inf", "600001"])
def test_a_deadline_out_of_bounds_is_told(refused, repository, deadline_ms):
    assert "must be over 0, up to 600000" in refused(repository / "birds" / "1", "--deadline-ms", deadline_ms)


def test_a_deadline_over_the_model_s_bound_is_told(refused, repository):
    said = refused(repository / "birds" / "1", "--deadline-ms", 50)
    assert "over the model's limits.deadline_ms_max of 40 ms" in said


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_a_time_out_of_bounds_is_told(settings, minutes):
    model = command.find("birds", settings, in_repository=True)
    with pytest.raises(InvalidSettings, match="--minutes is"):
        command.goal_of(model, settings, deadline_ms=20, minutes=minutes, images=None)


def test_what_a_client_is_allowed_does_not_bound_what_is_measured(repository):
    limited = {"models": str(repository), "client_rate": 5.0, "rate_max": 9.0, "client_in_flight_max": 2, "decoders": 3}
    model = command.find("birds", config.load(None, {}, limited), in_repository=True)
    goal = command.goal_of(model, config.load(None, {}, limited), deadline_ms=20, minutes=1, images=None)
    assert goal.settings == config.load(None, {}, {"models": str(repository), "decoders": 3, "log_level": "error"})


def test_a_plot_without_matplotlib_is_told_before_anything_is_measured(refused, repository, monkeypatch):
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda _: None)
    said = refused(repository / "birds", "--deadline-ms", 20, "--plot", "p.png")
    assert "pip install matplotlib" in said


def test_a_plot_in_a_folder_that_is_not_there_is_told(refused, repository):
    assert "there is no folder" in refused(repository / "birds", "--deadline-ms", 20, "--plot", "no/p.png")


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(refused, repository, monkeypatch):
    monkeypatch.setattr(command.contract_file.os, "access", lambda *_: False)
    assert "tune with --dry-run" in refused(repository / "birds", "--deadline-ms", 20)


def test_images_that_are_not_there_are_told(refused, repository, tmp_path):
    assert "cannot be read" in refused(repository / "birds", "--deadline-ms", 20, "--images", tmp_path / "no")
    (tmp_path / "empty").mkdir()
    assert "holds no file" in refused(repository / "birds", "--deadline-ms", 20, "--images", tmp_path / "empty")


def test_a_version_without_a_contract_is_none(settings, repository):
    (repository / "flowers" / "11").mkdir()
    with pytest.raises(InvalidModel, match=r"model\.toml is missing"):
        command.find("flowers", settings, in_repository=True)
