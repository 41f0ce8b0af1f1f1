"""One file per command: a configuration and a `main` each; the only rooms that assemble."""
