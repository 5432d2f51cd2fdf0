"""The command ``coalora``. If the extra ``book`` is missing, it says what to install."""

import sys


def main() -> None:
    """Run the command line; exit status 2 if its packages are not installed."""
    try:
        from coalora_lib.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("coalora_lib"):
            raise
        missing = f"coalora: the package {error.name!r} is missing"
        print(f'{missing}; install it with: pip install "coalora-lib[book]"', file=sys.stderr)
        sys.exit(2)
    app(prog_name="coalora")


if __name__ == "__main__":
    main()
