"""One plan over the machines of a cluster that is there already: one machine, one worker set, one run directory."""
