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
    from frugalbench.cli.floor import floor_of, self_test_of
    from frugalbench.plan import DEVICES

    floor = f"{floor_of(fingerprint):.2%}"
    lines = []
    for device in DEVICES:
        if found := self_test_of(fingerprint, device):
            how = ", quick" if found.get("quick") else ""
            lines.append(f"Self-test ({device}, {str(found.get('ended', ''))[:10]}{how}): {found.get('sentence', '')}")
    if lines:
        return "\n".join([*lines, f"Intervals are widened by {floor} on each ratio."])
    return f"Never self-tested (`frugalbench selftest`): intervals are widened by a default of {floor} on each ratio."
