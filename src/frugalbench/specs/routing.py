"""Who routes where: gates of published models, routing that is chosen and not left to chance, limits on an expert.

All arms compute their routing from the same tokens and the same router, so a chosen routing is put into the *tokens*:
each one gets the least change (in length) that makes its logits what the trace asks for. Shape suffixes: T tokens,
D model width, E experts, K experts per token.
"""

import csv
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import read_bounded, shown

ROUTER, UNIFORM, ONE, ZIPF, TRACE = "router", "uniform", "one", "zipf-", "trace:"
MOST_SKEW = 10.0
MOST_TRACE_BYTES = 64 * 2**20
_MARGIN = 4.0
"""Logits of chosen experts stand at least this far above the others': a softmax over 8 of 128 leaves no tie."""
_STEP = 0.25
"""Between the logits of successive choices, where their order decides who is dropped."""


@dataclass(frozen=True)
class Gate:
    """How logits become mixing weights."""

    gate: str = "softmax"
    """``softmax`` over all experts, or ``sigmoid`` of each."""
    normalise: bool = True
    """Whether the chosen weights are divided by their sum. A softmax over the chosen ones alone is the same."""
    routed_scale: float = 1.0
    """Factor on the routed part (``routed_scaling_factor``)."""


GATES = {
    "olmoe-1b-7b": Gate(normalise=False),
    "deepseekmoe-16b": Gate(normalise=False),
    "deepseek-v2-lite": Gate(normalise=False),
    "deepseek-v2-236b": Gate(normalise=False, routed_scale=16.0),
    "deepseek-v3-671b": Gate("sigmoid", routed_scale=2.5),
    "deepseek-v3.2": Gate("sigmoid", routed_scale=2.5),
    "moonlight-16b-a3b": Gate("sigmoid", routed_scale=2.446),
    "kimi-k2": Gate("sigmoid", routed_scale=2.827),
    "kimi-k2.5-text": Gate("sigmoid", routed_scale=2.827),
    "kimi-linear-48b-a3b": Gate("sigmoid", routed_scale=2.446),
    "glm-4.5-355b-a32b": Gate("sigmoid", routed_scale=2.5),
    "glm-4.5-air-106b-a12b": Gate("sigmoid"),
    "glm-4.7-flash-30b-a3b": Gate("sigmoid", routed_scale=1.8),
    "glm-5-744b-a40b": Gate("sigmoid", routed_scale=2.5),
    "minimax-m2": Gate("sigmoid"),
}
"""Gates that differ from the default, by model; recalled from the models' config.json, not read in a source.
Group-limited choice (DeepSeek-V2, V3) and the bias that balances load are left out: they change who is chosen, not the
work."""


def check(text: str) -> str:
    """``text`` if it names a routing; raises ``ValueError`` with one sentence otherwise."""
    if text in (ROUTER, UNIFORM, ONE) or text.startswith(TRACE):
        return text
    if text.startswith(ZIPF):
        try:
            if 0 <= float(text.removeprefix(ZIPF)) <= MOST_SKEW:
                return text
        except ValueError:
            pass
    raise ValueError(
        f"'{shown(text, 60)}' is no routing; one of 'router', 'uniform', 'zipf-S' with S from 0 to {MOST_SKEW:g}, "
        "'one', or 'trace:FILE' (a line per token, its experts' numbers separated by commas)"
    )


def read_trace(path: Path, experts: int, chosen: int) -> np.ndarray:
    """T x K numbers of experts from a CSV file without header, one token per line.

    Raises :class:`FrugalbenchError` naming the line for unknown experts, repeated ones and lines of another length.
    """
    try:
        lines = read_bounded(path, MOST_TRACE_BYTES).decode("ascii").splitlines()
        rows = [_line(row, number, path, experts, chosen) for number, row in enumerate(csv.reader(lines), 1) if row]
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise FrugalbenchError(
            f"cannot read the trace {path}: {reason}; routing = 'trace:FILE' names a CSV file, from the current folder"
        ) from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise FrugalbenchError(f"the trace {path} is no CSV file of whole numbers: {problem}") from None
    if not rows:
        raise FrugalbenchError(f"{path}: an empty trace")
    return np.asarray(rows, dtype=np.int64)


def _line(row: list[str], number: int, path: Path, experts: int, chosen: int) -> list[int]:
    where = f"{path}, line {number}"
    if len(row) != chosen:
        raise FrugalbenchError(f"{where}: {len(row)} experts; the layer chooses {chosen} per token")
    try:
        found = [int(item) for item in row]
    except ValueError:
        raise FrugalbenchError(
            f"{where}: '{shown(','.join(row), 60)}' holds something else than whole numbers"
        ) from None
    unknown = [item for item in found if not 0 <= item < experts]
    if unknown:
        raise FrugalbenchError(f"{where}: expert {unknown[0]}; the layer has 0 to {experts - 1}")
    if len(set(found)) < chosen:
        raise FrugalbenchError(f"{where}: names an expert twice")
    return found


def drawn(routing: str, tokens: int, experts: int, chosen: int, random: np.random.Generator) -> np.ndarray:
    """T x K different experts per token, as ``routing`` says.

    ``uniform`` draws without preference; ``zipf-S`` by weights 1 / rank^S, ranks dealt to experts at random, without
    replacement; ``one`` sends every token to the same K. A trace gives its first tokens.
    """
    if routing.startswith(TRACE):
        path = Path(routing.removeprefix(TRACE))
        found = read_trace(path, experts, chosen)
        if len(found) < tokens:
            raise FrugalbenchError(f"{path}: a trace of {len(found)} tokens; the regime takes {tokens}")
        return found[:tokens]
    order = random.permutation(experts)
    if routing == ONE:
        return np.tile(order[:chosen], (tokens, 1))
    skew = float(routing.removeprefix(ZIPF)) if routing.startswith(ZIPF) else 0.0
    # the K largest of log(weight) + Gumbel noise are a draw without replacement (Gumbel's trick; Vieira 2014)
    noise = random.gumbel(size=(tokens, experts)) - skew * np.log(np.arange(1, experts + 1))
    return np.asarray(order[np.argsort(-noise, axis=1)[:, :chosen]])


@lru_cache(maxsize=256)
def capacity(factor: float, tokens: int, experts: int, chosen: int) -> int:
    """Most token copies that an expert takes of a batch: ceil(factor · T · K / E), exact in the decimal as written.

    The rule of GShard (arXiv 2006.16668, section 2.2) and, for one expert per token, Switch (arXiv 2101.03961,
    equation 3), over the whole batch as one group.
    """
    return math.ceil(Fraction(str(factor)) * tokens * chosen / experts)


def kept(chosen_TK: np.ndarray, most: int) -> np.ndarray:
    """T x K: whether a choice is computed when no expert takes more than ``most``.

    Places go to all first choices in the order of the tokens, then to all second ones, and so on; who finds an
    expert full is dropped. The other choices of that token keep their weights (GShard, algorithm 1).
    """
    by_rank = np.asarray(chosen_TK).T.ravel()
    order = np.argsort(by_rank, kind="stable")
    expert_S = by_rank[order]
    place_S = np.arange(len(expert_S)) - np.searchsorted(expert_S, expert_S)
    found = np.empty(len(expert_S), bool)
    found[order] = place_S < most
    return np.asarray(found.reshape(np.asarray(chosen_TK).T.shape).T)


def steered(x_TD: np.ndarray, router_ED: np.ndarray, chosen_TK: np.ndarray, ranked: bool = False) -> np.ndarray:
    """Float32 tokens that the router sends where ``chosen_TK`` says, each the nearest such to the given one.

    The logits of all experts keep their place, those of the chosen ones are raised above the highest of the others
    by a margin, ``ranked`` in the order of ``chosen_TK``; the pseudo-inverse gives the shortest change of the token.
    Needs no more experts than widths.
    """
    router = router_ED.astype(np.float64)
    if len(router) > router.shape[1]:
        raise FrugalbenchError(
            f"a chosen routing needs at least as many widths ({router.shape[1]}) as experts ({len(router)}); "
            "raise 'scale' or use routing = 'router'"
        )
    logits_TE = x_TD.astype(np.float64) @ router.T
    wanted_TE = logits_TE.copy()
    rows = np.arange(len(x_TD))[:, None]
    others = logits_TE.copy()
    others[rows, chosen_TK] = -np.inf
    top_T = np.where(np.isfinite(others).any(axis=1), others.max(axis=1), 0.0)
    if ranked:
        wanted_TE[rows, chosen_TK] = top_T[:, None] + _MARGIN + _STEP * np.arange(chosen_TK.shape[1])[::-1]
    else:
        wanted_TE[rows, chosen_TK] = np.maximum(logits_TE[rows, chosen_TK], top_T[:, None]) + _MARGIN
    change_TD = np.linalg.solve(router @ router.T, (wanted_TE - logits_TE).T).T @ router
    return np.asarray(x_TD + change_TD, dtype=np.float32)
