"""`python -m umamba_cli` is `umamba`."""

from umamba_cli.cli import main

if __name__ == "__main__":
    main()
