"""Settings: where they come from, what is refused with which words, and that every list of them is the same list."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.config import Settings, load, to_toml
from gateway.errors import InvalidSettings

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "penstock.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(call, *said):
    with pytest.raises(InvalidSettings) as caught:
        call()
    for words in said:
        assert words in str(caught.value)
    assert "msgspec" not in str(caught.value)


def test_defaults_are_safe():
    settings = load(None, {}, {})
    assert settings == Settings()
    assert settings.host == "127.0.0.1"
    assert settings.decoder_count() >= 1
    assert settings.worker_thread_count() == len(os.sched_getaffinity(0))


def test_flags_stand_over_the_environment_over_the_file(write):
    file = write('port = 1\nhost = "a"\nlog_level = "debug"\n')
    environ = {"PENSTOCK_PORT": "2", "PENSTOCK_HOST": "b", "HOME": "/x", "penstock_port": "9"}
    settings = load(file, environ, {"port": 3, "decoders": None})
    assert (settings.port, settings.host, settings.log_level, settings.decoders) == (3, "b", "debug", 0)


def test_lists_and_numbers_in_the_environment():
    settings = load(None, {"PENSTOCK_DEVICES": "cuda:0, cuda:1,", "PENSTOCK_BODY_TIMEOUT_S": "2.5"}, {})
    assert settings.devices == ("cuda:0", "cuda:1")
    assert settings.body_timeout_s == 2.5
    assert load(None, {}, {"devices": ["cpu"]}).devices == ("cpu",)


def test_failpoints_are_no_settings():
    assert load(None, {"PENSTOCK_FAILPOINTS": "a.b=crash", "PENSTOCK_FAILPOINTS_SEED": "7"}, {}) == Settings()


def test_whole_numbers_are_fine_for_durations(write):
    assert load(write("body_timeout_s = 3\n"), {}, {}).body_timeout_s == 3.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", ("Unknown setting: prot in ", "penstock.toml", "did you mean 'port'?")),
        ("zzzzzz = 1", ("Unknown setting: zzzzzz", "--print-config")),
        ("[server]\nport = 1", ("Unknown setting: server",)),
        ("port = 70000", ("port in ", "is 70000; it must be 0 to 65535.")),
        ('port = "8080"', ("is '8080'; it must be 0 to 65535.",)),
        ("port = true", ("is True; it must be 0 to 65535.",)),
        ("body_timeout_s = nan", ("is nan; it must be over 0, up to 600 s.",)),
        ("body_timeout_s = 0", ("is 0; it must be over 0, up to 600 s.",)),
        ("body_size_max = 1", ("is 1; it must be 1024 to 1073741824 bytes.",)),
        ('versions = "first"', ("it must be 'all' or 'latest'.",)),
        ("devices = []", ("1 to 64 times 'cpu', 'cuda:INDEX', ",)),
        ('devices = "cpu"', ("1 to 64 times",)),
        ('devices = ["gpu"]', ("1 to 64 times",)),
        ('devices = ["cuda:01"]', ("1 to 64 times",)),
        ('devices = ["cpu\\n"]', ("1 to 64 times",)),
        ('host = ""', ("it must be text.",)),
        ('host = "a\\u0000b"', ("it must be text.",)),
        ("port = ", ("not TOML",)),
        (b"\xff", ("not TOML",)),
        (b"#" * (config.FILE_SIZE_MAX + 1), ("larger than",)),
        ("body_size_max = 2000000\nbodies_size_max = 1048576", ("body_size_max is over half of bodies_size_max",)),
        ("body_timeout_s = 1", ("body_rate_grace_s is over body_timeout_s",)),
        ('devices = ["cpu", "cpu"]', ("devices names one twice",)),
    ],
)
def test_a_bad_file(write, text, said):
    file = write(text)
    refused(lambda: load(file, {}, {}), *said)


def test_no_file(tmp_path):
    refused(lambda: load(tmp_path / "absent", {}, {}), "absent: cannot be read (No such file")
    refused(lambda: load(tmp_path, {}, {}), "cannot be read")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("PENSTOCK_PROT", "1", ("PENSTOCK_PROT in the environment", "did you mean 'PENSTOCK_PORT'?")),
        ("PENSTOCK_", "1", ("Unknown setting: PENSTOCK_ in",)),
        ("PENSTOCK_PORT", "70000", ("PENSTOCK_PORT in the environment is '70000'; it must be 0 to 65535.",)),
        ("PENSTOCK_PORT", "", ("PENSTOCK_PORT in the environment is ''",)),
        ("PENSTOCK_PORT", "8080.5", ("PENSTOCK_PORT",)),
        ("PENSTOCK_HOST", "\udc80", ("PENSTOCK_HOST",)),
        ("PENSTOCK_DEVICES", ",", ("PENSTOCK_DEVICES", "1 to 64 times")),
        ("PENSTOCK_DRAIN_TIMEOUT_S", "inf", ("PENSTOCK_DRAIN_TIMEOUT_S", "0 to 3600 s")),
    ],
)
def test_a_bad_variable(name, text, said):
    refused(lambda: load(None, {name: text}, {}), *said)


def test_bad_flags():
    refused(lambda: load(None, {}, {"port": -1}), "--port is -1; it must be 0 to 65535.")
    refused(lambda: load(None, {}, {"body_size_max": 5}), "--body-size-max is 5")
    refused(lambda: load(None, {}, {"prot": 1}), "--prot", "did you mean 'port'?")


def test_what_kubernetes_puts_beside_a_service_is_not_ours():
    environ = {
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT": "8080",
        "PENSTOCK_SERVICE_PORT_HTTP": "8080",
        "PENSTOCK_PORT": "tcp://10.0.0.1:8080",
        "PENSTOCK_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "PENSTOCK_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, environ, {}) == Settings()


SAMPLES = st.fixed_dictionaries(
    {},
    optional={
        "host": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable),
        "port": st.integers(0, 65_535),
        "devices": st.lists(st.sampled_from(["cpu", "cuda:0", "cuda:12"]), min_size=1, unique=True).map(tuple),
        "drain_timeout_s": st.floats(0, 3600),
        "versions": st.sampled_from(["latest", "all"]),
    },
)


@given(SAMPLES)
def test_printed_settings_read_back_as_themselves(tmp_path_factory, values):
    settings = load(None, {}, values)
    text = to_toml(settings)
    assert set(tomllib.loads(text)) == set(config.KEYS)
    path = tmp_path_factory.mktemp("config") / "penstock.toml"
    path.write_text(text)
    assert load(path, {}, {}) == settings


def test_printed_settings_explain_themselves():
    lines = to_toml(Settings()).splitlines()
    for key in config.KEYS:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# ")


def test_every_default_is_inside_its_bound():
    for key in config.KEYS:
        assert load(None, {}, {key: getattr(Settings(), key)}) == Settings()


def test_units_are_in_the_names():
    for field in msgspec.structs.fields(Settings):
        unit = field.type.__metadata__[0].extra["unit"]
        assert not field.name.endswith("_s") or unit == "s"
        assert "_size_" not in field.name or unit == "bytes"
        assert "_ms_" not in field.name or unit == "ms"


def test_the_documentation_is_the_table():
    assert DOCS.read_text().endswith(config.docs_table())
    for key in config.KEYS:
        assert f"| `{key}` |" in config.docs_table()
