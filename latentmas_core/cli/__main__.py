"""``python -m latentmas_core.cli``."""

from latentmas_core.cli.app import main

main()
