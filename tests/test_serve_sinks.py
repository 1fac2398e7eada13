"""Whom the service tells of parts, by a real HTTP server and a real MQTT broker: all arrive, in order."""

from __future__ import annotations

import logging
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import wait_for
from receiving import broker, free_port, make_certificate, once, receive, serve_brightness, subscribe
from serve_brightness import make_predictor, noise
from serving import png, write_product
from uflow.connections import Mqtt, Secret, SinkSettings, Webhook
from uflow.monitor import Alarm
from uflow.product import Product
from uflow.serve import sinks as sinks_module
from uflow.serve.metrics import Metrics
from uflow.serve.parts import Outcome
from uflow.serve.service import Service
from uflow.serve.sinks import Sinks, check_sinks
from uflow.serve.store import Store

SOON_S = 15


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(sinks_module, "RETRY_FIRST_S", 0.02)
    monkeypatch.setattr(sinks_module, "RETRY_MAX_S", 0.1)


class Telling:
    """A store and its sinks."""

    def __init__(self, folder: Path, *settings: SinkSettings) -> None:
        self.store, self.metrics = Store(folder), Metrics()
        product = Product("tile", Path("tile.uflow"), sinks=settings)
        self.sinks = Sinks([product], self.store.outbox, self.metrics)

    def tell(self, name: str, verdict: str = "reject", alarm: Alarm | None = None) -> None:
        part = self.store.accept("tile", name, b"an image", ".png")
        regions = [{"box": [1, 2, 3, 4], "contours": [[[0, 0]] * 1000]}]
        line = {"image": name, "verdict": verdict, "p_value": 0.01, "regions": regions}
        messages = self.sinks.messages(part, line, alarm)
        self.store.settle(Outcome(part.id, "judged", "{}", verdict, messages=messages))  # type: ignore[arg-type]

    def waits_for(self, count: int) -> bool:
        return sum(self.store.outbox.waiting().values()) == count

    def figure(self, name: str) -> float:
        """A metric of the only sink that has it."""
        found = re.search(rf"^{name}{{.*}} (\S+)$", self.metrics.text().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def telling(folder: Path, *settings: SinkSettings) -> Iterator[Telling]:
    found = Telling(folder / "data", *settings)
    found.sinks.start()
    try:
        yield found
    finally:
        found.sinks.stop()
        found.store.close()


# Webhooks -------------------------------------------------------------------------------------------------------------


def test_a_webhook_is_told_of_each_part_in_order(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("top-secret\n")
    with receive() as receiver:
        settings = Webhook(
            receiver.url, headers={"X-Line": "line 2"}, token=Secret(file=tmp_path / "token"), only="flagged"
        )
        with telling(tmp_path, settings, Webhook(receiver.url, name="all")) as line:
            line.tell("a", "good")
            for name in "bcdefg":
                line.tell(name)
            wait_for(lambda: line.waits_for(0), SOON_S)
        assert line.figure("uflow_messages_sent_total") > 0
    flagged = [(headers, content) for headers, content in receiver.received if "x-line" in headers]
    every = [content for headers, content in receiver.received if "x-line" not in headers]
    assert [content["name"] for _, content in flagged] == list("bcdefg")
    assert [content["name"] for content in every] == list("abcdefg")
    headers, content = flagged[0]
    assert (headers["content-type"], headers["x-line"]) == ("application/json", "line 2")
    assert headers["authorization"] == "Bearer top-secret"
    assert headers["uflow-message"] == content["id"]
    assert (content["kind"], content["product"], content["part"]) == ("part", "tile", 2)
    assert content["result"] == {"image": "b", "verdict": "reject", "p_value": 0.01, "regions": [{"box": [1, 2, 3, 4]}]}
    assert len({content["id"] for content in every}) == 7


def test_an_alarm_of_the_monitor_is_told_to_all(tmp_path: Path) -> None:
    with receive() as receiver, telling(tmp_path, Webhook(receiver.url, only="flagged")) as line:
        line.tell("a", "good", Alarm(40, 31, "parts look stranger"))
        wait_for(lambda: line.waits_for(0), SOON_S)
    (content,) = receiver.contents
    assert (content["kind"], content["name"]) == ("alarm", "a")
    assert content["alarm"] == {"part": 40, "since": 31, "change": "parts look stranger"}


def test_a_webhook_that_fails_delays_nobody_and_gets_all_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with receive() as receiver, telling(tmp_path, Webhook(receiver.url, timeout_s=0.3)) as line:
        receiver.answers = [500, 503, 1.0, 0.0, 404, 200, 1.0, 500]
        for name in "abcde":
            began = time.monotonic()
            line.tell(name)
            assert time.monotonic() - began < 0.25, "a sink that is silent does not hold up a part"
        wait_for(lambda: bool(line.sinks.troubles()), SOON_S)
        wait_for(lambda: line.waits_for(0) and not line.sinks.troubles(), SOON_S)
        assert line.figure("uflow_message_failures_total") >= 7
    assert receiver.parts == list("abcde")
    assert "tile/webhook: messages do not arrive, and are kept: it answers 500" in caplog.text
    assert "tile/webhook: messages arrive again" in caplog.text


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with receive() as elsewhere, receive() as receiver, telling(tmp_path, Webhook(receiver.url)) as line:
        receiver.redirect, receiver.answers = elsewhere.url, [302, 307, 308]
        line.tell("a")
        wait_for(lambda: line.waits_for(0), SOON_S)
    assert (receiver.tried, elsewhere.tried) == (4, 0)


def test_a_message_that_is_refused_again_and_again_does_not_hold_up_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with receive() as receiver, telling(tmp_path, Webhook(receiver.url)) as line:
        receiver.answers = [422] * 5
        line.tell("a")
        line.tell("b")
        wait_for(lambda: line.waits_for(0), SOON_S)
        assert line.figure("uflow_messages_dropped_total") == 1
    assert receiver.parts == ["b"]
    assert "was refused 5 times and is dropped: it answers 422" in caplog.text


def test_what_is_left_at_the_end_is_sent_after_a_restart(tmp_path: Path) -> None:
    port = free_port()
    settings = Webhook(f"http://localhost:{port}/", timeout_s=1)
    with telling(tmp_path, settings) as line:
        for name in "abc":
            line.tell(name)
        wait_for(lambda: bool(line.sinks.troubles()), SOON_S)
    with telling(tmp_path, settings) as line:
        line.tell("d")
        with receive(port) as receiver:
            wait_for(lambda: line.waits_for(0), SOON_S)
    assert receiver.parts == list("abcd")


def test_at_the_end_what_waits_is_sent_as_long_as_that_succeeds(tmp_path: Path) -> None:
    with receive() as receiver:
        with telling(tmp_path, Webhook(receiver.url)) as line:
            for i in range(50):
                line.tell(f"{i}")
        assert receiver.parts == [f"{i}" for i in range(50)]


def test_beyond_a_number_the_oldest_are_dropped_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks_module, "MAX_WAITING", 5)
    port = free_port()
    with telling(tmp_path, Webhook(f"http://localhost:{port}/", timeout_s=1)) as line:
        for i in range(20):
            line.tell(f"{i}")
        wait_for(lambda: line.waits_for(5), SOON_S)
        wait_for(lambda: "15 messages were dropped" in line.sinks.troubles().get("tile/webhook", ""), SOON_S)
        assert line.figure("uflow_messages_dropped_total") == 15
        with receive(port) as receiver:
            wait_for(lambda: line.waits_for(0) and not line.sinks.troubles(), SOON_S)
    assert receiver.parts == ["15", "16", "17", "18", "19"]
    assert "more than 5 messages wait" in caplog.text


def test_https_is_verified(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with receive(certificate=certificate) as receiver:
        settings = Webhook(receiver.url, timeout_s=5), Webhook(receiver.url, "trusted", ca=certificate[0], timeout_s=5)
        with telling(tmp_path, *settings) as line:
            line.tell("a")
            wait_for(lambda: receiver.parts == ["a"], SOON_S)
            wait_for(lambda: line.sinks.troubles().keys() == {"tile/webhook"}, SOON_S)
            assert "certificate verify failed" in line.sinks.troubles()["tile/webhook"].lower()
            wait_for(lambda: line.store.outbox.waiting() == {"tile/webhook": 1}, SOON_S)


# MQTT -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_broker_gets_each_part_in_order(tmp_path: Path, qos: Any) -> None:
    with broker(tmp_path / "broker", "allow_anonymous true") as mosquitto:
        settings = Mqtt("localhost", "line/2/tile", port=mosquitto.port, qos=qos)
        with subscribe(mosquitto.port, "line/#") as received, telling(tmp_path, settings) as line:
            for name in "abcdef":
                line.tell(name)
            wait_for(lambda: len(received) >= 6, SOON_S)
            assert line.sinks.troubles() == {}
        assert [content["name"] for _, content in received] == list("abcdef")
        assert {quality for quality, _ in received} == {qos}


def test_a_broker_that_is_killed_gets_the_rest_when_it_is_back(tmp_path: Path) -> None:
    with broker(tmp_path / "broker", "allow_anonymous true") as mosquitto:
        settings = Mqtt("localhost", "tile", port=mosquitto.port, timeout_s=2)
        with subscribe(mosquitto.port, "tile") as received, telling(tmp_path, settings) as line:
            line.tell("a")
            wait_for(lambda: len(received) == 1, SOON_S)
            wait_for(lambda: (tmp_path / "broker/mosquitto.db").exists(), SOON_S)
            time.sleep(0.2)  # it saves the session of the subscriber
            mosquitto.kill()
            for name in "bcd":
                line.tell(name)
            wait_for(lambda: bool(line.sinks.troubles()), SOON_S)
            mosquitto.start()
            wait_for(lambda: line.waits_for(0) and not line.sinks.troubles(), SOON_S)
            line.tell("e")
            wait_for(lambda: len(once([content for _, content in received])) == 5, SOON_S)
        assert [content["name"] for content in once([content for _, content in received])] == list("abcde")


def test_a_broker_with_tls_and_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = make_certificate(tmp_path)
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("needs an MQTT broker: apt-get install mosquitto")
    subprocess.run(["mosquitto_passwd", "-b", "-c", tmp_path / "users", "uflow", "right-word"], check=True)
    encrypted = [f"certfile {certificate}", f"keyfile {key}", f"password_file {tmp_path / 'users'}"]
    monkeypatch.setenv("MQTT_RIGHT", "right-word")
    monkeypatch.setenv("MQTT_WRONG", "wrong-word")
    caplog.set_level(logging.DEBUG)
    with broker(tmp_path / "broker", "allow_anonymous false", *encrypted) as mosquitto, ExitStack() as stack:
        common: dict[str, Any] = {"port": mosquitto.port, "tls": True, "timeout_s": 5, "user": "uflow"}
        right, wrong = Secret(env="MQTT_RIGHT"), Secret(env="MQTT_WRONG")
        settings = (
            Mqtt("localhost", "tile", ca=certificate, password=right, **common),
            Mqtt("localhost", "tile", "intruder", ca=certificate, password=wrong, **common),
            Mqtt("localhost", "tile", "distrustful", password=right, **common),
        )
        line = stack.enter_context(telling(tmp_path, *settings))
        line.tell("a")
        wait_for(lambda: line.store.outbox.waiting() == {"tile/intruder": 1, "tile/distrustful": 1}, SOON_S)
        wait_for(lambda: len(line.sinks.troubles()) == 2, SOON_S)
        troubles = line.sinks.troubles()
        assert "Not authorized" in troubles["tile/intruder"]
        assert "certificate verify failed" in troubles["tile/distrustful"].lower()
    shown = caplog.text + str(troubles) + repr(settings)
    assert "-word" not in shown


# The service ----------------------------------------------------------------------------------------------------------


def test_a_secret_that_is_not_there_is_said_before_the_service_starts(tmp_path: Path) -> None:
    file = Path("product.toml")

    def check(sink: SinkSettings) -> None:
        check_sinks(file, Product("tile", Path("a"), sinks=(sink,)))

    with pytest.raises(ValueError, match=r"product\.toml: webhook: a secret cannot be read: .*none: No such file"):
        check(Webhook("http://localhost:1/", token=Secret(file=tmp_path / "none")))
    with pytest.raises(ValueError, match="mqtt: a secret cannot be read: the environment variable UFLOW_NOT_SET is"):
        check(Mqtt("localhost", "a", user="a", password=Secret(env="UFLOW_NOT_SET")))
    with pytest.raises(ValueError, match="ca: cannot read the certificates in"):
        check(Webhook("https://localhost:1/", ca=tmp_path / "none"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_no_message_is_lost_to_kill_9(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "incoming").mkdir()
    watch = '[watch]\nfolder = "../incoming"\nsettle_s = 0.1\n'
    sink = f'[[webhook]]\nurl = "http://localhost:{port}/"\nonly = "flagged"\n'
    product = write_product(tmp_path / "products", "tile", tmp_path / "none", watch + sink)
    for i, image in enumerate([*noise(3, least=150), *noise(1)]):
        (tmp_path / f"incoming/{i}.png").write_bytes(png(image))
    with serve_brightness(tmp_path / "data", product) as process:
        wait_for(lambda: judged(tmp_path / "data") == 4, SOON_S)
        process.kill()
    with receive(port) as receiver, serve_brightness(tmp_path / "data", product):
        wait_for(lambda: len(receiver.parts) >= 3, SOON_S)
    assert sorted(receiver.parts) == ["0.png", "1.png", "2.png"]
    assert {content["result"]["verdict"] for content in receiver.contents} == {"reject"}


def judged(data: Path) -> int:
    """How many parts are judged in a data base that a service is at work in."""
    with closing(sqlite3.connect(f"file:{data / 'service.sqlite'}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM parts WHERE state != 'accepted'").fetchone()[0])


def test_the_alarm_of_the_monitor_is_told_once(tmp_path: Path) -> None:
    with receive() as receiver:
        file = write_product(tmp_path, "tile", tmp_path / "none", f'[[webhook]]\nurl = "{receiver.url}"\n')
        service = Service([file], tmp_path / "data", poll_s=60)
        judge = service.judges["tile"]
        judge.live.predictor = make_predictor()
        service.start()
        content = png(*noise(1, least=150))
        for i in range(20):
            judge.enter()
            judge.submit(f"{i}", content, ".png").done.result(SOON_S)
        service.stop()
    kinds = [content["kind"] for content in receiver.contents]
    assert (kinds.count("part"), kinds.count("alarm")) == (20, 1)
    alarm = receiver.contents[kinds.index("alarm")]
    assert alarm["alarm"]["change"] == "more parts are flagged"
    assert alarm["alarm"]["part"] == int(alarm["name"]) + 1


def test_health_and_metrics_tell_of_a_sink(tmp_path: Path) -> None:
    sink = f'[[webhook]]\nurl = "http://localhost:{free_port()}/"\nonly = "flagged"\n'
    file = write_product(tmp_path, "tile", tmp_path / "none", sink)
    service = Service([file], tmp_path / "data", poll_s=60)
    judge = service.judges["tile"]
    judge.live.predictor, judge.live.trouble = make_predictor(), None
    service.start()
    for image in (*noise(1), *noise(1, least=150)):
        judge.enter()
        judge.submit("a", png(image), ".png").done.result(SOON_S)
    wait_for(lambda: service.troubles().keys() == {"sink tile/webhook"}, SOON_S)
    assert "refused" in service.troubles()["sink tile/webhook"].lower()
    assert b'uflow_outbox_messages{sink="tile/webhook"} 1.0' in service.metrics_text()
    judge.live.product = replace(judge.live.product, sinks=())
    assert "start the service again" in service.troubles()["product tile"]
    service.stop()
