"""The advisor: short probes of the user's own base, data and hardware, and a verdict that follows from them alone."""
