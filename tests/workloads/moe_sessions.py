"""Sessions of the expert layer's arms at small shapes, as a worker has them, for the tests beside this file."""

import time

from frugalbench.run import protocol
from frugalbench.run.worker import Session
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs.base import Settings
from workloads.fake_machine import Machine

SEED = 11


class Bench:
    """The arms of one comparison; references are kept in ``scratch``, as in a run."""

    def __init__(self, scratch, **options):
        self.scratch = str(scratch)
        made = spec.expand(Settings("moe_ffn", "cpu", 2, SEED, options), Machine())
        self.arms = {arm.cases[0].variant: arm for arm in made.comparisons[0].arms}

    def case(self, variant, regime):
        return next(case for case in self.arms[variant].cases if case.regime == regime)

    def load(self, variant):
        """A session with its arm loaded."""
        job = protocol.Job(
            arm=self.arms[variant], seed=SEED, threads=2, device="cpu", cache_dir=self.scratch,
            scratch_dir=self.scratch, start_s=time.monotonic(),
        )  # fmt: skip
        session = Session(job)
        session.paths = session.answer(protocol.Reference()).paths
        session.reply = session.answer(protocol.Load())
        assert session.reply.problems == {}
        return session

    def verify(self, session, variant, regime):
        name = self.case(variant, regime).id
        return session.answer(protocol.Verify(name, session.paths[name], 60.0))

    def passes(self, session, variant, regime):
        reply = self.verify(session, variant, regime)
        return isinstance(reply, protocol.Verified) and reply.verification.passed
