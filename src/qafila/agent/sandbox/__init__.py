"""Untrusted commands, run in a copy of the workspace without network, home or secrets; fails closed."""
