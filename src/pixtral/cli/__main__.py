"""`python -m pixtral.cli` is the `pixtral` command."""

from pixtral.cli.main import main

main()
