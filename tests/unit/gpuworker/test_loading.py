import json
import os

import msgspec
import pytest

from gpuworker import loading
from gpuworker.backend import DeviceLost, Setup
from gpuworker.device import Device
from gpuworker.model import GatewayBug
from shm import layout
from shm.heritage import Grant, ModelGrant
from shm.segment import Segment
from shm.wire import Loaded, LoadFailed, Loading, ProfilePoint
from tests.support import graphs

CPU = Setup(Device("cpu"), 1)
SLOTS = 2


@pytest.fixture
def grant(tmp_path):
    """Make grants on real segments, as a gateway does; the worker's side owns the fds."""
    segments = []

    def make(model, *, output_size=None, **changes):
        sizes = (48, model.output.top_k_max * 8 + 64 if output_size is None else output_size)
        segments.extend(Segment.create("test", layout.stride(size) * SLOTS) for size in sizes)
        given = [Grant(os.dup(segment.fd), segment.size, writable=True) for segment in segments[-2:]]
        fields = {"index": 3, "name": "m", "version": 1, "directory": str(tmp_path), "slot_count": SLOTS}
        fields |= {"contract": msgspec.json.encode(model).decode(), "input": given[0], "output": given[1]}
        return ModelGrant(**fields | changes)

    yield make
    for segment in segments:
        segment.close()


def load(grant):
    said = []
    return loading.load(grant, CPU, said.append), said


def test_a_model_says_how_far_it_is_and_what_it_gives(grant, tmp_path):
    graphs.save(graphs.means(), tmp_path)
    model, said = load(grant(graphs.contract()))
    assert [type(message) for message in said] == [*[Loading] * 7, Loaded]
    assert [round(message.share, 2) for message in said[1:7]] == [0, 0.33, 0.67] * 2
    assert model.sizes == {1, 2, 4}
    assert said[-1].model == 3
    assert said[-1].load_ns > sum(point.p50_ns for point in said[-1].profile)
    model.close()


def test_coming_up_it_leaves_the_slots_of_those_who_serve_alone(grant, tmp_path):
    # While a second worker or a successor rehearses, the first one answers out of the same slots.
    graphs.save(graphs.means(), tmp_path)
    given = grant(graphs.contract())
    seen = Segment.attach(os.dup(given.output.fd), given.output.size, writable=True)
    seen.map[:] = b"\xa5" * seen.size
    model, said = load(given)
    assert isinstance(said[-1], Loaded)
    assert set(seen.map[:]) == {0xA5}
    seen.close()
    model.close()


def test_what_was_measured_before_is_believed_and_every_size_is_run_all_the_same(grant, tmp_path):
    graphs.save(graphs.means(), tmp_path)
    known = [ProfilePoint(size, 7, 8) for size in (1, 2, 4)]
    model, said = load(grant(graphs.contract(), profile=tuple(known)))
    assert [message.stage for message in said[:-1]] == ["session", "warmup", "warmup", "warmup"]
    assert said[-1].profile == known
    model.close()


def test_what_was_measured_of_other_sizes_is_not(grant, tmp_path):
    graphs.save(graphs.means(), tmp_path)
    model, said = load(grant(graphs.contract(), profile=(ProfilePoint(1, 7, 8), ProfilePoint(8, 7, 8))))
    assert [point.size for point in said[-1].profile] == [1, 2, 4]
    assert said[-1].profile[0] != ProfilePoint(1, 7, 8)
    model.close()


def test_a_refused_model_gives_its_segments_back(grant, tmp_path):
    given = grant(graphs.contract())
    model, said = load(given)
    assert model is None
    assert said[-1] == LoadFailed(3, "there is no model.onnx; put the exported graph there")
    for fd in (given.input.fd, given.output.fd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_slots_that_are_too_small_are_refused(grant, tmp_path):
    graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path)
    _, said = load(grant(graphs.contract(task="raw"), output_size=128))
    assert said[-1].detail == "the outputs of one image take 192 bytes and its slot has 128"


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "not enough memory"), (ZeroDivisionError(), "which is a defect of ours")],
)
def test_whatever_else_happens_is_a_refusal_of_this_model_alone(grant, monkeypatch, capfd, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(loading, "open_backend", fail)
    model, said = load(grant(graphs.contract()))
    assert model is None
    assert words in said[-1].detail
    assert ("ZeroDivisionError" in capfd.readouterr().err) == isinstance(error, ZeroDivisionError)


def test_what_the_engine_said_goes_to_the_log(grant, tmp_path, capfd):
    (tmp_path / "model.onnx").write_bytes(b"PK\x03\x04")
    _, said = load(grant(graphs.contract()))
    assert said[-1].detail == "model.onnx is not an ONNX file, or is damaged (4 bytes); export it again"
    assert '"event":"model_refused"' in capfd.readouterr().err


def test_a_lost_device_is_no_refusal_of_this_model(grant, monkeypatch):
    def lost(*_):
        raise DeviceLost("CUDA failure 700")

    monkeypatch.setattr(loading, "open_backend", lost)
    with pytest.raises(DeviceLost):
        load(grant(graphs.contract()))


def test_a_gateway_that_is_gone_is_no_refusal(grant):
    def gone(_):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        loading.load(grant(graphs.contract('backend = "fake"', fake="")), CPU, gone)


def test_grants_that_no_gateway_makes_are_bugs(grant):
    with pytest.raises(GatewayBug, match="does not parse"):
        load(grant(graphs.contract(), contract="{}"))
    with pytest.raises(GatewayBug, match="granted no output slots"):
        load(grant(graphs.contract(), output=None))


# Sizes that do not fit in memory


def fake(*lines):
    return graphs.contract('backend = "fake"', fake="\n".join(lines))


def test_sizes_that_do_not_fit_are_given_up_and_named(grant, capfd):
    model, said = load(grant(fake("warmup_images = 2")))
    assert [point.size for point in said[-1].profile] == [1, 2]
    assert model.sizes == {1, 2}
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["event"], line["model"], line["sizes"]) == ("sizes_given_up", "m", [4])
    assert "fake.warmup_images" in line["traceback"]
    model.close()


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 4)])
def test_of_what_was_measured_before_what_fits_is_believed(grant, sizes):
    known = tuple(ProfilePoint(size, 7, 8) for size in sizes)
    _, said = load(grant(fake("warmup_images = 2"), profile=known))
    assert said[-1].profile == list(known[:2])


def test_what_was_measured_where_less_fitted_is_measured_again(grant):
    model, said = load(grant(fake(), profile=(ProfilePoint(1, 7, 8),)))
    assert [point.size for point in said[-1].profile] == [1, 2, 4]
    assert model.sizes == {1, 2, 4}


def test_a_size_that_does_not_fit_while_it_is_measured_is_given_up_as_well(grant, monkeypatch):
    def measured(size, run):
        if size == 4:
            raise MemoryError
        return measure(size, run)

    measure = loading.measure
    monkeypatch.setattr(loading, "measure", measured)
    model, said = load(grant(fake()))
    assert [point.size for point in said[-1].profile] == [1, 2]
    assert model.sizes == {1, 2}


def test_where_batches_overlap_one_that_does_not_fit_while_it_is_measured_refuses_the_model(grant, monkeypatch):
    # The batch before it may be in flight, and its answers would be taken for those of the next one.
    def measured(model, size, *_):
        if size == 4:
            raise MemoryError
        return ProfilePoint(size, 7, 8)

    monkeypatch.setattr(loading, "_measured", measured)
    monkeypatch.setattr(loading.Model, "depth", property(lambda model: 2))
    model, said = load(grant(fake()))
    assert model is None
    assert "not enough memory" in said[-1].detail


def test_a_model_of_which_nothing_fits_is_refused(grant):
    model, said = load(grant(graphs.contract('backend = "fake"', batching="sizes = [2, 4]", fake="warmup_images = 1")))
    assert model is None
    assert "not enough memory" in said[-1].detail


def test_an_engine_that_is_built_says_so_again_and_again(grant):
    _, said = load(grant(fake("build_ms = 50")))
    shares = [message.share for message in said if isinstance(message, Loading) and message.stage == "building"]
    assert shares[0] < 0.5
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert said[len(shares)].stage == "session"
