"""`python -m cai` is the command `cai`."""

from cai.cli import main

main()
