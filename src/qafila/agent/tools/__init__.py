"""The tools that Qafila brings along."""
