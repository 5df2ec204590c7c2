"""`python -m xpnn` is the command `xpnn`."""

from xpnn.cli import main

if __name__ == "__main__":
    main()
