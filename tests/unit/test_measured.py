from __future__ import annotations

import os
from pathlib import Path

from gateway.measured import Known, Measured, files_digest
from gateway.models.repository import ModelVersion, read_version
from shm.wire import ProfilePoint
from tests.support.gateways import write_model

POINTS = (ProfilePoint(1, 1000, 2000),)


def known(model: ModelVersion, **other: object) -> Known:
    named = {"name": model.name, "version": model.version, "files": files_digest(model), "device": "cpu"} | other
    return Known([Measured(points=POINTS, **named)])


def test_what_was_measured_is_known_of_the_same_files_on_the_same_device_only(tmp_path):
    model = read_version(write_model(tmp_path))
    files = files_digest(model)
    assert known(model).of(model, files, "cpu") == POINTS
    assert known(model).of(model, files, "cuda:0") == ()
    assert known(model, version=2).of(model, files, "cpu") == ()
    assert known(model, name="other").of(model, files, "cpu") == ()
    assert Known().of(model, files, "cpu") == ()


def test_other_files_are_another_model(tmp_path):
    model = read_version(write_model(tmp_path))
    before = files_digest(model)
    assert files_digest(model) == before
    os.utime(model.directory / "model.toml", ns=(1, 1))
    assert files_digest(model) != before
    assert known(model).of(model, before, "cpu") == ()


def test_files_that_cannot_be_looked_at_have_no_digest(tmp_path):
    model = read_version(write_model(tmp_path))
    gone = ModelVersion(model.name, model.version, Path("/nowhere"), model.contract, ())
    assert files_digest(gone) == ""
