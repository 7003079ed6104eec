"""Events to an MQTT broker."""

from __future__ import annotations

import ssl
import threading

from stille.video.errors import SinkError
from stille.video.types import Event


class Mqtt:
    """Each change is a message with quality of service 1 (at least once) on `topic/camera/rule`; on `topic/status`
    the broker keeps "online", or "offline" once this process is gone.

    Args:
        topic: the first part of all topics.
        tls: with certificates of the system's authorities; port 8883 is usual then.
        timeout_s: until the broker has to have acknowledged a message.
    """

    def __init__(
        self, host: str, port: int = 1883, topic: str = "stille", username: str | None = None,
        password: str | None = None, tls: bool = False, timeout_s: float = 10.0, withheld: bool = False,
        name: str | None = None,
    ):  # fmt: skip
        self.name = name or f"mqtt:{host}:{port}"
        self.withheld = withheld
        self._address, self._topic, self._timeout_s = (host, port), topic.rstrip("/"), timeout_s
        self._login, self._tls = (username, password), tls
        self._client = None

    def send(self, event: Event) -> None:
        client = self._client or self._connect()
        topic = "/".join([self._topic, _level(event.camera), _level(event.rule)])
        message = client.publish(topic, event.model_dump_json(), qos=1)
        try:
            message.wait_for_publish(self._timeout_s)
            taken = message.is_published()
        except (ValueError, RuntimeError) as error:
            self.close()
            raise SinkError(f"{self.name}: {error}") from error
        if not taken:
            self.close()
            raise SinkError(f"{self.name}: the broker did not acknowledge within {self._timeout_s:g} s")

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.publish(f"{self._topic}/status", "offline", qos=1, retain=True)
            client.disconnect()
            client.loop_stop()

    def _connect(self):
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        client = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.connect_timeout = self._timeout_s
        if self._login[0] is not None:
            client.username_pw_set(*self._login)
        if self._tls:
            client.tls_set_context(ssl.create_default_context())
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        answer: list[str] = []
        answered = threading.Event()

        def connected(_client, _data, _flags, reason, _properties) -> None:
            if reason.is_failure:
                answer.append(str(reason))
            answered.set()

        client.on_connect = connected
        try:
            client.connect(*self._address)
        except OSError as error:
            raise SinkError(f"{self.name}: {error}") from error
        client.loop_start()
        if not answered.wait(self._timeout_s) or answer:
            client.disconnect()
            client.loop_stop()
            raise SinkError(f"{self.name}: {answer[0] if answer else 'the broker does not answer'}")
        client.publish(f"{self._topic}/status", "online", qos=1, retain=True)
        self._client = client
        return client


def _level(name: str) -> str:
    """A name as one level of a topic."""
    return "".join("_" if c in "/+#\0" else c for c in name) or "_"
