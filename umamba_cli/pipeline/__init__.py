"""The library behind the commands: it never prints, never exits, and imports neither typer nor rich."""
