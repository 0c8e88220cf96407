"""The demo as its user runs it, and the demo model as its clients ask it: real photos in, the right names out."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request

import msgpack
import pytest
from PIL import Image

from tests.e2e.conftest import penstock
from tests.support.gateways import MSGPACK, ROOT, multipart
from tests.support.images import PHOTOS, encode, photo

pytestmark = pytest.mark.slow

MODEL = "efficientnet_lite0"
CATS = {281, 282, 285}
"""Tabby, tiger cat, Egyptian cat: what ImageNet can say of Chelsea."""
ESPRESSO = 967


def test_the_demo_prints_espresso_for_the_coffee_cup_and_how_to_ask_again(shown):
    done, _ = shown
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    best = next(line for line in lines if "%" in line and "espresso" in line)
    assert float(best.split("%")[0]) > 80
    assert [line for line in lines if line.strip().startswith("curl --data-binary @")]
    assert "Traceback" not in done.stderr


def test_the_curl_line_of_the_demo_names_a_photo_that_exists(shown):
    line = next(line for line in shown[0].stdout.splitlines() if "curl" in line and "@" in line)
    file = line.partition("@")[2].split()[0]
    with Image.open(file) as image:
        assert image.size > (100, 100)
    assert line.rstrip().endswith(f"/predictions/{MODEL}")


def test_the_second_demo_builds_nothing_anew(shown):
    _, cache = shown

    def files():
        return {path: path.stat().st_mtime_ns for path in (cache / "penstock").rglob("*") if path.is_file()}

    before = files()
    assert {path.name for path in before} == {"model.onnx", "model.toml", "labels.txt"}
    done = penstock("demo", "--once", "--port", "0", XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0
    assert files() == before


BODIES = {
    "png": lambda: (PHOTOS["chelsea"].read_bytes(), "image/png"),
    "jpeg": lambda: (encode(photo("chelsea"), "JPEG", quality=90), "image/jpeg"),
    "jpeg with EXIF": lambda: (encode(photo("chelsea").rotate(90, expand=True), "JPEG", orientation=6), "image/jpeg"),
    "webp": lambda: (encode(photo("chelsea"), "WEBP", quality=90), "image/webp"),
    "gif": lambda: (encode(photo("chelsea"), "GIF"), "image/gif"),
    "multipart": lambda: multipart(("input0", "kitten.jpg", encode(photo("chelsea"), "JPEG"))),
    "json": lambda: (
        json.dumps({"image": base64.b64encode(PHOTOS["chelsea"].read_bytes()).decode()}).encode(),
        "application/json",
    ),
    "msgpack": lambda: (msgpack.packb({"image": PHOTOS["chelsea"].read_bytes()}), MSGPACK),
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_cat_is_a_cat_however_it_is_sent(running, kind):
    body, content_type = BODIES[kind]()
    document = running.predict(body, MODEL, Content_Type=content_type).document
    best = document["prediction"][0]
    assert best["index"] in CATS
    assert "cat" in best["class"] or best["class"] == "tabby"
    assert len(document["prediction"]) == 5
    assert 0.2 < best["probability"] <= 1


def test_the_cup_is_espresso_and_probabilities_are_whole(running):
    document = running.predict(PHOTOS["coffee"].read_bytes(), MODEL, "?top_k=100").document
    assert (document["prediction"][0]["index"], document["prediction"][0]["class"]) == (ESPRESSO, "espresso")
    probabilities = [row["probability"] for row in document["prediction"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.95 < sum(probabilities) <= 1.0001


def test_several_photos_in_one_request_are_each_themselves(running):
    bodies = [PHOTOS[name].read_bytes() for name in ("coffee", "chelsea", "rocket")]
    cat_first = msgpack.packb({"images": [bodies[1], b"no image", bodies[0]]})
    tops = running.predict(cat_first, MODEL, Content_Type=MSGPACK).tops
    assert tops[0] in CATS
    assert tops[1:] == ["unsupported_media_type", ESPRESSO]


def test_the_same_photo_gets_the_same_answer_alone_and_in_company(running):
    body = PHOTOS["coffee"].read_bytes()
    alone = running.predict(body, MODEL).document["prediction"]
    answer = running.predict(msgpack.packb({"images": [body] * 7}), MODEL, Content_Type=MSGPACK)
    for found in answer.document["predictions"]:
        assert [row["index"] for row in found["prediction"]] == [row["index"] for row in alone]
        assert found["prediction"][0]["probability"] == pytest.approx(alone[0]["probability"], abs=1e-3)


def test_predict_from_the_command_line(running):
    done = penstock("predict", MODEL, PHOTOS["coffee"], PHOTOS["chelsea"], "--url", running.url, "--top-k", 1)
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout
    assert "cat" in done.stdout.partition(str(PHOTOS["chelsea"]))[2]


def test_models_and_check_from_the_command_line(running, models):
    done = penstock("models", "--url", running.url)
    assert done.returncode == 0
    assert MODEL in done.stdout
    assert "ready" in done.stdout


def test_a_photo_of_twelve_megapixels_is_answered(running):
    large = photo("chelsea").resize((4000, 3000))
    out = io.BytesIO()
    large.save(out, "JPEG", quality=85)
    assert running.predict(out.getvalue(), MODEL).top in CATS


def test_without_once_it_serves_on_until_it_is_interrupted(shown):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    environ |= {"COLUMNS": "200", "XDG_CACHE_HOME": str(shown[1]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "gateway", "demo", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "serving until Ctrl-C" in line:
                break
        url = next(line.split()[-1] for line in said if line.startswith("serving "))
        with urllib.request.urlopen(f"{url}/livez", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert any("espresso" in line for line in said)
