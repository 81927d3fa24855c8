"""One file a subcommand: read the arguments, call one pipeline function, show the result."""
