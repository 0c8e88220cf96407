import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest

from gateway.demo.weights import UnsafeWeights, read_weights


class Storage:
    """Pickles as a persistent id, as torch's storages do."""

    def __init__(self, key, kind, length):
        self.key, self.kind, self.length = key, kind, length


class Global:
    """Pickles as a reference to a name that need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Pickler(pickle._Pickler):
    """Writes the three above; the pure-Python pickler lets a test write what the real one would refuse."""

    def save(self, item, *rest):
        if isinstance(item, Global):
            self.write(pickle.GLOBAL + f"{item.module}\n{item.name}\n".encode())
        elif isinstance(item, Call):
            self.save(item.function)
            self.save(item.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(item, Storage):
            self.save(("storage", item.kind, item.key, "cpu", item.length, None))
            self.write(pickle.BINPERSID)
        else:
            super().save(item, *rest)


FLOAT = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage, offset, shape, stride):
    return Call(REBUILD, storage, offset, shape, stride, False, Call(collections.OrderedDict))


def checkpoint(tensors, storages, *, magic=0x1950A86A20F9469CFC6C, little=True):
    out = io.BytesIO()
    for part in (magic, 1001, {"little_endian": little}, tensors, list(storages)):
        Pickler(out, 2).dump(part)
    for data in storages.values():
        out.write(struct.pack("<q", data.size) + data.tobytes())
    return out.getvalue()


@pytest.fixture
def read(tmp_path):
    def reader(content):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return read_weights(path)

    return reader


DATA = np.arange(6, dtype=np.float32)
GOOD = checkpoint({"w": tensor(Storage("0", FLOAT, 6), 0, (2, 3), (3, 1))}, {"0": DATA})


def test_tensors_are_windows_on_storages(read):
    storage = Storage("0", FLOAT, 6)
    tensors = {"w": tensor(storage, 0, (2, 3), (3, 1)), "turned": tensor(storage, 0, (3, 2), (1, 3))}
    tensors["part"] = tensor(storage, 4, (2,), (1,))
    tensors["one"] = tensor(storage, 5, (), ())
    found = read(checkpoint(tensors, {"0": DATA}))
    assert {name: array.tolist() for name, array in found.items()} == {
        "w": [[0, 1, 2], [3, 4, 5]],
        "turned": [[0, 3], [1, 4], [2, 5]],
        "part": [4, 5],
        "one": 5,
    }


def test_a_pickle_that_runs_a_command_is_refused_before_it_does(read, tmp_path):
    marker = tmp_path / "ran"
    for module, name in (("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr")):
        attack = Call(Global(module, name), f"touch {marker}")
        for content in (checkpoint({"w": attack}, {}), checkpoint({}, {}, magic=attack)):
            with pytest.raises(
                UnsafeWeights, match=f"the file asks for {module}.{name}, which no table of weights needs"
            ):
                read(content)
    assert not marker.exists()


def test_the_attack_is_real(tmp_path):
    marker = tmp_path / "ran"
    out = io.BytesIO()
    Pickler(out, 2).dump(Call(Global("os", "mkdir"), os.fspath(marker)))
    pickle.loads(out.getvalue())
    assert marker.exists()


@pytest.mark.parametrize(
    "tensor_",
    [
        tensor(Storage("0", FLOAT, 6), 0, (7,), (1,)),
        tensor(Storage("0", FLOAT, 6), 5, (2,), (1,)),
        tensor(Storage("0", FLOAT, 6), -1, (2,), (1,)),
        tensor(Storage("0", FLOAT, 6), 0, (2,), (-1,)),
        tensor(Storage("0", FLOAT, 6), 0, (1 << 60,), (0,)),
        tensor(Storage("0", FLOAT, 6), 0, (2, 3), (1,)),
    ],
)
def test_windows_never_leave_their_storage(read, tensor_):
    with pytest.raises(UnsafeWeights, match="a tensor"):
        read(checkpoint({"w": tensor_}, {"0": DATA}))


@pytest.mark.parametrize("length", [7, 1 << 60])
def test_storages_are_as_long_as_they_say(read, length):
    content = checkpoint({"w": tensor(Storage("0", FLOAT, length), 0, (2,), (1,))}, {"0": DATA})
    with pytest.raises(UnsafeWeights, match="storage 0 is not as long"):
        read(content)
    with pytest.raises(UnsafeWeights, match="storage 0 is not as long"):
        read(content.replace(struct.pack("<q", 6), struct.pack("<q", length)))


def test_every_cut_is_refused(read):
    assert read(GOOD)["w"].shape == (2, 3)
    for end in range(len(GOOD)):
        with pytest.raises(UnsafeWeights):
            read(GOOD[:end])


def test_other_files_are_refused(read):
    with pytest.raises(UnsafeWeights, match="does not begin"):
        read(checkpoint({}, {}, magic=1))
    with pytest.raises(UnsafeWeights, match="big-endian"):
        read(checkpoint({}, {}, little=False))
    with pytest.raises(UnsafeWeights, match="does not know"):
        read(checkpoint({"w": tensor(Storage("0", "float", 6), 0, (2,), (1,))}, {"0": DATA}))
    with pytest.raises(UnsafeWeights, match="is not a legacy torch checkpoint"):
        read(b"PK\x03\x04 a newer one")
    with pytest.raises(UnsafeWeights, match="lists no storages"):
        read(checkpoint({}, {}).removesuffix(pickle.dumps([], 2)) + pickle.dumps(5, 2))
