"""The service, asked by a real HTTP client in a process of its own: answers, refusals, what is kept."""

from __future__ import annotations

import io
import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import jsonschema
import pytest
from PIL import Image

from serving import Served, defective_part, good_part, result, serve, write_product
from uflow import load
from uflow.serve.openapi import LINE, describe

pytest.importorskip("onnxruntime")

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/prediction.schema.json").read_text())


@pytest.fixture(scope="module")
def served(served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two products on one model; the second keeps no pictures and is stricter."""
    root = tmp_path_factory.mktemp("line")
    write_product(root / "products", "tile", served_model)
    write_product(root / "products", "lid", served_model, "alpha = 0.3\n[pictures]\nkeep_flagged = false\n")
    with serve(root / "products", root / "data", "--max-upload", "1", "--max-pixels", "100000") as service:
        yield service
        assert service.end() == 0, service.log.read_text()
    assert "Traceback" not in service.log.read_text()


# Answers --------------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_line_of_predict(served: Served, served_model: Path) -> None:
    content = defective_part()
    found = result(served.predict(content, name="part 7.png"))
    jsonschema.validate(found, SCHEMA)
    wanted = load(served_model).predict(content).to_dict() | {"image": "part 7.png", "time": found["time"]}
    assert found == json.loads(json.dumps(wanted))
    assert found["verdict"] == "reject"


def test_the_client_of_the_guide(served: Served) -> None:
    page = (Path(__file__).parent.parent / "docs/guide/service.md").read_text()
    source = page.partition("```python\n")[2].partition("```")[0]
    namespace: dict[str, Any] = {}
    exec(compile(source, "service.md", "exec"), namespace)
    content, url = defective_part(), str(served.client.base_url).rstrip("/")
    line = namespace["predict"](content, "tile", url)
    assert line | {"time": ""} == result(served.predict(content)) | {"time": ""}
    with pytest.raises(HTTPError, match="422"):
        namespace["predict"](content[:2000], "tile", url)


def test_a_form_gives_the_same_as_a_body(served: Served) -> None:
    content = good_part()
    form = served.client.post("/v1/products/tile/predict", files={"image": ("part.png", content, "image/png")})
    found, wanted = result(form), result(served.predict(content, name="part.png"))
    assert found | {"time": ""} == wanted | {"time": ""}


def test_an_overlay_is_a_picture_as_large_as_the_image(served: Served) -> None:
    answer = served.predict(defective_part(), overlay="1")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["uflow-verdict"] == "reject"
    assert Image.open(io.BytesIO(answer.content)).size == (96, 80)


def test_a_part_is_kept_with_its_picture(served: Served) -> None:
    answer = served.predict(defective_part(3), name="kept")
    assert answer.headers["uflow-stored"] == "yes"
    part = served.client.get(answer.headers["location"]).json()
    assert part["id"] == int(answer.headers["uflow-part"])
    assert (part["name"], part["state"], part["verdict"]) == ("kept", "judged", "reject")
    assert part["result"] == answer.json()
    assert part["has_picture"]
    other = served.predict(defective_part(3), "lid")
    assert not served.client.get(other.headers["location"]).json()["has_picture"]


def test_products_have_their_own_limits(served: Served) -> None:
    content = good_part(1)
    assert (result(served.predict(content))["alpha"], result(served.predict(content, "lid"))["alpha"]) == (0.2, 0.3)
    products = {product["name"]: product for product in served.client.get("/v1/products").json()}
    assert products.keys() == {"tile", "lid"}
    assert products["tile"]["ready"]
    assert products["tile"]["monitor"]["parts"] > 0


def test_two_products_at_once_disturb_one_another_in_nothing(served: Served) -> None:
    """Six senders: each answer is that of the same part alone."""
    work = [(product, number) for number in range(5) for product in ("tile", "lid")] * 3
    alone = {each: outcome(served, *each) for each in set(work)}
    with ThreadPoolExecutor(6) as pool:
        for each, found in zip(work, pool.map(lambda each: outcome(served, *each), work), strict=True):
            assert found == alone[each]


def outcome(served: Served, product: str, number: int) -> dict[str, Any]:
    content = (good_part, defective_part)[number % 2](number)
    return result(served.predict(content, product)) | {"time": ""}


def test_health_metrics_version(served: Served) -> None:
    served.predict(good_part())
    assert served.client.get("/health").json() == {"status": "ok", "troubles": []}
    assert served.client.get("/ready").json() == {"ready": True}
    assert served.client.get("/version").json()["uflow"]
    text = served.client.get("/metrics").text
    for name in ("uflow_parts_total", "uflow_request_seconds_bucket", "uflow_drift_log10_wealth", "uflow_queue_parts"):
        assert f"{name}{{" in text
    assert "uflow_store_trouble 0.0" in text


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are read from /proc")
def test_an_exported_model_is_served_without_torch(served: Served) -> None:
    served.predict(good_part())
    libraries = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "onnxruntime" in libraries
    assert "libtorch" not in libraries


def test_openapi_describes_what_is_answered(served: Served) -> None:
    assert served.client.get("/openapi.json").json() == json.loads(json.dumps(describe()))
    full = SCHEMA["$defs"]["prediction"]
    assert sorted(LINE) == sorted(full["required"])


# Refusals -------------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A picture of some kilobytes that would be 432 megabytes."""
    file = io.BytesIO()
    Image.new("1", (12000, 12000)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "there is no image"),
        (b"no picture", 415, "no known image format"),
        (bytes(2_000_000), 413, "more than 1048576 bytes"),
        (good_part()[:2000], 422, "truncated"),
        (b"GIF89a" + bytes(100), 415, "no known image format"),
    ],
    ids=["empty", "text", "large", "cut", "gif"],
)
def test_what_is_no_good_image_is_refused(served: Served, content: bytes, status: int, words: str) -> None:
    answer = served.predict(content)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert result(served.predict(good_part()))


def test_a_bomb_is_refused_by_its_header(served: Served) -> None:
    began = time.monotonic()
    answer = served.predict(bomb())
    assert answer.status_code == 413
    assert "144000000 pixels" in answer.json()["error"]
    assert time.monotonic() - began < 5


def damaged(rng: random.Random) -> Iterator[bytes]:
    """Files of each format, cut short or with some bytes changed."""
    for form in ("png", "jpeg", "bmp", "tiff", "webp"):
        file = io.BytesIO()
        Image.open(io.BytesIO(good_part())).save(file, form)
        for number in range(12):
            content = bytearray(file.getvalue())
            if number % 3 == 0:
                del content[rng.randrange(len(content)) :]
            for _ in range(number):
                content[rng.randrange(min(len(content), 300))] = rng.randrange(256)
            yield bytes(content)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_damaged_files_are_judged_or_refused_in_bounded_memory(served: Served) -> None:
    before = memory_mb(served)
    answers = [served.predict(content) for content in damaged(random.Random(0))]
    assert {answer.status_code for answer in answers} <= {200, 400, 413, 415, 422}
    assert {415, 422} <= {answer.status_code for answer in answers}
    assert memory_mb(served) - before < 100
    assert result(served.predict(good_part()))


def memory_mb(served: Served) -> float:
    """The most that the service has held so far."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_other_refusals_are_one_line_of_json(served: Served) -> None:
    assert served.predict(good_part(), "none").status_code == 404
    assert served.client.get("/v1/products/tile/predict").status_code == 405
    assert served.client.get("/v1/parts/999999").status_code == 404
    assert served.client.get("/../../etc/passwd").status_code == 404
    assert served.predict(good_part(), "..%2F..%2Fetc").status_code == 404
    assert served.predict(good_part(), name="a\nb").status_code == 400
    form = served.client.post(
        "/v1/products/tile/predict", content=b"x", headers={"content-type": "multipart/form-data"}
    )
    assert form.status_code == 400


def test_a_part_that_cannot_be_judged_is_kept_and_never_good(served: Served) -> None:
    answer = served.predict(good_part()[:2000], name="cut")
    part = served.client.get(answer.headers["location"]).json()
    assert (part["state"], part["verdict"]) == ("failed", None)
    assert part["result"] == answer.json()


def test_each_answer_has_headers_that_protect(served: Served) -> None:
    for answer in (served.client.get("/health"), served.client.get("/nowhere"), served.predict(b"")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
