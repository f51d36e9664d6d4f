"""``frugalbench simulate CLUSTER --events``: a scene played event by event."""

import argparse
import math

import msgspec

from frugalbench.cli import output
from frugalbench.cluster.events import LinkUse, RankUse
from frugalbench.cluster.ranges import Range
from frugalbench.cluster.scene import Scene, Stragglers, checked, load_scene
from frugalbench.cluster.scene_run import JobPlayed, ScenePlayed, play
from frugalbench.report.tables import Cell, Table
from frugalbench.units import DASH, seconds, share, significant

MOST_ROWS = 12
"""Links and ranks shown; ``--json`` has all."""
_JOBS = ("job", "devices", "step mean", "median", "p95", "longest", "token/s", "kept", "waiting", "J/step", "useful")
_LINKS = ("link", "copies", "rate B/s", "carried bytes", "busy", "of rate", "waiting")
_RANKS = ("rank", "copies", "computing", "waiting", "busy")


def main(arguments: argparse.Namespace) -> int:
    """Play a scene, or a cluster on which nothing happens, and print steps, throughput, links and ranks."""
    scene = _wanted(load_scene(arguments.cluster), arguments)
    show = output.progress()
    heavy = arguments.unfolded or scene.steps > 100
    if heavy:
        show(f"playing {scene.steps} steps of {scene.size()} devices, four times: centre, both ends, reference")
    played = play(scene, alike=not arguments.unfolded)
    if heavy:
        output.end_progress()
    if arguments.json:
        output.print_json(played)
        return 0
    _print(played)
    return 0


def _wanted(scene: Scene, arguments: argparse.Namespace) -> Scene:
    """The scene with what the command line changes."""
    given = {name: getattr(arguments, name) for name in ("devices", "steps", "seed", "split")}
    changes = {name: value for name, value in given.items() if value is not None}
    if arguments.stragglers is not None:
        old = scene.stragglers
        changes["stragglers"] = Stragglers(
            spread=arguments.stragglers, pause_share=old.pause_share, pause_s=old.pause_s
        )
    return checked(msgspec.structs.replace(scene, **changes), scene.name) if changes else scene


def _print(played: ScenePlayed) -> None:
    from frugalbench.report.terminal import table_terminal

    for table in (_jobs(played), _ranks(played), _links(played)):
        print(table_terminal(table), end="")
    for job in played.jobs:
        low, high = (share(item) for item in job.kept_at_ends)
        output.say(f"{job.name}: kept {share(job.kept)} of {job.reference} ({low} and {high} at the inputs' ends)")
        if job.survived:
            output.say(
                f"{job.name}: {job.survived.failures} failures in {job.survived.days:g} days leave "
                f"{share(job.survived.useful_share)} of the time useful"
            )
    output.say(f"{played.events:,} events; {played.leaves} of {played.devices} devices differ; seed {played.seed}")
    print("Everything above is modelled. Assumed inputs, each with its range in the scene's or the cluster's file:")
    for line in played.assumptions:
        output.say(f"  {line}")


def _jobs(played: ScenePlayed) -> Table:
    title = f"{played.scene}: {played.says} (modelled; value [low, high])"
    return _table(title, _JOBS, 1, [_job(job) for job in played.jobs])


def _job(job: JobPlayed) -> tuple[str, ...]:
    times = job.step_s
    return (
        job.name,
        str(job.devices),
        *(seconds(item) for item in (times.mean_s, times.median_s, times.p95_s, times.longest_s)),
        _range(job.token_per_s),
        share(job.kept),
        share(job.waiting_share),
        DASH if job.device_j is None else _range(job.device_j),
        DASH if job.survived is None else share(job.survived.useful_share),
    )


def _links(played: ScenePlayed) -> Table:
    shown = sorted(played.links, key=lambda link: -link.busy_s)[:MOST_ROWS]
    title = f"Links, the busiest {len(shown)} of {len(played.links)}; per copy"
    return _table(title, _LINKS, 1, [_link(link, played.duration_s) for link in shown])


def _link(link: LinkUse, duration_s: float) -> tuple[str, ...]:
    used = link.carried_bytes / (link.bytes_per_s * duration_s) if duration_s else math.nan
    return (
        link.name,
        str(link.copies),
        _short(link.bytes_per_s),
        _short(link.carried_bytes),
        share(link.busy_s / duration_s),
        share(used),
        seconds(link.waiting_s) if link.waiting_s else DASH,
    )


def _ranks(played: ScenePlayed) -> Table:
    shown = sorted(played.ranks, key=lambda rank: rank.waiting_s)[:MOST_ROWS]
    title = f"Ranks, those that wait least, {len(shown)} of {len(played.ranks)}; the slowest of its copies each"
    return _table(title, _RANKS, 1, [_rank(rank, played.duration_s) for rank in shown])


def _rank(rank: RankUse, duration_s: float) -> tuple[str, ...]:
    busy = share(rank.busy_s / duration_s)
    return (rank.name, str(rank.copies), seconds(rank.busy_s), seconds(rank.waiting_s), busy)


def _table(title: str, names: tuple[str, ...], texts: int, rows: list[tuple[str, ...]]) -> Table:
    columns = tuple((name, number >= texts) for number, name in enumerate(names))
    return Table(title=title, columns=columns, rows=tuple(tuple(Cell(text) for text in row) for row in rows))


def _range(figure: Range) -> str:
    value, low, high = (_short(number) for number in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def _short(number: float) -> str:
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{significant(number / factor, 2)}{suffix}"
    return significant(number, 2)
