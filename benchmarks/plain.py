"""What one writes without Backhaul: pictures through ONNX Runtime, by a bare loop and by an MQTT script.

The loop knows what a thread can do: decode, run, again. The script does it for jobs that come over MQTT and
replies, in paho's callback, or with a thread of its own for the model beside paho's. Tuned as far as a script
goes: a hundred messages in flight, TCP_NODELAY, and threads that take turns often. It keeps nothing: what is
queued when it dies is lost.
"""

from __future__ import annotations

import io
import json
import queue
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from PIL import Image

from benchmarks import pictures, worker

JOBS = "plain/jobs"
IN_FLIGHT = 100

Classify = Callable[[bytes], list[float]]


def classifier(graph: str, size: int, scale: float) -> Classify:
    """PNG to what the graph says of it, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())

    def classify(encoded: bytes) -> list[float]:
        picture = Image.open(io.BytesIO(encoded))
        pixels = np.asarray(picture, np.float32).reshape(1, 1, size, size)
        if scale != 1.0:
            pixels = pixels * np.float32(scale)
        scores: list[float] = session.run(None, {name: pixels})[0][0].tolist()
        return scores

    return classify


def loop(classify: Classify, encoded: list[bytes], count: int) -> None:
    """So many pictures, one after the other."""
    for number in range(count // 10):
        classify(encoded[number % len(encoded)])
    worker.tell({"ready": True})
    worker.hear()
    began = time.perf_counter()
    for number in range(count):
        classify(encoded[number % len(encoded)])
    worker.tell({"per_s": count / (time.perf_counter() - began)})
    worker.hear()


def serve(classify: Classify, port: int, threads: int) -> None:
    """Answer jobs until killed: in paho's network thread, or with a second thread for the model."""
    sys.setswitchinterval(0.0005)
    client = paho.Client(CallbackAPIVersion.VERSION2, "plain", protocol=MQTTProtocolVersion.MQTTv5)
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer(message: Any) -> None:
        scores = classify(message.payload)
        best = max(range(len(scores)), key=scores.__getitem__)
        body = json.dumps({"label": best, "score": scores[best]})
        client.publish(message.properties.ResponseTopic, body, qos=1)

    take = answer if threads == 1 else arrived.put
    client.on_message = lambda _client, _userdata, message: take(message)
    client.on_subscribe = lambda *_: worker.tell({"ready": True})
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect("127.0.0.1", port)
    connection = client.socket()
    assert isinstance(connection, socket.socket)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.subscribe(JOBS, qos=1)
    client.loop_start()
    while True:
        answer(arrived.get())


def main() -> None:
    given = worker.arguments()
    classify = classifier(given["graph"], given["size"], given["scale"])
    if given["role"] == "loop":
        loop(classify, pictures.load(Path(given["pictures"])), given["count"])
    else:
        serve(classify, given["port"], given["threads"])


if __name__ == "__main__":
    main()
