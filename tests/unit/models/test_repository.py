"""A repository on disk: what is served, and what is refused with which words."""

from __future__ import annotations

import os

import pytest

from gateway.errors import InvalidModel
from gateway.models.repository import (
    CONTRACT_SIZE_MAX,
    LABELS_SIZE_MAX,
    contract_toml,
    describe,
    is_name,
    is_version,
    list_versions,
    read_version,
    scan,
    sign,
)
from gateway.models.spec import parse_contract

CONTRACT = """
[input]
width = 4
height = 4
[output]
task = "classification"
"""
DESCRIBED = 'description = "a \\"b\\" \\u007f \\u00e4"\n' + CONTRACT
FAKE = 'backend = "fake"\n' + CONTRACT + "[fake]\n"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def add(root, name="cats", version="1", contract=CONTRACT, **files):
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(contract)
    for stem, content in ({"model_onnx": b"graph"} | files).items():
        if content is not None:
            (folder / stem.replace("_", ".")).write_bytes(content)
    return folder


def refused(call, *said):
    with pytest.raises(InvalidModel) as caught:
        call()
    for words in said:
        assert words in str(caught.value)


def test_scan_takes_the_largest_version_of_each_model(root):
    add(root, "dogs", "2")
    add(root, "dogs", "10")
    add(root, "cats", "1", labels_txt=b"tabby\ntiger\n")
    assert [(model.name, model.version) for model in scan(root)] == [("cats", 1), ("dogs", 10)]
    assert [(model.name, model.version) for model in scan(root, "all")] == [("cats", 1), ("dogs", 2), ("dogs", 10)]
    cats = scan(root)[0]
    assert cats.labels == ("tabby", "tiger")
    assert cats.directory == root / "cats" / "1"
    assert cats.contract.input.width == 4


def test_an_older_version_is_not_read_for_the_latest(root):
    add(root, version="1", contract="broken")
    add(root, version="2")
    assert scan(root)[0].version == 2
    refused(lambda: scan(root, "all"), "cats/1", "model.toml")


def test_hidden_folders_and_stray_files_are_skipped(root):
    add(root)
    (root / ".git").mkdir()
    (root / "README.md").write_text("hello")
    (root / "cats" / ".cache").mkdir()
    (root / "cats" / "notes.txt").write_text("hello")
    assert len(scan(root, "all")) == 1


def test_read_version_is_scan_for_one(root, monkeypatch):
    folder = add(root)
    assert read_version(folder) == scan(root)[0]
    monkeypatch.chdir(folder)
    assert read_version(type(folder)(".")) == scan(root)[0]
    assert read_version(type(folder)("../1")) == scan(root)[0]


def test_no_repository(tmp_path, root):
    refused(lambda: scan(tmp_path / "absent"), "no such folder")
    (tmp_path / "file").write_text("")
    refused(lambda: scan(tmp_path / "file"), "not a folder")
    refused(lambda: scan(root), "holds no model", "<model>/<version>/model.toml")
    (root / "cats").mkdir()
    refused(lambda: scan(root), "holds no version", "cats/1/")
    refused(lambda: read_version(root / "cats" / "1"), "no such folder")


@pytest.mark.parametrize("name", ["a", "A9", "effnet-lite0.v2_x", "x" * 64, "1"])
def test_names(name, root):
    assert is_name(name)
    add(root, name)
    assert scan(root)[0].name == name


@pytest.mark.parametrize("name", ["_cats", "-cats", "ca ts", "cäts", "x" * 65, "cats\n", "a%2fb"])
def test_bad_names(name, root):
    assert not is_name(name)
    folder = add(root, name)
    refused(lambda: scan(root), "not a model's name", "a letter or digit")
    refused(lambda: read_version(folder), "the model's name", "a letter or digit")


@pytest.mark.parametrize("version", ["0", "01", "v1", "1.0", "-1", "9999999999", "latest", "\u0661"])
def test_bad_versions(version, root):
    assert not is_version(version)
    folder = add(root, "cats", version)
    refused(lambda: scan(root), "not a version", "whole number")
    refused(lambda: read_version(folder), "the model's version", "whole number")


def test_contract_file(root):
    folder = add(root)
    (folder / "model.toml").write_bytes(b"\xff\xfe")
    refused(lambda: scan(root), "model.toml is not UTF-8")
    (folder / "model.toml").write_text(CONTRACT.replace("width", "widht"))
    refused(lambda: scan(root), "cats/1", "did you mean 'width'")
    (folder / "model.toml").write_bytes(b"#" * (CONTRACT_SIZE_MAX + 1))
    refused(lambda: scan(root), "larger than 1048576 bytes")
    (folder / "model.toml").unlink()
    refused(lambda: scan(root), "model.toml is missing")


@pytest.mark.parametrize(
    ("contract", "files", "missing"),
    [
        (CONTRACT, {"model_onnx": None}, "needs model.onnx"),
        ('backend = "tensorrt"\n' + CONTRACT, {"model_onnx": None}, "needs model.plan or model.onnx"),
        ('backend = "tensorrt"\n' + CONTRACT, {"model_onnx": None, "model_plan": b"p"}, None),
        ('backend = "tensorrt"\n' + CONTRACT, {}, None),
        (FAKE, {"model_onnx": None}, None),
    ],
)
def test_each_backend_has_its_files(root, contract, files, missing):
    add(root, contract=contract, **files)
    if missing is None:
        assert len(scan(root)) == 1
    else:
        refused(lambda: scan(root), missing)


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"a\nb\n", ("a", "b")),
        (b"a\r\nb", ("a", "b")),
        (b"\xef\xbb\xbfa\nb c, d\n", ("a", "b c, d")),
        ("ä\u2028ö\n".encode(), ("ä\u2028ö",)),
    ],
)
def test_labels(root, content, labels):
    add(root, labels_txt=content)
    assert scan(root)[0].labels == labels


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n\nb\n", "line 2 of labels.txt is empty"),
        (b"", "line 1 of labels.txt is empty"),
        (b"a\n\n", "line 2 of labels.txt is empty"),
        (b"a" * 513, "longer than 512"),
        (b"\xff", "labels.txt is not UTF-8"),
        (b"a\n" * (LABELS_SIZE_MAX // 2 + 1), "larger than 4194304 bytes"),
    ],
)
def test_bad_labels(root, content, said):
    add(root, labels_txt=content)
    refused(lambda: scan(root), said)


def test_labels_by_another_name(root):
    folder = add(root, contract=CONTRACT + 'labels = "names.txt"\n')
    refused(lambda: scan(root), "'names.txt', which is missing")
    (folder / "names.txt").write_text("a\n")
    assert scan(root)[0].labels == ("a",)


@pytest.mark.parametrize("name", ["../labels.txt", "/etc/hostname", "a/b", ".hidden", ""])
def test_labels_are_beside_the_contract(root, name):
    add(root, contract=CONTRACT + f'labels = "{name}"\n')
    refused(lambda: scan(root), "output.labels must be the name of a file")


def test_an_embedding_has_no_labels(root):
    add(root, contract=CONTRACT.replace("classification", "embedding"), labels_txt=b"\xff")
    assert scan(root)[0].labels == ()


def test_links_inside_the_repository_are_followed(root):
    folder = add(root)
    (root / "shared.txt").write_text("a\n")
    (folder / "labels.txt").symlink_to(root / "shared.txt")
    (root / "alias").symlink_to("cats")
    assert [(model.name, model.labels) for model in scan(root)] == [("alias", ("a",)), ("cats", ("a",))]


def test_the_repository_itself_may_be_a_link(root, tmp_path):
    add(root)
    (tmp_path / "link").symlink_to(root)
    assert len(scan(tmp_path / "link")) == 1
    assert read_version(tmp_path / "link" / "cats" / "1").name == "cats"


@pytest.mark.parametrize("name", ["model.toml", "model.onnx", "labels.txt", "model.onnx.data"])
def test_links_out_of_the_repository_are_refused(root, tmp_path, name):
    folder = add(root)
    (tmp_path / "secret").write_text(CONTRACT)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    refused(lambda: scan(root), "out of the repository")
    refused(lambda: read_version(folder), "out of the repository")


def test_linked_folders_out_of_the_repository_are_refused(root, tmp_path):
    add(root)
    add(tmp_path, "outside")
    (root / "dogs").symlink_to(tmp_path / "outside")
    refused(lambda: scan(root), "out of the repository")


def test_links_in_circles_are_refused(root):
    folder = add(root)
    (folder / "labels.txt").symlink_to("labels.txt")
    refused(lambda: scan(root), "symbolic link")


def test_special_files_do_not_hang(root):
    folder = add(root)
    os.mkfifo(folder / "labels.txt")
    refused(lambda: scan(root), "not a regular file")
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").mkdir()
    refused(lambda: scan(root), "not a regular file")


def test_describe_is_model_toml_with_its_defaults():
    described = describe(parse_contract(CONTRACT))
    assert described["input"]["resize"] == "crop"
    assert described["limits"]["images_max"] == 64
    assert "fake" not in described
    assert describe(parse_contract(FAKE))["fake"]["class_count"] == 1000


@pytest.mark.parametrize(
    "text",
    [
        CONTRACT,
        FAKE,
        FAKE + "hang_pixel = [1, 2, 3]\n",
        DESCRIBED,
    ],
)
def test_the_printed_contract_reads_back(text):
    contract = parse_contract(text)
    printed = contract_toml(contract)
    assert parse_contract(printed) == contract
    assert "images_max = 64\n" in printed


def test_versions_are_listed_by_their_folders_alone(root):
    add(root, "dogs", "10", contract="broken")
    add(root, "dogs", "9")
    add(root, "cats", "1")
    (root / "empty").mkdir()
    for stray in ("dogs/.11", "dogs/x", "dogs/011", ".hidden/1", "-no/1"):
        (root / stray).mkdir(parents=True)
    (root / "dogs" / "12").write_text("a file")
    (root / "file").write_text("")
    assert list_versions(root) == {"cats": [1], "dogs": [9, 10], "empty": []}
    refused(lambda: list_versions(root / "nowhere"), "no such folder")


def test_a_models_folder_that_cannot_be_read_is_skipped(root, monkeypatch):
    add(root, "dogs")
    add(root, "cats")
    real = type(root).iterdir

    def iterdir(path):
        if path.name == "dogs":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(type(root), "iterdir", iterdir)
    assert list_versions(root) == {"cats": [1]}


def test_a_signature_tells_what_was_written_to(root):
    folder = add(root, data_bin=b"123")
    (folder / "more" / "below").mkdir(parents=True)
    (folder / "more" / "below" / "x").write_bytes(b"1")
    before = sign(folder)
    assert [(name, size) for name, size, _ in before] == [
        ("data.bin", 3),
        ("model.onnx", 5),
        ("model.toml", len(CONTRACT)),
        ("more/below/x", 1),
    ]
    assert sign(folder) == before
    os.utime(folder / "more" / "below" / "x", ns=(1, 1))
    assert sign(folder) != before


def test_what_cannot_be_looked_at_has_no_signature(root, monkeypatch):
    folder = add(root)
    assert sign(root / "nowhere") is None
    (folder / "link").symlink_to(root / "nowhere")
    assert sign(folder) is None
    (folder / "link").unlink()
    monkeypatch.setattr("gateway.models.repository.ENTRY_COUNT_MAX", 1)
    assert sign(folder) is None
