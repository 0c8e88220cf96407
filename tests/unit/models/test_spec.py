"""The contract: what one key alone cannot say, and the words of a refusal."""

from __future__ import annotations

import pytest

from gateway.errors import InvalidModel
from gateway.models.spec import parse_contract

OUTPUT = '[output]\ntask = "raw"\n'


def contract(head="", more="", tail="", output=OUTPUT):
    return parse_contract(f"{head}\n[input]\nwidth = 320\nheight = 224\n{more}\n{output}{tail}\n")


def test_slots_are_height_width_channels():
    assert contract().input.shape == (224, 320, 3)
    assert contract(more='colour = "bgr"').input.channels == 3
    assert contract(more='colour = "gray"').input.shape == (224, 320, 1)


def test_identity():
    assert contract().input.is_identity
    assert not contract(more="scale = 0.5").input.is_identity
    assert contract(more='dtype = "uint8"').input.dtype == "uint8"


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ({"tail": "[batching]\nsizes = [4, 2]"}, "batching.sizes must ascend"),
        ({"tail": "[batching]\nsizes = [2, 2]"}, "batching.sizes must ascend"),
        ({"tail": "[batching]\nsizes = []"}, "batching.sizes"),
        ({"output": OUTPUT + "top_k = 200\n"}, "top_k is over output.top_k_max"),
        ({"tail": "[limits]\ndeadline_ms = 90000"}, "deadline_ms is over limits.deadline_ms_max"),
        ({"more": 'dtype = "uint8"\nscale = 0.5'}, "takes pixels as they are"),
        ({"head": 'backend = "fake"'}, "[fake] section go together"),
        ({"tail": "[fake]"}, "[fake] section go together"),
        ({"more": "exact = true\nantialias = false"}, "set antialias = true"),
        ({"more": "widht = 4"}, "unknown key 'widht' in [input]; did you mean 'width'?"),
        ({"head": "zzzzzzz = 4"}, "unknown key 'zzzzzzz' at the top level; known keys: backend"),
        ({"tail": "[fake]\nbase = 1"}, "in [fake]; did you mean 'base_ms'?"),
        ({"more": "crop_fraction = 0"}, "`input.crop_fraction`"),
        ({"more": "std = [1, 0, 1]"}, "`input.std"),
        ({"more": 'resize = "fit"'}, "`input.resize`"),
        ({"tail": "[residency]\nidle_s = 5"}, "set lazy = true"),
        ({"tail": '[residency]\ndevices = ["cpu", "cpu"]'}, "residency.devices names one twice"),
        ({"tail": '[residency]\ndevices = ["gpu"]'}, "`residency.devices["),
        ({"tail": "[residency]\nlazzy = true"}, "in [residency]; did you mean 'lazy'?"),
        ({"head": "["}, "model.toml"),
    ],
)
def test_refusals_name_the_key(pieces, said):
    with pytest.raises(InvalidModel) as caught:
        contract(**pieces)
    assert said in str(caught.value)
    assert str(caught.value).startswith("model.toml: ")


def test_residency():
    found = contract(tail='[residency]\nlazy = true\nidle_s = 60\ndevices = ["cpu", "cuda:1"]').residency
    assert (found.lazy, found.idle_s, found.devices) == (True, 60.0, ("cpu", "cuda:1"))
    found = contract().residency
    assert (found.lazy, found.idle_s, found.devices) == (False, 0.0, ())
