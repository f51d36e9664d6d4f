"""Results that travel: one checked file out of a run, and what is asked of such a file from a stranger."""
