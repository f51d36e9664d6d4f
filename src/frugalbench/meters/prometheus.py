"""Watts, or a counter of joules, from a Prometheus server: Kepler, Scaphandre, an exporter of a power strip.

The query must yield one series; ``sum(…)`` makes one of many. Its values are as old as the last scrape, so
``update_period_s`` has to be the scrape interval, and counters that the query rates or averages lag behind.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from frugalbench.meters.base import Availability, Meter, MeterError
from frugalbench.meters.trace import TraceMeter

if TYPE_CHECKING:
    from urllib.error import HTTPError

UPDATE_PERIOD_S = 15.0
"""A common scrape interval; put the server's own into the config."""
LIMIT_S = 5.0
_MOST_BYTES = 1 << 20


def discover(
    url: str,
    query: str,
    unit: str = "W",
    scope: str = "machine",
    update_period_s: float | None = None,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[Meter]:
    """The one meter; empty without an address."""
    if not url:
        return []
    how = "power, integrated" if unit == "W" else "energy counter"
    return [
        TraceMeter(
            name="prometheus",
            scope=scope,
            method=f"Prometheus {query}, {how}",
            read=partial(ask, url, query, limit_s),
            update_period_s=update_period_s or UPDATE_PERIOD_S,
            unit=unit,
            remedy=f"open {url.rstrip('/')}/graph and try the query there",
            clock=clock,
        )
    ]


def ask(url: str, query: str, limit_s: float) -> float:
    """The value of ``query`` just now, asked without a proxy. Raises :class:`MeterError`."""
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlencode
    from urllib.request import ProxyHandler, build_opener

    where = f"{url.rstrip('/')}/api/v1/query"
    try:
        with build_opener(ProxyHandler({})).open(f"{where}?{urlencode({'query': query})}", timeout=limit_s) as answer:
            text = answer.read(_MOST_BYTES)
    except HTTPError as error:
        raise MeterError(f"{where}: {_complaint(error)}") from error
    except (URLError, OSError, ValueError) as error:
        raise MeterError(f"{where}: {getattr(error, 'reason', error)}") from error
    try:
        return single_value(json.loads(text))
    except ValueError as error:
        raise MeterError(f"{where}: {error}") from error


def single_value(answer: Any) -> float:
    """The one number in an answer of ``/api/v1/query``. Raises ``ValueError``."""
    try:
        kind, result = answer["data"]["resultType"], answer["data"]["result"]
        values = [result] if kind == "scalar" else [series["value"] for series in result]
    except (KeyError, TypeError):
        raise ValueError("the answer is none of Prometheus's instant queries") from None
    if len(values) != 1:
        raise ValueError(f"the query yields {len(values)} series, not one" + ("; use sum(…)" if values else ""))
    return float(values[0][1])


def probe(url: str = "", query: str = "") -> Availability:
    """Whether the server answers the query with one number."""
    meters = discover(url, query)
    if not meters:
        remedy = '[energy] meter = "prometheus", prometheus_url = "http://HOST:9090", prometheus_query = "…"'
        return Availability(False, "not configured", remedy)
    return meters[0].available()


def _complaint(error: "HTTPError") -> str:
    """What the server says about a query that it refuses."""
    try:
        said = str(json.loads(error.read(_MOST_BYTES)).get("error", ""))
    except (ValueError, AttributeError, OSError):
        said = ""
    return said or f"HTTP {error.code}"
