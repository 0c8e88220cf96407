"""Clients with keys: what the file may say of them, in which words it is refused, and how a key is made."""

from __future__ import annotations

import tomllib

import pytest

from gateway import clients, config
from gateway.errors import InvalidSettings

DIGEST = "a" * 64
OTHER = "b" * 64


@pytest.fixture
def load(tmp_path):
    """Settings from this text."""

    def load(text, **environ):
        path = tmp_path / "penstock.toml"
        path.write_text(text)
        return config.load(path, environ, {})

    return load


def entry(name="app", digest=DIGEST, more=""):
    return f'[[clients]]\nname = "{name}"\nkey_sha256 = "{digest}"\n{more}\n'


def test_clients_and_their_limits(load):
    settings = load("port = 1\n" + entry(more="rate = 2") + entry("two", OTHER, "rate = 0.5\nbatch_burst = 3"))
    first, second = settings.clients
    assert (first.name, first.key_sha256, first.rate, first.burst, first.in_flight_max) == ("app", DIGEST, 2.0, 0, 0)
    assert (second.name, second.rate, second.batch_burst) == ("two", 0.5, 3)


def test_they_are_printed_and_read_back(load):
    settings = load(entry(more="rate = 2\nin_flight_max = 7") + entry("two", OTHER))
    text = config.to_toml(settings)
    assert len(tomllib.loads(text)["clients"]) == 2
    assert load(text) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clients = 1", "clients in FILE must be tables, each under [[clients]]."),
        ("[clients]\nname = 'x'", "clients in FILE must be tables"),
        ("clients = ['x']", "clients in FILE must be tables"),
        ("[[clients]]\nname = 'x'", "clients[0] in FILE has no key_sha256; `penstock key NAME` makes"),
        (f"[[clients]]\nkey_sha256 = '{DIGEST}'", "clients[0] in FILE has no name"),
        (entry() + entry("two", OTHER, "brust = 1"), "clients[1].brust in FILE; did you mean 'burst'?"),
        (entry(more="rate = -1"), "clients[0].rate in FILE is -1; it must be 0 to 1000000 images/s."),
        (entry(more="rate = nan"), "clients[0].rate in FILE is nan"),
        (entry(more="rate = 0.0001"), "clients[0].rate is 0.0001; it must be 0.001 or more, or 0"),
        (entry(more="batch_rate = 0.0001"), "clients[0].batch_rate is 0.0001"),
        (entry(more="burst = 1.5"), "clients[0].burst in FILE is 1.5; it must be 0 to 1000000 images."),
        (entry(more="in_flight_max = true"), "clients[0].in_flight_max in FILE is True"),
        (entry("a b"), "clients[0].name in FILE is 'a b'; it must be 1 to 64 letters"),
        (entry("a\\n"), "clients[0].name in FILE is"),
        (entry(""), "clients[0].name in FILE is ''"),
        (entry(digest="A" * 64), "clients[0].key_sha256 in FILE is"),
        (entry(digest="psk_abc"), "it must be 64 hexadecimal digits"),
        (entry() + entry(digest=OTHER), "clients[0] and clients[1] have the same name"),
        (entry() + entry("two"), "clients[0] and clients[1] have the same key_sha256"),
        ("keys_required = true", "keys_required is set and there are no clients"),
        ("client_rate = 0.0001", "client_rate is 0.0001; it must be 0.001 or more, or 0"),
        ("rate_max = -1", "it must be 0 to 1000000 images/s."),
        ("keys_required = 1", "it must be true or false."),
        ("trusted_proxies = ['10.0.0.1/8']", "'10.0.0.1/8', which is no network; write 10.0.0.0/8"),
        ("trusted_proxies = ['proxy']", "'proxy', which is no network; write one as 10.0.0.0/8"),
        ("trusted_proxies = '10.0.0.0/8'", "at most 256 networks, as 10.0.0.0/8"),
        ("trusted_proxies = ['10.0.0.0/8']", "trusted_proxies and forwarded need each other"),
        ("forwarded = 'forwarded'", "trusted_proxies and forwarded need each other"),
        ("forwarded = 'via'", "it must be '' or 'forwarded' or 'x-forwarded-for'."),
    ],
)
def test_what_is_wrong_is_named(load, tmp_path, text, said):
    with pytest.raises(InvalidSettings) as caught:
        load(text)
    assert said.replace("FILE", str(tmp_path / "penstock.toml")) in str(caught.value)


def test_there_are_only_so_many_clients(load, monkeypatch):
    monkeypatch.setattr(clients, "CLIENTS_MAX", 1)
    with pytest.raises(InvalidSettings, match="are 2; 1 are allowed"):
        load(entry() + entry("two", OTHER))


def test_clients_stand_in_the_file_only(load):
    with pytest.raises(InvalidSettings, match=r"PENSTOCK_CLIENTS in the environment is not read.*\[\[clients\]\]"):
        load("", PENSTOCK_CLIENTS="x")


def test_proxies_and_rates_by_environment(load):
    settings = load(
        "",
        PENSTOCK_TRUSTED_PROXIES="10.0.0.0/8, fd00::/8,192.0.2.1",
        PENSTOCK_FORWARDED="x-forwarded-for",
        PENSTOCK_CLIENT_RATE="2.5",
        PENSTOCK_CLIENT_BURST="4",
    )
    assert settings.trusted_proxies == ("10.0.0.0/8", "fd00::/8", "192.0.2.1")
    assert (settings.forwarded, settings.client_rate, settings.client_burst) == ("x-forwarded-for", 2.5, 4)
    assert load(entry(), PENSTOCK_KEYS_REQUIRED="true").keys_required is True


def test_a_new_key_is_long_random_and_known_by_its_digest(load):
    made = {clients.new_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert key.startswith("psk_")
        assert len(key) >= len("psk_") + 160 / 6
    key = made.pop()
    text = clients.to_toml("app", key)
    assert key not in text
    (client,) = load(text).clients
    assert (client.name, client.key_sha256) == ("app", clients.digest_of(key))


def test_a_digest_is_sha_256():
    assert clients.digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
