"""The command line: parses, calls one verb, turns a problem into one or two lines and an exit code.

0 done (capped and skipped cases included), 1 done but a case failed or something regressed, 2 the request is wrong,
3 nothing here can run it, 130 interrupted. Nothing heavy is imported here, so that help answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from frugalbench import __version__

_FORMATS = ("terminal", "md", "csv", "parquet", "json", "latex", "html")


def entry() -> None:
    """The ``frugalbench`` console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    from frugalbench.schema import FrugalbenchError

    try:
        verb = import_module(f"frugalbench.cli.{arguments.module}")
        code: int = verb.main(arguments)
        sys.stdout.flush()
    except FrugalbenchError as problem:
        print(f"frugalbench: {_shown(str(problem))}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("frugalbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except OSError as problem:
        _silence_stdout()
        where = _shown(str(problem.filename or "standard output"))
        print(f"frugalbench: {where}: {problem.strerror}; nothing measured is lost", file=sys.stderr)
        return 1
    return code


def _shown(text: str) -> str:
    """A message as a terminal may print it: three lines at most, whatever of it came from a file."""
    from frugalbench.untrusted import shown

    return "\n".join(shown(line, 1000) for line in text.split("\n")[:3])


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="frugalbench",
        description="Measure efficiency claims about AI systems on this machine, with a verdict each.",
    )
    parser.add_argument("--version", action="version", version=f"frugalbench {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _doctor(commands)
    _claims(commands)
    _plan(commands)
    _run(commands)
    _verdicts(commands)
    _report(commands)
    _explain(commands)
    _query(commands)
    _compare(commands)
    _history(commands)
    _simulate(commands)
    _selftest(commands)
    _versus(commands)
    _portability(commands)
    _bisect(commands)
    _submit(commands)
    _check(commands)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(module=name)
    command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return command


def _doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "doctor", "what this machine can and cannot measure, and how to get what is missing")
    command.add_argument("--deep", action="store_true", help="also run short probes, each in a child with a time limit")


def _claims(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _command(commands, "claims", "the claims with sources and thresholds, and which workload tests each")


def _selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="path, or name of a shipped config (smoke, cpu, …)")
    command.add_argument("--only", metavar="GLOB", help="only the comparisons or cases whose id matches")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a config key: measure.rounds=5, workload.moe_ffn.scale=0.25",
    )
    command.add_argument(
        "--allow-code", action="store_true", help="run code that the config names: workloads of one's own, commands"
    )
    command.add_argument("--seed", type=int, help="seed of inputs, weights and orders")
    command.add_argument("--device", help="cpu or cuda, for every workload")
    command.add_argument(
        "--time-budget",
        type=float,
        metavar="S",
        help="seconds that measuring may take; exports and compilations not cached yet come on top, once",
    )


def _plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _selection(
        _command(commands, "plan", "the cases that a config expands to here, with FLOPs and bytes; runs nothing")
    )


def _run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "run", "measure a config into a run directory and print its verdicts")
    _selection(command)
    command.add_argument("--out", metavar="DIR", help="the run directory (default: runs/NAME-TIME)")
    command.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _cluster(command)


def _cluster(command: argparse.ArgumentParser) -> None:
    """What ``run`` takes to measure on the machines of a cluster."""
    group = command.add_argument_group("on the machines of a cluster, each by itself")
    group.add_argument(
        "--on", metavar="WHERE", help="ray (the cluster of this machine), ray://HOST:10001, slurm, or submitit-local"
    )
    group.add_argument("--nodes", type=int, metavar="N", help="so many machines (all)")
    group.add_argument(
        "--wait", type=float, metavar="S", help="seconds that a machine may stay in others' hands (without an end)"
    )
    group.add_argument("--partition", metavar="NAME", help="of Slurm")
    group.add_argument("--constraint", metavar="LIST", help="features that a node of Slurm must have")
    group.add_argument(
        "--on-option", metavar="KEY=VALUE", action="append", default=[], help="a parameter of submitit: account=lab"
    )


def _verdicts(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "verdicts", "the verdict table of stored runs")
    command.add_argument("runs", metavar="RUN", nargs="+", help="run directories")
    command.add_argument("--format", choices=("terminal", "md"), default="terminal", help="md: Markdown (terminal)")
    command.add_argument("--brief", action="store_true", help="one line per claim")
    command.add_argument(
        "--splice", metavar="FILE", help="write the table between FILE's markers instead of printing it"
    )


def _report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "report", "everything that stored runs hold, in one of several formats")
    command.add_argument("runs", metavar="RUN", nargs="+", help="run directories; pytest-benchmark JSON, or a folder")
    command.add_argument("--format", choices=_FORMATS, default="terminal", help="parquet needs --output (terminal)")
    command.add_argument(
        "--output", metavar="PATH", help="file to write; a folder for every table, samples too, as csv, parquet or json"
    )


def _explain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "explain", "from the verdicts of one claim back to the samples they rest on")
    command.add_argument("run", metavar="RUN", help="run directory")
    command.add_argument("claim", metavar="CLAIM", help="id of a claim, as `frugalbench claims` lists them")
    command.add_argument("--regime", metavar="R", help="only this regime")
    command.add_argument("--arm", metavar="A", help="only as_shipped, best, or this candidate")
    command.add_argument("--samples", action="store_true", help="also every round's values")


def _query(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "query", "SQL over the tables of stored runs: metrics, records, samples, verdicts …")
    command.add_argument("runs", metavar="RUN", nargs="+", help="run directories, or addresses such as s3://bucket/run")
    command.add_argument("sql", metavar="SELECT", help="one query; results/README.md lists tables and columns")
    command.add_argument("--format", choices=("terminal", "csv", "json"), default="terminal", help="of the answer")


def _compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "compare", "two runs, case by case: what became slower or faster")
    command.add_argument("base", metavar="BASE", help="run directory; JSON of pytest-benchmark, or a folder of it")
    command.add_argument("new", metavar="NEW", help="the same, held against BASE")
    command.add_argument(
        "--fail-above",
        type=float,
        metavar="PCT",
        help="exit 1 when a case is surely slower, and by more than PCT percent",
    )
    command.add_argument(
        "--gates",
        default="all",
        metavar="LIST",
        help="what exits 1 without any statistics, separated by commas: status, work, bytes, memory, placement, "
        "accuracy, conformance (default: all; none)",
    )
    command.add_argument("--format", choices=("terminal", "md"), default="terminal", help="md: for a job's summary")
    command.add_argument("--junit", metavar="FILE", help="also write JUnit XML: a regression is a failed test")


def _history(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "history", "one metric over many runs, and where its level changes")
    command.add_argument("folder", metavar="DIR", help="folder of run directories")
    command.add_argument("--metric", default="token_per_s", metavar="NAME", help="a column of the report (token_per_s)")
    command.add_argument("--case", default="*", metavar="GLOB", help="only the cases whose id matches")
    command.add_argument("--format", choices=("terminal", "html"), help="html: a page with charts; needs --output")
    command.add_argument("--output", metavar="FILE", help="file to write; a page where its name ends in .html")


def _simulate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "simulate", "throughput of a modelled cluster over its size; measures nothing")
    command.add_argument(
        "cluster", metavar="CLUSTER", nargs="?", help="path, or name of a shipped cluster (uniform, fragmented, …)"
    )
    command.add_argument(
        "more", metavar="CLUSTER", nargs="*", default=[], help="further clusters beside it, in the tables and the chart"
    )
    command.add_argument(
        "--chart", metavar="FILE", help="draw curves over the size with their intervals: a page (.html), or an .svg"
    )
    command.add_argument(
        "--against",
        metavar="POINTS.csv",
        help="predict every published figure of a CSV file, with intervals; 'shipped' names the package's own file",
    )
    command.add_argument("--format", choices=("terminal", "md"), default="terminal", help="of --against")
    command.add_argument("--model", metavar="NAME", help="train this published shape instead, cut in the fastest ways")
    command.add_argument("--devices", type=int, metavar="N", help="of --model and --events; the file's unless given")
    for flag, what in (("tp", "tensor"), ("pp", "pipeline"), ("dp", "data"), ("ep", "expert")):
        command.add_argument(f"--{flag}", type=int, metavar="N", help=f"degree of {what} parallelism, with --model")
    command.add_argument("--cp", type=int, metavar="N", help="with --model: ranks that share a sequence (1)")
    command.add_argument("--sequence", type=int, metavar="N", help="with --model: tokens of a sequence (4096)")
    command.add_argument("--zero", type=int, choices=(1, 2, 3), help="with --model: stage of ZeRO (1)")
    command.add_argument("--schedule", choices=("1f1b", "zb-h1", "zb-h2"), help="with --model: of the pipeline (1f1b)")
    _events(command)


def _events(command: argparse.ArgumentParser) -> None:
    """What ``simulate --events`` takes."""
    command.add_argument(
        "--events", action="store_true", help="play a cluster or a scene (mixed, two-jobs, …) event by event"
    )
    command.add_argument("--steps", type=int, metavar="N", help="with --events: training steps")
    command.add_argument("--seed", type=int, metavar="N", help="with --events: seed of stragglers and failures")
    command.add_argument("--split", choices=("equal", "proportional"), help="with --events: tokens of unlike devices")
    command.add_argument(
        "--stragglers", type=float, metavar="S", help="with --events: spread of steps between devices (0.05: 5%%)"
    )
    command.add_argument("--unfolded", action="store_true", help="with --events: play every device by itself")


def _selftest(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "selftest", "this machine's false-alarm rate and smallest detectable effect")
    command.add_argument("--device", help="cpu (the default), cuda, or sim: a simulated one, with planted mistakes")
    command.add_argument(
        "--quick", action="store_true", help="2 minutes (sim: 40 s) instead of 15: idle only, nothing live"
    )
    command.add_argument(
        "--time-budget", type=float, metavar="S", help="seconds instead of 900, or of 120 with --quick"
    )
    command.add_argument("--out", metavar="DIR", help="where the records go (default: the user's state directory)")


def _versus(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "versus", "callables or commands against each other, turn by turn, without a config")
    command.add_argument(
        "arms", metavar="ARM", nargs="+", help="file.py:function or module:function; a command line with --command"
    )
    command.add_argument("--command", action="store_true", help="the arms are command lines")
    command.add_argument(
        "--setup",
        metavar="F",
        action="append",
        default=[],
        help="file.py:function called once in each fresh process; what it returns is passed to the arm. "
        "Once for all arms, or once for each",
    )
    command.add_argument(
        "--env",
        metavar="DIR",
        action="append",
        default=[],
        help="virtual environment, or folder of pip install --target, that the arm imports from first: once for each "
        "arm, or several for one arm (base against head)",
    )
    command.add_argument("--check", action="store_true", help="stop unless all arms return the same value")
    command.add_argument("--time-budget", type=float, default=60.0, metavar="S", help="seconds at most (60)")
    command.add_argument(
        "--replicates", type=int, default=24, metavar="N", help="fresh starts of each arm at most (24)"
    )
    command.add_argument("--threads", type=int, metavar="N", help="threads of torch, BLAS and OpenMP (all cores)")
    command.add_argument("--seed", type=int, default=1, help="seed of the order of turns")
    command.add_argument(
        "--fail-above", type=float, metavar="PCT", help="exit 1 when an arm is surely slower than the first by more"
    )
    command.add_argument("--ignore-failure", action="store_true", help="with --command: time failing commands as well")
    command.add_argument("--out", metavar="DIR", help="keep the run directory here")


def _model(command: argparse.ArgumentParser) -> None:
    """What every command on one ONNX file takes."""
    command.add_argument("model", metavar="MODEL.onnx", help="path of the file")
    command.add_argument(
        "--dim", metavar="NAME=N", action="append", default=[], help="size of a free dimension: --dim batch=8"
    )
    command.add_argument("--input", metavar="FILE.npz", help="inputs by name, instead of made ones")
    command.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    command.add_argument("--threads", type=int, metavar="N", help="threads of each backend (all cores)")
    command.add_argument("--seed", type=int, default=1, help="seed of the inputs that are made")


def _portability(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "portability", "one ONNX model through every backend here, and what stops it moving")
    _model(command)
    command.add_argument("--backends", metavar="NAME", nargs="+", help="only these (default: all that are installed)")
    command.add_argument("--time-budget", type=float, default=90.0, metavar="S", help="seconds at most (90)")
    command.add_argument("--replicates", type=int, default=4, metavar="N", help="fresh starts of each backend (4)")
    command.add_argument("--nodes", action="store_true", help="list every node that each backend executed")
    command.add_argument("--out", metavar="DIR", help="keep the run directory here")


def _bisect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "bisect", "the first node of an ONNX model that a backend computes wrongly")
    _model(command)
    command.add_argument("--backend", metavar="NAME", default="onnxruntime", help="which runtime (onnxruntime)")
    command.add_argument("--tolerance", type=float, metavar="E", help="largest error over rms (by format and depth)")
    command.add_argument(
        "--against", metavar="OTHER.onnx", help="hold values of equal names against this model's, such as the original"
    )


def _submit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "submit", "pack a run into one checked file, without what identifies its owner")
    command.add_argument("run", metavar="RUN", help="a run directory")
    command.add_argument("--out", metavar="FILE", help="file to write (default: RUN_ID.frugalbench.zip here)")
    command.add_argument("--page", action="store_true", help="put the report's page in as well")
    command.add_argument("--yes", action="store_true", help="write without asking")


def _check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(commands, "check", "whether a submitted file may be trusted, and each reason against it")
    command.add_argument("file", metavar="FILE", help="what `frugalbench submit` wrote on some machine")
    command.add_argument("--unpack", metavar="DIR", help="when it is accepted, write its run directory here")


if __name__ == "__main__":
    entry()
