import pytest

from gpuworker import device


def test_names_are_read_and_written():
    assert device.parse("cpu") == ("cpu", 0)
    assert device.parse("cuda:3") == ("cuda", 3)
    assert [str(device.parse(name)) for name in ("cpu", "cuda:12")] == ["cpu", "cuda:12"]


@pytest.mark.parametrize("text", ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:1234", "CPU", "cpu\n"])
def test_other_names_are_refused(text):
    with pytest.raises(ValueError, match="is no device; there are cpu and cuda:N"):
        device.parse(text)


def test_labels_are_for_people():
    assert device.label(device.parse("cuda:1"), 4) == "cuda:1"
    assert device.label(device.parse("cpu"), 1).endswith(", 1 thread")
    assert device.label(device.parse("cpu"), 4).endswith(", 4 threads")


def test_resident_memory_is_in_bytes():
    assert 5_000_000 < device.rss_size() < 1 << 40
