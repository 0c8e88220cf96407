"""Multipart bodies: as real clients write them, and as attackers do."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from gateway.errors import BadRequest, PayloadTooLarge
from gateway.http.payloads import multipart_body, read_multipart

TYPE = "multipart/form-data; boundary=b"
FILE = b'Content-Disposition: form-data; name="x"; filename="y"\r\n\r\n'


def read(body, images_max=4, content_type=TYPE):
    query = read_multipart(memoryview(body), content_type, images_max)
    return query, [body[part.offset : part.offset + part.size] for part in query.parts]


def file(content, name="input0", filename="kitten.jpg", media_type="image/jpeg"):
    return (
        f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {media_type}\r\n\r\n'
    ).encode() + content


def field(name, value):
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def body_of(*parts, boundary=b"b", preamble=b"", epilogue=b"\r\n"):
    lines = [preamble] if preamble else []
    for part in parts:
        lines += [b"--" + boundary, part]
    return b"\r\n".join([*lines, b"--" + boundary + b"--"]) + epilogue


def test_curls_one_file():
    body = (
        b"--------------------------d74496d66958873e\r\n"
        b'Content-Disposition: form-data; name="input0"; filename="kitten.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n\xff\xd8\r\n--\r\n\xff\xd9\r\n"
        b"--------------------------d74496d66958873e--\r\n"
    )
    content_type = "multipart/form-data; boundary=------------------------d74496d66958873e"
    query, images = read(body, content_type=content_type)
    assert images == [b"\xff\xd8\r\n--\r\n\xff\xd9"]
    assert not query.many


def test_several_files_and_parameters_in_any_order():
    body = body_of(
        field("top_k", "3"), file(b"one"), field("priority", "batch"), file(b"", name="b"), field("deadline_ms", "2.5")
    )
    query, images = read(body)
    assert images == [b"one", b""]
    assert query.many
    assert (query.top_k, query.deadline_ms, query.priority) == (3, 2.5, "batch")


def test_aiohttps_client():
    async def encode():
        with aiohttp.MultipartWriter("form-data") as writer:
            for content in (b"\x00\x01\r\n", b"second"):
                part = writer.append(content, {"Content-Type": "image/png"})
                part.set_content_disposition("form-data", name="file", filename="ä b.png")
            return writer.content_type, await writer.as_bytes()

    content_type, body = asyncio.run(encode())
    assert read(body, content_type=content_type)[1] == [b"\x00\x01\r\n", b"second"]


@pytest.mark.parametrize(
    "headers",
    [
        b'Content-Disposition: form-data; name="x"; filename="y"\r\n\r\n',
        b"content-disposition:form-data;name=x;filename=y\r\n\r\n",
        b"Content-Disposition: form-data; name=x; filename*=UTF-8''%e2%82%ac.jpg\r\n\r\n",
        b'Content-Disposition: form-data; name="a;b\\"c"; filename="C:\\dir\\y"\r\nX-Other: 1\r\n\r\n',
        b"Content-Disposition: form-data; filename=my photo.jpg; name=x\r\n\r\n",
        b'Content-Disposition: form-data; name="x"\r\nContent-Type: image/jpeg\r\n\r\n',
        b'Content-Disposition: form-data; name="top_k"\r\nContent-Type: application/octet-stream; x=y\r\n\r\n',
        b'Content-Disposition: form-data; name="x"; filename="y"\r\nContent-Transfer-Encoding: binary\r\n\r\n',
    ],
)
def test_what_makes_a_part_an_image(headers):
    assert read(body_of(headers + b"abc"))[1] == [b"abc"]


def test_empty_file_fields_of_browsers_are_no_images():
    empty = file(b"", filename="", media_type="application/octet-stream")
    assert read(body_of(file(b"abc"), empty))[1] == [b"abc"]
    with pytest.raises(BadRequest, match="no image"):
        read(body_of(empty))


def test_preamble_epilogue_and_padding():
    body = b"ignored\r\n--b  \t\r\n" + file(b"abc") + b"\r\n--b-- \r\nrubbish \r\n--b\r\n"
    assert read(body)[1] == [b"abc"]


def test_an_empty_part_may_share_its_line_end():
    assert read(b"--b\r\n" + FILE + b"--b--")[1] == [b""]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('multipart/form-data; boundary="a b=c"', b"a b=c"),
        ("Multipart/Form-Data ; charset=utf-8; BOUNDARY=abc", b"abc"),
        ("multipart/form-data; boundary=" + "x" * 70, b"x" * 70),
    ],
)
def test_boundaries(content_type, boundary):
    assert multipart_body.boundary_of(content_type) == boundary
    assert read(body_of(file(b"abc"), boundary=boundary), content_type=content_type)[1] == [b"abc"]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="',
        'multipart/form-data; boundary="a "',
        "multipart/form-data; boundary=ä",
        'multipart/form-data; boundary="a\r\nb"',
        "multipart/form-data; boundary=" + "x" * 71,
    ],
)
def test_bad_boundaries(content_type):
    with pytest.raises(BadRequest, match="boundary"):
        read(b"", content_type=content_type)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "does not hold the boundary"),
        (b"--c--\r\n", "does not hold the boundary"),
        (b"--b--\r\n", "no image"),
        (b"--b\r\n" + FILE + b"abc", "before its last boundary"),
        (b"--b\r\n" + FILE + b"abc\r\n--b", "not at the end of its line"),
        (b"--b\r\n" + FILE + b"abc\r\n--bc\r\n", "not at the end of its line"),
        (b"--b" + b" " * 1000 + b"\r\n", "not at the end of its line"),
        (b"--b\r\n", "not ended within"),
        (b"--b\r\n\r\nabc\r\n--b--", "no headers"),
        (b"--b\r\nContent-Type: image/png\r\n\r\nabc\r\n--b--", "no Content-Disposition"),
        (b"--b\r\n" + FILE.replace(b"\r\n", b"\n") + b"abc\r\n--b--", "not ended within"),
        (body_of(b"X: " + b"y" * 5000 + b"\r\n" + FILE), "not ended within 4096"),
        (body_of(b"X: y\r\n" * 20 + FILE), "more than 16 headers"),
        (body_of(b"Content-Type: multipart/mixed; boundary=c\r\n" + FILE), "itself multipart"),
        (body_of(b"Content-Transfer-Encoding: base64\r\n" + FILE + b"YQ=="), "Content-Transfer-Encoding"),
        (body_of(file(b"abc"), field("topk", "5")), "did you mean 'top_k'"),
        (body_of(field("input0", "kitten.jpg")), "curl: -F x=@file"),
        (body_of(file(b"abc"), field("top_k", "5"), field("top_k", "5")), "stands twice"),
        (body_of(file(b"abc"), field("top_k", "x")), "1 to 1000"),
        (body_of(file(b"abc"), field("top_k", "5" * 10_000)), "1 to 1000"),
        (body_of(file(b"abc"), field("priority", "\x00")), "'realtime' or 'batch'"),
    ],
)
def test_refusals_say_what_to_do(body, said):
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert said in caught.value.detail


def test_too_many_images_and_parts():
    assert len(read(body_of(*[file(b"x")] * 4))[0].parts) == 4
    with pytest.raises(PayloadTooLarge, match="images"):
        read(body_of(*[file(b"x")] * 5))
    with pytest.raises(PayloadTooLarge, match="parts"):
        read(body_of(*[file(b"", filename="")] * 13))


@pytest.mark.parametrize("position", [65_000, 65_530, 65_535, 65_536, 65_540, 131_072])
def test_boundaries_across_windows(position):
    content = b"\r\n--" * (position // 4)
    content += b"z" * (position - len(content))
    body = body_of(file(content), file(b"second"), boundary=b"bound")
    assert read(body, content_type="multipart/form-data; boundary=bound")[1] == [content, b"second"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "filling",
    [
        b"-" * 8_000_000,
        b"\r\n--" * 2_000_000,
        b"\r\n" + b"\r\n--" + b"-" * 69 + (b"\r\n--" + b"-" * 69) * 100_000,
        (b"--b\r\n" + FILE + b"\r\n") * 100_000,
        b"--b\r\n" + b'Content-Disposition: form-data; name="x"' + b';a="' * 900 + b"\r\n\r\n",
    ],
    ids=["dashes", "prefixes", "near-boundaries", "tiny-parts", "open-quotes"],
)
def test_the_search_is_linear(filling):
    for boundary in ("b", "-" * 70):
        begin = time.process_time()
        with pytest.raises((BadRequest, PayloadTooLarge)):
            read(filling, content_type=f"multipart/form-data; boundary={boundary}")
        assert time.process_time() - begin < 1.0  # quadratic would take minutes
