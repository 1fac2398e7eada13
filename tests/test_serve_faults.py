"""What goes wrong on a line, and what the service makes of it: docs/guide/service.md has the table."""

from __future__ import annotations

import errno
import io
import shutil
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from conftest import wait_for
from serving import (
    defective_part,
    fill_disk,
    good_part,
    mount_small_disk,
    png,
    result,
    serve,
    serve_here,
    write_product,
)
from uflow import load
from uflow.deploy.exported import save_threshold
from uflow.images import read_image
from uflow.prediction import Prediction
from uflow.roi import RegionOfInterest
from uflow.serve import run
from uflow.serve.pictures import PictureFolder
from uflow.serve.playback import Playback
from uflow.serve.service import Limits, Service

Make = Callable[..., Service]


@pytest.fixture
def make(served_model: Path, tmp_path: Path) -> Make:
    """A service of one product, on a copy of the model that a test may change."""
    shutil.copytree(served_model, tmp_path / "model")
    write_product(tmp_path / "products", "tile", tmp_path / "model")
    file = tmp_path / "products/tile.toml"
    return lambda **limits: Service([file], tmp_path / "data", Limits(**limits), poll_s=0.05)


class Slow:
    """A predictor that takes its time, or fails."""

    def __init__(self, predictor: Any, seconds: float, error: Exception | None = None) -> None:
        self.predictor, self.seconds, self.error = predictor, seconds, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)

    def predict(self, content: bytes) -> Any:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.predictor.predict(content)


def slow_down(service: Service, seconds: float, error: Exception | None = None) -> None:
    live = service.judges["tile"].live
    live.predictor = Slow(live.predictor, seconds, error)  # type: ignore[assignment]


def post(client: httpx2.Client, content: bytes, **query: str) -> httpx2.Response:
    return client.post("/v1/products/tile/predict", content=content, params=query)


def test_beyond_the_queue_is_503_and_what_was_accepted_is_judged(make: Make) -> None:
    service = make(queue=3)
    slow_down(service, 0.2)
    with serve_here(service) as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: post(client, good_part(), name=str(i)), range(12)))
        refused = [answer for answer in answers if answer.status_code == 503]
        accepted = [answer for answer in answers if answer.status_code == 200]
        assert len(accepted) + len(refused) == 12
        assert len(accepted) >= 3
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert len(service.store.parts("tile")) == len(accepted)
        assert result(post(client, good_part()))
        assert f'uflow_refused_total{{product="tile",status="503"}} {len(refused)}.0' in client.get("/metrics").text


def test_memory_for_what_is_received_is_bounded(make: Make) -> None:
    """Room for two of the largest images: a third is refused before all of it is read, and a small one is not."""
    service = make(upload_bytes=100_000, held_bytes=1)
    with serve_here(service) as client, ExitStack() as slow:
        for _ in range(2):
            slow.enter_context(send_part_of_an_image(client, 99_000))
        wait_for(lambda: post(client, bytes(99_000)).status_code == 503, 10)
        assert result(post(client, good_part()))
        slow.close()
        wait_for(lambda: post(client, bytes(99_000)).status_code == 415, 10)


def test_who_sends_slowly_takes_no_place_of_the_line(make: Make) -> None:
    """Neither a place in the queue nor memory for what has not come."""
    service = make(queue=2, upload_bytes=100_000, held_bytes=1)
    with serve_here(service) as client, ExitStack() as slow:
        for _ in range(5):
            slow.enter_context(send_part_of_an_image(client, 10))
        time.sleep(0.2)
        assert [post(client, good_part()).status_code for _ in range(3)] == [200] * 3


def send_part_of_an_image(client: httpx2.Client, size: int) -> socket.socket:
    """A sender that says that its image is 100,000 bytes, and sends some of them."""
    connection = socket.create_connection(("127.0.0.1", client.base_url.port or 0))
    head = b"POST /v1/products/tile/predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
    connection.sendall(head + bytes(size))
    return connection


def test_a_part_that_takes_too_long_is_judged_and_stored_all_the_same(make: Make) -> None:
    service = make(request_s=0.5)
    slow_down(service, 1.0)
    with serve_here(service) as client:
        answer = post(client, defective_part())
        assert answer.status_code == 504
        assert "it will be" in answer.json()["error"]
        place = answer.headers["location"]
        assert client.get(place).json()["state"] == "accepted"
        wait_for(lambda: client.get(place).json()["verdict"] == "reject", 10)


def test_an_upload_that_does_not_come_to_its_end_is_given_up(make: Make) -> None:
    service = make(request_s=0.3, queue=1)
    with serve_here(service) as client:
        answer = client.post("/v1/products/tile/predict", content=slowly(good_part()))
        assert answer.status_code == 408
        assert post(client, good_part()).status_code in (200, 504), "its place in the queue is free again"


def slowly(content: bytes) -> Iterator[bytes]:
    yield content[:100]
    time.sleep(1)
    yield content[100:]


def test_a_mistake_in_judging_is_500_without_its_details_and_the_next_part_is_judged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    service = make()
    right = service.judges["tile"].live.predictor
    slow_down(service, 0, RuntimeError("secret /path/of/model"))
    with serve_here(service) as client:
        answer = post(client, good_part())
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "secret" in caplog.text
        part = client.get(answer.headers["location"]).json()
        assert (part["state"], part["verdict"]) == ("failed", None)
        service.judges["tile"].live.predictor = right
        service.judges["tile"].model_changed()
        assert result(post(client, good_part()))


def test_a_mistake_of_ours_is_told_and_the_worker_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make()
    judge = service.judges["tile"]
    with serve_here(service) as client:
        with monkeypatch.context() as patch:
            patch.setattr(judge, "_settle", lambda *_: 1 / 0)
            answer = post(client, good_part())
        assert (answer.status_code, answer.headers["connection"]) == (500, "close")
        assert answer.json() == {"error": "a mistake of the service; its log says more"}
        assert result(post(client, good_part()))


# Disk -----------------------------------------------------------------------------------------------------------------


def fill(service: Service) -> None:
    """Let the data base grow no more: SQLite then says that the disk is full."""
    pages = service.store._database._writer.execute("PRAGMA page_count").fetchone()[0]
    service.store._database._writer.execute(f"PRAGMA max_page_count = {pages}")


def empty(service: Service) -> None:
    service.store._database._writer.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_is_said_and_judging_goes_on(make: Make) -> None:
    service = make()
    with serve_here(service) as client:
        assert post(client, good_part(), name="first").headers["uflow-stored"] == "yes"
        fill(service)
        answers = [post(client, defective_part(), name="x" * 190) for _ in range(40)]
        assert {result(answer)["verdict"] for answer in answers} == {"reject"}
        assert answers[-1].headers["uflow-stored"] == "no"
        assert "uflow-part" not in answers[-1].headers
        assert client.get("/health").json() == {"status": "trouble", "troubles": ["store"]}
        text = client.get("/metrics").text
        assert "uflow_store_trouble 1.0" in text
        assert 'uflow_not_stored_total{product="tile"}' in text
        empty(service)
        wait_for(lambda: post(client, good_part()).headers["uflow-stored"] == "yes", 5)
        wait_for(lambda: client.get("/health").json()["status"] == "ok", 5)
        wait_for(lambda: not service.store.waiting("tile"), 5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Where `make` keeps its data."""
    with mount_small_disk(tmp_path / "data") as folder:
        yield folder


def test_a_disk_that_is_really_full(make: Make, small_disk: Path) -> None:
    service = make()
    with serve_here(service) as client:
        assert post(client, good_part()).headers["uflow-stored"] == "yes"
        fill_disk(small_disk)
        answers = [post(client, defective_part(seed)) for seed in range(20)]
        assert {result(answer)["verdict"] for answer in answers} == {"reject"}
        assert answers[-1].headers["uflow-stored"] == "no"
        assert client.get("/health").json()["troubles"] == ["store"]
        (small_disk / "ballast").unlink()
        assert post(client, defective_part()).headers["uflow-stored"] == "yes"
        wait_for(lambda: not service.store.waiting("tile") and not service.troubles(), 10)
        stored = [answer for answer in answers if "uflow-part" in answer.headers]
        assert all(client.get(answer.headers["location"]).json()["verdict"] == "reject" for answer in stored)


def test_no_room_for_a_picture_leaves_nothing_behind(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make()
    with serve_here(service) as client:
        with monkeypatch.context() as patch:
            patch.setattr(PictureFolder, "write", raise_full)
            assert post(client, good_part()).headers["uflow-stored"] == "no"
            assert service.troubles() == {"store": "No space left on device"}
        assert post(client, good_part()).headers["uflow-stored"] == "yes"
        assert service.troubles() == {}
        assert len(service.store.parts("tile")) == 1


def raise_full(*_: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_verdicts_that_the_disk_did_not_take_are_stored_later(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make()
    with serve_here(service) as client:
        with monkeypatch.context() as patch:
            patch.setattr(service.store, "settle", raise_full)
            answer = post(client, defective_part())
            assert result(answer)["verdict"] == "reject"
            assert answer.headers["uflow-stored"] == "no"
            assert service.store.waiting("tile") == [int(answer.headers["uflow-part"])]
        wait_for(lambda: client.get(answer.headers["location"]).json()["verdict"] == "reject", 5)
        assert service.troubles() == {}


def test_pictures_are_pruned_while_it_runs(make: Make) -> None:
    service = make(pictures_bytes=40_000)
    with serve_here(service) as client:
        for seed in range(8):
            post(client, defective_part(seed))
        service.prune()
        assert 0 < service.store.pictures_size() <= 40_000
        assert len(service.store.parts("tile")) == 8


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_product_that_changes_serves_at_once(make: Make, tmp_path: Path) -> None:
    service = make()
    with serve_here(service) as client:
        assert result(post(client, good_part()))["alpha"] == 0.2
        write_product(tmp_path / "products", "tile", tmp_path / "model", "alpha = 0.3\n")
        wait_for(lambda: result(post(client, good_part()))["alpha"] == 0.3, 10)
        (product,) = client.get("/v1/products").json()
        assert product["monitor"]["parts"] >= 1
        assert product["monitor"]["parts"] < len(service.store.parts("tile")), "a new watch for other p-values"


def test_another_gain_is_taken_over(make: Make, tmp_path: Path) -> None:
    service = make()
    part = read_image(good_part()) // 4 * 2
    with serve_here(service) as client:
        wanted = result(post(client, png(part)))["score"]
        assert result(post(client, png(2 * part)))["score"] != wanted
        write_product(tmp_path / "products", "tile", tmp_path / "model", "gain = 2.0\n")
        wait_for(lambda: result(post(client, png(2 * part)))["score"] == wanted, 10)


def test_a_mask_that_changes_is_read_again_with_its_product(
    make: Make, tmp_path: Path, dataset: Path, served_model: Path
) -> None:
    """A model calibrated in another region waits for the mask, as a region waits for its model; a broken one too."""
    mask = np.zeros((80, 96), bool)
    mask[:, :60] = True
    Image.fromarray(mask).save(tmp_path / "products/roi.png")
    calibrate(tmp_path / "model", dataset, mask)
    write_product(tmp_path / "products", "tile", tmp_path / "model", "[roi]\nmask = 'roi.png'\n")
    service = make()
    judge = service.judges["tile"]
    with serve_here(service) as client:
        assert judge.live.trouble is None
        mask[:, 50:] = False
        Image.fromarray(mask).save(tmp_path / "products/roi.png")
        wait_for(lambda: "has not learnt the region" in (judge.live.trouble or ""), 10)
        assert client.get("/health").json()["troubles"] == ["model tile"]
        assert judge.live.predictor.roi.pixels((80, 96))[:, 50:60].all(), "the old one serves on"
        calibrate(tmp_path / "model", dataset, mask)
        wait_for(lambda: judge.serving[0].roi.is_same(RegionOfInterest.from_mask(mask)), 10)
        assert judge.live.trouble is None

        (tmp_path / "products/roi.png").write_bytes(b"no picture")
        wait_for(lambda: "roi.png" in (judge.live.trouble or ""), 10)
        assert result(post(client, good_part()))
        Image.fromarray(mask).save(tmp_path / "products/roi.png")
        wait_for(lambda: client.get("/health").json()["status"] == "ok", 10)


def calibrate(model: Path, dataset: Path, mask: np.ndarray) -> None:
    predictor = load(model)
    predictor.calibrate(dataset / "train/good", alpha=0.2, roi=mask)
    save_threshold(predictor)  # type: ignore[arg-type]


def test_a_model_that_the_product_names_before_it_is_there_is_waited_for(make: Make, tmp_path: Path) -> None:
    service = make()
    with serve_here(service) as client:
        write_product(tmp_path / "products", "tile", tmp_path / "later")
        wait_for(lambda: client.get("/health").json()["troubles"] == ["model tile"], 10)
        assert result(post(client, good_part()))["model"] == "model"
        shutil.copytree(tmp_path / "model", tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "later")
        wait_for(lambda: result(post(client, good_part()))["model"] == "later", 10)
        assert client.get("/health").json()["status"] == "ok"


def test_a_product_that_comes_later_is_said(make: Make, tmp_path: Path) -> None:
    make().store.close()
    service = Service(tmp_path / "products", tmp_path / "data", poll_s=0.05)
    with serve_here(service) as client:
        write_product(tmp_path / "products", ".uflow-written", tmp_path / "model")
        (tmp_path / "products/tile.toml.before").touch()
        assert client.get("/health").json()["troubles"] == []
        write_product(tmp_path / "products", "lamp", tmp_path / "model")
        assert client.get("/health").json()["troubles"] == ["products"]
        assert "lamp.toml is new: start the service again" in service.troubles()["products"]
        (tmp_path / "products/lamp.toml").unlink()
        assert client.get("/health").json()["status"] == "ok"


def test_models_change_under_load_and_each_part_is_of_one_of_them(make: Make, tmp_path: Path, dataset: Path) -> None:
    """The second model was calibrated on fewer images: its p-values would be none of the first one's monitor."""
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    predictor = load(tmp_path / "other")
    predictor.calibrate(dataset / "test/good", alpha=0.3)
    save_threshold(predictor)  # type: ignore[arg-type]
    service, answers, ended = make(), [], threading.Event()
    with serve_here(service) as client, ThreadPoolExecutor(3) as pool:
        senders = [pool.submit(send_until, ended, client, answers) for _ in range(3)]
        for number in range(4):
            name = ("other", "model")[number % 2]
            count = len(answers)
            write_product(tmp_path / "products", "tile", tmp_path / name)
            wait_for(lambda name=name, count=count: name in models(answers[count:]), 20)
        ended.set()
        for sender in senders:
            sender.result()
        assert {answer["calibration_images"] for answer in answers if answer["model"] == "other"} == {4}
        assert len(service.store.parts("tile", limit=10_000)) == len(answers)
        assert service.troubles() == {}


def models(lines: list[dict[str, Any]]) -> set[str]:
    return {line["model"] for line in lines}


def send_until(ended: threading.Event, client: httpx2.Client, answers: list[dict[str, Any]]) -> None:
    while not ended.is_set():
        answers.append(result(post(client, good_part(len(answers) % 20))))


def test_what_was_accepted_waits_for_a_model(make: Make, tmp_path: Path) -> None:
    service = make()
    part = service.store.accept("tile", "left over", good_part(), ".png")
    service.store.close()
    (tmp_path / "model").rename(tmp_path / "later")
    with serve_here(make()) as client:
        assert client.get(f"/v1/parts/{part.id}").json()["state"] == "accepted"
    with serve_here(make()) as client:
        assert client.get(f"/v1/parts/{part.id}").json()["state"] == "accepted"
        (tmp_path / "later").rename(tmp_path / "model")
        wait_for(lambda: client.get(f"/v1/parts/{part.id}").json()["state"] == "judged", 10)


def test_a_model_that_is_broken_leaves_the_old_one_serving(make: Make, tmp_path: Path) -> None:
    service = make()
    network = tmp_path / "model/network.onnx"
    whole, entries = network.read_bytes(), (tmp_path / "model/model.json").read_bytes()
    with serve_here(service) as client:
        wanted = result(post(client, good_part()))
        network.write_bytes(whole[:1000])
        (tmp_path / "model/model.json").write_bytes(entries + b" ")
        wait_for(lambda: client.get("/health").json()["troubles"] == ["model tile"], 10)
        assert client.get("/ready").status_code == 200
        assert result(post(client, good_part())) | {"time": ""} == wanted | {"time": ""}
        assert 'uflow_model_trouble{product="tile"} 1.0' in client.get("/metrics").text
        network.write_bytes(whole)
        (tmp_path / "model/model.json").write_bytes(entries)
        wait_for(lambda: client.get("/health").json()["status"] == "ok", 10)


def test_a_model_that_cannot_be_read_at_the_start_is_waited_for(make: Make, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "later")
    service = make()
    with serve_here(service) as client:
        assert client.get("/ready").status_code == 503
        answer = post(client, good_part())
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        (tmp_path / "later").rename(tmp_path / "model")
        wait_for(lambda: client.get("/ready").status_code == 200, 10)
        assert result(post(client, good_part()))


def test_a_product_file_is_refused_at_the_start(make: Make, tmp_path: Path) -> None:
    (tmp_path / "products/tile.toml").write_text('name = "a/b"\nmodel = "model"\n')
    with pytest.raises(ValueError, match="without /"):
        make()


def test_the_monitor_goes_on_after_a_restart(make: Make) -> None:
    for parts in (3, 6):
        with serve_here(make()) as client:
            for seed in range(3):
                post(client, good_part(seed))
            (product,) = client.get("/v1/products").json()
            assert product["monitor"]["parts"] == parts
            if parts == 6:
                answer = client.post("/v1/products/tile/monitor/restart")
                assert answer.json()["parts"] == 0


def test_a_playback_sends_parts_as_a_camera_would(make: Make, dataset: Path) -> None:
    service = make()
    service.companions.append(Playback(service, {"tile": dataset / "test"}, seconds=0.01))
    with serve_here(service):
        wait_for(lambda: service.store.counts("tile", 0).reject > 0, 20)
    assert service.store.folder.is_dir()


def test_maps_of_large_images_do_not_wait_to_be_drawn(make: Make) -> None:
    """A prediction takes two dozen bytes a pixel: however many are asked for with a picture, one is held at a time."""
    service = make()
    service.start()
    judge = service.judges["tile"]
    predictions: list[weakref.ref[Prediction]] = []
    threads: list[str] = []

    def draw(prediction: Prediction) -> bytes:
        predictions.append(weakref.ref(prediction))
        threads.append(threading.current_thread().name)
        return b"picture"

    content, jobs = defective_part(), []
    for _ in range(5):
        judge.enter()
        jobs.append(judge.submit("a", content, ".png", draw))
    service.stop()
    assert [job.done.result(0).picture for job in jobs] == [b"picture"] * 5
    assert set(threads) == {"uflow-judge-tile"}
    assert [reference() for reference in predictions] == [None] * 5


def test_a_product_that_cannot_be_read_keeps_no_other_from_starting(make: Make, tmp_path: Path) -> None:
    service = make()
    folder = tmp_path / "products"
    (folder / "lid.toml").write_text('name = "lid"\nmodel = "../model"\nalhpa = 0.1\n')
    (folder / "box.toml").write_text(
        'name = "box"\nmodel = "../model"\n[[mqtt]]\nhost = "a"\ntopic = "a"\nuser = "b"\n'
    )
    with (folder / "box.toml").open("a") as file:
        file.write('password = { env = "UFLOW_NOT_SET" }\n')
    service = Service(folder, tmp_path / "other", poll_s=60)
    with serve_here(service) as client:
        assert result(post(client, good_part()))
        assert client.get("/health").json()["troubles"] == ["file box.toml", "file lid.toml"]
        assert client.get("/ready").status_code == 503
    assert "unknown entry 'alhpa'" in service.troubles()["file lid.toml"]
    assert "UFLOW_NOT_SET is not set" in service.troubles()["file box.toml"]
    (folder / "tile.toml").unlink()
    with pytest.raises(ValueError, match="UFLOW_NOT_SET is not set"):
        Service(folder, tmp_path / "none", poll_s=60)


def test_each_folder_of_a_product_that_cannot_be_read_is_named(make: Make, tmp_path: Path) -> None:
    make()
    for name in ("lid", "box"):
        (tmp_path / "products" / name).mkdir()
        (tmp_path / "products" / name / "product.toml").write_text("name = ")
    service = Service(tmp_path / "products", tmp_path / "other", poll_s=60)
    assert [name for name in service.troubles() if name.startswith("file")] == [
        "file box/product.toml",
        "file lid/product.toml",
    ]


@pytest.mark.parametrize("form", [{"line": "2", "operator": "anna"}, {}])
def test_a_form_may_say_more_than_the_image(make: Make, form: dict[str, str]) -> None:
    with serve_here(make()) as client:
        path, files = "/v1/products/tile/predict", {"image": ("a.png", good_part(), "image/png")}
        assert result(client.post(path, data=form, files=files))["image"] == "a.png"


def test_what_is_out_of_range_is_no_mistake_of_the_service(make: Make) -> None:
    with serve_here(make()) as client:
        assert client.get(f"/v1/parts/{10**25}").status_code == 404
        assert post(client, good_part(), overlay="2").status_code == 400
        tall = io.BytesIO()
        Image.new("1", (1, 300_000)).save(tall, "png")
        answer = post(client, tall.getvalue())
        assert (answer.status_code, "a side has 262144 at most" in answer.text) == (413, True)


# Connections ----------------------------------------------------------------------------------------------------------

HALF_HEAD = b"GET /version HTTP/1.1\r\nhost: localhost\r\n"


def connect(client: httpx2.Client, content: bytes = HALF_HEAD) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10)
    connection.sendall(content)
    return connection


def is_answered(connection: socket.socket) -> bool:
    """Whether all of an answer to `HALF_HEAD`, which is JSON, comes."""
    answer = b""
    while not answer.endswith(b"}") and (content := connection.recv(10_000)):
        answer += content
    return answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"}")


def is_closed(connection: socket.socket) -> bool:
    """Whether the service has closed it, as far as it can be seen now."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_half_a_head_is_waited_for_no_longer_than_a_while(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is the first of its connection or the second, and however often a byte of it comes."""
    monkeypatch.setattr(run, "HEAD_S", 0.5)
    with serve_here(make()) as client, ExitStack() as opened:
        answered = opened.enter_context(connect(client, HALF_HEAD + b"\r\n"))
        assert is_answered(answered)
        answered.sendall(HALF_HEAD)
        halves = [opened.enter_context(connect(client, content)) for content in (HALF_HEAD, b"")]
        slow = opened.enter_context(connect(client))
        with suppress(ConnectionError):
            for _ in range(20):
                slow.sendall(b"x")
                time.sleep(0.1)
        for connection in (answered, *halves, slow):
            wait_for(lambda connection=connection: is_closed(connection), 5)


def test_a_head_that_comes_slowly_is_answered(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither its answer nor the next request is part of the time."""
    monkeypatch.setattr(run, "HEAD_S", 1.5)
    service = make()
    slow_down(service, 2.0)
    with serve_here(service) as client, connect(client) as connection:
        time.sleep(0.5)
        connection.sendall(b"\r\n")
        assert is_answered(connection)
        time.sleep(2.0)  # less than KEEP_ALIVE_S
        assert not is_closed(connection)
        connection.settimeout(10)
        connection.sendall(HALF_HEAD + b"\r\n")
        assert is_answered(connection)
        assert result(post(client, good_part()))


def test_the_number_of_connections_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_CONNECTIONS", 20)
    with serve_here(make()) as client:
        with ExitStack() as opened:
            halves = [opened.enter_context(connect(client)) for _ in range(15)]
            assert client.get("/version").status_code == 200
            beyond = [opened.enter_context(connect(client)) for _ in range(10)]
            wait_for(lambda: sum(map(is_closed, beyond)) >= 5, 5)
            assert not any(map(is_closed, halves))
        wait_for(lambda: client.get("/version").status_code == 200, 5)


def test_more_connections_than_files_end_nothing(served_model: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    write_product(tmp_path / "products", "tile", served_model)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        try:
            served = opened.enter_context(serve(tmp_path / "products", tmp_path / "data"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with ThreadPoolExecutor(32) as pool:
            beyond = list(pool.map(lambda _: opened.enter_context(connect(served.client)), range(300)))
        wait_for(lambda: sum(map(is_closed, beyond)) >= 300 - 256 // 2, 20)
        for connection in beyond:
            connection.close()
        wait_for(lambda: answers(served.client), 10)
        assert "out of system resource" not in served.log.read_text()


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/version").is_success
    except httpx2.TransportError:
        return False


def test_what_was_left_over_is_judged_though_the_disk_is_full(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make()
    before.store.accept("tile", "a", good_part(), ".png")
    before.store.close()
    service = make()

    def fail(number: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(service.store, "try_again", fail)
    with serve_here(service):
        wait_for(lambda: not service.store.waiting("tile"), 10)
    assert [part.verdict for part in make().store.parts("tile")] == ["good"]
