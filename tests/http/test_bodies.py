"""Every kind of body, over a real socket: what is in it comes back as the digest of exactly those pixels."""

from __future__ import annotations

import base64
import json
import zlib

import msgpack
import numpy as np
import pytest

from tests.support.gateways import (
    FAIL,
    MSGPACK,
    Answer,
    assert_problem,
    chunked,
    digest,
    encode,
    head,
    multipart,
    pixels,
    png,
    png_header,
)

JSON = "application/json"
RAW_TYPES = ("image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; q=1", "")
FORMS = "application/x-www-form-urlencoded"


def b64(body: bytes) -> str:
    return base64.b64encode(body).decode()


# -- raw -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RAW_TYPES)
def test_a_raw_image_whatever_its_type_says(plain, kind):
    assert plain.predict(png(1), Content_Type=kind).top == digest(pixels(1))


def test_a_raw_image_as_plain_curl_data_binary_sends_it(plain):
    """curl names this type unless told otherwise; an image's first bytes say better what it is."""
    assert plain.predict(png(1), Content_Type=FORMS).top == digest(pixels(1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_every_lossless_format_gives_the_same_pixels(plain, kind):
    made = np.broadcast_to(np.uint8([[[10], [20]], [[30], [40]]]).repeat(4, 0).repeat(4, 1), (8, 8, 3)).copy()
    assert plain.predict(encode(made, kind)).top == digest(made)


@pytest.mark.parametrize("pieces", [1, 3, 200])
def test_a_chunked_upload(plain, pieces):
    body = png(2)
    size = -(-len(body) // pieces)
    coded = chunked(*(body[start : start + size] for start in range(0, len(body), size)))
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/m", {"Transfer-Encoding": "chunked"}) + coded)
        assert connection.read_answer().top == digest(pixels(2))


def test_a_chunked_upload_that_outgrows_its_first_region_more_than_once(plain):
    body = png(3) + b"\0" * 700_000
    with plain.connect() as connection:
        for _ in range(2):
            coded = chunked(*(body[start : start + 50_000] for start in range(0, len(body), 50_000)))
            connection.send(head("POST", "/predictions/m", {"Transfer-Encoding": "chunked"}) + coded)
            assert connection.read_answer().top == digest(pixels(3))
    plain.wait_idle("m/3")


def test_a_client_that_waits_for_leave_gets_it(plain):
    body = png(4)
    with plain.connect() as connection:
        asked = {"Content-Length": str(len(body)), "Expect": "100-continue"}
        connection.send(head("POST", "/predictions/m", asked))
        assert connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        connection.send(body)
        assert connection.read_answer().top == digest(pixels(4))


def test_a_client_that_waits_for_leave_and_is_refused_sends_nothing(plain):
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/none", {"Content-Length": "100", "Expect": "100-continue"}))
        assert_problem(connection.read_answer(), 404, "unknown_model")


# -- multipart -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "input0", "", "файл", "a b"])
def test_one_file_under_any_field_name(plain, name):
    body, kind = multipart((name, "kitten.png", png(1)))
    assert plain.predict(body, Content_Type=kind).top == digest(pixels(1))


def test_several_files_and_parameters(plain):
    body, kind = multipart(("a", "1.png", png(1)), ("top_k", None, b"2"), ("a", "2.png", png(2)))
    answer = plain.predict(body, Content_Type=kind)
    assert answer.tops == [digest(pixels(1)), digest(pixels(2))]
    assert [len(found["prediction"]) for found in answer.document["predictions"]] == [2, 2]


# -- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [json.dumps, lambda document: json.dumps(document).replace("/", "\\/")])
def test_json_with_one_image_plain_and_as_php_writes_it(plain, write):
    body = png(7)
    assert "/" in b64(body), "or nothing is escaped here"
    assert plain.predict(write({"image": b64(body)}).encode(), Content_Type=JSON).top == digest(pixels(7))


def test_json_with_a_data_url(plain):
    body = json.dumps({"image": "data:image/png;base64," + b64(png(1))}).encode()
    assert plain.predict(body, Content_Type="application/json; charset=utf-8").top == digest(pixels(1))


@pytest.mark.parametrize("count", [1, 3])
def test_json_with_a_list_is_answered_with_a_list(plain, count):
    body = json.dumps({"images": [b64(png(seed)) for seed in range(count)]}).encode()
    assert plain.predict(body, Content_Type=JSON).tops == [digest(pixels(seed)) for seed in range(count)]


# -- msgpack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MSGPACK, "application/x-msgpack", "application/vnd.msgpack"])
def test_msgpack_in_msgpack_out(plain, kind):
    answer = plain.predict(msgpack.packb({"image": png(1)}), Content_Type=kind)
    assert answer.headers["content-type"] == MSGPACK
    assert answer.top == digest(pixels(1))
    answer = plain.predict(msgpack.packb({"images": [png(1), png(2)]}), Content_Type=kind)
    assert answer.tops == [digest(pixels(1)), digest(pixels(2))]


def tensor(array: np.ndarray, **changes) -> bytes:
    return msgpack.packb(
        {"tensor": {"shape": list(array.shape), "dtype": str(array.dtype), "data": array.tobytes(), **changes}}
    )


def test_a_tensor_of_one_image_goes_to_its_slot_as_it_is(plain):
    assert plain.predict(tensor(pixels(5)), Content_Type=MSGPACK).top == digest(pixels(5))


def test_a_tensor_of_several_images_is_one_answer_each(plain):
    batch = np.stack([pixels(seed) for seed in range(9)])
    assert plain.predict(tensor(batch), Content_Type=MSGPACK).tops == [digest(row) for row in batch]
    assert plain.predict(tensor(batch[:1]), Content_Type=MSGPACK).tops == [digest(batch[0])]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (tensor(np.zeros((9, 8, 3), np.uint8)), ("[9, 8, 3]", "[8, 8, 3]")),
        (tensor(np.zeros((2, 8, 8, 4), np.uint8)), ("[2, 8, 8, 4]", "[8, 8, 3]")),
        (tensor(np.zeros((8, 8, 3), np.float32)), ("'float32'", "'uint8'")),
        (tensor(pixels(1), data=b"x" * 191), ("192", "191")),
        (tensor(pixels(1), shape=[2**32, 2**32, 3]), ("data has 192",)),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_both_sides_named(plain, body, says):
    detail = assert_problem(plain.predict(body, Content_Type=MSGPACK), 400, "bad_request")["detail"]
    assert all(side in detail for side in says), detail


def test_more_rows_than_the_model_takes_are_413(plain):
    rows = np.zeros((3, 8, 8, 3), np.uint8)
    assert_problem(plain.predict(tensor(rows), "few", Content_Type=MSGPACK), 413, "payload_too_large")


# -- parameters ----------------------------------------------------------------------------------------------------


def test_classes_are_ranked_and_named(plain):
    made = pixels(1)
    best = digest(made) % 5
    found = plain.predict(png(1), "ranked").document
    assert (found["model"], found["version"]) == ("ranked", 1)
    assert [row["index"] for row in found["prediction"]] == [best, *(n for n in range(5) if n != best)][:3]
    assert [row["probability"] for row in found["prediction"]] == [1.0, 0.0, 0.0]
    assert found["prediction"][0]["class"] == ["ant", "bee", "cat", "dog", "eel"][best]
    stages = ("read", "decode_queue", "decode", "batch_queue", "infer", "total")
    assert tuple(found["timing_ms"]) == stages
    assert all(found["timing_ms"][stage] >= 0 for stage in stages)
    assert sum(found["timing_ms"][stage] for stage in stages[:-1]) <= found["timing_ms"]["total"] + 0.01


@pytest.mark.parametrize("where", ["query", "json", "msgpack", "both"])
def test_top_k_in_the_query_and_in_the_body(plain, where):
    query = "?top_k=4&priority=batch&deadline_ms=5000.5" if where in ("query", "both") else ""
    more = {"top_k": 4, "priority": "batch", "deadline_ms": 5000.5} if where != "query" else {}
    if where == "msgpack":
        answer = plain.predict(msgpack.packb({"image": png(1), **more}), "ranked", query, Content_Type=MSGPACK)
    else:
        body = json.dumps({"image": b64(png(1)), **more}).encode()
        answer = plain.predict(body, "ranked", query, Content_Type=JSON)
    assert len(answer.document["prediction"]) == 4


def test_a_parameter_with_two_values_is_refused(plain):
    body = json.dumps({"image": b64(png(1)), "top_k": 2}).encode()
    assert_problem(plain.predict(body, "ranked", "?top_k=3", Content_Type=JSON), 400, "bad_request")


def test_top_k_over_the_contract_names_its_bound(plain):
    detail = assert_problem(plain.predict(png(1), "ranked", "?top_k=5"), 400, "bad_request")["detail"]
    assert "4" in detail


@pytest.mark.parametrize(
    ("accept", "kind", "wanted"),
    [
        ("application/json", MSGPACK, JSON),
        ("application/msgpack", "image/png", MSGPACK),
        ("application/json, application/msgpack", MSGPACK, JSON),
        ("*/*", MSGPACK, MSGPACK),
        ("*/*", "image/png", JSON),
        ("text/html", "image/png", JSON),
    ],
)
def test_accept_chooses_the_answer(plain, accept, kind, wanted):
    body = msgpack.packb({"image": png(1)}) if kind == MSGPACK else png(1)
    answer = plain.predict(body, Content_Type=kind, Accept=accept)
    assert answer.headers["content-type"] == wanted
    assert answer.top == digest(pixels(1))


def test_raw_outputs_are_lists_in_json_and_bytes_in_msgpack(plain):
    wanted = zlib.crc32(pixels(1).tobytes())
    found = plain.predict(png(1), "raw").document["outputs"]["digest"]
    assert found == {"shape": [1], "dtype": "uint32", "data": [wanted]}
    found = plain.predict(msgpack.packb({"image": png(1)}), "raw", Content_Type=MSGPACK).document["outputs"]["digest"]
    assert found == {"shape": [1], "dtype": "uint32", "data": wanted.to_bytes(4, "little")}
    assert_problem(plain.predict(png(1), "raw", "?top_k=1"), 400, "bad_request")


# -- several images ------------------------------------------------------------------------------------------------


def many(plain, *images: bytes, model: str = "m/1") -> Answer:
    return plain.predict(msgpack.packb({"images": list(images)}), model, Content_Type=MSGPACK, Accept=JSON)


def test_bad_images_among_good_ones_fail_alone_and_in_their_places(plain):
    answer = many(plain, png(1), b"no image", png(2), png(3)[:60], png(4, FAIL), png_header(3000, 3000), b"", png(5))
    assert answer.status == 200
    assert answer.tops == [
        digest(pixels(1)),
        "unsupported_media_type",
        digest(pixels(2)),
        "undecodable_image",
        "inference_failed",
        "payload_too_large",
        "undecodable_image",
        digest(pixels(5)),
    ]
    for found in answer.document["predictions"]:
        assert "error" not in found or len(found["error"]["detail"]) > 10


def test_only_bad_images_answer_with_the_first_ones_status_and_each_ones_reason(plain):
    answer = many(plain, png(1)[:60], b"no image")
    problem = assert_problem(answer, 422, "undecodable_image")
    assert [found["error"]["code"] for found in problem["predictions"]] == [
        "undecodable_image",
        "unsupported_media_type",
    ]


@pytest.mark.parametrize("version", ["m", "m/3", "m/1"])
def test_the_version_is_chosen_by_the_path_and_the_latest_by_none(plain, version):
    answer = plain.predict(png(1), version)
    assert answer.document["version"] == (1 if version == "m/1" else 3)
