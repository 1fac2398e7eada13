"""How one message is sent: a webhook, an MQTT broker."""

from __future__ import annotations

import ssl
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from .. import __version__
from ..connections import Mqtt, SinkSettings, Webhook
from ..files import one_line

__all__ = ["Refused", "Sender", "Undelivered", "make_sender"]

KEEP_ALIVE_S = 30  # after which a broker that is gone without a word is noticed
LOOK_EVERY_S = 0.2  # at whether the connection is still there
REFUSED = (400, 413, 415, 422)  # HTTP: it is the message that the receiver does not want


class Undelivered(Exception):
    """A message did not arrive, as far as is known; the text is one line without secrets."""


class Refused(Undelivered):
    """The receiver does not want this message, however often it comes."""


class Sender(Protocol):
    """Sends messages; called by one thread."""

    def send(self, key: str, payload: str) -> None:
        """Send a message, and return when the receiver has it.

        Args:
            key: of the message, by which the receiver knows one that comes twice.
            payload: JSON.

        Raises:
            Undelivered: it has not arrived, or nobody knows.
        """

    def close(self) -> None:
        """End what is open; `send` opens it again."""


def make_sender(settings: SinkSettings) -> Sender:
    """What sends to a sink.

    Raises:
        ValueError: a secret or a file of certificates that cannot be read.
    """
    return WebhookSender(settings) if isinstance(settings, Webhook) else MqttSender(settings)


def _trust(ca: Path | None) -> ssl.SSLContext:
    """What verifies certificates; ValueError for a file that holds none."""
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca: cannot read the certificates in {ca}: {one_line(error)}") from None


# HTTP -----------------------------------------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is no delivery: parts of a line do not go where another server says."""

    def redirect_request(self, *_: Any) -> None:
        return None


class WebhookSender:
    """Sends by HTTP POST; any status 2xx is a delivery."""

    def __init__(self, settings: Webhook) -> None:
        self.settings = settings
        https = urllib.request.HTTPSHandler(context=_trust(settings.ca))
        self._opener = urllib.request.build_opener(https, _NoRedirect)
        self._headers()

    def _headers(self) -> dict[str, str]:
        token = {} if self.settings.token is None else {"Authorization": f"Bearer {self.settings.token.read()}"}
        ours = {"Content-Type": "application/json", "User-Agent": f"uflow/{__version__}"}
        return {**ours, **self.settings.headers, **token}

    def send(self, key: str, payload: str) -> None:
        try:
            headers = self._headers() | {"Uflow-Message": key}
            request = urllib.request.Request(self.settings.url, payload.encode(), headers)
            with self._opener.open(request, timeout=self.settings.timeout_s):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            where = ", which is another address: name that one" if 300 <= error.code < 400 else ""
            kind = Refused if error.code in REFUSED else Undelivered
            raise kind(f"it answers {error.code}{where}") from None
        except urllib.error.URLError as error:
            reason = error.reason
            raise Undelivered(one_line(reason) if isinstance(reason, Exception) else str(reason)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise Undelivered(one_line(error)) from None

    def close(self) -> None:
        """Each message has a connection of its own."""


# MQTT -----------------------------------------------------------------------------------------------------------------


class _ClosedOnFailure(ssl.SSLSocket):
    """A connection that is closed where its handshake fails, which paho leaves to chance."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class MqttSender:
    """Publishes to a broker, and waits for its word as the quality asks; a connection that failed is not used again."""

    def __init__(self, settings: Mqtt) -> None:
        self.settings = settings
        self._tls = _trust(settings.ca) if settings.tls else None
        if self._tls is not None:
            self._tls.sslsocket_class = _ClosedOnFailure
        self._client: paho.Client | None = None
        self._read_password()

    def _read_password(self) -> str | None:
        return None if self.settings.password is None else self.settings.password.read()

    def send(self, key: str, payload: str) -> None:
        try:
            if self._client is None or not self._client.is_connected():
                self.close()
                self._client = self._connect()
            sent = self._client.publish(self.settings.topic, payload.encode(), self.settings.qos)
            until = time.monotonic() + self.settings.timeout_s
            while not sent.is_published() and self._client.is_connected() and time.monotonic() < until:
                sent.wait_for_publish(LOOK_EVERY_S)
            if not sent.is_published():
                silent = f"the broker has said nothing for {self.settings.timeout_s:g} s"
                raise Undelivered(silent if self._client.is_connected() else "the connection was lost")
        except (OSError, ValueError, RuntimeError) as error:
            self.close()
            raise Undelivered(one_line(error)) from None
        except Undelivered:
            self.close()
            raise

    def _connect(self) -> paho.Client:
        settings = self.settings
        client = paho.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.connect_timeout = settings.timeout_s
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if settings.user is not None:
            client.username_pw_set(settings.user, self._read_password())
        answered, answers = threading.Event(), list[ReasonCode]()

        def note_answer(_: paho.Client, __: object, ___: object, code: ReasonCode, ____: object) -> None:
            answers.append(code)
            answered.set()

        client.on_connect = note_answer
        client.connect(settings.host, settings.port_number, KEEP_ALIVE_S)
        client.loop_start()
        answered.wait(settings.timeout_s)
        if not answers or answers[0].is_failure:
            _end(client)
            raise Undelivered(f"the broker refuses: {answers[0]}" if answers else "the broker does not answer")
        return client

    def close(self) -> None:
        if self._client is not None:
            _end(self._client)
            self._client = None


def _end(client: paho.Client) -> None:
    """Close a connection and end its thread."""
    client.disconnect()
    client.loop_stop()
