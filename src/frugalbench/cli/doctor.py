"""``frugalbench doctor``."""

import argparse
import sys

from frugalbench.cli import output


def main(arguments: argparse.Namespace) -> int:
    """Say what can be measured here, what cannot, and how to get it."""
    from frugalbench.machine import Machine, capabilities, deep_probes

    machine = Machine.detect()
    found = capabilities(machine)
    probes = []
    if arguments.deep:
        print("frugalbench: running probes, each in a child with a time limit …", file=sys.stderr)
        probes = deep_probes()
    if arguments.json:
        output.print_json(
            {
                "machine": machine.describe(),
                "capabilities": found,
                "probes": probes,
                "self_test": self_test(machine.fingerprint),
            }
        )
        return 0
    print(machine.name)
    for item in found:
        print(f"  {'yes' if item.can else 'no ':3} {item.what}: {item.detail}")
        if item.remedy and not item.can:
            print(f"        get it: {item.remedy}")
    for probe in probes:
        print(f"  {'yes' if probe.ok else 'no ':3} {probe.name}: {probe.detail} ({probe.time_s:.1f} s)")
    print(self_test(machine.fingerprint))
    return 0


def self_test(fingerprint: str) -> str:
    """What is known of this machine's false-alarm rate."""
    from frugalbench.cli.session import floor_of
    from frugalbench.paths import state_dir

    floor = f"{floor_of(fingerprint):.1%}"
    if (state_dir() / f"selftest-{fingerprint}.json").exists():
        return f"Self-tested: intervals are widened by {floor} on each ratio."
    return f"Never self-tested: intervals are widened by a default of {floor} on each ratio."
