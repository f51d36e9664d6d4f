"""A Prometheus server, played by a real one on this machine that answers from a table. The answers are made up."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from frugalbench.meters import MeterError, MeterSettings, Window, pick, prometheus
from frugalbench.schema import NothingRunsHere


def vector(*values: str) -> dict:
    series = [{"metric": {"n": str(n)}, "value": [1.0, value]} for n, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": series}}


class Handler(BaseHTTPRequestHandler):
    answers: dict = {}

    def do_GET(self):
        parts = urlsplit(self.path)
        (query,) = parse_qs(parts.query)["query"]
        code, answer = (
            (200, self.answers[query]) if query in self.answers else (400, {"error": "parse error: bad query"})
        )
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code if parts.path == "/prom/api/v1/query" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """``(address, table of answers)``."""
    handler = type("Served", (Handler,), {"answers": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/prom/", handler.answers
        http.shutdown()
        thread.join()


def test_a_vector_of_one_or_a_scalar(server):
    url, answers = server
    answers['sum(power_watts{host="a"})'] = vector("187.5")
    answers["scalar(x)"] = {"status": "success", "data": {"resultType": "scalar", "result": [1.0, "3"]}}
    assert prometheus.ask(url, 'sum(power_watts{host="a"})', 2.0) == 187.5
    assert prometheus.ask(url, "scalar(x)", 2.0) == 3.0


@pytest.mark.parametrize(
    ("query", "answer", "problem"),
    [
        ("none", vector(), "0 series"),
        ("many", vector("1", "2"), r"2 series, not one; use sum"),
        ("text", b"<html>", "Expecting value"),
        ("other", {"data": {"resultType": "matrix", "result": [{"values": []}]}}, "none of Prometheus's"),
        ("word", vector("off"), "could not convert"),
        ("unknown", None, "parse error: bad query"),
    ],
)
def test_an_answer_that_is_no_number(server, query, answer, problem):
    url, answers = server
    if answer is not None:
        answers[query] = answer
    with pytest.raises(MeterError, match=problem):
        prometheus.ask(url, query, 2.0)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-4"])
def test_a_value_that_is_no_reading_poisons(server, value):
    url, answers = server
    answers["w"] = vector(value)
    assert "no reading" in prometheus.probe(url, "w").detail


def test_a_counter_over_a_window_and_its_reset(server):
    url, answers = server
    now = [0.0]
    (meter,) = prometheus.discover(url, "joules_total", unit="J", clock=lambda: now[0])
    assert meter.update_period_s == 15.0
    for before, after, joule in (("1000", "1600", 600.0), ("1600", "20", None)):
        answers["joules_total"] = vector(before)
        window = Window([meter], meter.clock)
        answers["joules_total"] = vector(after)
        now[0] += 300.0
        assert window.close(1)[0].joule == joule


def test_a_server_that_is_not_there(server):
    url, answers = server
    gone = "http://127.0.0.1:9"
    settings = MeterSettings(kind="prometheus", prometheus_url=gone, prometheus_query="w")
    with pytest.raises(NothingRunsHere, match=r"refused.*try the query"):
        pick(settings)
    answers["w"] = vector("1")
    with pytest.raises(MeterError, match="HTTP 404"):
        prometheus.ask(url + "elsewhere", "w", 2.0)
    assert "not configured" in prometheus.probe().detail
