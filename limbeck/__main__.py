"""`python -m limbeck`, as torchrun wants it."""

from limbeck.cli import main

main()
