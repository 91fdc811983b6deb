"""Entry point of ``python -m bids_harmony``."""

from bids_harmony.cli.run import command

if __name__ == "__main__":
    command()
