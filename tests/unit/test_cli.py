"""The command line: what it says of itself, where settings come from, and what it prints of a running server."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import tomllib

import pytest
from typer.testing import CliRunner

from gateway import client, config
from gateway.cli import app
from tests.support.gateways import FAIL, digest, gateway, pixels, png, write_model
from tests.support.graphs import means

COMMANDS = (
    *("serve", "demo", "predict", "models", "check", "key", "tune", "doctor"),
    *("load", "unload", "reload", "set", "drain", "status", "admin-token"),
)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call the program with arguments; wide, plain, and without settings of the machine it is tested on."""
    for name in list(config.os.environ):
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*arguments, **environ):
        # A wide terminal by name as well: what is printed is looked at, not how it is wrapped.
        found = runner.invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300", **environ})
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found

    return call


def flat(result) -> str:
    """Everything that was printed, without line breaks."""
    return " ".join((result.stdout + result.stderr).split())


# -- help ----------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_every_command_has_help(run):
    whole = run("--help")
    assert whole.exit_code == 0
    for command in COMMANDS:
        assert command in whole.stdout
        assert run(command, "--help").exit_code == 0


def test_no_command_is_help_and_a_wrong_one_is_2(run):
    assert "Usage" in flat(run())
    assert run("srve").exit_code == 2


def test_version(run):
    found = run("--version")
    assert found.exit_code == 0
    assert found.stdout.startswith("penstock ")


# -- settings ------------------------------------------------------------------------------------------------------


def printed(result) -> dict:
    assert result.exit_code == 0, flat(result)
    return tomllib.loads(result.stdout)


def test_print_config_is_a_file_that_says_the_same(run, tmp_path):
    first = run("serve", "--print-config", "--port", "0", "--device", "cpu", "--device", "cuda:1", "--models", "a b")
    file = tmp_path / "again.toml"
    file.write_text(first.stdout)
    again = run("serve", "--print-config", "--config", file)
    assert again.stdout == first.stdout
    assert set(printed(first)) == set(config.KEYS)
    assert printed(first)["devices"] == ["cpu", "cuda:1"]


def test_flags_stand_over_the_environment_and_that_over_the_file(run, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("port = 1001\nhost = '10.0.0.1'\ndecoders = 7\nlog_level = 'error'\n")
    found = printed(
        run(
            *("serve", "--print-config", "--config", file, "--port", "1003"),
            PENSTOCK_PORT="1002",
            PENSTOCK_HOST="10.0.0.2",
        )
    )
    assert (found["port"], found["host"], found["decoders"], found["log_level"]) == (1003, "10.0.0.2", 7, "error")


@pytest.mark.parametrize(
    ("text", "environ", "says"),
    [
        ("prot = 1", {}, "did you mean 'port'?"),
        ("", {"PENSTOCK_PROT": "1"}, "did you mean 'PENSTOCK_PORT'?"),
        ("port = 70000", {}, "it must be 0 to 65535"),
        ("", {"PENSTOCK_PORT": "x"}, "PENSTOCK_PORT in the environment"),
        ("port =", {}, "not TOML"),
        ("devices = []", {}, "devices"),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_stands_and_what_is_right(run, tmp_path, text, environ, says):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    found = run("serve", "--print-config", "--config", file, **environ)
    assert found.exit_code == 2
    assert says in flat(found)
    assert "Traceback" not in flat(found)


def test_a_wrong_flag_is_2_with_its_bound(run):
    found = run("serve", "--print-config", "--port", "70000")
    assert (found.exit_code, "--port is 70000; it must be 0 to 65535" in flat(found)) == (2, True)
    found = run("serve", "--prot", "1")
    assert found.exit_code == 2
    assert "--port" in flat(found), "the nearest flag is named"


def test_a_file_that_is_not_there_is_2(run):
    found = run("serve", "--print-config", "--config", "nowhere.toml")
    assert found.exit_code == 2
    assert "nowhere.toml" in flat(found)


# -- a running server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    names = [f"class {n} [red]" for n in range(10)]
    write_model(root, "m", special=True, labels=names, fake={"class_count": 10}, output={"top_k": 3, "top_k_max": 5})
    write_model(root, "raw", output={"task": "raw"})
    write_model(root, "bad", fake={"fail_pixel": [0, 0, 0]})
    with gateway(root, ready=False) as running:
        running.wait_event("worker_ready")
        running.wait_event("decoder_ready")
        # Every worker has been looked at and, where a model failed, replaced: what is said of it stays.
        running.wait_event("operation_ended", kind="evaluate")
        yield running


@pytest.mark.slow
def test_predict_prints_bars_for_every_file_in_order(run, running, tmp_path):
    files = []
    for seed in range(20):  # more than one request's worth
        files.append(tmp_path / f"{seed}.png")
        files[-1].write_bytes(png(seed))
    found = run("predict", "m", *files, "--url", running.url, "--top-k", "2")
    assert found.exit_code == 0, flat(found)
    places = [found.stdout.index(str(file)) for file in files]
    assert places == sorted(places)
    for seed in range(20):
        assert f"class {digest(pixels(seed)) % 10} [red]" in found.stdout
    assert found.stdout.count("100.00%") == 20
    assert found.stdout.count("0.00%") == 40, "two classes for each of twenty"


@pytest.mark.slow
def test_predict_says_which_file_is_wrong_and_exits_with_1(run, running, tmp_path):
    (tmp_path / "good.png").write_bytes(png(1))
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = run("predict", "m/1", "good.png", "bad.png", "--url", running.url)
    assert found.exit_code == 1
    assert "bad.png unsupported_media_type" in flat(found)
    assert f"class {digest(pixels(1)) % 10}" in flat(found)
    (tmp_path / "fail.png").write_bytes(png(1, FAIL))
    found = run("predict", "m", "fail.png", "--url", running.url)
    assert (found.exit_code, "fail.png inference_failed" in flat(found)) == (1, True)


@pytest.mark.slow
def test_predict_with_raw_outputs_shows_their_shapes(run, running, tmp_path):
    (tmp_path / "good.png").write_bytes(png(1))
    found = run("predict", "raw", "good.png", "--url", running.url + "/")
    assert (found.exit_code, "digest uint32[1]" in flat(found)) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "says"), [("none", "unknown_model"), ("bad", "model_not_ready"), ("m/2", "unknown_model"), ("../m", "")]
)
def test_predict_tells_the_servers_refusal(run, running, tmp_path, model, says):
    (tmp_path / "good.png").write_bytes(png(1))
    found = run("predict", model, "good.png", "--url", running.url)
    assert found.exit_code == 2
    assert says in flat(found)
    assert "Traceback" not in flat(found)


@pytest.mark.parametrize("name", ["nowhere.png", "[/red].png"])
def test_predict_of_a_file_that_is_not_there_is_2(run, name):
    found = run("predict", "m", name)
    assert (found.exit_code, f"{name}: No such file" in flat(found)) == (2, True)


@pytest.mark.slow
def test_models_lists_them_with_their_states(run, running):
    found = run("models", "--url", running.url)
    assert found.exit_code == 0
    rows = {line.split()[1]: line for line in found.stdout.splitlines() if "│" in line}
    assert "ready" in rows["m"]
    assert "failed" in rows["bad"]
    assert "fail_pixel" in rows["bad"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://127.0.0.1", "127.0.0.1:8080", "http://[", "nonsense"])
def test_a_server_that_is_none_is_2_with_what_to_do(run, url):
    found = run("models", "--url", url)
    assert found.exit_code == 2
    assert url in flat(found) or "127.0.0.1" in flat(found)
    assert "Traceback" not in flat(found)


@pytest.fixture
def stranger():
    """A server of another kind: it answers everything with `pages`' only item, and 404 where that is None."""
    pages: list[bytes | None] = [None]

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if pages[0] is None else 200)
            self.end_headers()
            self.wfile.write(pages[0] or b"<html>")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", pages
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", [None, b"<html>", b"[]", b"{}", b'{"models": 1}', b"\xc1"])
@pytest.mark.parametrize("command", ["models", "predict"])
def test_another_kind_of_server_is_said_to_be_one(run, stranger, tmp_path, command, page):
    url, pages = stranger
    pages[0] = page
    (tmp_path / "good.png").write_bytes(png(1))
    found = run(command, *(("m", "good.png") if command == "predict" else ()), "--url", url)
    assert found.exit_code == 2
    assert "not a Penstock server" in flat(found)


# -- check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """`good` classifies into three; `wrong` promises other labels than its graph gives."""
    text = "[input]\nwidth = 4\nheight = 4\n[output]\ntask = 'classification'\n[batching]\nsizes = [1, 2]\n"
    for name, labels in (("good", "a\nb\nc\n"), ("wrong", "a\nb\n")):
        folder = tmp_path / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(text)
        (folder / "model.onnx").write_bytes(means().SerializeToString())
        (folder / "labels.txt").write_text(labels)
    return tmp_path / "models"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["good/1", "good"])
def test_check_of_a_good_model_prints_its_contract_and_its_profile(run, repository, path):
    found = run("check", repository / path)
    assert found.exit_code == 0, flat(found)
    assert "good CPUExecutionProvider, 3 labels" in flat(found)
    assert 'resize = "crop"' in flat(found)
    assert "batch size" in flat(found)


@pytest.mark.slow
def test_check_names_the_sizes_that_do_not_fit(run, tmp_path):
    write_model(tmp_path, batching={"sizes": [1, 2, 4, 8]}, fake={"warmup_images": 2})
    found = run("check", tmp_path)
    assert found.exit_code == 0, flat(found)
    assert "given up batches of 4, 8 do not fit in the memory of cpu" in flat(found)


@pytest.mark.slow
def test_check_of_a_repository_reports_each_and_exits_with_1(run, repository):
    found = run("check", repository)
    assert found.exit_code == 1
    assert "good CPUExecutionProvider" in flat(found)
    assert "refused" in flat(found)
    assert "labels" in flat(found).partition("refused")[2]


def test_check_of_a_contract_with_an_unknown_key_names_the_nearest(run, repository):
    file = repository / "good" / "1" / "model.toml"
    file.write_text(file.read_text().replace("width", "widht"))
    found = run("check", repository / "good" / "1")
    assert found.exit_code == 2
    assert "did you mean 'width'?" in flat(found)


@pytest.mark.parametrize("path", ["nowhere", "good/2", "good/1/model.onnx"])
def test_check_of_what_is_no_model_is_2(run, repository, path):
    found = run("check", repository / path)
    assert found.exit_code == 2
    assert "Traceback" not in flat(found)


def test_files_go_in_groups_that_a_server_takes(tmp_path):
    small = [tmp_path / f"small{number}" for number in range(18)]
    large = [tmp_path / f"large{number}" for number in range(3)]
    for file in small:
        file.write_bytes(b"x")
    for file in large:
        file.write_bytes(bytes(5 << 20))

    groups = [[file.name for file, _ in group] for group in client.chunks([*small, *large])]

    assert [len(group) for group in groups] == [16, 3, 1, 1]
    assert groups[1] == ["small16", "small17", "large0"]
    assert list(client.chunks([])) == []


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_its_settings_hold_only_its_digest(run, tmp_path):
    found = run("key", "mobile-app")
    assert found.exit_code == 0
    (key,) = re.findall(r"psk_[A-Za-z0-9_-]{32}", found.stderr)
    assert key not in found.stdout
    assert run("key", "mobile-app").stdout != found.stdout
    file = tmp_path / "penstock.toml"
    file.write_text("port = 1\n" + found.stdout)
    (client,) = config.load(file, {}, {}).clients
    assert (client.name, client.key_sha256) == ("mobile-app", hashlib.sha256(key.encode()).hexdigest())


def test_a_name_that_no_client_can_have_is_refused(run):
    found = run("key", "a b")
    assert found.exit_code == 2
    assert "letters, digits" in flat(found)
    assert not found.stdout
